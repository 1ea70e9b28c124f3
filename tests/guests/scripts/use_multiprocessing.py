"""Processes that talk by AF_UNIX sockets: every start method of multiprocessing, a manager, a shared queue."""

import multiprocessing
import multiprocessing.connection


def square(number):
    return number * number


def fill(shared, names, lock):
    with lock:
        shared["a"] = 1
        names.append("b")


def serve(address, count):
    with multiprocessing.connection.Listener(address, backlog=4) as listener:
        for _ in range(count):
            with listener.accept() as connection:
                connection.send(connection.recv()[::-1])


if __name__ == "__main__":
    for method in ("fork", "spawn", "forkserver"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(square, range(10)))
    with multiprocessing.Manager() as manager:
        shared, names, lock = manager.dict(), manager.list(), manager.Lock()
        workers = [
            multiprocessing.Process(target=fill, args=(shared, names, lock)) for _ in range(3)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        print(dict(shared), list(names))
    address = "\0kvmlet listener"
    server = multiprocessing.Process(target=serve, args=(address, 5))
    server.start()
    for number in range(5):
        while True:
            try:
                client = multiprocessing.connection.Client(address)
                break
            except ConnectionRefusedError:
                continue
        client.send([number, "x" * 100_000])
        answer = client.recv()
        print(answer[1], len(answer[0]))
        client.close()
    server.join()
    print(server.exitcode)
