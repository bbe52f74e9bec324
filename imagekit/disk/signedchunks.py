"""The payload of a signed image file, piece by piece in order: each verified before its first byte is used.

Reading, hashing and unpacking let other threads run, so two processors are used where there are two.
"""

import os

from imagekit.disk import inflate, signedfile
from imagekit.errors import Problem

TYPE_CHECKING = False  # typing's own takes long to load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from imagekit.disk.signedfile import Signed

MOST = 4  # threads: one that writes files keeps up with no more, and each has chunks in memory


def pieces(handle: int, signed: "Signed", *, threads: int = 0) -> "Iterator[bytes]":
    """The tar, or the file system, uncompressed; raises Problem at the first chunk that is not the one signed.

    threads: 0 for as many as there are processors, up to MOST.
    """

    def make(number: int) -> bytes:
        return unpacked(signedfile.chunk(handle, signed, number), signed, number)

    return inflate.each(len(signed.chunks), make, threads=threads or min(MOST, len(os.sched_getaffinity(0))))


def unpacked(data: bytes, signed: "Signed", number: int) -> bytes:
    """What a verified chunk holds: a piece of the tar, or of the file system."""
    if signed.said.payload == "erofs":
        return data
    return inflate.inflate(signedfile.deflate(data, signed, number), signed.chunks[number][2])


def check(handle: int, signed: "Signed") -> None:
    """Verify every byte, and what is said of the whole: its sha256, and the CRC-32 that gzip programs look at."""
    import zlib
    from hashlib import sha256

    total, crc = sha256(), 0
    for piece in pieces(handle, signed):
        total.update(piece)
        crc = zlib.crc32(piece, crc)
    if total.hexdigest() != signed.said.content:
        raise Problem("its payload has not the sha256 that its manifest names: whoever signed it made a mistake")
    if signed.said.payload == "erofs":
        return
    last = signedfile.chunk(handle, signed, len(signed.chunks) - 1)
    if last[-8:-4] != crc.to_bytes(4, "little"):
        raise Problem("its CRC-32 is wrong: gzip would refuse it")
