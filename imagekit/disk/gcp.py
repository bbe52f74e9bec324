"""The archive that Google Compute Engine imports: disk.raw, whole GiB of it, in a GNU tar, in one gzip member.

"Manually import boot disks" of its documentation. What it recommends, `tar --format=oldgnu -Sczf`, is read as well: GNU
tar's old way to leave out zeros ("Storing Sparse Files" of its manual).
"""

import zlib
from collections.abc import Iterator
from functools import cache
from typing import BinaryIO

from imagekit.disk import container, gzip, tarhead
from imagekit.disk.container import File, Map
from imagekit.disk.sparse import CHUNK, ZEROS, Sparse, is_zeros

NAME = "disk.raw"
MULTIPLE = 1 << 30  # bytes
MAX_SIZE = 2 << 40  # bytes
END = bytes(1024)
VERSION = gzip.FAST_VERSION
MAX_TAIL = 1 << 20  # bytes behind the disk
MAX_PARTS = 1 << 19  # pieces of a sparse member
MAX_MEMBERS = 1 << 14  # of gzip: some archives are made of one for each MiB
STEP = 64 << 10  # bytes that are deflated apart, and that are read at a time


def chunks(disk: Sparse) -> Iterator[bytes]:
    """The archive of this disk, which zeros make a whole number of GiB; each MiB of zeros costs a kibibyte."""
    disk = container.whole(disk, multiple=MULTIPLE, most=MAX_SIZE, kind="disk for GCP")
    yield from gzip.member(_segments(disk))


def _segments(disk: Sparse) -> Iterator[gzip.Segment]:
    yield gzip.segment([tarhead.header(NAME, disk.size, magic=tarhead.GNU)])
    for _, data in disk.blocks(CHUNK):
        if data is None:
            yield _zeros()
            continue
        for at in range(0, len(data), STEP):
            part = data[at : at + STEP]
            yield gzip.segment([part], level=gzip.FAST) if gzip.shrinks(part) else gzip.unshrunk(part)
    yield gzip.segment([END])


@cache
def _zeros() -> gzip.Segment:
    return gzip.segment([ZEROS])


def read(file: File, scratch: BinaryIO) -> Sparse:
    """The disk of such an archive, unpacked into `scratch`, where its zeros are holes."""
    try:
        return _unpacked(_Stream(file), scratch)
    except zlib.error as error:
        raise file.wrong(str(error)) from error


def _unpacked(stream: "_Stream", scratch: BinaryIO) -> Sparse:
    head = stream.read(tarhead.BLOCK)
    member = tarhead.member(head)
    if member.name != NAME or member.kind not in (*tarhead.FILES, tarhead.SPARSE):
        raise stream.file.wrong(f"it begins with {member.name!r}, where only {NAME} can be")
    size, parts = _sparse(stream, head) if member.kind == tarhead.SPARSE else (member.size, [(0, member.size)])
    if not 0 < size <= MAX_SIZE or sum(length for _, length in parts) != member.size:
        raise stream.file.wrong(f"its disk has {size} bytes")
    found = Map(File(f"/proc/self/fd/{scratch.fileno()}", "gcp", 0, size), size)
    for at, length in parts:
        for offset in range(at, at + length, CHUNK):
            data = stream.read(min(CHUNK, at + length - offset))
            if not is_zeros(data):
                scratch.seek(offset)
                scratch.write(data)
                found.add(offset, offset, len(data), what=NAME)
    stream.read(-member.size % tarhead.BLOCK)
    stream.end()
    scratch.flush()
    return found.disk()


def _sparse(stream: "_Stream", head: bytes) -> tuple[int, list[tuple[int, int]]]:
    """(size, pieces) of a sparse member: four in its header, and 21 in each block that is said to follow."""
    table, more, size = head[386:482], head[482], tarhead.number(head[483:495])
    parts: list[tuple[int, int]] = []
    end = 0
    while True:
        for at in range(0, len(table), 24):
            offset, length = tarhead.number(table[at : at + 12]), tarhead.number(table[at + 12 : at + 24])
            if length and (offset < end or offset + length > size or len(parts) == MAX_PARTS):
                raise stream.file.wrong(f"a piece of its disk lies at {offset}, where it cannot")
            if length:
                parts.append((offset, length))
                end = offset + length
        if not more:
            return size, parts
        block = stream.read(tarhead.BLOCK)
        table, more = block[:504], block[504]


class _Stream:
    """What lies in a gzip file, of one member or several, a few MiB of it in memory."""

    def __init__(self, file: File) -> None:
        self.file = file
        self._at = self._members = 0
        self._packed = b""
        self._rest = bytearray()
        self._inflate = zlib.decompressobj(31)

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes."""
        while len(self._rest) < size:
            if not self._more():
                raise self.file.wrong("it ends within its disk", "is it complete?")
        data = bytes(self._rest[:size])
        del self._rest[:size]
        return data

    def end(self) -> None:
        """Raise a Problem unless zeros alone follow, few of them, and the checksum is right."""
        total = 0
        while True:
            total += len(self._rest)
            if self._rest.strip(b"\0") or total > MAX_TAIL:
                raise self.file.wrong(f"something follows {NAME}")
            self._rest.clear()
            if not self._more():
                break
        if not self._inflate.eof:
            raise self.file.wrong("it ends before its checksum", "is it complete?")

    def _more(self) -> bool:
        """Whether there was more; at most a MiB is unpacked at a time, whatever it packs."""
        while True:
            if self._inflate.eof and not self._another():
                return False
            made = self._inflate.decompress(self._packed, CHUNK)  # of nothing, too: it may have held some back
            self._packed = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
            if made:
                self._rest += made
                return True
            if not (self._inflate.eof or self._packed or self._fetch()):
                return False

    def _another(self) -> bool:
        """Whether another member follows."""
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise self.file.wrong(f"it has more than {MAX_MEMBERS} members")
        self._inflate = zlib.decompressobj(31) if self._packed or self._fetch() else self._inflate
        return not self._inflate.eof

    def _fetch(self) -> bool:
        size = min(STEP, self.file.size - self._at)
        self._packed = self.file.read(self._at, size, what="its bytes")
        self._at += size
        return bool(size)
