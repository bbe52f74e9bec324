"""The files of a FAT volume, which may be anybody's: every number is checked, every chain ends.

Source: Microsoft, "FAT32 File System Specification" 1.03. Writing is fat.py's.
"""

import struct
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imagekit.disk import fatname
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem

BOOT, BOOT_32 = struct.Struct("<3x8xHBHBHHxHHHII"), struct.Struct("<IHHI")
ENTRY = struct.Struct("<11sBB7xH4xHI")
FREE, DELETED, KANJI = 0x00, 0xE5, 0x05
VOLUME, FOLDER = 0x08, 0x10
SMALL_STEM, SMALL_EXTENSION = 0x08, 0x10  # of the byte that Windows NT took for it
MOST_CLUSTERS = 4 << 20  # more than a card of 64 GB has
MOST_NAMES, LONGEST_FOLDER = 65536, 2 << 20
LARGEST_READ = 1 << 30  # bytes of a file that are taken into memory


class Volume(NamedTuple):
    """What the boot sector says of a volume."""

    disk: Sparse
    bits: int  # 12, 16 or 32
    cluster: int  # bytes
    clusters: int
    data: int  # offset of cluster 2
    root: tuple[int, int]  # offset and bytes of the root folder of FAT12 and FAT16
    root_cluster: int  # of FAT32
    table: bytes
    label: str
    serial: int


@dataclass(frozen=True)
class File:
    """A file of a volume."""

    size: int  # bytes
    _volume: Volume = field(repr=False)
    _chain: Sequence[int] = field(repr=False)

    def read(self) -> bytes:
        """All its bytes; raises Problem for more than a gibibyte."""
        if self.size > LARGEST_READ:
            raise Problem(f"a file of the FAT volume has {self.size} bytes, too many to be read at once")
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """All its bytes in order, at most a MiB at a time."""
        return self.content().chunks()

    def content(self) -> Sparse:
        """The file as a disk of its own: where its bytes lie."""
        pieces, at = [], 0
        for offset, size in _runs(self._volume, self._chain):
            size = min(size, self.size - at)
            pieces += [
                piece._replace(offset=at + piece.offset) for piece in self._volume.disk.part(offset, size).pieces
            ]
            at += size
        return Sparse(self.size, tuple(pieces))


def read(disk: Sparse) -> dict[str, File]:
    """The files by their paths, "EFI/BOOT/BOOTX64.EFI"; raises Problem for what is no FAT volume, or a damaged one."""
    volume = head(disk)
    taken = bytearray(volume.clusters + 2)
    found, seen = dict[str, File](), set[str]()
    for path, file in _below(volume, _root(volume, taken), "", taken):
        if (folded := fatname.folded(path)) in seen:  # of two, each reader would take another one
            raise Problem(f"the FAT volume has {path!a} twice: it does not tell case")
        seen.add(folded)
        if len(seen) > MOST_NAMES:
            raise Problem(f"the FAT volume has more than {MOST_NAMES} files and folders")
        if file:
            found[path] = file
    return found


def head(disk: Sparse) -> Volume:
    """What the boot sector says; raises Problem when that cannot be."""
    sector = disk.read(0, 512)
    if len(sector) < 512 or sector[510:] != b"\x55\xaa":
        raise Problem("this is no FAT volume: its first sector does not end with 55 AA")
    size, per_cluster, reserved, tables, entries, small, table_16, *_, large = BOOT.unpack_from(sector)
    table_32, _, _, root_cluster = BOOT_32.unpack_from(sector, BOOT.size)
    sectors, table = small or large, table_16 or table_32
    if size not in (512, 1024, 2048, 4096) or per_cluster not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise Problem("this is no FAT volume: its sectors or clusters have no size that FAT knows")
    if not reserved or tables not in (1, 2) or not table or sectors * size > disk.size:
        raise Problem("the FAT volume is damaged, or cut: its tables do not fit it")
    root = (reserved + tables * table) * size
    data = root + -(-entries * 32 // size) * size
    clusters = (sectors * size - data) // (per_cluster * size)
    bits = 12 if clusters < 4085 else 16 if clusters < 65525 else 32
    is_32 = {bits == 32, not entries, not table_16}  # the three agree
    if not 0 < clusters <= MOST_CLUSTERS or table * size * 8 < (clusters + 2) * bits or len(is_32) > 1:
        raise Problem(f"the FAT volume is damaged: it has {clusters} clusters and a table for others")
    packed = disk.read(reserved * size, ((clusters + 2) * bits + 7) // 8)
    named = 71 if bits == 32 else 43
    label = sector[named : named + 11].decode("ascii", "replace").strip()
    (serial,) = struct.unpack_from("<I", sector, named - 4)
    return Volume(
        disk, bits, per_cluster * size, clusters, data, (root, entries * 32), root_cluster, packed, label, serial
    )


def _root(volume: Volume, taken: bytearray) -> bytes:
    if volume.bits != 32:
        return volume.disk.read(*volume.root)
    return _folder(volume, volume.root_cluster, taken)


def _folder(volume: Volume, first: int, taken: bytearray) -> bytes:
    most = LONGEST_FOLDER // volume.cluster
    chain = _chain(volume, first, taken, most + 1)
    if not 0 < len(chain) <= most:
        raise Problem("the FAT volume is damaged: a folder of it has no end, or none at all")
    return b"".join(volume.disk.read(offset, size) for offset, size in _runs(volume, chain))


def _below(
    volume: Volume, data: bytes, where: str, taken: bytearray, depth: int = 0
) -> Iterator[tuple[str, File | None]]:
    """All that a folder holds with what is below it; None for a folder."""
    if depth > fatname.DEEPEST:
        raise Problem(f"the FAT volume has folders more than {fatname.DEEPEST} deep")
    for name, kind, first, size in _entries(data):
        if kind & FOLDER:
            yield where + name, None
            yield from _below(volume, _folder(volume, first, taken), f"{where}{name}/", taken, depth + 1)
        else:
            count = -(-size // volume.cluster)
            chain = _chain(volume, first, taken, count)
            if len(chain) != count:
                raise Problem(f"the FAT volume is damaged: {where + name!a} has {size} bytes and fewer clusters")
            yield where + name, File(size, volume, chain)


def _entries(data: bytes) -> Iterator[tuple[str, int, int, int]]:
    """(name, attributes, first cluster, bytes) of what a folder holds, but for itself, its parent and the label."""
    parts: list[tuple[int, int, bytes]] = []
    for at in range(0, len(data) - 31, 32):
        row = data[at : at + 32]
        if row[0] == FREE:
            return
        alias, kind, small, high, low, size = ENTRY.unpack(row)
        if row[0] != DELETED and kind & 0x3F == fatname.ATTRIBUTE_LONG:
            parts.append((row[0], row[13], row[1:11] + row[14:26] + row[28:32]))
            continue
        if row[0] != DELETED and not kind & VOLUME and alias.rstrip() not in (b".", b".."):
            yield _name(alias, small, parts), kind, high << 16 | low, size
        parts = []


def _name(alias: bytes, small: int, parts: list[tuple[int, int, bytes]]) -> str:
    """The long name, if it is whole and belongs to the alias; else the alias, in small letters where it says so."""
    numbers = [number & ~fatname.LAST for number, _, _ in parts]
    is_whole = numbers == list(range(len(parts), 0, -1)) and parts and parts[0][0] & fatname.LAST
    if is_whole and {total for _, total, _ in parts} == {fatname.checksum(alias)}:
        text = b"".join(piece for _, _, piece in reversed(parts)).decode("utf-16-le", "replace")
        name = text.partition("\0")[0]
    else:
        first = bytes([DELETED]) if alias[0] == KANJI else alias[:1]
        stem, end = ((part.decode("latin-1").rstrip()) for part in (first + alias[1:8], alias[8:]))
        stem = stem.lower() if small & SMALL_STEM else stem
        end = end.lower() if small & SMALL_EXTENSION else end
        name = f"{stem}.{end}" if end else stem
    if not name or "/" in name or name in (".", ".."):
        raise Problem(f"the FAT volume has a file of the name {name!a}")
    return name


def _chain(volume: Volume, first: int, taken: bytearray, most: int) -> Sequence[int]:
    """The clusters of a chain, at most so many; none may belong to another one."""
    chain, cluster = array("I"), first
    while len(chain) < most and 2 <= cluster < volume.clusters + 2:
        if taken[cluster]:
            raise Problem(f"the FAT volume is damaged: two chains share cluster {cluster}")
        taken[cluster] = 1
        chain.append(cluster)
        cluster = _next(volume, cluster)
    return chain


def _next(volume: Volume, cluster: int) -> int:
    if volume.bits == 32:
        return int(struct.unpack_from("<I", volume.table, cluster * 4)[0]) & 0x0FFFFFFF
    if volume.bits == 16:
        return int(struct.unpack_from("<H", volume.table, cluster * 2)[0])
    pair = volume.table[cluster * 3 // 2 : cluster * 3 // 2 + 2].ljust(2, b"\0")
    number = int.from_bytes(pair, "little")
    return number >> 4 if cluster & 1 else number & 0xFFF


def _runs(volume: Volume, chain: Sequence[int]) -> Iterator[tuple[int, int]]:
    """(offset, bytes) of a chain, neighbours together."""
    at = 0
    while at < len(chain):
        end = at + 1
        while end < len(chain) and chain[end] == chain[end - 1] + 1:
            end += 1
        yield volume.data + (chain[at] - 2) * volume.cluster, (end - at) * volume.cluster
        at = end
