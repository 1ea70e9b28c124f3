"""multiprocessing by a fork server, and managers that are asked by a UNIX socket and by TCP."""

import multiprocessing
import multiprocessing.managers


def double(number, shared):
    shared.append(number)
    return 2 * number


class Manager(multiprocessing.managers.SyncManager):
    pass


if __name__ == "__main__":
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["json"])
    with context.Manager() as manager, context.Pool(2) as pool:
        shared = manager.list()
        print(pool.starmap(double, [(n, shared) for n in range(10)]), sorted(shared))
    with Manager(("127.0.0.1", 0), authkey=b"key") as manager:
        names = manager.dict()
        other = Manager(manager.address, authkey=b"key")
        other.connect()
        names["a"] = 1
        print(dict(names), manager.address[0])
