import faulthandler
import os
import signal
import sys

got = []
signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))
os.kill(os.getpid(), signal.SIGUSR1)
signal.raise_signal(signal.SIGUSR1)
print(got == [signal.SIGUSR1] * 2)
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
print(signal.getsignal(signal.SIGPIPE))
reader, writer = os.pipe()
os.write(writer, b"through a pipe")
print(os.read(reader, 100))
os.close(reader)
try:
    os.write(writer, b"x")
except BrokenPipeError as error:
    print(error)
print(faulthandler.is_enabled())
sys.stdout.flush()
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.kill(os.getpid(), signal.SIGTERM)
print("not reached")
