"""VMDK as one file: streamOptimized, written and read; monolithicSparse, read (VMware Virtual Disk Format 5.0).

A descriptor that stands in a file of its own names the files with the bytes: it is refused, and a name in an embedded
one is never opened.
"""

import re
import struct
import zlib
from array import array
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from imagekit.beside import Buffer, gathered
from imagekit.disk import container, gzip, ids
from imagekit.disk.container import File, Map, aligned
from imagekit.disk.sparse import SECTOR, Packed, Sparse
from imagekit.errors import Problem

MAGIC = b"KDMV"
DESCRIPTOR = b"# Disk DescriptorFile"
HEADER = struct.Struct("<4sIIQQQQIQQQB4sH433x")  # spec, "Hosted Sparse Extents": SparseExtentHeader
LINE_ENDS = b"\n \r\n"  # in the header, to tell a file that went through a transfer as text
GRAIN = 64 << 10  # bytes
ENTRIES = 512  # grains of a grain table
COVERED = GRAIN * ENTRIES
AT_END = (1 << 64) - 1  # the directory's place is told by the footer
HAS_LINE_ENDS, HAS_ZERO_GRAINS, COMPRESSED, MARKERS = 1, 1 << 2, 1 << 16, 1 << 17
MARKER = struct.Struct("<QII496x")  # sectors or lba, size, type
GRAIN_MARKER = struct.Struct("<QI")
TABLE, DIRECTORY, FOOTER, END = 1, 2, 3, 0
MAX_SIZE = 1 << 41  # bytes: 2 TiB, what 32 bits of sectors reach
MAX_DESCRIPTOR = 1 << 20  # bytes
VERSION = gzip.FAST_VERSION
NAME = "disk.vmdk"  # always: a file's name is no part of its content

TEXT = """\
# Disk DescriptorFile
version=1
CID={cid:08x}
parentCID=ffffffff
createType="streamOptimized"

# Extent description
RW {sectors} SPARSE "{name}"

# The Disk Data Base
#DDB

ddb.adapterType = "ide"
ddb.geometry.cylinders = "{cylinders}"
ddb.geometry.heads = "16"
ddb.geometry.sectors = "63"
ddb.virtualHWVersion = "10"
"""


def chunks(disk: Sparse) -> Iterator[bytes]:
    """A stream-optimised VMDK of this disk: its grains deflated, each table behind those that it tells of.

    It is made in one pass; what is told only at its end is all that is kept meanwhile.
    """
    return map(bytes, gathered(_parts(container.whole(disk, most=MAX_SIZE, kind="vmdk"))))


def _parts(disk: Sparse) -> Iterator[Buffer]:
    yield _header(disk, AT_END)
    yield _descriptor(disk)
    at, directory, table, current = GRAIN, array("I", bytes(4 * -(-disk.size // COVERED))), _blank(), -1
    for offset, data in disk.filled(GRAIN):
        if offset // COVERED != current:
            if current >= 0:
                directory[current] = (at + SECTOR) // SECTOR
                yield from _told(TABLE, table)
                at += SECTOR + ENTRIES * 4
            current, table = offset // COVERED, _blank()
        table[offset % COVERED // GRAIN] = at // SECTOR
        packed = _packed_grain(data.ljust(GRAIN, b"\0"))
        size = sum(map(len, packed))
        yield GRAIN_MARKER.pack(offset // SECTOR, size)
        yield from packed
        yield bytes(-(GRAIN_MARKER.size + size) % SECTOR)
        at += aligned(GRAIN_MARKER.size + size, SECTOR)
    if current >= 0:
        directory[current] = (at + SECTOR) // SECTOR
        yield from _told(TABLE, table)
        at += SECTOR + ENTRIES * 4
    yield from _told(DIRECTORY, directory)
    yield MARKER.pack(1, 0, FOOTER) + _header(disk, at + SECTOR) + MARKER.pack(0, 0, END)


def _blank() -> "array[int]":
    return array("I", bytes(ENTRIES * 4))


def _header(disk: Sparse, directory: int) -> bytes:
    place = directory if directory == AT_END else directory // SECTOR
    flags = HAS_LINE_ENDS | COMPRESSED | MARKERS
    size = (disk.size // SECTOR, GRAIN // SECTOR, 1, GRAIN // SECTOR - 1, ENTRIES)
    return HEADER.pack(MAGIC, 3, flags, *size, 0, place, GRAIN // SECTOR, 0, LINE_ENDS, 1)


def _descriptor(disk: Sparse) -> bytes:
    """The text, and zeros up to the first grain. Its CID is neither of the two values that mean something else."""
    cid = min(ids.number(container.identity(disk), "vmdk"), 0xFFFFFFFD)
    sectors = disk.size // SECTOR
    text = TEXT.format(cid=cid, sectors=sectors, name=NAME, cylinders=min(max(sectors // 16 // 63, 1), 16383))
    return text.encode().ljust(GRAIN - SECTOR, b"\0")


def _packed_grain(data: bytes) -> list[Buffer]:
    """What a grain is as a zlib stream (RFC 1950), in pieces."""
    if gzip.shrinks(data):
        return [zlib.compress(data, gzip.FAST)]
    return [b"\x78\x01", *gzip.stored(data, is_last=True), zlib.adler32(data).to_bytes(4)]


def _told(kind: int, table: "array[int]") -> Iterator[bytes]:
    data = struct.pack(f"<{len(table)}I", *table)
    data = data.ljust(aligned(len(data), SECTOR), b"\0")
    yield MARKER.pack(len(data) // SECTOR, 0, kind) + data


class _Shape(NamedTuple):
    """What the header, and at its end the footer, of a file to be read says."""

    size: int
    grain: int  # bytes
    entries: int  # of a grain table
    directory: int  # where it lies
    flags: int


def read(path: Path) -> Sparse:
    """The disk of a VMDK that is one sparse file; raises Problem for one that lies in other files, or has a parent."""
    return disk_of(container.file(path, "vmdk"))


def disk_of(file: File) -> Sparse:
    """The disk of a VMDK that is a file, or lies in one."""
    if file.size >= len(DESCRIPTOR) and file.read(0, len(DESCRIPTOR), what="its header") == DESCRIPTOR:
        raise file.wrong("it names other files with the disk's bytes, which are never opened", ONE_FILE)
    shape = _shape(file)
    found = Map(file, shape.size)
    covered = shape.grain * shape.entries
    count = -(-shape.size // covered)
    found.use(shape.directory, count * 4, what="its directory")
    for index, table in enumerate(struct.unpack(f"<{count}I", file.read(shape.directory, count * 4, what="it"))):
        if table:
            found.use(table * SECTOR, shape.entries * 4, what="a grain table")
            data = file.read(table * SECTOR, shape.entries * 4, what="a grain table")
            _take(found, struct.unpack(f"<{shape.entries}I", data), index * covered, shape)
    return found.disk()


ONE_FILE = "let `qemu-img convert -O vmdk -o subformat=streamOptimized` make one file of it"


def _take(found: Map, table: tuple[int, ...], offset: int, shape: _Shape) -> None:
    """All grains of one table; 0 is a grain that is not there, and 1 one of zeros, where there are those."""
    for sector in table:
        if offset >= shape.size:
            return
        if sector > (1 if shape.flags & HAS_ZERO_GRAINS else 0):
            if shape.flags & COMPRESSED:
                found.add_packed(offset, _packed(found, sector * SECTOR, offset, shape))
            else:
                found.add(offset, sector * SECTOR, shape.grain, what=f"the grain of {offset}")
        offset += shape.grain


def _packed(found: Map, at: int, offset: int, shape: _Shape) -> Packed:
    """A grain behind its marker, which must be this grain's."""
    file, what = found.file, f"the grain of {offset}"
    lba, size = GRAIN_MARKER.unpack(file.read(at, GRAIN_MARKER.size, what=what))
    if lba * SECTOR != offset or size > shape.grain * 2:
        raise file.wrong(f"at {at} lies no grain of {offset}, but {size} bytes of {lba * SECTOR}")
    found.use(at, GRAIN_MARKER.size + size, what=what)
    where = file.slice(at + GRAIN_MARKER.size, size, what=what)
    return Packed(where, shape.grain, partial(_inflated, size=shape.grain, path=file.path))


def _inflated(data: bytes, *, size: int, path: str) -> bytes:
    """A grain, of which the last one may be shorter than the others."""
    try:
        made = zlib.decompressobj().decompress(data, size + 1)
    except zlib.error as error:
        raise Problem(f"{path}: a compressed grain cannot be read: {error}") from error
    if len(made) > size:
        raise Problem(f"{path}: a compressed grain holds more than {size} bytes")
    return made.ljust(size, b"\0")


def _shape(file: File) -> _Shape:
    header = file.read(0, SECTOR, what="its header")
    if header[:4] == MAGIC and HEADER.unpack(header)[9] == AT_END:
        marker = file.read(file.size - 3 * SECTOR, SECTOR, what="its footer")
        if MARKER.unpack(marker)[2] != FOOTER:
            raise file.wrong("it has no footer", "is it complete?")
        header = file.read(file.size - 2 * SECTOR, SECTOR, what="its footer")
    magic, version, flags, capacity, grain, at, length, entries, _, directory, *_, compression = HEADER.unpack(header)
    size = capacity * SECTOR
    bad = {
        f"it is none, or of version {version}": magic != MAGIC or version not in (1, 2, 3),
        "its line ends were changed, as in a transfer as text": flags & 1 and header[73:77] != LINE_ENDS,
        f"its compression is of kind {compression}": flags & COMPRESSED and compression != 1,
        f"its disk has {size} bytes": not 0 < size <= MAX_SIZE,
        f"its grains have {grain} sectors": grain not in (8, 16, 32, 64, 128, 256, 512, 1024, 2048),
        f"its grain tables have {entries} entries": not 64 <= entries <= 4096,
    }
    for what, is_so in bad.items():
        if is_so:
            raise file.wrong(what, ONE_FILE)
    _check_descriptor(file, at * SECTOR, length * SECTOR)
    return _Shape(size, grain * SECTOR, entries, directory * SECTOR, flags)


def _check_descriptor(file: File, at: int, length: int) -> None:
    """Raise a Problem when the embedded text tells of a parent, or of other files than this one."""
    if length > MAX_DESCRIPTOR:
        raise file.wrong(f"its descriptor has {length} bytes")
    text = file.read(at, length, what="its descriptor").partition(b"\0")[0].decode("latin-1")
    parent = re.search(r"^\s*parentCID\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
    if (parent and parent[1].lower() != "ffffffff") or re.search(r"parentFileNameHint", text, re.IGNORECASE):
        raise file.wrong("it needs its parent's file, which is never opened", ONE_FILE)
    extents = re.findall(r"^\s*(?:RW|RDONLY|NOACCESS)\s+\d+\s+(\S+)", text, re.MULTILINE)
    if text.strip() and extents != ["SPARSE"]:
        raise file.wrong("its disk lies in other files, which are never opened", ONE_FILE)
