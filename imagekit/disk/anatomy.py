"""Anatomy: what a file consists of, by names that a reader knows: members, sections, partitions, fields.

For telling what differs between two files, so each part comes with its bytes. Nothing here is trusted to be right: what
does not read as what it seems to be has no parts.
"""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from imagekit.disk import fatfiles, gpt, isoread, mbr, pe
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem

MOST = 1 << 30  # bytes that something compressed may have
Parts = Iterator[tuple[str, bytes]]


class Kind(NamedTuple):
    """A kind of file: how it is known, and its parts in their order."""

    name: str
    knows: Callable[[bytes], bool]
    parts: Callable[[bytes], Parts]


def parts(data: bytes) -> tuple[str, Mapping[str, bytes]]:
    """The kind of some bytes and their parts, in order; ("", {}) for those that are of no kind, or only seem so."""
    for kind in KINDS:
        if kind.knows(data):
            try:
                return kind.name, dict(_numbered(kind.parts(data)))
            except (Problem, ValueError, LookupError, struct.error, tarfile.TarError, zlib.error, RecursionError):
                continue
    return "", {}


def _numbered(found: Parts) -> Parts:
    """The parts, with a number behind each name that comes again."""
    seen: dict[str, int] = {}
    for name, data in found:
        seen[name] = seen.get(name, 0) + 1
        yield (name if seen[name] == 1 else f"{name} ({seen[name]})"), data


def _json(data: bytes) -> Parts:
    yield from _values(json.loads(data), "")


def _values(value: object, where: str) -> Parts:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _values(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _values(inner, f"{where}[{number}]")
    else:
        yield where, json.dumps(value).encode()


def _gzip(data: bytes) -> Parts:
    """RFC 1952."""
    yield from _cut(data, {"time": (4, 4), "flags": (3, 1), "level": (8, 1), "system": (9, 1)})
    packer = zlib.decompressobj(wbits=31)
    content = packer.decompress(data, MOST)
    yield "content", content
    yield "what follows", packer.unused_data


def _zstd(data: bytes) -> Parts:
    """Frames one after the other (RFC 8878), with zeros between them: an initrd."""
    import zstandard

    while data:
        reader = zstandard.ZstdDecompressor().decompressobj()
        try:
            content = reader.decompress(data)
        except zstandard.ZstdError as error:
            raise ValueError(str(error)) from error
        yield "archive", content
        if len(reader.unused_data) >= len(data):
            raise ValueError("a frame without bytes")
        data = reader.unused_data.lstrip(b"\0")


def _tar(data: bytes) -> Parts:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:", ignore_zeros=False) as archive:
        for member in archive:
            fields = ("type", "mode", "uid", "gid", "uname", "gname", "mtime", "linkname", "devmajor", "devminor")
            for field in fields:
                yield f"/{member.name}: {field}", repr(getattr(member, field)).encode()
            file = archive.extractfile(member) if member.isreg() else None
            yield f"/{member.name}", file.read() if file else b""


CPIO = ("inode", "mode", "uid", "gid", "links", "mtime", "size", "major", "minor", "device major", "device minor",
        "name size", "checksum")  # fmt: skip


def _cpio(data: bytes) -> Parts:
    """newc: "Documentation/driver-api/early-userspace/buffer-format.rst" of Linux."""
    at, name = 0, ""
    while name != "/TRAILER!!!" and data[at : at + 6] == b"070701":
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(len(CPIO))]
        body = at + 110 + numbers[11]
        name = "/" + data[at + 110 : body - 1].decode("utf-8", "replace")
        body += -body % 4
        for field, number in zip(CPIO, numbers, strict=True):
            yield f"{name}: {field}", str(number).encode()
        yield name, data[body : body + numbers[6]]
        at = body + numbers[6]
        at += -at % 4
    yield "what follows", data[at:]


def _pe(data: bytes) -> Parts:
    yield "headers", data[:1024]
    for name, content in pe.sections(data).items():
        yield f"section {name}", content


def _gpt(data: bytes) -> Parts:
    disk = laid(len(data), [Piece(0, data)])
    yield "MBR", data[:512]
    yield "GUID of the disk", str(gpt.disk_guid(disk)).encode()
    for number, partition in enumerate(gpt.read(disk), 1):
        for field in ("name", "type", "guid", "start", "size", "attributes"):
            yield f"partition {number}: {field}", str(getattr(partition, field)).encode()
        yield f"partition {number} ({partition.name})", data[partition.start : partition.start + partition.size]


def _mbr(data: bytes) -> Parts:
    disk = laid(len(data), [Piece(0, data)])
    yield "boot code", data[:440]
    yield "serial number of the disk", b"%08x" % mbr.serial(disk)
    for partition in mbr.read(disk):
        for field in ("type", "start", "size", "active"):
            yield f"partition {partition.number}: {field}", str(getattr(partition, field)).encode()
        yield f"partition {partition.number}", data[partition.start : partition.start + partition.size]


def _fat(data: bytes) -> Parts:
    at = 67 if data[82:85] == b"FAT" else 39  # fatgen103, "Boot Sector and BPB"
    yield from _cut(data, {"serial number": (at, 4), "label": (at + 4, 11), "name of the system": (3, 8)})
    yield from _files(data, fatfiles.read)


def _iso(data: bytes) -> Parts:
    """ECMA-119, section 8.4, "Primary Volume Descriptor"."""
    yield from _cut(data, {"time of creation": (32768 + 813, 17), "time of change": (32768 + 830, 17),
                           "label": (32768 + 40, 32), "publisher and preparer": (32768 + 318, 256)})  # fmt: skip
    yield from _files(data, lambda disk: isoread.read(disk).files)


def _files(data: bytes, read: Callable[[Sparse], Mapping[str, Any]]) -> Parts:
    """The files of a volume, if it is whole enough to have any."""
    try:
        for name, file in read(laid(len(data), [Piece(0, data)])).items():
            yield f"/{name}", file.read()
    except Problem:
        return


def _cut(data: bytes, fields: Mapping[str, tuple[int, int]]) -> Parts:
    for name, (offset, size) in fields.items():
        yield name, data[offset : offset + size]


def _magic(at: int, *words: bytes) -> Callable[[bytes], bool]:
    return lambda data: any(data[at : at + len(word)] == word for word in words)


def _fields(name: str, at: int, magic: bytes, fields: Mapping[str, tuple[int, int]]) -> Kind:
    """A kind of file of which only some fields are known; the rest of it is looked at last."""
    return Kind(name, _magic(at, magic), lambda data: _cut(data, fields))


def _is_mbr(data: bytes) -> bool:
    return data[510:512] == b"\x55\xaa" and any(data[446 + 4 + 16 * n] for n in range(4))


def _is_fat(data: bytes) -> bool:
    return data[510:512] == b"\x55\xaa" and (data[54:57] == b"FAT" or data[82:85] == b"FAT")


KINDS = (
    Kind("JSON", _magic(0, b"{", b"["), _json),
    Kind("gzip", _magic(0, b"\x1f\x8b"), _gzip),
    Kind("zstd", _magic(0, b"\x28\xb5\x2f\xfd"), _zstd),
    Kind("cpio", _magic(0, b"070701"), _cpio),
    Kind("tar", _magic(257, b"ustar"), _tar),
    Kind("UEFI program", _magic(0, b"MZ"), _pe),
    _fields("squashfs", 0, b"hsqs", {"time": (8, 4), "inodes": (4, 4), "compressor": (20, 2)}),
    _fields("erofs", 1024, b"\xe2\xe1\xf5\xe0", {"time": (1048, 12), "UUID": (1072, 16), "label": (1088, 16)}),
    _fields("ext4", 1024 + 56, b"\x53\xef", {
        "time of creation": (1024 + 264, 4), "time of last write": (1024 + 48, 4), "time of last check": (1024 + 64, 4),
        "UUID": (1024 + 104, 16), "label": (1024 + 120, 16), "hash seed": (1024 + 236, 16)}),
    Kind("ISO 9660", _magic(32769, b"CD001"), _iso),
    _fields("qcow2", 0, b"QFI\xfb", {"version": (4, 4), "size": (24, 8), "features": (72, 24)}),
    _fields("VHD", 0, b"conectix", {"time": (24, 4), "creator": (28, 12), "id": (68, 16), "checksum": (64, 4)}),
    _fields("VHDX", 0, b"vhdxfile", {"creator": (8, 512), "ids": (65536 + 16, 48)}),
    _fields("VMDK", 0, b"KDMV", {"description": (512, 1024)}),
    Kind("disk", _magic(512, b"EFI PART"), _gpt),
    Kind("FAT volume", _is_fat, _fat),
    Kind("disk", _is_mbr, _mbr),
)  # fmt: skip
