"""Reworked: what somebody with a disk in hands makes of it: other files on its boot partition, other parts of its UKI.

Nothing here asks whether the result would be started; the signature of a program that was changed fits no more.
"""

import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256

from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, fat, fatfiles, pe
from imagekit.disk.altered import CLUSTER, Altered
from imagekit.disk.gpt import Partition
from imagekit.errors import Problem
from imagekit.store import flow

SECTOR = 512
HEADER, JSON, CHECKSUM = 16384, 4096, 448  # of a LUKS2 header: its bytes, where its JSON begins, its SHA-256
Sections = Mapping[str, bytes]


def files(disk: Altered, esp: Partition) -> dict[str, bytes]:
    """The files of a boot partition by their paths."""
    return {path: file.read() for path, file in fatfiles.read(disk.disk().part(esp.start, esp.size)).items()}


def with_files(disk: Altered, esp: Partition, changed: Mapping[str, bytes]) -> Altered:
    """The disk with a boot partition on which these files are so, written anew; what is as it was takes no room."""
    head = fatfiles.head(disk.disk().part(esp.start, esp.size))
    small, large = struct.unpack("<H11xI", disk.read(esp.start + 19, 17))  # BPB_TotSec16, BPB_TotSec32
    content: dict[str, fat.Content] = {**files(disk, esp), **changed}
    size = (small or large) * SECTOR
    volume = fat.volume(content, size=size, label=head.label, serial=head.serial, start=esp.start // SECTOR)
    return disk.write_all((esp.start + offset, data) for offset, data in volume.filled(CLUSTER))


def stub(program: bytes) -> bytes:
    """What a UKI was made from: the program without a signature, and without the sections of one."""
    data = bytearray(authenticode.strip(program, what="the UKI"))
    image = pe.read(bytes(data), what="the UKI")
    own = [section for section in image.sections if section.name not in pe.ORDER]
    if not own or list(image.sections[: len(own)]) != own:
        raise Problem("the UKI does not begin with a stub")
    row, added = pe.SECTION.size, image.sections[len(own) :]
    data[image.table + row * len(own) : image.table + row * len(image.sections)] = bytes(row * len(added))
    struct.pack_into("<H", data, image.header + 2, len(own))
    for place, is_code in ((4, True), (8, False)):  # SizeOfCode, SizeOfInitializedData
        (size,) = struct.unpack_from("<I", data, image.optional + place)
        size -= sum(section.raw_size for section in added if (section.name == ".linux") is is_code)
        struct.pack_into("<I", data, image.optional + place, size)
    return bytes(data[: max(section.end for section in own)])


def sections(program: bytes) -> dict[str, bytes]:
    """The sections that make a UKI of a stub."""
    found = pe.sections(authenticode.strip(program, what="the UKI"), what="the UKI")
    return {name: data for name, data in found.items() if name in pe.ORDER}


def with_sections(program: bytes, changed: Sections) -> bytes:
    """A UKI with other sections, unsigned; an empty one is left out."""
    wanted = {name: data for name, data in {**sections(program), **changed}.items() if data}
    return pe.uki(stub(program), wanted)


def swapped(program: bytes, first: str, second: str) -> bytes:
    """A program in whose table two sections stand in each other's place; the signature stays where it was."""
    data, image = bytearray(program), pe.read(program, what="the UKI")
    rows = {section.name: image.table + pe.SECTION.size * n for n, section in enumerate(image.sections)}
    one, other = (slice(rows[name], rows[name] + pe.SECTION.size) for name in (first, second))
    data[one], data[other] = data[other], data[one]
    return bytes(data)


def flipped(program: bytes, section: str, at: int) -> bytes:
    """A program with one bit of a section turned over; the signature stays where it was."""
    found = {each.name: each for each in pe.read(program, what="the UKI").sections}[section]
    data = bytearray(program)
    data[found.offset + at % found.content] ^= 1
    return bytes(data)


def signed(program: bytes, keys: BootKeys, *, key: str = "db") -> bytes:
    """A program, signed anew."""
    return b"".join(flow(authenticode.signed([authenticode.strip(program)], keys.pair(key))))


def with_header(disk: Altered, luks: Partition, edits: Iterable[tuple[bytes, bytes]]) -> Altered:
    """The disk with other words in both LUKS2 headers of a partition, whose checksums fit: each (old, new)."""
    for start in (luks.start, luks.start + HEADER):
        header = bytearray(disk.read(start, HEADER))
        text = bytes(header[JSON:]).rstrip(b"\0")
        for old, new in edits:
            if old not in text:
                raise Problem(f"the LUKS2 header has no {old!r}")
            text = text.replace(old, new)
        header[JSON:] = text.ljust(HEADER - JSON, b"\0")
        header[CHECKSUM : CHECKSUM + 64] = bytes(64)
        header[CHECKSUM : CHECKSUM + 64] = sha256(header).digest().ljust(64, b"\0")
        disk = disk.write(start, bytes(header))
    return disk
