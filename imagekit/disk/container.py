"""Container: what all files that hold a disk have in common: reads within their bounds, and the map of their disk.

Whatever such a file says is checked against how large it is, and nothing of it may serve twice; no other file is ever
opened, whatever name it may hold.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit.disk.sparse import SECTOR, Packed, Piece, Sparse
from imagekit.errors import Problem
from imagekit.store import Spoiled
from imagekit.tree import CHANGED, Slice

MAX_PIECES = 1 << 19  # runs of one disk that are told apart: what a map of them takes is some 200 MiB


class File(NamedTuple):
    """A file that somebody made, or a part of one, as its reader sees it."""

    path: str
    kind: str  # "qcow2", for messages
    start: int
    size: int

    def wrong(self, what: str, hint: str = "") -> Problem:
        """The Problem to raise when the file is not what it should be."""
        return Problem(f"{self.path}: no {self.kind} that can be read: {what}", hint)

    def slice(self, at: int, size: int, *, what: str) -> Slice:
        """Where `size` bytes from `at` on lie; raises Problem when the file has no such bytes."""
        if at < 0 or size < 0 or at + size > self.size:
            raise self.wrong(f"{what} ({size} bytes at {at}) lies beyond its end, at {self.size}", "is it complete?")
        return Slice(self.path, self.start + at, size)

    def read(self, at: int, size: int, *, what: str) -> bytes:
        """`size` bytes from `at` on; raises Problem when the file has no such bytes."""
        return self.slice(at, size, what=what).read()


def file(path: Path, kind: str) -> File:
    """A file to be read; raises Problem unless it is an ordinary one, for others may never end."""
    try:
        found = path.stat()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(found.st_mode):
        raise Problem(f"{path} is no ordinary file", "copy it to one first")
    return File(os.fspath(path), kind, 0, found.st_size)


@dataclass
class Map:
    """What a disk consists of, told in the disk's order; neighbours that are so in the file too become one piece."""

    file: File
    size: int  # bytes of the disk; what lies beyond is cut off
    pieces: list[Piece] = field(default_factory=list)
    used: list[tuple[int, int]] = field(default_factory=list)  # (from, to) of the file

    def use(self, at: int, size: int, *, what: str) -> None:
        """Note that these bytes of the file serve one purpose."""
        self.file.slice(at, size, what=what)
        if self.used and self.used[-1][1] == at:
            self.used[-1] = (self.used[-1][0], at + size)
        else:
            self.used.append((at, at + size))

    def add(self, offset: int, at: int, size: int, *, what: str) -> None:
        """Say that `size` bytes of the disk from `offset` on lie at `at` of the file."""
        size = min(size, self.size - offset)
        self.use(at, size, what=what)
        where, last = self.file.start + at, self.pieces[-1] if self.pieces else None
        if last and last.end == offset and isinstance(last.content, Slice) and _end(last.content) == where:
            self.pieces[-1] = last._replace(content=last.content._replace(size=last.content.size + size))
        else:
            self._add(Piece(offset, Slice(self.file.path, where, size)))

    def add_packed(self, offset: int, packed: Packed) -> None:
        """Say that the disk from `offset` on is what lies packed in the file."""
        self._add(Piece(offset, packed._replace(size=min(packed.size, self.size - offset))))

    def disk(self) -> Sparse:
        """The disk, when all of it is told; raises Problem when bytes of the file were to serve twice."""
        end = 0
        for start, stop in sorted(self.used):
            if start < end:
                raise self.file.wrong(f"what lies at {start} is used twice")
            end = stop
        return Sparse(self.size, tuple(self.pieces))

    def _add(self, piece: Piece) -> None:
        if len(self.pieces) == MAX_PIECES:
            raise self.file.wrong(f"it is in more than {MAX_PIECES} pieces", "let `qemu-img convert` put it in order")
        self.pieces.append(piece)


def _end(content: Slice) -> int:
    return content.offset + content.size


def aligned(size: int, multiple: int) -> int:
    """`size`, or the next number that is a multiple of `multiple`."""
    return -(-size // multiple) * multiple


def whole(disk: Sparse, *, multiple: int = SECTOR, most: int, kind: str) -> Sparse:
    """The disk with zeros at its end, so that it has whole sectors, as all containers want it.

    Raises Problem for a disk that is empty, or larger than `most`.
    """
    size = aligned(disk.size, multiple)
    if not 0 < size <= most:
        raise Problem(f"a disk of {disk.size} bytes cannot be a {kind}", f"it holds 1 to {most} bytes")
    return replace(disk, size=size)


def again(disk: Sparse, filled: Iterable[int], size: int) -> Iterator[bytes]:
    """The blocks of `size` bytes that `disk.places` told of before, whole; raises Spoiled when others are filled."""
    found = disk.filled(size)
    for number in filled:
        offset, data = next(found, (-1, b""))
        if offset != number * size:
            raise Spoiled("a disk that is being written is not what it was a moment ago", CHANGED)
        yield data.ljust(size, b"\0")
    if next(found, None) is not None:
        raise Spoiled("a disk that is being written is not what it was a moment ago", CHANGED)


def identity(disk: Sparse) -> str:
    """What the ids in a container derive from: the disk's size and first 34 sectors.

    There lies the partition table with its own ids, which derive from all that the image holds; to hash a whole disk
    for the sake of an id would read it twice.
    """
    return sha256(b"%d " % disk.size + disk.read(0, 34 * SECTOR)).hexdigest()
