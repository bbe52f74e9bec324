"""MBR: the first sector of a disk, with up to four partitions (UEFI 2.10, section 5.2.1)."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

from imagekit.disk.sparse import SECTOR, Piece, Sparse
from imagekit.errors import Problem

ENTRIES, ENTRY = 446, struct.Struct("<B3sB3sII")
SIGNATURE = b"\x55\xaa"
BOOT_CODE = 440  # bytes that a BIOS runs; the disk's signature follows
BEYOND = b"\xfe\xff\xff"  # cylinder, head and sector of what they cannot address
FAT, FAT_LBA, LINUX, PROTECTIVE, EFI = 0x06, 0x0C, 0x83, 0xEE, 0xEF
MOST = 4
LIMIT = 1 << 32  # sectors


class Partition(NamedTuple):
    """An entry of the table."""

    number: int  # 1 to 4: its place in the table
    type: int
    start: int  # bytes
    size: int  # bytes
    active: bool = False


def table(partitions: Sequence[Partition], *, serial: int, boot_code: bytes = b"") -> Piece:
    """The first sector; serial: the signature by which Linux names partitions, PARTUUID=SSSSSSSS-NN."""
    if len(boot_code) > BOOT_CODE:
        raise Problem(f"{len(boot_code)} bytes of boot code are more than the {BOOT_CODE} that an MBR has room for")
    entries = {partition.number: _entry(partition) for partition in partitions}
    if len(entries) != len(partitions) or not entries.keys() <= set(range(1, MOST + 1)):
        raise Problem("an MBR has four partitions, numbered from 1")
    end = 1
    for of in sorted(partitions, key=lambda partition: partition.start):
        if of.start < end:
            raise Problem(f"partition {of.number} overlaps the one before it, or the table")
        end = of.start + of.size
    packed = b"".join(entries.get(number, bytes(ENTRY.size)) for number in range(1, MOST + 1))
    return Piece(0, struct.pack("<440sIH", boot_code, serial, 0) + packed + SIGNATURE)


def read(disk: Sparse) -> tuple[Partition, ...]:
    """The partitions of a disk, in the table's order; raises Problem when it has no such table, or a wrong one."""
    sector = disk.read(0, SECTOR)
    if len(sector) < SECTOR or sector[510:512] != SIGNATURE:
        raise Problem("the disk has no partition table: its first sector does not end with 55 AA")
    found = []
    for number in range(1, MOST + 1):
        flag, _, kind, _, start, size = ENTRY.unpack_from(sector, ENTRIES + (number - 1) * ENTRY.size)
        if not kind:
            continue
        if flag & 0x7F or not start or not size:
            raise Problem(f"partition {number} of the MBR is damaged")
        if kind != PROTECTIVE and (start + size) * SECTOR > disk.size:
            raise Problem(f"partition {number} of the MBR ends beyond the disk")
        found.append(Partition(number, kind, start * SECTOR, size * SECTOR, flag == 0x80))
    return tuple(found)


def serial(disk: Sparse) -> int:
    """The disk's signature."""
    return int(struct.unpack("<I", disk.read(BOOT_CODE, 4))[0])


def _entry(partition: Partition) -> bytes:
    if partition.start % SECTOR or partition.size % SECTOR:
        raise Problem(f"partition {partition.number} is no whole number of sectors of {SECTOR} bytes")
    start, size = partition.start // SECTOR, partition.size // SECTOR
    if start >= LIMIT or not 0 < size < LIMIT:
        raise Problem(
            f"partition {partition.number} does not fit an MBR, which ends at 2 TiB", "a format with GPT does"
        )
    chs = b"\x00\x02\x00" if partition.type == PROTECTIVE else BEYOND
    return ENTRY.pack(0x80 if partition.active else 0, chs, partition.type, BEYOND, start, size)
