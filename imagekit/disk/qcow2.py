"""qcow2: disks that hold what was written, above others that stay as they are (docs/interop/qcow2.txt of QEMU)."""

import struct
import sys
import zlib
from array import array
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imagekit.disk import container
from imagekit.disk.container import File, Map
from imagekit.disk.sparse import Packed, Sparse
from imagekit.errors import Problem

MAGIC = b"QFI\xfb"
CLUSTER_BITS = 16
CLUSTER = 1 << CLUSTER_BITS
POINTERS = CLUSTER // 8  # in a cluster of any table
HEADER = struct.Struct(">4sIQIIQIIQQIIQQQQII")  # version 3, without extensions
MAX_SIZE = 1 << 44  # bytes: 16 TiB, for which the first level takes a quarter of a MiB
MAX_FIRST_LEVEL = 32 << 20  # bytes, as QEMU has it (QCOW_MAX_L1_SIZE)
MAX_TABLES = 1 << 30  # bytes of the second level: 8 TiB that are there
EXTERNAL = 1 << 2  # an incompatible feature: the bytes lie in another file
DIRTY, COMPRESSION = 1, 1 << 3  # reference counts that lag behind; another compression than zlib's
COPIED, COMPRESSED, ZERO = 1 << 63, 1 << 62, 1  # bits of an entry
OFFSET = (1 << 56) - (1 << 9)  # the bits of an entry that are an offset


class Header(NamedTuple):
    """What an overlay needs to know of a qcow2 file."""

    size: int  # bytes of the disk
    is_alone: bool  # no other file is needed to read it


def empty(size: int) -> bytes:
    """A file whose disk is `size` bytes of what lies under it, or zeros: it has no backing file in its header."""
    if not 0 < size <= MAX_SIZE:
        raise Problem(f"a disk of {size} bytes cannot be made", f"1 to {MAX_SIZE}")
    return b"".join(_tables(size, array("Q")))


def header(first: bytes) -> Header | None:
    """What the first bytes of a file say; None when it is no qcow2 file."""
    if not first.startswith(MAGIC):
        return None
    if len(first) < HEADER.size:
        raise Problem("a qcow2 file of that few bytes has lost the others")
    _, version, backing, _, _, size, *_ = HEADER.unpack(first[: HEADER.size])
    features = struct.unpack_from(">Q", first, 72)[0] if version >= 3 else 0
    return Header(size, not backing and not features & EXTERNAL)


def chunks(disk: Sparse) -> Iterator[bytes]:
    """A qcow2 file (version 3) of this disk, its tables before its clusters; what is zeros takes no room.

    The disk is read twice: where there is something must be known before the first byte is written.
    """
    disk = container.whole(disk, most=MAX_SIZE, kind="qcow2")
    filled = array("Q", (offset // CLUSTER for offset in disk.places(CLUSTER)))
    yield from _tables(disk.size, filled)
    yield from container.again(disk, filled, CLUSTER)


def layer(size: int, clusters: Mapping[int, bytes]) -> Iterator[bytes]:
    """A file to lie over another, with these clusters: number -> bytes, of which zeros hide what is below as well."""
    filled = array("Q", sorted(clusters))
    yield from _tables(size, filled)
    for number in filled:
        yield clusters[number].ljust(CLUSTER, b"\0")


def clusters(path: Path) -> Iterator[tuple[int, bytes]]:
    """(number, bytes) of all clusters that a file of ours holds itself, zeros among them: what it hides of another."""
    file = container.file(path, "qcow2")
    shape = _shape(file)
    if shape.cluster != CLUSTER:
        raise file.wrong(f"its clusters have {shape.cluster} bytes, not {CLUSTER}")
    for index, entry in enumerate(_table(file, shape.first_level, shape.entries, what="its first level")):
        if not (at := entry & OFFSET):
            continue
        for place, found in enumerate(_table(file, at, POINTERS, what="a second level")):
            if found & COMPRESSED:
                raise file.wrong("it has a compressed cluster")
            if found & ZERO:
                yield index * POINTERS + place, bytes(CLUSTER)
            elif found & OFFSET:
                yield index * POINTERS + place, file.read(found & OFFSET, CLUSTER, what="a cluster")


def _tables(size: int, filled: "array[int]") -> Iterator[bytes]:
    """Header, table and blocks of reference counts, first level, second level; each begins at a cluster."""
    entries = -(-size // (CLUSTER * POINTERS))  # each points to a table of 8192 clusters
    first_level = -(-entries // POINTERS)
    touched = sorted({number // POINTERS for number in filled})
    counted = 1 + first_level + len(touched) + len(filled)
    table, blocks = _counts(counted)
    total = counted + table + blocks
    level = (1 + table + blocks) * CLUSTER
    yield HEADER.pack(
        MAGIC, 3, 0, 0, CLUSTER_BITS, size, 0, entries, level, CLUSTER, table, 0, 0, 0, 0, 0, 4, HEADER.size
    ).ljust(CLUSTER, b"\0")
    yield _pointers(range((1 + table) * CLUSTER, level, CLUSTER)).ljust(table * CLUSTER, b"\0")
    for block in range(blocks):
        here = min(total - block * CLUSTER // 2, CLUSTER // 2)
        yield (b"\0\1" * here).ljust(CLUSTER, b"\0")
    second = level + first_level * CLUSTER
    yield _first_level(touched, entries, second).ljust(first_level * CLUSTER, b"\0")
    yield from _second_level(filled, second + len(touched) * CLUSTER)


def _counts(counted: int) -> tuple[int, int]:
    """Clusters of the table and of the blocks of reference counts, which count themselves too."""
    table = blocks = 1
    while True:
        enough = -(-(counted + table + blocks) // (CLUSTER // 2)), -(-blocks // POINTERS)
        if enough == (blocks, table):
            return table, blocks
        blocks, table = enough


def _first_level(touched: list[int], entries: int, second: int) -> bytes:
    level = array("Q", bytes(entries * 8))
    for place, number in enumerate(touched):
        level[number] = second + place * CLUSTER | COPIED
    return _pointers(level)


def _second_level(filled: "array[int]", at: int) -> Iterator[bytes]:
    table, current = array("Q", bytes(CLUSTER)), -1
    for number in filled:
        if number // POINTERS != current:
            if current >= 0:
                yield _pointers(table)
            table, current = array("Q", bytes(CLUSTER)), number // POINTERS
        table[number % POINTERS] = at | COPIED
        at += CLUSTER
    if current >= 0:
        yield _pointers(table)


def _pointers(values: "range | array[int]") -> bytes:
    made = array("Q", values)
    if sys.byteorder == "little":
        made.byteswap()
    return made.tobytes()


class _Shape(NamedTuple):
    """What the header of a file to be read says."""

    size: int
    cluster: int  # bytes
    entries: int  # of the first level
    first_level: int  # where it lies
    compression: int


def read(path: Path) -> Sparse:
    """The disk of a qcow2 file, which must need no other file: as of now, whatever snapshots lie in it too.

    Raises Problem for what names a backing or a data file, is encrypted or marked corrupt, or points where it cannot.
    """
    file = container.file(path, "qcow2")
    shape = _shape(file)
    found = Map(file, shape.size)
    found.use(0, shape.cluster, what="its header")
    tables = _table(file, shape.first_level, shape.entries, what="its first level")
    covered = shape.cluster * (shape.cluster // 8)
    for index, entry in enumerate(tables):
        at, offset = entry & OFFSET, index * covered
        if at and offset < shape.size:
            _checked(file, at, shape, what="a second level")
            found.use(at, shape.cluster, what="a second level")
            _take(found, _table(file, at, shape.cluster // 8, what="a second level"), offset, shape)
    return found.disk()


def _take(found: Map, table: "array[int]", offset: int, shape: _Shape) -> None:
    """All clusters of one table of the second level."""
    if not any(table):
        return
    for entry in table:
        if offset >= shape.size:
            return
        at = entry & OFFSET
        if entry & COMPRESSED:
            found.add_packed(offset, _packed(found.file, entry, shape))
        elif at and not entry & ZERO:
            _checked(found.file, at, shape, what="a cluster")
            found.add(offset, at, shape.cluster, what=f"the cluster of {offset}")
        offset += shape.cluster


def _packed(file: File, entry: int, shape: _Shape) -> Packed:
    """Spec, "Compressed Clusters Descriptor": where it begins, and in how many more sectors of the file it ends."""
    bits = 62 - (shape.cluster.bit_length() - 1 - 8)
    at = entry & (1 << bits) - 1
    sectors = (entry & (1 << 62) - 1) >> bits
    size = min((sectors + 1) * 512 - at % 512, file.size - at)
    unpack = partial(UNPACK[shape.compression], size=shape.cluster, path=file.path)
    return Packed(file.slice(at, size, what="a compressed cluster"), shape.cluster, unpack)


def _checked(file: File, at: int, shape: _Shape, *, what: str) -> None:
    if at % shape.cluster:
        raise file.wrong(f"{what} is said to be at {at}, which is no cluster's beginning")


def _shape(file: File) -> _Shape:
    first = file.read(0, 72, what="its header")
    magic, version, backing, _, bits, size, crypt, entries, level, *_ = struct.unpack(">4sIQIIQIIQ", first[:48])
    if magic != MAGIC or version not in (2, 3):
        raise file.wrong(f"it is none, or of version {version}", "versions 2 and 3 can be read")
    features, compression = _features(file) if version == 3 else (0, 0)
    bad = {
        "it needs a backing file, which is never opened": backing,
        "its bytes lie in a data file, which is never opened": features & EXTERNAL,
        "it is encrypted": crypt,
        "it is marked corrupt": features & 1 << 1,
        f"it has features that are unknown here ({features:#x})": features & ~(DIRTY | EXTERNAL | COMPRESSION | 2),
        f"its clusters have 2^{bits} bytes": not 9 <= bits <= 21,
        f"its disk has {size} bytes": not 0 < size <= MAX_SIZE,
        f"its compression is of kind {compression}": compression not in UNPACK,
    }
    for what, is_so in bad.items():
        if is_so:
            raise file.wrong(what, "let `qemu-img convert` make a file of its own")
    return _sized(file, _Shape(size, 1 << bits, entries, level, compression))


def _sized(file: File, shape: _Shape) -> _Shape:
    """The shape, when its tables can be read in reasonable time and memory."""
    needed = -(-shape.size // (shape.cluster * (shape.cluster // 8)))
    if not needed <= shape.entries <= MAX_FIRST_LEVEL // 8:
        raise file.wrong(f"its first level has {shape.entries} entries, and {needed} are needed")
    if needed * shape.cluster > MAX_TABLES:
        raise file.wrong(f"a disk of {shape.size} bytes in clusters of {shape.cluster}", "make the clusters larger")
    if shape.first_level % shape.cluster:
        raise file.wrong(f"its first level is said to be at {shape.first_level}, which is no cluster's beginning")
    return shape._replace(entries=needed)


def _features(file: File) -> tuple[int, int]:
    """Incompatible features and the kind of compression, of version 3."""
    more = file.read(0, 104, what="its header")
    features, length = int.from_bytes(more[72:80]), int.from_bytes(more[100:104])
    if not features & COMPRESSION:
        return features, 0
    return features, file.read(104, 1, what="its header")[0] if length > 104 else 0


def _table(file: File, at: int, entries: int, *, what: str) -> "array[int]":
    found = array("Q", file.read(at, entries * 8, what=what))
    if sys.byteorder == "little":
        found.byteswap()
    return found


def _inflated(data: bytes, *, size: int, path: str) -> bytes:
    """Raw deflate, of a cluster and no more."""
    try:
        made = zlib.decompressobj(-15).decompress(data, size)
    except zlib.error as error:
        raise Problem(f"{path}: a compressed cluster cannot be read: {error}") from error
    return _exact(made, size, path)


def _zstd(data: bytes, *, size: int, path: str) -> bytes:
    import zstandard

    try:
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(data) as reader:
            made = reader.read(size)
    except zstandard.ZstdError as error:
        raise Problem(f"{path}: a compressed cluster cannot be read: {error}") from error
    return _exact(made, size, path)


def _exact(made: bytes, size: int, path: str) -> bytes:
    if len(made) != size:
        raise Problem(f"{path}: a compressed cluster holds {len(made)} bytes, not {size}")
    return made


UNPACK = {0: _inflated, 1: _zstd}
