"""VHD, fixed and dynamic (Virtual Hard Disk Image Format Specification 1.0, Microsoft, 2006)."""

import struct
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

from imagekit.disk import container, ids
from imagekit.disk.container import File, Map, aligned
from imagekit.disk.sparse import SECTOR, Sparse

FOOTER = struct.Struct(">8sIIQI4sI4sQQHBBII16sB427x")  # spec, "Hard Disk Footer Format"
HEADER = struct.Struct(">8sQQIIII16sI4x512s192s256x")  # spec, "Dynamic Disk Header Format"
COOKIE, SPARSE = b"conectix", b"cxsparse"
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
NOWHERE = (1 << 64) - 1
ABSENT = (1 << 32) - 1  # a block that the file does not hold
BLOCK = 2 << 20  # bytes: the specification's, and the only one that every reader takes
MAX_SIZE = 2040 << 30  # bytes: what sectors and blocks can be counted to
CREATOR = b"win "  # Windows: QEMU takes the size from the footer then, and else from the geometry, which rounds it
BLOCKS = range(1 << 16, (256 << 20) + 1)  # bytes of a block that are read: more of them would only be a burden


def chunks(disk: Sparse, *, multiple: int = SECTOR) -> Iterator[bytes]:
    """A fixed VHD of this disk: its bytes, zeros up to a multiple of so many, and a footer."""
    disk = container.whole(disk, multiple=multiple, most=MAX_SIZE, kind="vhd")
    yield from disk.chunks()
    yield _footer(disk, FIXED)


def dynamic(disk: Sparse) -> Iterator[bytes]:
    """A dynamic VHD of this disk: footer, header, table, the blocks that are not all zeros, and the footer again.

    The disk is read twice: where there is something must be known before the first block is written.
    """
    disk = container.whole(disk, most=MAX_SIZE, kind="vhd")
    entries, filled = -(-disk.size // BLOCK), [offset // BLOCK for offset in disk.places(BLOCK)]
    table = array("I", b"\xff" * aligned(entries * 4, SECTOR))
    for place, number in enumerate(filled):
        table[number] = (SECTOR + HEADER.size + len(table) * 4 + place * (SECTOR + BLOCK)) // SECTOR
    footer = _footer(disk, DYNAMIC)
    yield footer + _header(entries) + _big_endian(table)
    bitmap = b"\xff" * (BLOCK // SECTOR // 8)  # of the sectors that are there: one sector of bits
    for data in container.again(disk, filled, BLOCK):
        yield bitmap
        yield data
    yield footer


def _footer(disk: Sparse, kind: int) -> bytes:
    """Made at the beginning of time, by Windows, with an id that derives from the disk."""
    id = ids.guid(container.identity(disk), "vhd").bytes
    data = SECTOR if kind == DYNAMIC else NOWHERE
    head = (COOKIE, 2, 0x00010000, data, 0, CREATOR, 0x000A0000, b"Wi2k", disk.size, disk.size)
    return _summed(lambda total: FOOTER.pack(*head, *_geometry(disk.size // SECTOR), kind, total, id, 0))


def _header(entries: int) -> bytes:
    where = SECTOR + HEADER.size
    return _summed(
        lambda total: HEADER.pack(SPARSE, NOWHERE, where, 0x00010000, entries, BLOCK, total, b"", 0, b"", b"")
    )


def _summed(pack: Callable[[int], bytes]) -> bytes:
    """With its checksum: the complement of the sum of all bytes, where the checksum counts as zeros."""
    return pack(~sum(pack(0)) & 0xFFFFFFFF)


def _geometry(sectors: int) -> tuple[int, int, int]:
    """Cylinders, heads and sectors per track (spec, "Appendix: CHS Calculation")."""
    sectors = min(sectors, 65535 * 16 * 255)
    if sectors >= 65535 * 16 * 63:
        return sectors // 255 // 16, 16, 255
    track, turns = 17, sectors // 17
    heads = max((turns + 1023) // 1024, 4)
    if turns >= heads * 1024 or heads > 16:
        track, heads, turns = 31, 16, sectors // 31
    if turns >= heads * 1024:
        track, heads, turns = 63, 16, sectors // 63
    return turns // heads, heads, track


def _big_endian(table: "array[int]") -> bytes:
    return struct.pack(f">{len(table)}I", *table)


def read(path: Path) -> Sparse:
    """The disk of a VHD, fixed or dynamic; raises Problem for a differencing one, whose other file is never opened."""
    file = container.file(path, "vhd")
    footer = file.read(file.size - SECTOR, SECTOR, what="its footer")
    cookie, _, version, data, _, _, _, _, _, size, _, _, _, kind, *_ = FOOTER.unpack(footer)
    if cookie != COOKIE:
        raise file.wrong("it does not end with a footer", "is it complete?")
    _check_sum(file, footer, 64, what="its footer")
    if version >> 16 != 1 or kind not in (FIXED, DYNAMIC):
        what = "it needs its parent's file, which is never opened" if kind == DIFFERENCING else f"it is of type {kind}"
        raise file.wrong(what, "let `qemu-img convert` make a file of its own")
    if not 0 < size <= MAX_SIZE or size % SECTOR:
        raise file.wrong(f"its disk has {size} bytes")
    found = Map(file, size)
    found.use(file.size - SECTOR, SECTOR, what="its footer")
    if kind == FIXED:
        found.add(0, 0, size, what="its disk")
    else:
        _take(found, data)
    return found.disk()


def _take(found: Map, at: int) -> None:
    """The blocks of a dynamic disk, whose header is at `at`."""
    file = found.file
    header = file.read(at, HEADER.size, what="its header")
    cookie, _, table, version, entries, block, _, parent, _, name, locators = HEADER.unpack(header)
    _check_sum(file, header, 36, what="its header")
    if cookie != SPARSE or version >> 16 != 1:
        raise file.wrong("it has no header of a dynamic disk")
    if any(parent) or any(name) or any(locators):
        raise file.wrong("it names a parent, whose file is never opened")
    needed = -(-found.size // block) if block else 0
    if block not in BLOCKS or block & block - 1 or needed > entries:
        raise file.wrong(f"it has {entries} blocks of {block} bytes for a disk of {found.size}")
    found.use(at, HEADER.size, what="its header")
    found.use(table, needed * 4, what="its table")
    for first in range(0, needed, 1 << 16):
        some = min(needed - first, 1 << 16)
        for number, sector in enumerate(struct.unpack(f">{some}I", file.read(table + first * 4, some * 4, what="t"))):
            if sector != ABSENT:
                _take_block(found, (first + number) * block, sector * SECTOR, block)


def _take_block(found: Map, offset: int, at: int, block: int) -> None:
    """A bitmap of its sectors, and those: only what is marked is the disk's (spec, "Data Blocks")."""
    size = aligned(block // SECTOR // 8, SECTOR)
    bitmap = found.file.read(at, size, what=f"the block of {offset}")[: block // SECTOR // 8]
    found.use(at, size, what=f"the block of {offset}")
    for first, last in _runs(bitmap):
        if offset + first * SECTOR < found.size:
            where, length = at + size + first * SECTOR, (last - first) * SECTOR
            found.add(offset + first * SECTOR, where, length, what=f"the block of {offset}")


def _runs(bitmap: bytes) -> Iterator[tuple[int, int]]:
    """(first, behind the last) of every run of ones, the highest bit of a byte first."""
    if bitmap == b"\xff" * len(bitmap):
        yield 0, len(bitmap) * 8
        return
    bits = f"{int.from_bytes(bitmap):0{len(bitmap) * 8}b}"
    start = bits.find("1")
    while start >= 0:
        end = bits.find("0", start)
        end = len(bits) if end < 0 else end
        yield start, end
        start = bits.find("1", end)


def _check_sum(file: File, data: bytes, at: int, *, what: str) -> None:
    told = int.from_bytes(data[at : at + 4])
    if ~(sum(data) - sum(data[at : at + 4])) & 0xFFFFFFFF != told:
        raise file.wrong(f"the checksum of {what} is wrong")
