"""Sparse: the content of a disk as pieces at offsets; what lies between them is zeros.

What makes a disk gives one, what writes it down (raw, qcow2, VHD, ...) takes one, and so does what converts: no zeros
are ever made, kept or compressed for the sake of a disk's size.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from imagekit.errors import Defect
from imagekit.tree import Slice

CHUNK = 1 << 20  # bytes that are in memory at a time
SECTOR = 512
ZEROS = bytes(CHUNK)


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
    """Bytes at an offset of a disk: in memory, or in a file."""

    offset: int
    content: bytes | Slice | Packed

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

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """All its bytes in order, at most `size` at a time."""
        for offset, data in self.blocks(size):
            yield data if data is not None else ZEROS[: min(size, self.size - offset)]

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

    def filled(self, size: int) -> Iterator[tuple[int, bytes]]:
        """Those (offset, bytes) of every `size` bytes that are not all zeros; where no piece is costs no time."""
        at = 0  # all before it was given out
        for piece in self.pieces:
            for offset in range(max(piece.offset // size * size, at), piece.end, size):
                at = offset + size
                data = self.read(offset, size)
                if not is_zeros(data):
                    yield offset, data

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer where the disk ends."""
        end = min(offset + size, self.size)
        parts, at = [], offset
        for index in range(bisect_right(self.pieces, at, key=_end), len(self.pieces)):
            piece = self.pieces[index]
            if piece.offset >= end:
                break
            parts.append(bytes(max(piece.offset - at, 0)))
            at = max(piece.offset, at)
            stop = min(piece.end, end)
            parts.append(piece.read(at - piece.offset, stop - at))
            at = stop
        return b"".join((*parts, bytes(max(end - at, 0))))

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


def of_file(path: str, size: int) -> Sparse:
    """A raw disk that lies in a file."""
    return laid(size, [Piece(0, Slice(path, 0, size))])


def is_zeros(data: bytes) -> bool:
    """Whether there is no other byte in it; ends at the first, and compares faster than anything counts."""
    parts = (data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
    return all(part == ZEROS[: len(part)] for part in parts)


def _end(piece: Piece) -> int:
    return piece.end


def _cut(piece: Piece, at: int, size: int) -> bytes | Slice | Packed:
    content = piece.content
    if isinstance(content, bytes):
        return content[at : at + size]
    if isinstance(content, Packed):
        return content._replace(skip=content.skip + at, size=size)
    return Slice(content.path, content.offset + at, size)


def laid(size: int, pieces: Iterable[Piece]) -> Sparse:
    """A disk of these pieces in whatever order, less the empty ones."""
    return Sparse(size, tuple(sorted((piece for piece in pieces if piece.size), key=lambda piece: piece.offset)))
