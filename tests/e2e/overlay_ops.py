"""Random changes of the current directory's tree, and what came of them: run natively and in a VM.

Arguments: a seed and a number of operations. "host" after them leaves out what the host's own trees
do not have: mappings that change a file, and files without a name. One line for each operation says
what it answered, and one for each file what is there in the end.
"""

import contextlib
import hashlib
import mmap
import os
import random
import shutil
import stat
import sys

SEED, COUNT = int(sys.argv[1]), int(sys.argv[2])
ON_HOST = sys.argv[3:] == ["host"]
RANDOM = random.Random(SEED)
NAMES = ["a", "b", "c", "d", "e", "new\nline", "\udcff\x1b[31m", "f.txt", "x" * 200]
HELD: list[int] = []
READERS: list[object] = []


def some_directory() -> str:
    path = "."
    while RANDOM.random() < 0.65:
        below = [each.name for each in os.scandir(path) if each.is_dir(follow_symlinks=False)]
        if not below or path.count("/") > 5:
            break
        path = os.path.join(path, RANDOM.choice(sorted(below)))
    return path


def some_name() -> str:
    """A path that may exist or not."""
    directory = some_directory()
    there = sorted(os.listdir(directory))
    if there and RANDOM.random() < 0.8:
        return os.path.join(directory, RANDOM.choice(there))
    return os.path.join(directory, RANDOM.choice(NAMES) + RANDOM.choice(["", "1", "2"]))


def some_bytes() -> bytes:
    return RANDOM.randbytes(RANDOM.choice([0, 1, 10, 4095, 4096, 4097, 20000]))


def write(path: str) -> object:
    flags = RANDOM.choice(
        [
            os.O_WRONLY | os.O_CREAT,
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC,
            os.O_WRONLY | os.O_APPEND,
            os.O_RDWR | os.O_CREAT | os.O_EXCL,
            os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW,
        ]
    )
    fd = os.open(path, flags, 0o640)
    try:
        at = RANDOM.choice([0, 1, 4096, 5000, 100_000])
        return os.pwrite(fd, some_bytes(), at)
    finally:
        os.close(fd)


def append(path: str) -> object:
    with open(path, "ab") as file:
        return file.write(some_bytes())


def read(path: str) -> object:
    fd = os.open(path, os.O_RDONLY)
    try:
        data = os.pread(fd, 70_000, RANDOM.choice([0, 100, 4096]))
        return hashlib.sha256(data).hexdigest(), os.fstat(fd).st_size
    finally:
        os.close(fd)


def cut(path: str) -> object:
    os.truncate(path, RANDOM.choice([0, 1, 4096, 5000, 9000, 70_000]))
    return os.stat(path).st_size


def hole(path: str) -> object:
    fd = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(fd, RANDOM.choice([0, 5000]), RANDOM.choice([1, 9000]))
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def by_mapping(path: str) -> object:
    with open(path, "r+b") as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            return None
        private = RANDOM.random() < 0.3 or ON_HOST
        flags = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
        with mmap.mmap(file.fileno(), size, flags=flags) as mapped:
            at = RANDOM.randrange(size)
            mapped[at] = (mapped[at] + 1) % 256
            return hashlib.sha256(mapped).hexdigest()


def rename(path: str) -> None:
    os.rename(path, some_name())


def link(path: str) -> None:
    os.link(path, some_name(), follow_symlinks=False)


def symlink(path: str) -> object:
    target = RANDOM.choice(["a", "b/a", "nowhere", "./", "f0"])
    os.symlink(target, path)
    return os.readlink(path)


def mode(path: str) -> object:
    there = os.lstat(path)
    if stat.S_ISLNK(there.st_mode):
        return None
    least = 0o700 if stat.S_ISDIR(there.st_mode) else 0o600
    os.chmod(path, least | RANDOM.choice([0o000, 0o055, 0o044, 0o077]))
    return stat.S_IMODE(os.stat(path).st_mode)


def times(path: str) -> object:
    os.utime(path, ns=(10**18, RANDOM.randrange(10**18)), follow_symlinks=False)
    return os.lstat(path).st_mtime_ns


def listing(path: str) -> object:
    with os.scandir(path) as entries:
        return sorted((each.name, each.is_dir(follow_symlinks=False)) for each in entries)


def hold(path: str) -> None:
    """Keeps a descriptor for later."""
    HELD.append(os.open(path, os.O_RDONLY))
    if len(HELD) > 8:
        os.close(HELD.pop(0))


def held(_path: str) -> object:
    if not HELD:
        return None
    fd = RANDOM.choice(HELD)
    there = os.fstat(fd)
    if stat.S_ISDIR(there.st_mode):
        return sorted(os.listdir(fd)), there.st_nlink > 0
    digest = hashlib.sha256(os.pread(fd, 200_000, 0)).hexdigest()
    return digest, there.st_nlink, there.st_size, stat.S_IMODE(there.st_mode)


def held_by_link(_path: str) -> object:
    """A descriptor for reading, opened again for writing."""
    if not HELD:
        return None
    fd = os.open(f"/proc/self/fd/{RANDOM.choice(HELD)}", os.O_WRONLY)
    try:
        return os.write(fd, b"again")
    finally:
        os.close(fd)


def held_mode(_path: str) -> object:
    if not HELD:
        return None
    fd = RANDOM.choice(HELD)
    os.fchmod(fd, 0o711)
    return stat.S_IMODE(os.fstat(fd).st_mode)


def same(path: str) -> object:
    """A name and a descriptor of it tell of one file, whatever has been changed."""
    before = os.lstat(path)
    with contextlib.suppress(OSError):
        os.utime(path, ns=(1, 1), follow_symlinks=False)
    after = os.lstat(path)
    return (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino)


def remove_while_listing(path: str) -> object:
    """Each name that was there is met once, whatever goes meanwhile."""
    if path.count("/") < 3:
        return None
    seen = []
    # By a descriptor: one of the names may be a link on the way.
    fd = os.open(path, os.O_RDONLY)
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                seen.append(entry.name)
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.name, dir_fd=fd)
    finally:
        os.close(fd)
    return sorted(seen)


def remove_tree(path: str) -> None:
    if RANDOM.random() < 0.3 and path.count("/") >= 2:
        shutil.rmtree(path)


def copy(path: str) -> object:
    return bool(shutil.copy2(path, some_name(), follow_symlinks=False))


def unnamed(path: str) -> object:
    fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.write(fd, b"unnamed")
        os.link(f"/proc/self/fd/{fd}", path, follow_symlinks=True)
        return os.fstat(fd).st_nlink
    finally:
        os.close(fd)


def in_directory(path: str) -> object:
    """By a working directory."""
    back = os.open(".", os.O_RDONLY)
    try:
        os.chdir(path)
        here = sorted(os.listdir("."))
        with open("in-here", "w") as file:
            file.write("x")
        return here
    finally:
        os.fchdir(back)
        os.close(back)


OPERATIONS = [
    (12, write),
    (6, append),
    (10, read),
    (6, cut),
    (3, hole),
    (6, by_mapping),
    (14, rename),
    (6, link),
    (4, symlink),
    (4, mode),
    (4, times),
    (6, listing),
    (4, hold),
    (6, held),
    (2, held_by_link),
    (2, held_mode),
    (3, same),
    (3, remove_while_listing),
    (2, remove_tree),
    (3, copy),
    (2, unnamed),
    (2, in_directory),
    (8, os.unlink),
    (8, os.rmdir),
    (10, os.mkdir),
]


def tree() -> None:
    groups: dict[tuple[int, int], str] = {}
    for path, names, files in os.walk("."):
        for name in sorted(names + files):
            full = os.path.join(path, name)
            there = os.lstat(full)
            kind = stat.S_IFMT(there.st_mode)
            what: object = None
            if stat.S_ISREG(kind):
                with open(full, "rb") as file:
                    what = hashlib.sha256(file.read()).hexdigest(), there.st_size
            elif stat.S_ISLNK(kind):
                what = os.readlink(full)
            links = None if stat.S_ISDIR(kind) else there.st_nlink
            first = groups.setdefault((there.st_dev, there.st_ino), full)
            print(ascii((full, kind, stat.S_IMODE(there.st_mode), links, first, what)))
        names.sort()


def main() -> None:
    kept = [each for each in OPERATIONS if not (ON_HOST and each[1] in (unnamed, held_by_link))]
    weights, operations = zip(*kept, strict=True)
    for number in range(COUNT):
        (operation,) = RANDOM.choices(operations, weights)
        path = some_name()
        try:
            answer: object = operation(path)
        except OSError as error:
            answer = f"errno {error.errno}"
        except shutil.Error as error:
            answer = type(error).__name__
        print(number, operation.__name__, ascii(path), ascii(answer))
    tree()


main()
