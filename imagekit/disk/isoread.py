"""Reading ISO 9660: what lies on a disc and what firmware finds to start, of a file that nobody vouches for.

Everything is bounded, and what lies outside of the disc is a Problem. Names are Rock Ridge's where a folder has them.

Sources: ECMA-119 (ISO 9660), "El Torito" Bootable CD-ROM Format Specification 1.0, IEEE P1281 and P1282 (Rock Ridge).
"""

import struct
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imagekit.disk.sparse import SECTOR, Sparse
from imagekit.errors import Problem

BLOCK = 2048
FIRST, MOST_DESCRIPTORS = 16, 64  # blocks
BOOT_RECORD, PRIMARY, END = 0, 1, 255  # types of volume descriptors (8.1.1)
EL_TORITO = b"EL TORITO SPECIFICATION".ljust(32, b"\0")
VALIDATION, SECTION, LAST_SECTION, EXTENSION = 0x01, 0x90, 0x91, 0x44  # entries of its catalog
BOOTABLE = 0x88
PLATFORMS = {0x00: "bios", 0x01: "powerpc", 0x02: "mac", 0xEF: "uefi"}
RECORD = struct.Struct("<BBI4xI4x7sBBBH2xB")  # a directory record (9.1), of both byte orders the little one
FOLDER = 0x02  # a flag
MOST_FILES, LONGEST_PATH = 50_000, 1024
MOST_OF_FOLDERS = 32 << 20  # bytes of all folders together
LARGEST_READ = 1 << 30  # bytes of a file that are taken into memory


class Boot(NamedTuple):
    """An entry that firmware finds to start."""

    platform: str  # "bios", "uefi", or what the catalog says instead
    offset: int
    size: int  # bytes that the entry says; 0 for UEFI: to the end of the disc


class File(NamedTuple):
    """A file of the disc."""

    disk: Sparse
    offset: int
    size: int

    def read(self) -> bytes:
        """All its bytes; raises Problem for more than a gibibyte."""
        if self.size > LARGEST_READ:
            raise Problem(f"a file of the ISO has {self.size} bytes, too many to be read at once")
        return self.disk.read(self.offset, self.size)

    def content(self) -> Sparse:
        """The file as a disk of its own: where its bytes lie."""
        return self.disk.part(self.offset, self.size)


class Volume(NamedTuple):
    """What lies on a disc."""

    label: str
    size: int  # bytes, as the volume says
    files: Mapping[str, File]  # "EFI/BOOT/BOOTX64.EFI"; folders are implied
    boots: tuple[Boot, ...]


def is_iso(disk: Sparse) -> bool:
    """Whether it says to be an ISO."""
    return disk.read(FIRST * BLOCK, 6)[1:] == b"CD001"


def read(disk: Sparse) -> Volume:
    """The volume; raises Problem that says what is wrong with it."""
    descriptors = _descriptors(disk)
    if PRIMARY not in descriptors:
        raise Problem("the ISO has no primary volume descriptor")
    primary = descriptors[PRIMARY]
    blocks, size = struct.unpack_from("<I", primary, 80)[0], struct.unpack_from("<H", primary, 128)[0]
    if size != BLOCK:
        raise Problem(f"the ISO has blocks of {size} bytes, and discs have {BLOCK}")
    files = dict(_files(disk, primary[156:190]))
    label = primary[40:72].decode("ascii", "backslashreplace").rstrip(" \0")
    return Volume(label, blocks * BLOCK, files, _boots(disk, descriptors.get(BOOT_RECORD, b"")))


def _descriptors(disk: Sparse) -> dict[int, bytes]:
    """The first volume descriptor of each type; of boot records, El Torito's."""
    found: dict[int, bytes] = {}
    for number in range(FIRST, FIRST + MOST_DESCRIPTORS):
        block = disk.read(number * BLOCK, BLOCK)
        if len(block) < BLOCK or block[1:6] != b"CD001":
            raise Problem("it is no ISO, or its volume descriptors have no end")
        if block[0] == END:
            return found
        if block[0] != BOOT_RECORD or block[7:39] == EL_TORITO:
            found.setdefault(block[0], block)
    raise Problem(f"the ISO has more than {MOST_DESCRIPTORS} volume descriptors")


# --- El Torito ------------------------------------------------------------------------------------------------------


def _boots(disk: Sparse, record: bytes) -> tuple[Boot, ...]:
    if not record:
        return ()
    catalog = disk.read(struct.unpack_from("<I", record, 0x47)[0] * BLOCK, BLOCK)
    words = struct.unpack_from("<16H", catalog.ljust(32, b"\0"))
    if len(catalog) < BLOCK or catalog[0] != VALIDATION or catalog[30:32] != b"\x55\xaa" or sum(words) & 0xFFFF:
        raise Problem("the ISO's boot catalog is damaged")
    found, platform = [], catalog[1]
    for at in range(32, BLOCK, 32):
        kind = catalog[at]
        if kind in (SECTION, LAST_SECTION):
            platform = catalog[at + 1]
        elif kind == BOOTABLE:
            found.append(_boot(disk, catalog[at : at + 32], platform))
    return tuple(found)


def _boot(disk: Sparse, entry: bytes, platform: int) -> Boot:
    sectors, block = struct.unpack_from("<HI", entry, 6)
    name = PLATFORMS.get(platform, f"{platform:#x}")
    size = 0 if name == "uefi" and sectors < 2 else sectors * SECTOR  # UEFI 2.10, 13.3.2.1
    if block * BLOCK + size > disk.size or block < FIRST:
        raise Problem("the ISO's boot catalog leads beyond the disc")
    return Boot(name, block * BLOCK, size)


# --- folders --------------------------------------------------------------------------------------------------------


def _files(disk: Sparse, root: bytes) -> Iterator[tuple[str, File]]:
    """Every file with its path, of folders that are each read once."""
    _, _, block, size, *_ = RECORD.unpack(root[: RECORD.size])
    ahead, seen, count, total = [("", block, size)], {block}, 0, 0
    while ahead:
        path, block, size = ahead.pop()
        total += size
        if total > MOST_OF_FOLDERS:
            raise Problem(f"the ISO's folders have more than {MOST_OF_FOLDERS >> 20} MiB")
        for name, flags, first, length in _records(disk, block, size):
            count += 1
            whole = f"{path}{name}"
            if count > MOST_FILES or len(whole) > LONGEST_PATH:
                raise Problem(
                    f"the ISO has more than {MOST_FILES} files, or a path of more than {LONGEST_PATH} letters"
                )
            if not flags & FOLDER:
                yield whole, _file(disk, whole, first, length)
            elif first not in seen:
                seen.add(first)
                ahead.append((f"{whole}/", first, length))


def _file(disk: Sparse, path: str, block: int, size: int) -> File:
    if block * BLOCK + size > disk.size:
        raise Problem(f"the ISO's file {path} ends beyond the disc")
    return File(disk, block * BLOCK, size)


def _records(disk: Sparse, block: int, size: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, flags, block, size) of what is in a folder, less itself and its parent."""
    if block * BLOCK + size > disk.size:
        raise Problem("a folder of the ISO ends beyond the disc")
    for at in range(0, size, BLOCK):  # no record crosses the end of a block (6.8.1.1)
        yield from _of_block(disk.read(block * BLOCK + at, min(BLOCK, size - at)))


def _of_block(data: bytes) -> Iterator[tuple[str, int, int, int]]:
    at = 0
    while at < len(data) and data[at]:
        record = data[at : at + data[at]]
        if len(record) < RECORD.size + 1 or len(record) < RECORD.size + record[32]:
            raise Problem("a folder of the ISO is damaged")
        length, _, block, size, _, flags, _, _, _, name_length = RECORD.unpack_from(record)
        name = record[RECORD.size : RECORD.size + name_length]
        if name not in (b"\0", b"\1"):
            behind = RECORD.size + name_length + (name_length + 1) % 2
            yield _name(name, record[behind:]), flags, block, size
        at += length


def _name(name: bytes, system_use: bytes) -> str:
    """Rock Ridge's name, else ISO 9660's in small letters without version."""
    found, at = b"", 0
    while at + 5 <= len(system_use) and system_use[at + 2] >= 4:
        length = system_use[at + 2]
        if system_use[at : at + 2] == b"NM":
            found += system_use[at + 5 : at + length]
        at += length
    plain = name.partition(b";")[0].rstrip(b".").lower()
    return (found or plain).decode("utf-8", "backslashreplace").replace("/", "\\x2f")
