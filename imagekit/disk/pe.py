"""PE/COFF, the format of programs for UEFI, as far as a unified kernel image (UKI) takes it.

Source: Microsoft's "PE Format" (headers, section table) and the UAPI Group's "Unified Kernel Image" specification: a
UKI is a stub with more sections, which hold the kernel, its initrd and its arguments. The stub of systemd finds them by
their names in its own image in memory.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from imagekit.errors import Problem
from imagekit.store import Stored, flow, size_of

MACHINES = {0x8664: "x86_64", 0xAA64: "aarch64"}  # "Machine Types"
ORDER = (  # of a UKI's sections: the kernel comes last, because it unpacks itself over what follows it in memory
    *(".osrel", ".cmdline", ".uname", ".pcrpkey", ".pcrsig", ".initrd", ".linux"),
)
DATA = 0x40000040  # initialized data, readable ("Section Flags")
CODE = 0x60000020  # code, executable and readable: old stubs jump into the kernel where it lies
PAGE = 4096  # a stub may allow less, but what is mapped by pages is better apart
MOST_SECTIONS = 96  # what Windows loads
MAGIC_64 = 0x20B  # PE32+
SECTION = struct.Struct("<8sIIIIIIHHI")
HEAD = 1 << 16  # bytes of a program that are sure to have its headers
MAX_SIZE = (1 << 32) - PAGE  # offsets and addresses have 32 bits


class Section(NamedTuple):
    """A row of the section table."""

    name: str
    size: int  # in memory; the rest of a page is zeros
    address: int  # in memory, from the image's base
    raw_size: int  # in the file
    offset: int  # in the file

    @property
    def end(self) -> int:
        """The offset behind its last byte in the file; 0 when it has none there."""
        return self.offset + self.raw_size if self.raw_size else 0

    @property
    def content(self) -> int:
        """Bytes in the file that are not padding; objects in the file may leave the size in memory out."""
        return min(self.size, self.raw_size) or self.raw_size


class Image(NamedTuple):
    """The headers of a program, checked against its size."""

    machine: str
    header: int  # offset of the COFF file header
    optional: int  # offset of the optional header
    table: int  # offset of the section table
    section_alignment: int
    file_alignment: int
    sections: tuple[Section, ...]


def uki(stub: bytes, sections: Mapping[str, bytes]) -> bytes:
    """A UKI as bytes; sections: ".linux" and what else there is of `ORDER`. See `contents` for large ones."""
    return b"".join(flow(contents(stub, {name: (data,) for name, data in sections.items()})))


def contents(stub: bytes, sections: Mapping[str, Sequence[bytes | Stored]]) -> Iterator[bytes | Stored]:
    """A UKI piece by piece: the stub, less what follows its sections, and these sections in the order of `ORDER`.

    Raises Problem when the stub is none, has such sections already, or has no room for them in its table.
    """
    unknown = sorted(set(sections) - set(ORDER))
    if unknown:
        raise Problem(f"a UKI has no section {unknown[0]}", f"known: {', '.join(ORDER)}")
    image = read(stub, what="the stub")
    if not any(section.raw_size for section in image.sections):
        raise Problem("the stub is empty: it has no section with bytes")
    named = [(name, sections[name]) for name in ORDER if name in sections]
    placed = _placed(image, [(name, sum(map(size_of, data))) for name, data in named])
    yield _head(stub, image, placed)
    for section, (_, data) in zip(placed, named, strict=True):
        yield from data
        yield bytes(section.raw_size - section.size)


def machine(data: bytes, *, what: str = "the file", size: int = 0) -> str:
    """The architecture that a program for UEFI is for: "x86_64" or "aarch64". Raises Problem when it is no program.

    size: see `read`.
    """
    return read(data, what=what, size=size).machine


def sections(data: bytes, *, what: str = "the file") -> dict[str, bytes]:
    """The content of every section by its name. Raises Problem unless the file is a program as its headers say."""
    image = read(data, what=what)
    found = {section.name: data[section.offset : section.offset + section.content] for section in image.sections}
    if len(found) != len(image.sections):
        raise Problem(f"{what}: two sections have the same name")
    return found


def read(data: bytes, *, what: str = "the file", size: int = 0) -> Image:
    """The headers of a program. Raises Problem that says what is wrong with them; what they name lies in the file.

    size: of the whole file, where `data` is only its beginning.
    """
    header = _header(data, what)
    try:
        number, count = struct.unpack_from("<HH", data, header)
        (optional_size,) = struct.unpack_from("<H", data, header + 16)
        optional = header + 20
        (magic,) = struct.unpack_from("<H", data, optional)
        alignments = struct.unpack_from("<II", data, optional + 32)
        rows = _rows(data, optional + optional_size, count, what, size or len(data))
    except struct.error:
        raise Problem(f"{what} is no program for UEFI: it ends within its headers") from None
    if magic != MAGIC_64 or number not in MACHINES or optional_size < 112:
        raise Problem(f"{what} is no 64-bit program for UEFI (machine {number:#x}, magic {magic:#x})")
    if any(not 0 < each <= 1 << 20 or each & each - 1 for each in alignments):
        raise Problem(f"{what}: its sections are aligned to {alignments[0]} and {alignments[1]} bytes")
    return Image(MACHINES[number], header, optional, optional + optional_size, alignments[0], alignments[1], rows)


def signature_size(head: bytes, image: Image) -> int:
    """Bytes of the certificates that follow a program, as its headers say; 0 where nobody signed it."""
    row = image.optional + 112 + 8 * 4  # "Optional Header Data Directories"
    if row + 8 > min(image.table, len(head)) or struct.unpack_from("<I", head, image.optional + 108)[0] <= 4:
        return 0
    return int(struct.unpack_from("<I", head, row + 4)[0])


def _header(data: bytes, what: str) -> int:
    """Where the COFF header is ("MS-DOS Stub", "Signature")."""
    if data[:2] == b"MZ" and len(data) >= 64:
        (offset,) = struct.unpack_from("<I", data, 0x3C)
        if data[offset : offset + 4] == b"PE\0\0":
            return int(offset) + 4
    packed = " (it is compressed)" if data[:2] == b"\x1f\x8b" or data[:4] == b"\x28\xb5\x2f\xfd" else ""
    raise Problem(f"{what} is no program for UEFI: it has no PE header{packed}")


def _rows(data: bytes, table: int, count: int, what: str, file_size: int) -> tuple[Section, ...]:
    if count > MOST_SECTIONS:
        raise Problem(f"{what} has {count} sections, more than the {MOST_SECTIONS} that a program can have")
    rows = []
    for number in range(count):
        name, size, address, raw_size, offset, *_ = SECTION.unpack_from(data, table + SECTION.size * number)
        rows.append(Section(name.rstrip(b"\0").decode("latin-1"), size, address, raw_size, offset))
    end = 0
    for row in sorted((row for row in rows if row.raw_size), key=lambda row: row.offset):
        if row.offset < end:
            raise Problem(f"{what}: section {row.name!r} overlaps another one")
        end = row.end
        if end > file_size:
            raise Problem(f"{what}: section {row.name!r} ends at {end}, behind the end of the file at {file_size}")
    return tuple(rows)


def _placed(image: Image, added: Sequence[tuple[str, int]]) -> list[Section]:
    """Where the new sections lie, in the file and in memory: behind all others."""
    known = {section.name for section in image.sections}
    alignment = max(image.section_alignment, PAGE)
    offset = _aligned(max((section.end for section in image.sections), default=0), image.file_alignment)
    address = max((section.address + max(section.size, section.raw_size) for section in image.sections), default=0)
    placed = []
    for name, size in added:
        if name in known:
            raise Problem(f"the stub has a section {name} of its own", "take the plain stub of systemd-boot-efi")
        address = _aligned(address, alignment)
        placed.append(Section(name, size, address, _aligned(size, image.file_alignment), offset))
        offset, address = offset + placed[-1].raw_size, address + size
        if max(offset, address) > MAX_SIZE:
            raise Problem(f"a UKI ends at 4 GiB, and {name} would end behind it", "let the root lie on the disk")
    return placed


def _head(stub: bytes, image: Image, placed: Sequence[Section]) -> bytes:
    """The stub up to the end of its last section, with headers that name the new ones.

    What follows goes: symbols, whose place the header forgets, and a signature, which would be wrong now.
    """
    end = max(section.end for section in image.sections)
    head = bytearray(stub[:end] + bytes(-end % image.file_alignment))
    rows_end = image.table + SECTION.size * (len(image.sections) + len(placed))
    first = min(value for s in image.sections if s.raw_size for value in (s.offset, s.address))
    if rows_end > first:
        raise Problem(f"the stub has no room for {len(placed)} more sections", "another version of it may have")
    struct.pack_into("<H", head, image.header + 2, len(image.sections) + len(placed))
    struct.pack_into("<II", head, image.header + 8, 0, 0)  # where symbols are, and how many
    for number, s in enumerate(placed, start=len(image.sections)):
        flags = CODE if s.name == ".linux" else DATA
        name = s.name.encode()
        row = SECTION.pack(name, s.size, s.address, s.raw_size, s.offset, 0, 0, 0, 0, flags)
        head[image.table + SECTION.size * number : image.table + SECTION.size * (number + 1)] = row
    _finish(head, image, placed, rows_end)
    return bytes(head)


def _finish(head: bytearray, image: Image, placed: Sequence[Section], rows_end: int) -> None:
    """The fields of the optional header that speak of all sections ("Optional Header Windows-Specific Fields")."""
    at = image.optional
    code, initialized = struct.unpack_from("<II", head, at + 4)
    (headers,) = struct.unpack_from("<I", head, at + 60)
    code += sum(s.raw_size for s in placed if s.name == ".linux")
    initialized += sum(s.raw_size for s in placed if s.name != ".linux")
    struct.pack_into("<II", head, at + 4, code & 0xFFFFFFFF, initialized & 0xFFFFFFFF)
    size = _aligned(placed[-1].address + placed[-1].size, max(image.section_alignment, PAGE)) if placed else 0
    struct.pack_into("<I", head, at + 56, size)
    struct.pack_into("<I", head, at + 60, max(headers, _aligned(rows_end, image.file_alignment)))
    struct.pack_into("<I", head, at + 64, 0)  # the checksum, which nobody of UEFI reads
    (directories,) = struct.unpack_from("<I", head, at + 108)
    if directories > 4:
        struct.pack_into(
            "<II", head, at + 112 + 8 * 4, 0, 0
        )  # where certificates are ("Optional Header Data Directories")


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
