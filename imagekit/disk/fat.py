"""FAT12, FAT16 and FAT32 with long names: what firmware reads, from a USB stick to the EFI system partition.

Source: Microsoft, "FAT32 File System Specification" 1.03. Files lie in one run of clusters each and are never copied:
a volume is a Sparse whose pieces are the tables and the files. All times are 1980-01-01, the first that FAT knows.
"""

import struct
import sys
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, Union

from imagekit.disk import fatname
from imagekit.disk.sparse import SECTOR, Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.store import Stored, size_of
from imagekit.tree import Slice

Content = bytes | Slice | list[bytes | Stored]  # a list is one file, piece by piece: nobody has to hold it twice
BOOT = struct.Struct("<3s8sHBHBHHBHHHII")
TAIL_16, TAIL_32 = struct.Struct("<BBBI11s8s"), struct.Struct("<IHHIHH12sBBBI11s8s")
INFO = struct.Struct("<I480sIII12sI")
ENTRY = struct.Struct("<11sBBBHHHHHHHI")
DATE = 0 << 9 | 1 << 5 | 1
UNKNOWN = 0xFFFFFFFF  # which cluster is the next free one, where none is
VOLUME, FOLDER, ARCHIVE = 0x08, 0x10, 0x20
ROOT_ENTRIES = 512  # of FAT12 and FAT16
LARGEST_FILE = (1 << 32) - 1
LARGEST_FAT16 = 512 << 20  # bytes: beyond, its clusters waste more than FAT32's table takes
PER_CLUSTER = (8, 16, 32, 64, 4, 2, 1)  # sectors: GRUB walks them one by one, and more of them waste more
LONGEST_FOLDER = 65536 * ENTRY.size  # bytes ("Directory Structure")
LIMIT = 1 << 32  # sectors of a volume


class Kind(NamedTuple):
    """One of the three, by the number of clusters, which alone decides (section "FAT Type Determination")."""

    bits: int
    least: int  # clusters; away from the limits, which readers are known to miss by a few
    most: int
    reserved: int  # sectors before the first table
    root: int  # sectors of the root folder; 0 where it is a chain like any other


KINDS = (Kind(12, 1, 4068, 1, 32), Kind(16, 4101, 65508, 1, 32), Kind(32, 65541, 268435444, 32, 0))


class Geometry(NamedTuple):
    """Where things lie."""

    kind: Kind
    per_cluster: int  # sectors
    table: int  # sectors of each of the two
    clusters: int
    sectors: int  # of the volume

    @property
    def cluster(self) -> int:
        """Bytes of a cluster."""
        return self.per_cluster * SECTOR

    @property
    def data(self) -> int:
        """The offset of cluster 2 in bytes."""
        return (self.kind.reserved + 2 * self.table + self.kind.root) * SECTOR


class Row(NamedTuple):
    """One name of a folder."""

    name: str
    alias: bytes
    long: bytes  # entries that stand before the alias's
    inner: Union[Content, "Folder"]


class Folder(NamedTuple):
    """What a folder holds."""

    rows: tuple[Row, ...]
    size: int  # bytes of its entries, with those that it has of itself: one for the label, or `.` and `..`


@dataclass
class _Chains:
    """Clusters as they are given away: `table` is the FAT, `pieces` is what lies in them."""

    geometry: Geometry
    table: "array[int]" = field(default_factory=lambda: array("I", (0x0FFFFFF8, 0x0FFFFFFF)))
    pieces: list[Piece] = field(default_factory=list)

    def take(self, size: int) -> int:
        """The first cluster of a chain that holds so many bytes; 0 for none."""
        count, first = -(-size // self.geometry.cluster), len(self.table)
        if not count:
            return 0
        self.table.extend(range(first + 1, first + count))
        self.table.append(0x0FFFFFFF)
        return first

    def put(self, cluster: int, content: Content) -> None:
        """Lay content into a chain."""
        at = self.geometry.data + (cluster - 2) * self.geometry.cluster
        for part in content if isinstance(content, list) else [content]:
            self.pieces.append(Piece(at, part))
            at = self.pieces[-1].end


def volume(files: Mapping[str, Content], *, size: int = 0, label: str = "", serial: int, start: int = 0) -> Sparse:
    """A volume of these files, "EFI/BOOT/BOOTX64.EFI" each; folders are implied.

    size: bytes; 0 makes it as small as it can be. serial: the volume's number. start: the sector that it begins at on
    its disk. Raises Problem for names and sizes that FAT cannot hold, and for a size that is too small.
    """
    tree = _tree(files)
    geometry = _geometry(tree, size)
    chains = _Chains(geometry)
    root = _written(tree, chains, label)
    if geometry.kind.bits == 32:
        first = 2  # the root was taken first
    else:
        first, at = 0, geometry.data - geometry.kind.root * SECTOR
        chains.pieces.append(Piece(at, root))
    tables = _packed(chains.table, geometry.kind.bits)
    places = (geometry.kind.reserved + number * geometry.table for number in (0, 1))
    pieces = [Piece(place * SECTOR, tables) for place in places]
    head = _head(geometry, label, serial, start, first, len(chains.table))
    return laid(geometry.sectors * SECTOR, (*head, *pieces, *chains.pieces))


def least(files: Mapping[str, Content]) -> int:
    """Bytes of the smallest volume that holds these files."""
    return _smallest(_tree(files)).sectors * SECTOR


def _tree(files: Mapping[str, Content]) -> Folder:
    """Paths as folders in folders, sorted; raises Problem for what FAT cannot hold."""
    tree: dict[str, object] = {}
    for path, content in sorted(files.items()):  # what a path lies below is seen before it
        if _size(content) > LARGEST_FILE:
            raise Problem(f"FAT cannot hold {path!a}: {_size(content)} bytes, and 4 GiB less one are the most")
        *folders, name = path.split("/")
        if len(folders) > fatname.DEEPEST:
            raise Problem(f"FAT cannot hold {path!a}: it is more than {fatname.DEEPEST} folders deep")
        here = tree
        for folder in folders:
            inner = here.setdefault(folder, {})
            if not isinstance(inner, dict):
                raise Problem(f"FAT cannot hold {path!a}: it lies below a file")
            here = inner
        here[name] = content
    return _folder(tree, "")


def _folder(found: Mapping[str, object], where: str) -> Folder:
    fatname.check(found, where=where)
    rows = []
    for name, alias in fatname.aliases(found.keys()).items():
        inner = found[name]
        long = b"" if fatname.is_short(name, alias) else fatname.long_entries(name, alias)
        if isinstance(inner, dict):
            inner = _folder(inner, f"{where}{name}/")
        assert isinstance(inner, bytes | Slice | list | Folder)
        rows.append(Row(name, alias, long, inner))
    size = ENTRY.size * (2 if where else 1) + sum(len(row.long) + ENTRY.size for row in rows)
    if size > LONGEST_FOLDER:
        raise Problem(f"FAT cannot hold so many names in the folder {where!a}", "put some into other folders")
    return Folder(tuple(rows), size)


def _size(content: Content) -> int:
    if isinstance(content, list):
        return sum(map(size_of, content))
    return len(content) if isinstance(content, bytes) else content.size


def _geometry(tree: Folder, size: int) -> Geometry:
    if not size:
        return _smallest(tree)
    if size < 0 or size % SECTOR or size // SECTOR >= LIMIT:
        raise Problem(f"a FAT volume cannot have {size} bytes", f"whole sectors, and less than {LIMIT * SECTOR}")
    found = list(_of_size(size // SECTOR))
    for geometry in found:
        if _clusters(tree, geometry) <= geometry.clusters:
            return geometry
    least = _smallest(tree).sectors * SECTOR
    if found or size < least:
        raise Problem(f"the files take a FAT volume of {least} bytes, and it has {size}", "make it larger")
    raise Problem(f"a FAT volume cannot have {size} bytes", f"these files take one of {least}")


def _smallest(tree: Folder) -> Geometry:
    """FAT16 as long as it can be, for it is read by all firmware; else FAT32."""
    for kind in KINDS[1:]:
        for per_cluster in PER_CLUSTER:
            needed = _clusters(tree, Geometry(kind, per_cluster, 0, 0, 0))
            is_small = kind.bits == 32 or per_cluster * SECTOR * needed <= LARGEST_FAT16
            if needed <= kind.most and is_small and (needed >= kind.least or per_cluster == _least(kind)):
                return _with_clusters(kind, per_cluster, max(needed, kind.least))
    raise Problem("the files are more than a FAT volume holds")


def _least(kind: Kind) -> int:
    """The smallest clusters that a kind gets: FAT32's table would be large with smaller ones."""
    return 8 if kind.bits == 32 else 1


def _with_clusters(kind: Kind, per_cluster: int, clusters: int) -> Geometry:
    table = _table_sectors(kind, clusters)
    sectors = kind.reserved + 2 * table + kind.root + clusters * per_cluster
    return Geometry(kind, per_cluster, table, clusters, sectors)


def _of_size(sectors: int) -> Iterator[Geometry]:
    """The kinds and clusters that a volume of that size can have, the best first."""
    kinds = (KINDS[1], KINDS[0]) if sectors * SECTOR < LARGEST_FAT16 else (KINDS[2],)
    for kind in kinds:
        for per_cluster in PER_CLUSTER:
            clusters = _fitting(kind, per_cluster, sectors) if per_cluster >= _least(kind) else 0
            if kind.least <= clusters <= kind.most:
                yield Geometry(kind, per_cluster, _table_sectors(kind, clusters), clusters, sectors)


def _fitting(kind: Kind, per_cluster: int, sectors: int) -> int:
    """How many clusters fit, with the tables that they take."""
    free = sectors - kind.reserved - kind.root
    clusters = max(free // per_cluster, 0)
    while clusters > 0 and 2 * _table_sectors(kind, clusters) + clusters * per_cluster > free:
        clusters -= max((2 * _table_sectors(kind, clusters) + clusters * per_cluster - free) // (per_cluster + 1), 1)
    return clusters


def _table_sectors(kind: Kind, clusters: int) -> int:
    return -(-((clusters + 2) * kind.bits) // (8 * SECTOR))


def _clusters(tree: Folder, geometry: Geometry) -> int:
    """How many clusters a tree takes; the root of FAT12 and FAT16 takes none."""
    if not geometry.kind.root:
        return sum(-(-size // geometry.cluster) for size in _sizes(tree))
    if tree.size > ROOT_ENTRIES * ENTRY.size:
        raise Problem(
            f"the root folder has more names than FAT{geometry.kind.bits} has room for", "put some into a folder"
        )
    return sum(-(-size // geometry.cluster) for size in _sizes(tree)) - -(-tree.size // geometry.cluster)


def _sizes(folder: Folder) -> Iterator[int]:
    """Bytes of a folder, of its files and of all below it."""
    yield folder.size
    for row in folder.rows:
        if isinstance(row.inner, Folder):
            yield from _sizes(row.inner)
        else:
            yield _size(row.inner)


def _written(folder: Folder, chains: _Chains, label: str, *, parent: int = -1) -> bytes:
    """The entries of a folder, and all below it laid into chains; parent: the cluster above, -1 for the root."""
    is_root = parent < 0
    in_chain = not is_root or not chains.geometry.kind.root
    own = chains.take(folder.size) if in_chain else 0
    rows = [_entry(_label(label), VOLUME)] if is_root and label else []
    if not is_root:
        rows = [_entry(b".".ljust(11), FOLDER, own), _entry(b"..".ljust(11), FOLDER, parent)]
    for _, alias, long, inner in folder.rows:
        if isinstance(inner, Folder):
            first, kind, size = len(chains.table), FOLDER, 0
            _written(inner, chains, "", parent=0 if is_root else own)
        else:
            first, kind, size = chains.take(_size(inner)), ARCHIVE, _size(inner)
            if size:
                chains.put(first, inner)
        rows.append(long + _entry(alias, kind, first, size))
    data = b"".join(rows)
    if in_chain:
        chains.put(own, data)
    return data


def _entry(alias: bytes, kind: int, cluster: int = 0, size: int = 0) -> bytes:
    return ENTRY.pack(alias, kind, 0, 0, 0, DATE, DATE, cluster >> 16, 0, DATE, cluster & 0xFFFF, size)


def _label(label: str) -> bytes:
    return (label or "NO NAME").upper().encode("ascii", "replace")[:11].ljust(11)


def _packed(table: "array[int]", bits: int) -> bytes:
    data = struct.pack(f"<{len(table)}I", *table) if sys.byteorder == "big" else table.tobytes()
    if bits == 32:
        return data
    if bits == 16:
        return array("H", data)[::2].tobytes()  # the lower half of each
    pairs = zip(table[::2], [*table[1::2], 0], strict=False)
    return b"".join((a & 0xFFF | (b & 0xFFF) << 12).to_bytes(3, "little") for a, b in pairs)


def _head(geometry: Geometry, label: str, serial: int, start: int, root: int, used: int) -> list[Piece]:
    """Boot sector; with FAT32 also the count of free clusters, and copies of both."""
    kind, is_32 = geometry.kind, geometry.kind.bits == 32
    small = geometry.sectors if geometry.sectors < 1 << 16 and not is_32 else 0
    entries = 0 if is_32 else ROOT_ENTRIES
    sectors = 0 if small else geometry.sectors
    common = BOOT.pack(
        *(b"\xeb\x58\x90" if is_32 else b"\xeb\x3c\x90", b"MSWIN4.1", SECTOR, geometry.per_cluster, kind.reserved, 2),
        *(entries, small, 0xF8, 0 if is_32 else geometry.table, 63, 255, start, sectors),
    )
    named = (0x80, 0, 0x29, serial, _label(label), f"FAT{kind.bits}".ljust(8).encode())
    tail = TAIL_32.pack(geometry.table, 0, 0, root, 1, 6, bytes(12), *named) if is_32 else TAIL_16.pack(*named)
    boot = (common + tail).ljust(510, b"\0") + b"\x55\xaa"
    if not is_32:
        return [Piece(0, boot)]
    free = geometry.clusters + 2 - used
    info = INFO.pack(0x41615252, bytes(480), 0x61417272, free, used if free else UNKNOWN, bytes(12), 0xAA550000)
    return [Piece(0, boot), Piece(SECTOR, info), Piece(6 * SECTOR, boot), Piece(7 * SECTOR, info)]
