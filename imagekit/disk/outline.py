"""Outline: what lies in an image file, as far as it can be told without trusting it.

Partitions, file systems, what firmware finds to start, and the kernel's arguments. Nothing is followed out of the file,
nothing is unpacked but names and heads; what is damaged is told as such and the rest goes on.
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from uuid import UUID

from imagekit.disk import fatfiles, gpt, isoread, mbr, pe
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem

SHOWN_FILES, SHOWN_TEXT = 200, 4096
LARGEST_PROGRAM = 1 << 30  # bytes
TEXTS = ("cmdline.txt", "config.txt", "grub.cfg")
SECTION_TEXTS = (".cmdline", ".osrel", ".uname")
TYPES = {
    UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"): "EFI system partition",
    UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172"): "boot loader partition",
    UUID("21686148-6449-6e6f-744e-656564454649"): "BIOS boot",
    UUID("0fc63daf-8483-4772-8e79-3d69d8477de4"): "Linux data",
    UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "Linux root, x86_64",
    UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "Linux root, aarch64",
}
MBR_TYPES = {0x06: "FAT16", 0x0B: "FAT32", 0x0C: "FAT32", 0x0E: "FAT16", 0x83: "Linux", 0xEE: "GPT", 0xEF: "EFI"}


@dataclass(frozen=True)
class Part:
    """Something with a name, what is known of it, and what lies in it."""

    name: str
    facts: Mapping[str, Any]
    parts: tuple["Part", ...] = field(default=())

    def lines(self, depth: int = 0) -> Iterator[str]:
        """The outline for people, without anything that steers a terminal."""
        told = ", ".join(f"{name} {_shown(value)}" for name, value in self.facts.items() if "\n" not in str(value))
        yield "  " * depth + _printable(f"{self.name}: {told}" if told else self.name)
        for name, value in self.facts.items():
            if "\n" in str(value):
                yield "  " * depth + f"  {_printable(name)}:"
                yield from ("  " * depth + f"    {_printable(line)}" for line in str(value).rstrip("\n").split("\n"))
        for part in self.parts:
            yield from part.lines(depth + 1)

    def json(self) -> dict[str, Any]:
        """The outline for programs."""
        inner = {"parts": [part.json() for part in self.parts]} if self.parts else {}
        return {"name": self.name, **self.facts, **inner}


@dataclass(frozen=True)
class Kind:
    """Something that a file can be."""

    name: str
    knows: Callable[[Sparse], bool]
    outline: Callable[[Sparse], tuple[Mapping[str, Any], tuple[Part, ...]]]


def outline(disk: Sparse, name: str) -> Part:
    """What lies in a disk, a partition or a file."""
    size = {"size": disk.size}
    for kind in KINDS:
        if kind.knows(disk):
            try:
                facts, parts = kind.outline(disk)
            except (Problem, struct.error) as error:
                return Part(name, {"kind": kind.name, **size, "damaged": getattr(error, "message", str(error))})
            return Part(name, {"kind": kind.name, **size, **facts}, parts)
    return Part(name, {"kind": "data" if any(disk.read(0, 4096)) else "zeros", **size})


def _shown(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 1 << 20 and value % (1 << 10) == 0:
        return f"{value} ({value / (1 << 20):.1f} MiB)"
    return str(value)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _text(data: bytes) -> str:
    return data[:SHOWN_TEXT].rstrip(b"\0").decode("utf-8", "backslashreplace")


def _gpt(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    parts = []
    for number, of in enumerate(gpt.read(disk), 1):
        inner = outline(disk.part(of.start, of.size), "content")
        facts = {"type": TYPES.get(of.type, str(of.type)), "id": str(of.guid), "start": of.start, "size": of.size,
                 **({"attributes": f"{of.attributes:#x}"} if of.attributes else {})}  # fmt: skip
        parts.append(Part(f"partition {number} {of.name!r}", facts, (inner,)))
    shown = [part for part in mbr.read(disk) if part.type != mbr.PROTECTIVE]
    also = {"in the MBR too": ", ".join(f"{MBR_TYPES.get(p.type, hex(p.type))} at {p.start}" for p in shown)}
    code = {"boot code": "yes"} if any(disk.read(0, mbr.BOOT_CODE)) else {}
    return {"id": str(gpt.disk_guid(disk)), **code, **(also if shown else {})}, tuple(parts)


def _mbr(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    parts = []
    for of in mbr.read(disk):
        facts = {"type": MBR_TYPES.get(of.type, hex(of.type)), "start": of.start, "size": of.size,
                 **({"active": "yes"} if of.active else {})}  # fmt: skip
        parts.append(Part(f"partition {of.number}", facts, (outline(disk.part(of.start, of.size), "content"),)))
    return {"id": f"{mbr.serial(disk):08x}"}, tuple(parts)


def _fat(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    volume, files = fatfiles.head(disk), fatfiles.read(disk)
    facts = {"FAT": volume.bits, "label": volume.label, "id": f"{volume.serial:08x}", "files": len(files)}
    return facts, _files(files)


def _iso(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    volume = isoread.read(disk)
    boots = []
    for boot in volume.boots:
        size = boot.size or disk.size - boot.offset
        inner = (outline(disk.part(boot.offset, size), "content"),) if boot.platform == "uefi" else ()
        boots.append(Part(f"boot entry for {boot.platform}", {"start": boot.offset, "size": size}, inner))
    return {"label": volume.label, "files": len(volume.files)}, (*boots, *_files(volume.files))


def _files(files: Mapping[str, Any]) -> tuple[Part, ...]:
    """Each file by its size; programs for UEFI by their sections, settings by their text."""
    parts = [_file(path, files[path]) for path in sorted(files)[:SHOWN_FILES]]
    more = len(files) - SHOWN_FILES
    return (*parts, Part(f"and {more} more", {})) if more > 0 else tuple(parts)


def _file(path: str, file: Any) -> Part:
    name = path.rpartition("/")[2].lower()
    if name in TEXTS and file.size <= 1 << 20:
        return Part(path, {"size": file.size, "text": _text(file.read()) + "\n"})
    if name.endswith(".efi") and file.size <= LARGEST_PROGRAM:
        facts, parts = _program(file.read())
        return Part(path, {"size": file.size, **facts}, parts)
    return Part(path, {"size": file.size})


def _program(data: bytes) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    try:
        machine, sections = pe.machine(data), pe.sections(data)
    except Problem as problem:
        return {"damaged": problem.message}, ()
    parts = []
    for name, content in sections.items():
        text = {"text": _text(content)} if name in SECTION_TEXTS else {}
        parts.append(Part(name, {"size": len(content), "sha256": sha256(content).hexdigest(), **text}))
    return {"machine": machine, **({"kind": "UKI"} if ".linux" in sections else {})}, tuple(parts)


def _pe(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    if disk.size > LARGEST_PROGRAM:
        raise Problem(f"no program for UEFI has more than {LARGEST_PROGRAM} bytes")
    return _program(disk.read(0, disk.size))


def _squashfs(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    """Documentation/filesystems/squashfs.rst; the superblock as squashfs_fs.h has it."""
    inodes, time, block = struct.unpack_from("<III", disk.read(4, 12))
    (packer,) = struct.unpack_from("<H", disk.read(20, 2))
    (used,) = struct.unpack_from("<Q", disk.read(40, 8))
    names = {1: "gzip", 2: "lzma", 3: "lzo", 4: "xz", 5: "lz4", 6: "zstd"}
    return {"packed by": names.get(packer, packer), "inodes": inodes, "block": block, "used": used, "time": time}, ()


def _erofs(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    """fs/erofs/erofs_fs.h of Linux."""
    head = disk.read(1024, 128)
    (blocks,) = struct.unpack_from("<I", head, 36)
    return {"id": str(UUID(bytes=head[48:64])), "label": _text(head[64:80]), "used": blocks << head[12]}, ()


def _ext(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    """Documentation/filesystems/ext4/super.rst."""
    head = disk.read(1024, 256)
    inodes, blocks = struct.unpack_from("<II", head)
    (shift,) = struct.unpack_from("<I", head, 24)
    if shift > 6:
        raise Problem("its blocks have a size that ext4 does not know")
    return {"id": str(UUID(bytes=head[104:120])), "label": _text(head[120:136]), "inodes": inodes,
            "used": blocks << 10 + shift}, ()  # fmt: skip


def _nothing(disk: Sparse) -> tuple[Mapping[str, Any], tuple[Part, ...]]:
    _ = disk
    return {}, ()


def _at(offset: int, magic: bytes) -> Callable[[Sparse], bool]:
    return lambda disk: disk.read(offset, len(magic)) == magic


def _is_fat(disk: Sparse) -> bool:
    head = disk.read(0, 512)
    return head[510:] == b"\x55\xaa" and (head[54:57] == b"FAT" or head[82:85] == b"FAT")


def _is_mbr(disk: Sparse) -> bool:
    return disk.read(510, 2) == b"\x55\xaa"


KINDS = (  # in this order: an ISO that starts from a stick has partitions as well
    Kind("ISO 9660", isoread.is_iso, _iso),
    Kind("GPT disk", _at(512, b"EFI PART"), _gpt),
    Kind("FAT", _is_fat, _fat),
    Kind("MBR disk", _is_mbr, _mbr),
    Kind("squashfs", _at(0, b"hsqs"), _squashfs),
    Kind("erofs", _at(1024, b"\xe2\xe1\xf5\xe0"), _erofs),
    Kind("ext4", _at(1080, b"\x53\xef"), _ext),
    Kind("LUKS", _at(0, b"LUKS\xba\xbe"), _nothing),
    Kind("kernel for aarch64", _at(56, b"ARM\x64"), _nothing),
    Kind("UEFI program", _at(0, b"MZ"), _pe),
    Kind("gzip", _at(0, b"\x1f\x8b"), _nothing),
    Kind("zstd", _at(0, b"\x28\xb5\x2f\xfd"), _nothing),
    Kind("cpio", _at(0, b"070701"), _nothing),
    Kind("tar", _at(257, b"ustar"), _nothing),
)
