"""A root small enough to make in milliseconds: a shell, cat and sleep of this machine, and their libraries."""

import shutil
from functools import cache
from pathlib import Path

from imagekit import host
from imagekit.tree import Tree, file

PROGRAMS = ("/bin/sh", "/bin/cat", "/bin/sleep")


def files_of(program: Path) -> list[Path]:
    """A program and the libraries that ldd names."""
    return [program, *(Path(word) for word in host.run(["ldd", program]).text.split() if word.startswith("/"))]


def copy_program(program: Path, root: Path) -> None:
    """Copy a program and its libraries below a folder, at the same paths."""
    for source in files_of(program):
        target = Path(f"{root}{source}")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)


@cache
def tree() -> Tree:
    """The small root as a tree."""
    found = {str(path) for program in PROGRAMS for path in files_of(Path(program))}
    entries = {path: file(Path(path).read_bytes(), mode=0o755) for path in found}
    return Tree({**entries, "/etc/hello": file(b"from the image\n", mode=0o600)}).complete()
