"""GPT: partitions by unique id, with a copy of the table at the end of the disk (UEFI 2.10, section 5.3)."""

import struct
from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID
from zlib import crc32

from imagekit.disk import mbr
from imagekit.disk.mbr import BEYOND, BOOT_CODE, ENTRIES, ENTRY, PROTECTIVE, SIGNATURE
from imagekit.disk.sparse import SECTOR, Piece, Sparse
from imagekit.errors import Problem

HEADER = struct.Struct("<8sIIIIQQQQ16sQIII")
MAGIC, REVISION = b"EFI PART", 0x00010000
SLOT = struct.Struct("<16s16sQQQ72s")
SLOTS = 128
ARRAY = SLOTS * SLOT.size // SECTOR  # sectors
HEAD = (2 + ARRAY) * SECTOR  # bytes before the first usable one
TAIL = (1 + ARRAY) * SECTOR  # bytes after the last usable one
MOST_SLOTS = 1024


class Partition(NamedTuple):
    """A partition; sizes in bytes, whole sectors."""

    name: str
    type: UUID
    guid: UUID
    start: int
    size: int
    attributes: int = 0


class Hybrid(NamedTuple):
    """A GPT partition that an MBR shows as well."""

    number: int  # of the GPT's, from 1
    type: int  # of the MBR's
    active: bool = False


def table(
    size: int,
    partitions: Sequence[Partition],
    *,
    guid: UUID,
    boot_code: bytes = b"",
    hybrid: Sequence[Hybrid] = (),
) -> tuple[Piece, ...]:
    """MBR, table and the table's copy for a disk of `size` bytes; raises Problem for partitions that do not fit."""
    _check(size, partitions)
    array = b"".join(map(_slot, partitions)).ljust(SLOTS * SLOT.size, b"\0")
    last = size // SECTOR - 1
    head = _header(array, guid, last, own=1, other=last, entries=2)
    tail = _header(array, guid, last, own=last, other=1, entries=last - ARRAY)
    first = _protective(last, partitions, boot_code, hybrid)
    return Piece(0, first + head + array), Piece(size - TAIL, array + tail)


def read(disk: Sparse) -> tuple[Partition, ...]:
    """The partitions in the table's order, from the table at the disk's beginning.

    The copy at the end is for repair tools: firmware and kernels start from a disk whose first table is whole, so a
    damaged one is a Problem, as is every entry that overlaps another or leaves the disk.
    """
    if all(entry.type != PROTECTIVE for entry in mbr.read(disk)):  # 5.2.3: without it, it is an MBR disk
        raise Problem("the disk has no GPT: its MBR does not protect one")
    found = HEADER.unpack(disk.read(SECTOR, SECTOR).ljust(SECTOR, b"\0")[: HEADER.size])
    magic, revision, length, checksum, _, own, _, first, last, _, at, count, entry_size, array_crc = found
    if magic != MAGIC:
        raise Problem("the disk has no GPT: its second sector does not begin with EFI PART")
    if revision >> 16 != 1 or not HEADER.size <= length <= SECTOR or own != 1:
        raise Problem("the header of the GPT is damaged, or of a version that is not known")
    raw = bytearray(disk.read(SECTOR, length))
    raw[16:20] = bytes(4)
    if crc32(raw) != checksum:
        raise Problem("the header of the GPT does not match its checksum")
    if not 0 < count <= MOST_SLOTS or entry_size != SLOT.size or at < 2 or (at * SECTOR) > disk.size:
        raise Problem(f"the GPT has {count} entries of {entry_size} bytes at sector {at}, which cannot be")
    if first < at + count * entry_size // SECTOR:
        raise Problem("the GPT lets partitions begin within itself")
    array = disk.read(at * SECTOR, count * entry_size)
    if len(array) != count * entry_size or crc32(array) != array_crc:
        raise Problem("the entries of the GPT do not match their checksum")
    partitions = tuple(filter(None, (_partition(array[n : n + SLOT.size]) for n in range(0, len(array), SLOT.size))))
    _check_places(partitions, first * SECTOR, min((last + 1) * SECTOR, disk.size))
    return partitions


def disk_guid(disk: Sparse) -> UUID:
    """The disk's own id."""
    return UUID(bytes_le=disk.read(SECTOR + 56, 16))


def _check(size: int, partitions: Sequence[Partition]) -> None:
    if size % SECTOR or size < HEAD + TAIL:
        raise Problem(f"a disk of {size} bytes has no room for a GPT, or a part of a sector")
    if len(partitions) > SLOTS:
        raise Problem(f"{len(partitions)} partitions are more than the {SLOTS} of a GPT")
    for partition in partitions:
        if partition.start % SECTOR or partition.size % SECTOR:
            raise Problem(f"partition {partition.name!r} is no whole number of sectors of {SECTOR} bytes")
        if len(partition.name.encode("utf-16-le")) > 72:
            raise Problem(f"the name of partition {partition.name!r} is longer than 36 characters")
    _check_places(partitions, HEAD, size - TAIL)


def _check_places(partitions: Sequence[Partition], first: int, end: int) -> None:
    at, before = first, "the table"
    for partition in sorted(partitions, key=lambda partition: partition.start):
        if partition.start < at:
            raise Problem(f"partition {partition.name!r} overlaps {before}")
        if partition.size <= 0 or partition.start + partition.size > end:
            raise Problem(f"partition {partition.name!r} ends beyond the disk, or before it begins")
        at, before = partition.start + partition.size, f"partition {partition.name!r}"


def _slot(of: Partition) -> bytes:
    last = (of.start + of.size) // SECTOR - 1
    name = of.name.encode("utf-16-le")
    return SLOT.pack(of.type.bytes_le, of.guid.bytes_le, of.start // SECTOR, last, of.attributes, name)


def _partition(slot: bytes) -> Partition | None:
    kind, guid, first, last, attributes, name = SLOT.unpack(slot)
    if kind == bytes(16):
        return None
    text = name.decode("utf-16-le", "replace").partition("\0")[0]
    return Partition(
        text, UUID(bytes_le=kind), UUID(bytes_le=guid), first * SECTOR, (last + 1 - first) * SECTOR, attributes
    )


def _header(array: bytes, guid: UUID, last: int, *, own: int, other: int, entries: int) -> bytes:
    usable = (HEAD // SECTOR, last - TAIL // SECTOR)
    fields = (own, other, *usable, guid.bytes_le, entries, SLOTS, SLOT.size, crc32(array))
    blank = HEADER.pack(MAGIC, REVISION, HEADER.size, 0, 0, *fields)
    return HEADER.pack(MAGIC, REVISION, HEADER.size, crc32(blank), 0, *fields).ljust(SECTOR, b"\0")


def _protective(last: int, partitions: Sequence[Partition], boot_code: bytes, hybrid: Sequence[Hybrid]) -> bytes:
    """The MBR: one entry over all of the disk, or up to the first of those that an old BIOS or a Pi is to see."""
    if len(boot_code) > BOOT_CODE or len(hybrid) > 3:
        raise Problem("an MBR beside a GPT has room for 440 bytes of code and three partitions")
    shown = [(partitions[of.number - 1], of) for of in hybrid]
    last = min(part.start // SECTOR - 1 for part, _ in shown) if shown else last
    whole = ENTRY.pack(0, b"\0\2\0", PROTECTIVE, BEYOND, 1, min(last, 0xFFFFFFFF))
    entries = [
        ENTRY.pack(0x80 if of.active else 0, BEYOND, of.type, BEYOND, part.start // SECTOR, part.size // SECTOR)
        for part, of in shown
    ]
    return (boot_code.ljust(ENTRIES, b"\0") + whole + b"".join(entries)).ljust(510, b"\0") + SIGNATURE
