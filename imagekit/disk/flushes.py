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

STEP = 1 << 20
MAX_FAILURES = 1000  # cuts that turn out to be none, in a file that is worth going on with


class Cut(NamedTuple):
    """A file's pieces, and what they unpack to."""

    pieces: tuple[tuple[int, int], ...]  # bytes in the file, bytes unpacked
    sha256: str  # of all of them unpacked
    size: int


def cut(body: mmap | bytes) -> Cut | None:
    """The chunks of one gzip member; None where it has to be packed anew for that."""
    end = len(body) - TAIL
    if body[: len(GZIP)] != GZIP or body[end : end + 2] != b"\x03\0" or end < len(GZIP) + len(FLUSHED):
        return None
    runs = _runs(body, end)
    joined = _joined(runs) if runs else None
    if joined is None:
        return None
    apart, whole = sha256(), sha256()
    try:
        for data in _unpacked(body, joined):
            apart.update(data)
        for data in unpacked(body):
            whole.update(data)
    except (zlib.error, ValueError):
        return None
    if apart.digest() != whole.digest():  # a piece that looks back to another one, or a cut that is none
        return None
    return Cut(tuple(joined), whole.hexdigest(), sum(size for _, size in joined))


def unpacked(body: mmap | bytes) -> Iterator[bytes]:
    """What one gzip member holds, in pieces; raises ValueError or zlib.error unless it is whole and nothing follows."""
    unpacker = zlib.decompressobj(31)
    for at in range(0, len(body), STEP):
        data = bytes(body[at : at + STEP])
        while data:
            yield unpacker.decompress(data, STEP)
            data = unpacker.unconsumed_tail
            if unpacker.eof and (data or unpacker.unused_data or at + STEP < len(body)):
                raise ValueError("something follows the gzip member")
    yield unpacker.flush()
    if not unpacker.eof:
        raise ValueError("the gzip member is cut short")


def _runs(body: mmap | bytes, end: int) -> list[tuple[int, int]]:
    """Bytes packed and unpacked between each two flushes; nothing where they are too far apart."""
    found: list[tuple[int, int]] = []  # begin, bytes unpacked
    at, begin, failures = len(GZIP), len(GZIP), 0
    while at < end:
        at = body.find(FLUSHED, at, end) + len(FLUSHED)
        if at < len(FLUSHED):
            return []  # the last piece does not end with a flush
        size = _size(body[begin:at]) if at - begin <= MAX_PACKED else None
        while size is None:  # the cut before was none, or this piece looks back: together they may be one
            failures += 1
            if not found or failures > MAX_FAILURES or at - found[-1][0] > MAX_PACKED:
                return []
            begin, _ = found.pop()
            size = _size(body[begin:at])
        found.append((begin, size))
        begin = at
    ends = [*(begin for begin, _ in found[1:]), end]
    return [(stop - begin, size) for (begin, size), stop in zip(found, ends, strict=True)]


def _size(piece: bytes) -> int | None:
    """Bytes that a piece unpacks to; None where it does not by itself, or to too many."""
    unpacker = zlib.decompressobj(-15)
    try:
        size = len(unpacker.decompress(piece, MAX_UNPACKED + 1))
    except zlib.error:
        return None
    return size if size <= MAX_UNPACKED and not unpacker.eof and not unpacker.unconsumed_tail else None


def _joined(runs: list[tuple[int, int]]) -> list[tuple[int, int]] | None:
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
    is_right = len(chunks) <= MAX_CHUNKS and all(packed <= MAX_PACKED and size for packed, size in chunks)
    return chunks if is_right else None


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
