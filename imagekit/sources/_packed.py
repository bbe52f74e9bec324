"""Compressed bytes, unpacked piece by piece: gzip, xz, zstd, bzip2; whole, and nothing behind them.

No piece is empty, and none is larger than a MiB, whatever the packed bytes make of themselves.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from imagekit.errors import Problem

PIECE = 1 << 20
FED = 1 << 16  # bytes that an unpacker is given at once: what it has not used yet is copied each time
MAX_XZ_MEMORY = 256 << 20  # xz -9 wants 65 MiB
FREE, MAX_RATIO = 64 << 20, 1000  # unpacked bytes from which on there may not be more than so many times the packed


def unpacked(packed: bytes) -> Iterator[bytes]:
    """What some bytes hold, by how they begin; raises Problem for a bomb."""
    kind = next((kind for magic, kind in MAGIC.items() if packed.startswith(magic)), "")
    size = 0
    for piece in KINDS[kind](packed):
        size += len(piece)
        if size > FREE and size > MAX_RATIO * len(packed):
            raise Problem(f"it unpacks to more than {MAX_RATIO} times its {len(packed)} bytes")
        yield piece


def plain(packed: bytes) -> Iterator[bytes]:
    """Bytes that are not compressed."""
    yield from _slices(packed, PIECE)


def xz(packed: bytes) -> Iterator[bytes]:
    """What one xz stream holds."""
    import lzma

    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_XZ_MEMORY)
    yield from _streamed(unpacker, packed, "xz", lzma.LZMAError)


def bz2(packed: bytes) -> Iterator[bytes]:
    """What one bzip2 stream holds."""
    import bz2

    yield from _streamed(bz2.BZ2Decompressor(), packed, "bzip2", OSError)


def gz(packed: bytes) -> Iterator[bytes]:
    """What one gzip member holds."""
    import zlib

    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 16)
    left = len(packed)
    try:
        for fed in _slices(packed, FED):
            left -= len(fed)
            while fed and not unpacker.eof:
                if piece := unpacker.decompress(fed, PIECE):
                    yield piece
                fed = unpacker.unconsumed_tail
            if unpacker.eof:
                break
        while not unpacker.eof and (piece := unpacker.decompress(b"", PIECE)):
            yield piece
    except zlib.error as error:
        raise Problem(f"its gzip data is broken: {error}") from error
    if not unpacker.eof or unpacker.unused_data or left:
        raise Problem("its gzip data does not end where it should")


def zst(packed: bytes) -> Iterator[bytes]:
    """What some zstd frames hold."""
    import zstandard

    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(packed, read_across_frames=True)
    try:
        while piece := reader.read(PIECE):
            yield piece  # a cut frame ends in silence here; the tar reader then misses the end of the archive
    except zstandard.ZstdError as error:
        raise Problem(f"its zstd data is broken: {error}") from error


def _streamed(unpacker: Any, packed: bytes, name: str, fault: type[Exception]) -> Iterator[bytes]:
    try:
        piece = unpacker.decompress(packed, PIECE)
        while piece or not (unpacker.eof or unpacker.needs_input):
            if piece:
                yield piece
            piece = b"" if unpacker.eof else unpacker.decompress(b"", PIECE)
    except fault as error:
        raise Problem(f"its {name} data is broken: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise Problem(f"its {name} data does not end where it should")


def _slices(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


KINDS: Mapping[str, Callable[[bytes], Iterator[bytes]]] = {"": plain, ".xz": xz, ".gz": gz, ".zst": zst, ".bz2": bz2}
MAGIC = {b"\xfd7zXZ\0": ".xz", b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2"}
