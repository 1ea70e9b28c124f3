import concurrent.futures
import queue
import threading
import time

tasks: queue.Queue = queue.Queue(maxsize=5)
results: list[int] = []
lock = threading.Lock()


def worker() -> None:
    while (item := tasks.get()) is not None:
        with lock:
            results.append(item * item)
        tasks.task_done()


threads = [threading.Thread(target=worker) for _ in range(8)]
for thread in threads:
    thread.start()
for i in range(300):
    tasks.put(i)
tasks.join()
for _ in threads:
    tasks.put(None)
for thread in threads:
    thread.join()
print(sum(results), len(results))

with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(lambda n: sum(range(n)), range(200))))

event = threading.Event()
print(event.wait(0.01))
timer = threading.Timer(0.01, event.set)
timer.start()
print(event.wait())
local = threading.local()
local.value = "main"
seen = []
thread = threading.Thread(target=lambda: seen.append(hasattr(local, "value")))
thread.start()
thread.join()
print(seen, local.value)
barrier = threading.Barrier(3)
order = []
group = [threading.Thread(target=lambda: (barrier.wait(), order.append(1))) for _ in range(3)]
for thread in group:
    thread.start()
for thread in group:
    thread.join()
print(len(order))
start = time.monotonic()
time.sleep(0.02)
print(time.monotonic() - start >= 0.02)
try:
    queue.Queue().get(timeout=0.01)
except queue.Empty:
    print("empty")
