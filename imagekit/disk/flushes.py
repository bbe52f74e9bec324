"""Where a .tar.gz can be cut so that each piece unpacks by itself: at full flushes (RFC 1951, 3.2.4).

They are found in the file as it is: imagekit's own have one per package and per MiB, `pigz --independent` makes others.
Every cut is tried before it is believed.
"""

import zlib
from collections.abc import Iterator
from hashlib import sha256
from mmap import mmap
from typing import NamedTuple

from imagekit.disk import gzip
from imagekit.disk.signedfile import FLUSHED, GZIP, MAX_CHUNKS, MAX_PACKED, MAX_UNPACKED, TAIL

END = b"\3\0"  # an empty last block


class Cut(NamedTuple):
    """A file's pieces, and what they unpack to."""

    pieces: tuple[tuple[int, int], ...]  # bytes in the file, bytes unpacked
    sha256: str  # of all of them unpacked
    size: int
    beginning: bytes  # of it, at least a block of a tar where it is as long


def cut(body: mmap | bytes) -> Cut | None:
    """The chunks of one gzip member; None where it has to be packed anew for that."""
    end = len(body) - TAIL
    if body[: len(GZIP)] != GZIP or body[end : end + 2] != END or end < len(GZIP) + len(FLUSHED):
        return None
    try:
        whole = _Whole(body, end)
        pieces = _joined(whole.runs)
        apart, beginning = sha256(), b""
        for data in _unpacked(body, pieces):
            apart.update(data)
            beginning = beginning or bytes(data[:512])
    except (zlib.error, ValueError):
        return None
    if apart.digest() != whole.total.digest():  # a piece looks back to another one: the flush before it was no full one
        return None
    return Cut(tuple(pieces), apart.hexdigest(), sum(size for _, size in pieces), beginning)


class _Whole:
    """The deflate of a member, read once from its beginning to its end; raises ValueError where it cannot be cut."""

    def __init__(self, body: mmap | bytes, end: int) -> None:
        self.runs: list[tuple[int, int]] = []  # bytes packed and unpacked between each two flushes
        self.total = sha256()
        unpacker, crc, at, begin, size, whole = zlib.decompressobj(-15), 0, len(GZIP), len(GZIP), 0, 0
        while at < end:
            stop = body.find(FLUSHED, at, end) + len(FLUSHED)
            if stop < at or stop - begin > MAX_PACKED:
                raise ValueError("it does not end with a flush, or two are too far apart")
            for data in _stretch(unpacker, body[at:stop]):
                self.total.update(data)
                crc, size = zlib.crc32(data, crc), size + len(data)
                if size > MAX_UNPACKED:
                    raise ValueError("two flushes are too far apart")
            at = stop
            if _is_at_a_block(unpacker):
                self.runs.append((stop - begin, size))
                begin, whole, size = stop, whole + size, 0
        if begin != end or crc.to_bytes(4, "little") + (whole & 0xFFFFFFFF).to_bytes(4, "little") != body[end + 2 :]:
            raise ValueError("it does not end with a flush, or its CRC is wrong")


def _stretch(unpacker: "zlib._Decompress", packed: bytes) -> Iterator[bytes]:
    while packed:
        yield unpacker.decompress(packed, MAX_UNPACKED)
        packed = unpacker.unconsumed_tail
    if unpacker.eof:
        raise ValueError("its last block is not where it must be")


def _is_at_a_block(unpacker: "zlib._Decompress") -> bool:
    """Whether a block begins here; the bytes of a flush may also stand in one, as when a .gz is stored in the tar."""
    trial = unpacker.copy()
    try:
        return trial.decompress(END) == b"" and trial.eof and not trial.unused_data
    except zlib.error:
        return False


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Runs put together to chunks of about a MiB, with the head of the file in the first and its tail in the last."""
    runs = [(runs[0][0] + len(GZIP), runs[0][1]), *runs[1:]]
    runs[-1] = runs[-1][0] + TAIL, runs[-1][1]
    chunks: list[tuple[int, int]] = []
    for packed, size in runs:
        if chunks:
            both = chunks[-1][0] + packed, chunks[-1][1] + size
            limit = gzip.ENOUGH if chunks[-1][1] and size else MAX_PACKED  # none may be empty
            if both[0] <= limit and both[1] <= MAX_UNPACKED:
                chunks[-1] = both
                continue
        chunks.append((packed, size))
    if len(chunks) > MAX_CHUNKS or not all(packed <= MAX_PACKED and size for packed, size in chunks):
        raise ValueError("no chunks can be made of it")
    return chunks


def _unpacked(body: mmap | bytes, chunks: list[tuple[int, int]]) -> Iterator[bytes]:
    """What the chunks hold, each unpacked by itself."""
    at, last = 0, len(body) - TAIL
    for packed, size in chunks:
        begin, end = max(at, len(GZIP)), min(at + packed, last)
        unpacker = zlib.decompressobj(-15)
        data = unpacker.decompress(body[begin:end], size + 1)
        if len(data) != size or body[end - len(FLUSHED) : end] != FLUSHED:
            raise ValueError("a chunk is not what its runs were")
        yield data
        at += packed
