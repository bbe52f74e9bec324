"""Outline: what lies in an image file, as far as it can be told without trusting it.

Partitions, file systems, what firmware finds to start, and the kernel's arguments. Nothing is followed out of the file,
nothing is unpacked; what is damaged is told as such and the rest goes on. How deep, how much and how many is bounded: a
table may name the same bytes again and again, as a disk within a disk within a disk.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from imagekit import slots
from imagekit.arch import ARCHES
from imagekit.disk import fatfiles, gpt, grub, isoread, mbr, pe, raspi, superblocks, tarlist
from imagekit.disk.parts import Part
from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem

DEEPEST = 5  # things in things: a program on a volume in a partition of a disk in an archive
MOST_LOOKS = 1000  # things that are looked into
MOST_HASHED = 8 << 30  # bytes of all sections together
SHOWN_FILES, SHOWN_TEXT = 200, 4096
HEAD = 1 << 20  # bytes of a program that its headers are looked for in
LARGEST_TEXT = 1 << 20
SECTION_TEXTS = (".cmdline", ".osrel", ".uname", ".profile", ".sbat", ".pcrpkey", ".pcrsig")
TYPES = {  # UEFI 2.10, table 5.7, and the UAPI Group's "Discoverable Partitions Specification"
    UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"): "EFI system partition",
    UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172"): "boot loader partition",
    UUID("21686148-6449-6e6f-744e-656564454649"): "BIOS boot",
    UUID("0fc63daf-8483-4772-8e79-3d69d8477de4"): "Linux data",
    UUID("0657fd6d-a4ab-43c4-84e5-0933c84b4f4f"): "Linux swap",
    UUID("e6d6d379-f507-44c2-a23c-238f2a3df928"): "Linux LVM",
    UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"): "Linux root, x86_64",
    UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"): "Linux root, aarch64",
    UUID("2c7357ed-ebd2-46d9-aec1-23d437ec2bf5"): "verity of a Linux root, x86_64",
    UUID("df3300ce-d69f-4c92-978c-9bfb0f38d820"): "verity of a Linux root, aarch64",
    UUID("8484680c-9521-48c6-9c11-b0720656f69e"): "Linux /usr, x86_64",
    UUID("b0e01050-ee5f-4390-949a-9101b17104e9"): "Linux /usr, aarch64",
    UUID("4d21b016-b534-45c2-a9fb-5c16e091fd2d"): "Linux /var",
    UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"): "data of Microsoft",
}
MBR_TYPES = {
    0x01: "FAT12", 0x04: "FAT16", 0x05: "extended", 0x06: "FAT16", 0x07: "NTFS", 0x0B: "FAT32", 0x0C: "FAT32",
    0x0E: "FAT16", 0x0F: "extended", 0x82: "Linux swap", 0x83: "Linux", 0x85: "extended", 0x8E: "Linux LVM",
    0xDA: "data", 0xEE: "GPT", 0xEF: "EFI",
}  # fmt: skip
Found = tuple[Mapping[str, Any], tuple[Part, ...]]


class File(Protocol):
    """A file of a volume, a disc or an archive."""

    @property
    def size(self) -> int:
        """Bytes."""

    def content(self) -> Sparse:
        """Where its bytes lie."""


class Member(NamedTuple):
    """A member of an archive, as a file."""

    archive: Sparse
    offset: int
    size: int

    def content(self) -> Sparse:
        """Where its bytes lie."""
        return self.archive.part(self.offset, self.size)


@dataclass
class Look:
    """What may still be looked at of one file."""

    looks: int = MOST_LOOKS
    hashed: int = MOST_HASHED
    depth: int = 0

    def at(self, disk: Sparse, name: str) -> Part:
        """What lies in a disk, a partition or a file."""
        kind = next((kind for kind in KINDS if kind.knows(disk)), None)
        if kind is None:
            return Part(
                name,
                {"kind": "data" if any(disk.read(0, 4096)) else "zeros" if disk.size else "empty", "size": disk.size},
            )
        facts = {"kind": kind.name, "size": disk.size}
        try:
            with self._deeper():
                more, parts = kind.outline(disk, self)
        except (Problem, struct.error) as error:
            return Part(name, {**facts, "damaged": getattr(error, "message", str(error))})
        return Part(name, {**facts, **more}, parts)

    def digest(self, disk: Sparse) -> Mapping[str, str]:
        """The sha256 of some bytes, as long as there are not too many of them."""
        self.hashed -= disk.size
        if self.hashed < 0:
            return {"sha256": "not taken, of so many bytes"}
        total = sha256()
        for chunk in disk.chunks():
            total.update(chunk)
        return {"sha256": total.hexdigest()}

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self.looks -= 1
        if self.depth >= DEEPEST or self.looks < 0:
            raise Problem("not looked into: too much lies in each other in this file")
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1


@dataclass(frozen=True)
class Kind:
    """Something that a file can be."""

    name: str
    knows: Callable[[Sparse], bool]
    outline: Callable[[Sparse, Look], Found]


def outline(disk: Sparse, name: str) -> Part:
    """What lies in a disk, or in any other file."""
    return Look().at(disk, name)


# --- disks and discs --------------------------------------------------------------------------------------------------


def _gpt(disk: Sparse, look: Look) -> Found:
    parts = []
    for number, of in enumerate(gpt.read(disk), 1):
        known = {"type": TYPES[of.type]} if of.type in TYPES else {}
        facts = {**known, "type id": str(of.type), "id": str(of.guid), "start": of.start, "size": of.size,
                 **({"attributes": f"{of.attributes:#x}"} if of.attributes else {})}  # fmt: skip
        inner = look.at(disk.part(of.start, of.size), "content")
        parts.append(Part(f"partition {number} {of.name!r}", facts, (inner,)))
    shown = [part for part in mbr.read(disk) if part.type != mbr.PROTECTIVE]
    also = {"in the MBR too": ", ".join(f"{_mbr_type(part)} at {part.start}" for part in shown)} if shown else {}
    return {"id": str(gpt.disk_guid(disk)), **_boot_code(disk), **also}, tuple(parts)


def _mbr(disk: Sparse, look: Look) -> Found:
    parts = []
    for of in mbr.read(disk):
        facts = {"type": _mbr_type(of), "id": f"{mbr.serial(disk):08x}-{of.number:02x}", "start": of.start,
                 "size": of.size, **({"active": "yes"} if of.active else {})}  # fmt: skip
        inner = look.at(disk.part(of.start, of.size), "content")
        parts.append(Part(f"partition {of.number}", facts, (inner,)))
    return {"id": f"{mbr.serial(disk):08x}", **_boot_code(disk)}, tuple(parts)


def _mbr_type(of: mbr.Partition) -> str:
    return MBR_TYPES.get(of.type, f"{of.type:#04x}")


def _boot_code(disk: Sparse) -> Mapping[str, str]:
    return {"boot code": "yes"} if any(disk.read(0, mbr.BOOT_CODE)) else {}


def _fat(disk: Sparse, look: Look) -> Found:
    volume, files = fatfiles.head(disk), fatfiles.read(disk)
    label = {"label": volume.label} if volume.label else {}
    facts = {"FAT": volume.bits, **label, "id": f"{volume.serial:08x}", "files": len(files)}
    return facts, (*_boots(files), *_files(files, look))


def _iso(disk: Sparse, look: Look) -> Found:
    volume = isoread.read(disk)
    boots, names = [], {file.offset: path for path, file in volume.files.items()}
    for boot in volume.boots:
        size = boot.size or disk.size - boot.offset
        facts = {"start": boot.offset, "size": size, **_named(names, boot.offset)}
        is_shown = boot.platform == "uefi" and "file" not in facts
        inner = (look.at(disk.part(boot.offset, size), "content"),) if is_shown else ()
        boots.append(Part(f"boot entry for {boot.platform}", facts, inner))
    sticks = _sticks(disk) if disk.read(510, 2) == mbr.SIGNATURE else {}
    told = {"label": volume.label, "files": len(volume.files), **sticks}
    return told, (*boots, *_boots(volume.files), *_files(volume.files, look))


def _named(names: Mapping[int, str], offset: int) -> Mapping[str, str]:
    return {"file": names[offset]} if offset in names else {}


def _sticks(disk: Sparse) -> Mapping[str, str]:
    """What an ISO has for those who take it for a disk: it may be copied to a stick."""
    try:
        shown = ", ".join(f"{_mbr_type(part)} at {part.start}" for part in mbr.read(disk))
    except Problem as problem:
        return {"as a disk": f"damaged: {problem.message}"}
    return {"as a disk": shown} if shown else {}


# --- what is started --------------------------------------------------------------------------------------------------


def _boots(files: Mapping[str, Any]) -> Iterator[Part]:
    """What firmware would start of a volume's files."""
    names = {path.upper(): path for path in files}
    for arch in ARCHES.values():
        if program := names.get(f"EFI/BOOT/BOOT{arch.efi}.EFI"):
            yield Part(f"UEFI starts, on {arch.name}", {"program": program})
    if program := slots.first(files):
        yield Part("systemd-boot starts", {"program": program})
    if script := names.get("GRUB.CFG"):
        yield from _grub(files[script])
    if "CONFIG.TXT" in names:
        for board in raspi.BOARDS.values():
            yield Part(f"{board.name} starts", _pi(files, board))


def _grub(script: Any) -> Iterator[Part]:
    try:
        arguments = grub.arguments(_bytes(script))
    except Problem:
        return  # somebody else's; its text is shown
    yield Part("GRUB starts", {"kernel": "kernel", "initrd": "initrd", "arguments": arguments})


def _pi(files: Mapping[str, Any], board: raspi.Board) -> Mapping[str, str]:
    try:
        found = raspi.boot(files, board)
    except Problem as problem:
        return {"nothing": problem.message}
    lists = {"initrds": " ".join(found.initrds), "overlays": " ".join(found.overlays)}
    return {"kernel": found.kernel, **{name: value for name, value in lists.items() if value},
            "device tree": found.device_tree, "arguments": found.cmdline}  # fmt: skip


# --- files ------------------------------------------------------------------------------------------------------------


def _files(files: Mapping[str, Any], look: Look) -> tuple[Part, ...]:
    """Each file by what it is."""
    parts = [look.at(files[path].content(), path) for path in sorted(files)[:SHOWN_FILES]]
    more = len(files) - SHOWN_FILES
    return (*parts, Part(f"and {more} more", {})) if more > 0 else tuple(parts)


def _bytes(file: File) -> bytes:
    return file.content().read(0, min(file.size, LARGEST_TEXT))


def _text(data: bytes) -> str:
    return data[:SHOWN_TEXT].rstrip(b"\0").decode("utf-8", "backslashreplace")


def _tar(disk: Sparse, look: Look) -> Found:
    shown, count = dict[str, File](), 0
    for member in tarlist.members(disk):
        count += 1
        if member.is_file and len(shown) < SHOWN_FILES:
            shown[member.name] = Member(disk, member.offset, member.size)
    return {"members": count}, _files(shown, look)


def _program(disk: Sparse, look: Look) -> Found:
    """A program for UEFI by its sections; a UKI's tell what it starts."""
    image = pe.read(disk.read(0, HEAD), size=disk.size)
    parts = []
    for section in image.sections:
        content = disk.part(section.offset, section.content)
        text = {"text": _text(content.read(0, SHOWN_TEXT))} if section.name in SECTION_TEXTS else {}
        parts.append(Part(section.name, {"size": content.size, **look.digest(content), **text}))
    is_uki = any(section.name == ".linux" for section in image.sections)
    signed = pe.signature_size(disk.read(0, HEAD), image)
    told = {"UKI": "yes" if is_uki else "", "signature": f"{signed} bytes" if signed else ""}
    return {"machine": image.machine, **{name: value for name, value in told.items() if value}}, tuple(parts)


def _json(disk: Sparse, look: Look) -> Found:
    """Configurations of containers: what a container starts is in them."""
    _ = look
    try:
        told = json.dumps(json.loads(disk.read(0, LARGEST_TEXT)), indent=1)
    except (ValueError, RecursionError):
        raise Problem("no JSON, or too much of it") from None
    return {"text": told[:SHOWN_TEXT] + "\n"}, ()


def _settings(disk: Sparse, look: Look) -> Found:
    _ = look
    return {"text": _text(disk.read(0, SHOWN_TEXT)) + "\n"}, ()


def _is_text(disk: Sparse) -> bool:
    """Whether it is a short file of lines, as settings are."""
    if not 0 < disk.size <= LARGEST_TEXT:
        return False
    text = disk.read(0, SHOWN_TEXT).decode("utf-8", "ignore" if disk.size > SHOWN_TEXT else "replace")
    return "\ufffd" not in text and all(letter.isprintable() or letter in "\t\r\n" for letter in text)


def _head(facts: Callable[[Sparse], Mapping[str, Any]], disk: Sparse, look: Look) -> Found:
    _ = look
    return facts(disk), ()


def _at(offset: int, *magic: bytes) -> Callable[[Sparse], bool]:
    return lambda disk: any(disk.read(offset, len(word)) == word for word in magic)


def _by_head(name: str, offset: int, *magic: bytes, facts: Callable[[Sparse], Any] = superblocks.nothing) -> Kind:
    return Kind(name, _at(offset, *magic), partial(_head, facts))


def _is_fat(disk: Sparse) -> bool:
    head = disk.read(0, 512)
    return head[510:] == mbr.SIGNATURE and (head[54:57] == b"FAT" or head[82:85] == b"FAT")


def _is_fixed_vhd(disk: Sparse) -> bool:
    return disk.read(disk.size - 512, 8) == b"conectix" if disk.size >= 512 else False


KINDS = (  # in this order: an ISO that starts from a stick has partitions as well, and a kernel looks like an MBR
    Kind("ISO 9660", isoread.is_iso, _iso),
    _by_head("qcow2", 0, b"QFI\xfb"),
    _by_head("QED", 0, b"QED\0"),
    _by_head("VDI", 64, b"\x7f\x10\xda\xbe"),
    _by_head("VHDX", 0, b"vhdxfile"),
    _by_head("VMDK", 0, b"KDMV", b"# Disk DescriptorFile"),
    _by_head("VHD", 0, b"conectix"),
    Kind("VHD", _is_fixed_vhd, partial(_head, superblocks.nothing)),
    Kind("GPT disk", _at(512, b"EFI PART"), _gpt),
    Kind("FAT", _is_fat, _fat),
    _by_head("kernel for x86", 0x202, b"HdrS", facts=superblocks.linux_x86),
    _by_head("kernel for aarch64", 56, b"ARM\x64", facts=superblocks.linux_arm64),
    Kind("UEFI program", _at(0, b"MZ"), _program),
    Kind("tar", _at(257, b"ustar"), _tar),
    Kind("MBR disk", _at(510, mbr.SIGNATURE), _mbr),
    _by_head("squashfs", 0, b"hsqs", facts=superblocks.squashfs),
    _by_head("erofs", 1024, b"\xe2\xe1\xf5\xe0", facts=superblocks.erofs),
    _by_head("ext4", 1080, b"\x53\xef", facts=superblocks.ext),
    _by_head("swap", 4086, b"SWAPSPACE2", facts=superblocks.swap),
    _by_head("XFS", 0, b"XFSB"),
    _by_head("btrfs", 0x10040, b"_BHRfS_M"),
    _by_head("LUKS", 0, b"LUKS\xba\xbe", facts=superblocks.luks),
    _by_head("dm-verity", 0, b"verity\0\0", facts=superblocks.verity),
    _by_head("device tree", 0, b"\xd0\x0d\xfe\xed"),
    _by_head("gzip", 0, b"\x1f\x8b"),
    _by_head("zstd", 0, b"\x28\xb5\x2f\xfd"),
    _by_head("xz", 0, b"\xfd7zXZ\0"),
    _by_head("cpio", 0, b"070701"),
    Kind("JSON", _at(0, b"{"), _json),
    Kind("text", _is_text, _settings),
)
