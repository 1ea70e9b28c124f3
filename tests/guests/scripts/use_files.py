"""use_files.py DIRECTORY: builds, walks and removes a tree there."""

import os
import pathlib
import shutil
import sys
import tempfile

top = pathlib.Path(sys.argv[1])
top.mkdir()
for i in range(30):
    directory = top / f"d{i % 3}" / f"e{i % 5}"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"f{i}.txt").write_text(f"file {i}\n" * i)
shutil.copytree(top / "d0", top / "copy")
os.rename(top / "d1", top / "moved")
os.symlink("copy", top / "alias")
os.link(top / "copy" / "e0" / "f0.txt", top / "hard")
for directory, names, files in sorted(os.walk(top)):
    print(
        os.path.relpath(directory, top),
        sorted(names),
        [(f, os.stat(os.path.join(directory, f)).st_size) for f in sorted(files)],
    )
print(sorted(p.name for p in top.glob("**/f1*.txt")))
with tempfile.NamedTemporaryFile(dir=top) as temporary:
    temporary.write(b"temporary")
    temporary.flush()
    print(os.path.getsize(temporary.name))
with open(top / "big", "w+b") as big:
    big.truncate(1 << 20)
    big.seek(500000)
    big.write(b"middle")
    big.seek(499998)
    print(big.read(10))
for call in (
    lambda: open(top / "missing"),
    lambda: os.mkdir(top / "copy"),
    lambda: os.rmdir(top / "copy"),
    lambda: os.listdir(top / "hard"),
    lambda: os.readlink(top / "hard"),
):
    try:
        call()
    except OSError as error:
        print(type(error).__name__, error.strerror)
shutil.rmtree(top)
print(top.exists())
