"""A tree as a folder of this machine: for tools that run here and roots that are entered, never to write an image from.

Every folder above an entry was made here, by us, in a place that nobody else can write to; so a name without `..`
cannot leave it, and a symlink of the tree is never followed.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from imagekit.errors import Problem
from imagekit.tree import Entry

STEP = 1 << 16


def write(entries: Iterable[tuple[str, Entry]], folder: Path) -> None:
    """Make `folder` and all entries below it, in their order; a hard link comes after the file that it shares.

    Root gives owners, all mode bits and extended attributes. An ordinary user owns everything and gives the permission
    bits; a user namespace then shows it as root's. Devices are left out: who enters the folder sees the machine's own.
    """
    folder.mkdir(parents=True)
    made = {"": Entry("dir")}
    for path, entry in entries:
        path = path.rstrip("/")
        _check(path, made)
        _parents(path, made, folder)
        old = made.get(path)
        if old is not None and not (old.kind == entry.kind == "dir"):
            raise Problem(f"{path or '/'} comes twice: refused")
        _write(entry, f"{folder}{path}", folder, made)
        made[path] = entry
    for path in sorted(made, key=len, reverse=True):
        if made[path].kind == "dir":
            _finish(made[path], f"{folder}{path}")  # at last: a folder may be read-only


def _check(path: str, made: dict[str, Entry]) -> None:
    parts = path.split("/")[1:]
    if path[:1] not in ("/", "") or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise Problem(f"{path!r} is no path of a tree: refused")
    parent = path
    while parent := parent.rpartition("/")[0]:
        above = made.get(parent)
        if above is not None and above.kind != "dir":
            raise Problem(f"{path} lies below the {above.kind} {parent}: refused")


def _parents(path: str, made: dict[str, Entry], folder: Path) -> None:
    parent = path.rpartition("/")[0]
    if parent not in made:
        _parents(parent, made, folder)
        made[parent] = Entry("dir")
        Path(f"{folder}{parent}").mkdir()


def _write(entry: Entry, target: str, folder: Path, made: dict[str, Entry]) -> None:
    if entry.kind == "dir":
        Path(target).mkdir(exist_ok=True)
    elif entry.kind == "symlink":
        Path(target).symlink_to(entry.target)
    elif entry.kind == "hardlink":
        shared = made.get(entry.target)
        if shared is None or shared.kind != "file":
            raise Problem(f"{target} is a hard link to {entry.target}, which is no file before it: refused")
        Path(target).hardlink_to(f"{folder}{entry.target}")
    elif entry.kind == "file":
        with open(target, "xb") as file:
            _write_sparse(file, entry.content if isinstance(entry.content, bytes) else entry.read())
        _finish(entry, target)
    elif entry.kind == "fifo":
        os.mkfifo(target, entry.mode & 0o777)


def _finish(entry: Entry, target: str) -> None:
    """Owner first: changing it clears the set-id bits."""
    if os.getuid():
        usable = 0o700 if entry.kind == "dir" else 0o400  # its only user must be able to read it, and to remove it
        Path(target).chmod(entry.mode & 0o777 | usable)
        return
    os.chown(target, entry.uid, entry.gid)
    Path(target).chmod(entry.mode)
    for name, value in entry.xattrs:
        with suppress(OSError):  # a file system without them: the folder is for running, not for writing an image
            os.setxattr(target, name, value)


def _write_sparse(file: BinaryIO, data: bytes) -> None:
    """Write all but blocks of zeros: firmware is a few MiB in files of 64."""
    if data.count(0) < STEP:
        file.write(data)
        return
    zeros = bytes(STEP)
    for at in range(0, len(data), STEP):
        block = data[at : at + STEP]
        if block == zeros[: len(block)]:
            file.seek(len(block), os.SEEK_CUR)
        else:
            file.write(block)
    file.truncate(len(data))
