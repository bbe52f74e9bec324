"""One gzip member made of parts that were compressed apart, each ended by a full flush.

RFC 1952 and RFC 1951. A multi-member file would be simpler, and is silently cut after the first member by several
readers; one member with flush points is read by all. The CRC-32 of the whole follows from the parts' own.
"""

import struct
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import NamedTuple

from imagekit.beside import Buffer

HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time, unknown system
LEVEL = 6
FAST = 1  # for disks, which are large and mostly compressed
STEP, ENOUGH, MOST = 64 << 10, 1 << 20, 4 << 20  # of `runs`: fed at once, packed and unpacked bytes of one
SAMPLES = 1 << 10  # bytes that are looked at
FEW, MANY_ZEROS = 210, 100  # values among them, and zeros: random bytes have 251 of the 256, and four zeros
PLACES, SAMPLE = 4, 512  # that are tried, and bytes at each
FLUSH = b"\0\0\0\xff\xff"  # a full flush where a byte ends: an empty block
MOST_STORED = (1 << 16) - 1  # bytes of a block
VERSION = f"zlib {zlib.ZLIB_RUNTIME_VERSION} level {LEVEL}"  # the bytes depend on it; zlib-ng calls itself "...zlib-ng"
FAST_VERSION = (
    f"zlib {zlib.ZLIB_RUNTIME_VERSION} level {FAST} or stored, 2"  # the same of disks: 2 is what `shrinks` is
)


class Segment(NamedTuple):
    """A part: raw deflate without a last block, ended by a full flush."""

    data: bytes
    crc: int  # of the uncompressed bytes
    size: int  # of the uncompressed bytes


def segment(chunks: Iterable[bytes], *, level: int = LEVEL) -> Segment:
    """Compress one part; the same chunks give the same bytes, whatever stands before or after it."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    crc = size = 0
    out = []
    for chunk in chunks:
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        out.append(packer.compress(chunk))
    out.append(packer.flush(zlib.Z_FULL_FLUSH))
    return Segment(b"".join(out), crc, size)


def joined(some: Iterable[Iterable[bytes]]) -> Segment:
    """Several things as one part, each compressed by itself: the bytes of one depend on no other."""
    crc = size = 0

    def counted(chunk: bytes) -> bytes:
        nonlocal crc, size
        crc, size = zlib.crc32(chunk, crc), size + len(chunk)
        return chunk

    data = b"".join(run.data for one in some for run in runs(map(counted, one)))
    return Segment(data, crc, size)


def runs(chunks: Iterable[bytes], *, level: int = LEVEL) -> Iterator[Segment]:
    """Compress as many parts as it takes for each to be about a MiB, and of no more than 4 MiB.

    Where they end depends on the bytes alone, not on the pieces that they come in.
    """
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        while len(rest) >= MOST:
            made = _run(rest[:MOST], level)
            yield made
            del rest[: made.size]
    while rest:
        made = _run(rest[:MOST], level)
        yield made
        del rest[: made.size]


def _run(data: bytearray, level: int) -> Segment:
    """The beginning of `data` as one part: all of it, or as much as packs to a MiB."""
    packer = zlib.compressobj(level, zlib.DEFLATED, -15)
    whole, out, at, packed = memoryview(data), [], 0, 0
    while at < len(data) and packed < ENOUGH:
        out.append(packer.compress(whole[at : at + STEP]))
        at, packed = min(at + STEP, len(data)), packed + len(out[-1])
    out.append(packer.flush(zlib.Z_FULL_FLUSH))
    return Segment(b"".join(out), zlib.crc32(whole[:at]), at)


def shrinks(data: bytes) -> bool:
    """Whether deflating is worth its time: most of a disk is compressed already, and deflating that takes longest.

    What has nearly all values that a byte can have is said not to, and what does not shrink by a quarter where it is
    tried.
    """
    seen = data[:: len(data) // SAMPLES | 1]
    if len(set(seen)) > FEW and seen.count(0) < MANY_ZEROS:
        return False
    step = max(len(data) // PLACES, 1)
    sample = b"".join(data[at : at + min(SAMPLE, step)] for at in range(step // 2, len(data), step))
    packer = zlib.compressobj(FAST, zlib.DEFLATED, -12, 5)  # with little memory, which takes less time to clear
    return len(packer.compress(sample) + packer.flush()) < len(sample) * 3 / 4


def stored(data: bytes, *, is_last: bool = False) -> Iterator[Buffer]:
    """What is not worth it as raw deflate (RFC 1951, 3.2.4), in pieces; zlib takes six times as long for it."""
    view = memoryview(data)
    for at in range(0, len(data), MOST_STORED):
        part = view[at : at + MOST_STORED]
        yield struct.pack("<BHH", is_last and at + len(part) == len(data), len(part), len(part) ^ 0xFFFF)
        yield part


def unshrunk(data: bytes) -> Segment:
    """A part as it is, see `stored`."""
    return Segment(b"".join((*stored(data), FLUSH)), zlib.crc32(data), len(data))


def member(segments: Iterable[Segment]) -> Iterable[bytes]:
    """The gzip member of all the parts, piece by piece."""
    yield HEADER
    crc = size = 0
    for part in segments:
        yield part.data
        crc, size = combine(crc, part.crc, part.size), size + part.size
    yield b"\x03\0"  # an empty last block with fixed codes (RFC 1951, 3.2.6)
    yield crc.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


def combine(first: int, second: int, second_size: int) -> int:
    """The CRC-32 of A + B from those of A and B: CRC(A) times x^(8 * size of B), modulo the polynomial, plus CRC(B)."""
    return _multiply(_power(second_size * 8), first) ^ second


_POLYNOMIAL = 0xEDB88320  # RFC 1952, section 8, bit-reversed; the highest bit stands for x^0


def _multiply(a: int, b: int) -> int:
    product = 0
    while a:
        if a & 0x80000000:
            product ^= b
        a = (a << 1) & 0xFFFFFFFF
        b = (b >> 1) ^ _POLYNOMIAL if b & 1 else b >> 1
    return product


@lru_cache(maxsize=64)
def _power(exponent: int) -> int:
    """x to the `exponent`, modulo the polynomial."""
    result, square = 0x80000000, 0x40000000
    while exponent:
        if exponent & 1:
            result = _multiply(square, result)
        square = _multiply(square, square)
        exponent >>= 1
    return result
