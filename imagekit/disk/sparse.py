"""Sparse: the content of a disk as pieces at offsets; what lies between them is zeros.

What makes a disk gives one, what writes it down (raw, qcow2, VHD, ...) takes one, and so does what converts: no zeros
are ever made, kept or compressed for the sake of a disk's size.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple

from imagekit.errors import Defect
from imagekit.store import CHUNK as AT_ONCE
from imagekit.store import LARGE, Reading, Stored
from imagekit.tree import Slice, Tree

CHUNK = 1 << 20  # bytes that are in memory at a time
SECTOR = 512
ZEROS = bytes(CHUNK)
GLANCE = 64  # bytes of a block that are looked at first


class Packed(NamedTuple):
    """Bytes that lie compressed in a file, a few dozen KiB of them: they are unpacked anew whenever they are read."""

    where: Slice
    size: int  # bytes when unpacked, from `skip` on
    unpack: Callable[[bytes], bytes]
    skip: int = 0

    def read(self) -> bytes:
        """The bytes, unpacked."""
        return self.unpack(self.where.read())[self.skip : self.skip + self.size]


class Piece(NamedTuple):
    """Bytes at an offset of a disk: in memory, in a file, or in the store, to be read with all before them."""

    offset: int
    content: bytes | Slice | Packed | Stored

    @property
    def size(self) -> int:
        """How many bytes."""
        return len(self.content) if isinstance(self.content, bytes) else self.content.size

    @property
    def end(self) -> int:
        """The offset behind its last byte."""
        return self.offset + self.size

    def read(self, at: int, size: int) -> bytes:
        """`size` bytes from `at` on, counted from its beginning; raises RigProblem when the file has lost them."""
        found = _cut(self, at, size)
        return found if isinstance(found, bytes) else found.read()

    def chunks(self, size: int) -> Iterator[bytes]:
        """All its bytes in order, at most `size` at a time."""
        if isinstance(self.content, Stored):
            yield from self.content.chunks(size)
        else:
            yield from (self.read(at, min(size, self.size - at)) for at in range(0, self.size, size))


@dataclass(frozen=True)
class Sparse:
    """A disk of `size` bytes; the pieces are in order and do not overlap."""

    size: int
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        end = 0
        for piece in self.pieces:
            if piece.offset < end:
                raise Defect(f"two pieces of a disk overlap at {piece.offset}")
            end = piece.end
        if end > self.size:
            raise Defect(f"a disk of {self.size} bytes has a piece that ends at {end}")

    def chunks(self, size: int = AT_ONCE) -> Iterator[bytes]:
        """All its bytes in order, at most `size` at a time, which is at most CHUNK; pieces come as they lie."""
        at = 0
        for piece in self.pieces:
            yield from _zeros(piece.offset - at, size)
            yield from piece.chunks(size)
            at = piece.end
        yield from _zeros(self.size - at, size)

    def blocks(self, size: int) -> Iterator[tuple[int, bytes | None]]:
        """(offset, bytes) of every `size` bytes in order; None for what is all zeros, the last one may be shorter.

        size: at most CHUNK.
        """
        at = 0
        for offset, data in self.filled(size):
            yield from ((hole, None) for hole in range(at, offset, size))
            yield offset, data
            at = offset + size
        yield from ((hole, None) for hole in range(at, self.size, size))

    def places(self, size: int) -> Iterator[int]:
        """The offsets that `filled` gives, for who has to know them before: most blocks show it in their first bytes.

        Nothing is hashed for it: whoever writes what is stored has to compare them with what `filled` gives.
        """
        for offset, pieces in self._touched(size):
            ends = (min(offset + GLANCE, self.size), min(offset + size, self.size))
            if not all(is_zeros(_joined(offset, end, pieces, _glance)) for end in ends):
                yield offset

    def filled(self, size: int) -> Iterator[tuple[int, bytes]]:
        """Those (offset, bytes) of every `size` bytes that are not all zeros; where no piece is costs no time.

        Raises Spoiled when what is stored is not what it was.
        """
        with closing(_Reader()) as reader:
            for offset, pieces in self._touched(size):
                data = _joined(offset, min(offset + size, self.size), pieces, reader.read)
                if not is_zeros(data):
                    yield offset, data

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer where the disk ends. What is stored is never read like this."""
        end, first = min(offset + size, self.size), bisect_right(self.pieces, offset, key=_end)
        last = first
        while last < len(self.pieces) and self.pieces[last].offset < end:
            last += 1
        return _joined(offset, end, self.pieces[first:last], Piece.read)

    def part(self, offset: int, size: int) -> "Sparse":
        """What lies in `size` bytes from `offset` on, as a disk of its own."""
        end, found = min(offset + size, self.size), []
        for index in range(bisect_right(self.pieces, offset, key=_end), len(self.pieces)):
            piece = self.pieces[index]
            first, last = max(piece.offset, offset), min(piece.end, end)
            if first >= last:
                break
            found.append(Piece(first - offset, _cut(piece, first - piece.offset, last - first)))
        return Sparse(max(end - offset, 0), tuple(found))

    def _touched(self, size: int) -> Iterator[tuple[int, tuple[Piece, ...]]]:
        """Every `size` bytes that pieces reach into: their offset, and those pieces."""
        at = first = 0  # all before `at` was given out
        for piece in self.pieces:
            for offset in range(max(piece.offset // size * size, at), piece.end, size):
                at = offset + size
                while self.pieces[first].end <= offset:
                    first += 1
                last = first
                while last < len(self.pieces) and self.pieces[last].offset < at:
                    last += 1
                yield offset, self.pieces[first:last]


class _Reader:
    """Pieces of a disk as they are read from its beginning to its end: what is stored is hashed meanwhile."""

    def __init__(self) -> None:
        self._reading: Reading | None = None

    def read(self, piece: Piece, at: int, size: int) -> bytes:
        """The next bytes of a piece."""
        if not isinstance(piece.content, Stored):
            return piece.read(at, size)
        if not at or self._reading is None:
            self.close()
            self._reading = Reading(piece.content)
        return self._reading.take(size)

    def close(self) -> None:
        """Let go of what is being read."""
        if self._reading is not None:
            self._reading.close()


def laid_file(tree: Tree, path: str) -> bytes | Stored:
    """The bytes of a file, or where many of them lie; raises Problem for what is no file of the tree."""
    entry = tree.get(path)
    entry = tree.get(entry.target) if entry and entry.kind == "hardlink" else entry
    if not entry or isinstance(entry.content, bytes) or entry.content.size < LARGE:
        return tree.read(path)
    return Stored(entry.content.path, entry.content.size, entry.sha256, entry.content.offset)


def glance(content: bytes | Stored, at: int, size: int) -> bytes:
    """What it seems to be, unhashed: for a judgement that is void when the bytes turn out to be others."""
    if isinstance(content, bytes):
        return content[at : at + size]
    return Slice(content.path, content.offset + at, max(min(size, content.size - at), 0)).read()


def one_after_the_other(contents: Iterable[bytes | Stored]) -> Sparse:
    """A disk that consists of these contents and nothing else."""
    pieces, at = [], 0
    for content in contents:
        pieces.append(Piece(at, content))
        at = pieces[-1].end
    return laid(at, pieces)


def of_file(path: str, size: int) -> Sparse:
    """A raw disk that lies in a file."""
    return laid(size, [Piece(0, Slice(path, 0, size))])


def is_zeros(data: bytes) -> bool:
    """Whether there is no other byte in it; ends at the first, and compares faster than anything counts."""
    if data[:1] > b"\0" or data[-1:] > b"\0":
        return False  # the most of them, at no cost
    parts = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
    return all(part == ZEROS[: len(part)] for part in parts)


def _end(piece: Piece) -> int:
    return piece.end


def _glance(piece: Piece, at: int, size: int) -> bytes:
    """Bytes of a piece that nothing is made of."""
    return glance(piece.content, at, size) if isinstance(piece.content, Stored) else piece.read(at, size)


def _zeros(size: int, most: int) -> Iterator[bytes]:
    return (ZEROS[: min(most, size - at)] for at in range(0, size, most))


def _joined(offset: int, end: int, pieces: Iterable[Piece], read: Callable[[Piece, int, int], bytes]) -> bytes:
    """The bytes from `offset` to `end`, where those pieces lie; of one alone it is no copy."""
    parts, at = [], offset
    for piece in pieces:
        if piece.offset >= end:
            break
        if at < piece.offset:
            parts.append(bytes(piece.offset - at))
            at = piece.offset
        stop = min(piece.end, end)
        parts.append(read(piece, at - piece.offset, stop - at))
        at = stop
    if at < end:
        parts.append(bytes(end - at))
    return b"".join(parts)


def _cut(piece: Piece, at: int, size: int) -> bytes | Slice | Packed:
    content = piece.content
    if isinstance(content, bytes):
        return content[at : at + size]
    if isinstance(content, Packed):
        return content._replace(skip=content.skip + at, size=size)
    if isinstance(content, Stored):
        raise Defect("what is stored is read in order, or its digest would not be known to be right")
    return Slice(content.path, content.offset + at, size)


def laid(size: int, pieces: Iterable[Piece]) -> Sparse:
    """A disk of these pieces in whatever order, less the empty ones."""
    return Sparse(size, tuple(sorted((piece for piece in pieces if piece.size), key=lambda piece: piece.offset)))
