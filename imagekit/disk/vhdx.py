"""VHDX ([MS-VHDX] 8.0), dynamic and fixed, of 512-byte sectors: written with ids that derive from the disk.

0        file type identifier          2 MiB    metadata
64 KiB   header, and again at 128      3 MiB    block allocation table
192 KiB  regions, and again at 256     then     blocks, each at a multiple of 1 MiB
1 MiB    log, which is empty
"""

import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple
from uuid import UUID

from imagekit.disk import container, ids
from imagekit.disk.container import File, Map, aligned
from imagekit.disk.sparse import SECTOR, Sparse

KIB, MIB = 1 << 10, 1 << 20
MAGIC = b"vhdxfile"
CREATOR = "imagekit".encode("utf-16-le")
HEADER = struct.Struct("<4sIQ16s16s16sHHIQ")  # 2.2.2
REGION = struct.Struct("<16sQII")  # 2.2.3.2
ITEM = struct.Struct("<16sIIII")  # 2.6.1.2
HEADERS, REGIONS = (64 * KIB, 128 * KIB), (192 * KIB, 256 * KIB)
LOG, METADATA, TABLE = MIB, 2 * MIB, 3 * MIB  # where they lie in what is written
BLOCK = MIB  # bytes: the smallest, which leaves out most zeros
MAX_SIZE = 64 << 40  # bytes
RATIO = SECTOR << 23  # bytes that one sector bitmap tells of: its entry follows those of so many blocks (2.5)
ABSENT, FULL, PARTIAL = (0, 1, 2, 3), 6, 7  # states of a block; the first four read as zeros
REQUIRED, OF_DISK, HAS_PARENT = 1 << 2, 1 << 1, 1 << 1  # flags of an item, an item, and the parameters
MAX_REGIONS = 2047
MAX_TABLE = 256 * MIB  # bytes that are read of a table: 32 TiB in blocks of 1 MiB

TABLE_ID = UUID("2dc27766-f623-4200-9d64-115e9bfd4a08")
METADATA_ID = UUID("8b7ca206-4790-4b9a-b8fe-575f050f886e")
PARAMETERS = UUID("caa16737-fa36-4d43-b3b6-33f0aa44e76b")
DISK_SIZE = UUID("2fa54224-cd1b-4876-b211-5dbed83bf4b8")
DISK_ID = UUID("beca12ab-b2e6-4523-93ef-c309e000c746")
LOGICAL_SECTOR = UUID("8141bf1d-a96f-4709-ba47-f233a8faab5f")
PHYSICAL_SECTOR = UUID("cda348c7-445d-4471-9cc9-e9885251c556")
PARENT = UUID("a8d35f2d-b30b-454d-abf7-d3d84834ab0c")


def chunks(disk: Sparse) -> Iterator[bytes]:
    """A VHDX of this disk: the blocks of 1 MiB that are not all zeros, behind a table of all of them.

    The disk is read twice: where there is something must be known before the first block is written.
    """
    disk = container.whole(disk, most=MAX_SIZE, kind="vhdx")
    per_bitmap, blocks = RATIO // BLOCK, -(-disk.size // BLOCK)
    entries = blocks + (blocks - 1) // per_bitmap
    length = aligned(entries * 8, MIB)
    filled = [offset // BLOCK for offset in disk.places(BLOCK)]
    yield from _head(disk, length)
    places = {number + number // per_bitmap: TABLE + length + n * BLOCK for n, number in enumerate(filled)}
    for first in range(0, length // 8, MIB // 8):
        yield struct.pack(f"<{MIB // 8}Q", *(_entry(places, first + n) for n in range(MIB // 8)))
    yield from container.again(disk, filled, BLOCK)


def _entry(places: dict[int, int], number: int) -> int:
    return places[number] | FULL if number in places else 0


def _head(disk: Sparse, table: int) -> Iterator[bytes]:
    """The first 3 MiB."""
    seed = container.identity(disk)
    yield (MAGIC + CREATOR).ljust(64 * KIB, b"\0")
    for sequence in (1, 2):
        yield _header(seed, sequence).ljust(64 * KIB, b"\0")
    regions = _regions(table)
    yield regions + regions + bytes(MIB - 320 * KIB)
    yield bytes(MIB)
    yield _metadata(disk, seed).ljust(MIB, b"\0")


def _header(seed: str, sequence: int) -> bytes:
    written, data = ids.guid(seed, "vhdx file").bytes_le, ids.guid(seed, "vhdx data").bytes_le
    head = HEADER.pack(b"head", 0, sequence, written, data, bytes(16), 0, 1, MIB, LOG)
    return _summed(head.ljust(4 * KIB, b"\0"))


def _regions(table: int) -> bytes:
    entries = ((TABLE_ID, TABLE, table), (METADATA_ID, METADATA, MIB))
    made = b"".join(REGION.pack(id.bytes_le, at, size, 1) for id, at, size in entries)
    return _summed((struct.pack("<4sIII", b"regi", 0, len(entries), 0) + made).ljust(64 * KIB, b"\0"))


def _metadata(disk: Sparse, seed: str) -> bytes:
    items = (
        (PARAMETERS, struct.pack("<II", BLOCK, 0), REQUIRED),
        (DISK_SIZE, struct.pack("<Q", disk.size), REQUIRED | OF_DISK),
        (DISK_ID, ids.guid(seed, "vhdx disk").bytes_le, REQUIRED | OF_DISK),
        (LOGICAL_SECTOR, struct.pack("<I", SECTOR), REQUIRED | OF_DISK),
        (PHYSICAL_SECTOR, struct.pack("<I", 4096), REQUIRED | OF_DISK),
    )
    at, table, data = 64 * KIB, struct.pack("<8sHH20x", b"metadata", 0, len(items)), b""
    for id, value, flags in items:
        table += ITEM.pack(id.bytes_le, at + len(data), len(value), flags, 0)
        data += value
    return table.ljust(at, b"\0") + data


def _summed(data: bytes) -> bytes:
    """With its checksum, which counts as zeros while it is made."""
    return data[:4] + struct.pack("<I", _crc32c(data)) + data[8:]


@cache
def _crc_table() -> tuple[int, ...]:
    """CRC-32C (RFC 3720, appendix B.4), bit-reversed."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def _crc32c(data: bytes) -> int:
    table, value = _crc_table(), 0xFFFFFFFF
    for byte in data:
        value = table[(value ^ byte) & 0xFF] ^ value >> 8
    return value ^ 0xFFFFFFFF


class _Shape(NamedTuple):
    """What the metadata of a file to be read say."""

    size: int
    block: int  # bytes
    sector: int  # bytes


def read(path: Path) -> Sparse:
    """The disk of a VHDX; raises Problem for one with a parent, and for one whose log has still to be replayed."""
    file = container.file(path, "vhdx")
    if file.read(0, 8, what="its header") != MAGIC:
        raise file.wrong("it is none")
    _check_header(file)
    regions = _read_regions(file)
    for id in (TABLE_ID, METADATA_ID):
        if id not in regions:
            raise file.wrong("it has no table of its blocks, or no metadata")
    at, length = regions[METADATA_ID]
    shape = _shape(file, _items(file, at, length))
    found = Map(file, shape.size)
    found.use(0, MIB, what="its header")
    for at, length in regions.values():
        found.use(at, length, what="a region")
    _take(found, shape, *regions[TABLE_ID])
    return found.disk()


def _take(found: Map, shape: _Shape, at: int, length: int) -> None:
    """All blocks of the table; between so many of them stands an entry for a bitmap that only a child has."""
    per_bitmap, blocks = (shape.sector << 23) // shape.block, -(-shape.size // shape.block)
    needed = (blocks + (blocks - 1) // per_bitmap) * 8
    if needed > min(length, MAX_TABLE):
        raise found.file.wrong(f"its table has {length} bytes, and {needed} are needed")
    for first in range(0, needed, MIB):
        data = found.file.read(at + first, min(needed - first, MIB), what="its table")
        for index, entry in enumerate(struct.unpack(f"<{len(data) // 8}Q", data), first // 8):
            state = entry & 7
            if index % (per_bitmap + 1) == per_bitmap or state in ABSENT:
                continue
            if state != FULL:
                raise found.file.wrong(f"a block of it is in state {state}", "it may need its parent's file")
            offset = (index - index // (per_bitmap + 1)) * shape.block
            found.add(offset, entry >> 20 << 20, shape.block, what=f"the block of {offset}")


def _check_header(file: File) -> None:
    """Raise a Problem unless the newer of the two headers says that all is written (2.2.2)."""
    headers = [file.read(at, 4 * KIB, what="its header") for at in HEADERS]
    sound = [data for data in headers if data[:4] == b"head" and _is_sound(data)]
    if not sound:
        raise file.wrong("both of its headers are damaged")
    _, _, _, _, _, log, log_version, version, *_ = max(map(HEADER.unpack_from, sound), key=lambda header: header[2])
    if version != 1 or log_version:
        raise file.wrong(f"it is of version {version}.{log_version}")
    if any(log):
        raise file.wrong(
            "its last changes are in its log", "attach it once, or `qemu-img check -r all` it, to end them"
        )


def _read_regions(file: File) -> dict[UUID, tuple[int, int]]:
    """Where each region lies, from the first of the two tables that is sound."""
    for at in REGIONS:
        data = file.read(at, 64 * KIB, what="its regions")
        count = int.from_bytes(data[8:12], "little")
        if data[:4] == b"regi" and _is_sound(data) and count <= MAX_REGIONS:
            break
    else:
        raise file.wrong("both tables of its regions are damaged")
    found = {}
    for number in range(count):
        id, place, length, required = REGION.unpack_from(data, 16 + number * REGION.size)
        known = UUID(bytes_le=id) in (TABLE_ID, METADATA_ID)
        if (required & 1 and not known) or place % MIB or place < MIB or UUID(bytes_le=id) in found:
            raise file.wrong("a region of it is unknown, or comes twice, or lies where it cannot")
        file.slice(place, length, what="a region")
        found[UUID(bytes_le=id)] = place, length
    return found


def _items(file: File, at: int, length: int) -> dict[UUID, bytes]:
    """The metadata that the system wrote; raises Problem for what must be known and is not."""
    table = file.read(at, 64 * KIB, what="its metadata")
    signature, _, count = struct.unpack_from("<8sHH", table)
    if signature != b"metadata" or count > MAX_REGIONS:
        raise file.wrong("it has no metadata")
    found: dict[UUID, bytes] = {}
    for number in range(count):
        raw, place, size, flags, _ = ITEM.unpack_from(table, 32 + number * ITEM.size)
        id = UUID(bytes_le=raw)
        if id == PARENT:
            raise file.wrong("it needs its parent's file, which is never opened")
        if id in LENGTHS:
            if size != LENGTHS[id] or place + size > length or id in found:
                raise file.wrong("its metadata are damaged")
            found[id] = file.read(at + place, size, what="its metadata")
        elif flags & REQUIRED:
            raise file.wrong(f"it has required metadata that are unknown here: {id}")
    return found


LENGTHS = {PARAMETERS: 8, DISK_SIZE: 8, DISK_ID: 16, LOGICAL_SECTOR: 4, PHYSICAL_SECTOR: 4}


def _shape(file: File, items: dict[UUID, bytes]) -> _Shape:
    missing = [id for id in LENGTHS if id not in items]
    if missing:
        raise file.wrong(f"its metadata lack {', '.join(map(str, missing))}")
    block, flags = struct.unpack("<II", items[PARAMETERS])
    size, sector = (int.from_bytes(items[id], "little") for id in (DISK_SIZE, LOGICAL_SECTOR))
    if flags & HAS_PARENT:
        raise file.wrong("it needs its parent's file, which is never opened")
    if not MIB <= block <= 256 * MIB or block & block - 1:
        raise file.wrong(f"its blocks have {block} bytes")
    if sector not in (512, 4096) or not 0 < size <= MAX_SIZE or size % sector:
        raise file.wrong(f"its disk has {size} bytes in sectors of {sector}")
    return _Shape(size, block, sector)


def _is_sound(data: bytes) -> bool:
    return int.from_bytes(data[4:8], "little") == _crc32c(data[:4] + bytes(4) + data[8:])
