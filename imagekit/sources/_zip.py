"""A zip archive, read strictly: every byte of it belongs to one member or to the directory, and is told of once.

Readers of zip disagree wherever an archive says one thing twice: in the directory and before the data, in 32 and in 64
bits, in two entries of one name. Whatever is not said alike is refused, and so is what no wheel needs: encryption,
links, several disks, a comment, bytes between the members.

Source: PKWARE's APPNOTE.TXT 6.3.10; the numbers of its sections stand in brackets below.
"""

import stat
import zlib
from collections.abc import Iterator
from itertools import pairwise
from struct import Struct
from typing import NamedTuple

from imagekit.errors import Problem

MAX_MEMBERS = 0xFFFF - 1  # more would need the 64-bit end record (4.3.14)
MAX_SIZE = 2 << 30  # bytes of all members
MAX_RATIO, ALWAYS = 200, 16 << 20  # how much larger than the archive they may be, and how large whatever it is
MAX_NAME, MAX_COMPONENT, MAX_DEPTH = 1024, 255, 64
END = Struct("<4s4H2LH")  # (4.3.16)
DIRECTORY = Struct("<4xxB2xHH4x3L4H2xLL")  # (4.3.12), without signature, versions, time and internal attributes
LOCAL = Struct("<4x2xHH4x3LHH")  # (4.3.7), without signature, version and time
STORED, DEFLATED = 0, 8  # (4.4.5)
LATER, UTF8 = 1 << 3, 1 << 11  # (4.4.4): sizes come after the data; the name is UTF-8
FLAGS = 1 << 1 | 1 << 2 | LATER | UTF8  # bits 1 and 2 say how hard a compressor tried
ZIP64, UNICODE_PATH = 0x0001, 0x7075  # (4.5.3, 4.6.9)
IN_64_BITS = 0xFFFFFFFF
UNIX = 3  # (4.4.2): the upper half of the attributes is a mode


class Member(NamedTuple):
    """A file of the archive, by what both of its headers say."""

    name: str
    size: int
    is_executable: bool
    method: int
    start: int  # of its data
    packed: int  # bytes of its data
    crc: int


class _Listed(NamedTuple):
    """An entry of the directory."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    mode: int
    at: int  # of its local header


def members(data: bytes) -> list[Member]:
    """The files of an archive, folders left out; raises Problem for one that is not plain, whole and of one meaning."""
    listed, directory = _directory(data)
    _check_size(listed, len(data))
    ends, found = [0], []
    for entry in sorted(listed, key=lambda entry: entry.at):
        if entry.at != ends[-1]:
            raise Problem(f"its member {_shown(entry.name)} does not begin where the one before it ends")
        start, end = _located(data, entry, directory)
        ends.append(end)
        found.append(_member(entry, start))
    if ends[-1] > directory:
        raise Problem("its last member reaches into the directory")
    if ends[-1] != directory:
        raise Problem("it has bytes between its members and its directory")
    _check_names([member.name for member in found])
    return [member for member in found if not member.name.endswith("/")]


def read(data: bytes, member: Member) -> bytes:
    """The bytes of a member; raises Problem unless they have the size and the sum that its headers name."""
    packed = data[member.start : member.start + member.packed]
    found = packed if member.method == STORED else _inflated(packed, member)
    if len(found) != member.size or zlib.crc32(found) != member.crc:
        raise Problem(f"its member {member.name!r} is not what its header says")
    return found


def _inflated(packed: bytes, member: Member) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = unpacker.decompress(packed, member.size + 1)  # a byte more tells that it goes on
    except zlib.error as error:
        raise Problem(f"its member {member.name!r} is broken: {error}") from error
    if len(found) > member.size:
        raise Problem(f"its member {member.name!r} unpacks to more than the {member.size} bytes of its header")
    if not unpacker.eof or unpacker.unused_data:
        raise Problem(f"its member {member.name!r} does not end where its header says")
    return found


def _directory(data: bytes) -> tuple[list[_Listed], int]:
    """The entries of the directory, and where it begins."""
    if len(data) < END.size or data[-END.size :][:4] != b"PK\5\6":
        raise Problem("it is no zip archive, is cut short, or something follows its end")
    _, disk, first_disk, here, count, size, at, comment = END.unpack_from(data, len(data) - END.size)
    if disk or first_disk or here != count or comment:
        raise Problem("its end record tells of other disks or of a comment")
    if count > MAX_MEMBERS:
        raise Problem(f"it has more than {MAX_MEMBERS} members")
    if at + size + END.size != len(data):
        raise Problem("its directory does not lie where its end record says")
    listed, here = [], at
    for _ in range(count):
        entry, here = _entry(data, here, at + size)
        listed.append(entry)
    if here != at + size:
        raise Problem("its directory has more entries than its end record says")
    return listed, at


def _entry(data: bytes, at: int, end: int) -> tuple[_Listed, int]:
    if at + DIRECTORY.size > end or data[at : at + 4] != b"PK\1\2":
        raise Problem("its directory is cut short or malformed")
    system, flags, method, crc, packed, size, *sizes, disk, attributes, local = DIRECTORY.unpack_from(data, at)
    name_size, extra_size, comment = sizes
    name_at, next_at = at + DIRECTORY.size, at + DIRECTORY.size + name_size + extra_size + comment
    if next_at > end or disk or comment:
        raise Problem("its directory is cut short, or tells of other disks or of comments")
    name = data[name_at : name_at + name_size]
    extra = data[name_at + name_size : name_at + name_size + extra_size]
    size, packed, local = _in_64_bits(name, extra, (size, packed, local))
    mode = attributes >> 16 if system == UNIX else 0
    return _Listed(name, flags, method, crc, packed, size, mode, local), next_at


def _located(data: bytes, entry: _Listed, limit: int) -> tuple[int, int]:
    """Where an entry's data begins, and where all that belongs to it ends; raises Problem if its two headers differ."""
    name = _shown(entry.name)
    if entry.at + LOCAL.size > limit or data[entry.at : entry.at + 4] != b"PK\3\4":
        raise Problem(f"its member {name} does not lie where the directory says")
    flags, method, crc, packed, size, name_size, extra_size = LOCAL.unpack_from(data, entry.at)
    name_at = entry.at + LOCAL.size
    extra = data[name_at + name_size : name_at + name_size + extra_size]
    size, packed = _in_64_bits(entry.name, extra, (size, packed))
    start = name_at + name_size + extra_size
    if (data[name_at : name_at + name_size], flags, method) != (entry.name, entry.flags, entry.method):
        raise Problem(f"its member {name} is another one in the directory")
    sums, real = (crc, packed, size), (entry.crc, entry.packed, entry.size)
    later = entry.flags & LATER
    if sums != real and not (later and all(said in (0, is_so) for said, is_so in zip(sums, real, strict=True))):
        raise Problem(f"its member {name} has another size or sum in the directory")
    end = start + entry.packed
    if end > limit:
        raise Problem(f"its member {name} reaches into the directory")
    return start, end + (_descriptor(data, entry, end) if later else 0)


def _descriptor(data: bytes, entry: _Listed, at: int) -> int:
    """The length of what stands behind the data of a member whose sizes came later (4.3.9): with or without a mark."""
    for form in ("<4sLLL", "<4sLQQ", "<LLL", "<LQQ"):
        fields = Struct(form)
        expected = (entry.crc, entry.packed, entry.size)
        said = fields.pack(b"PK\7\10", *expected) if "4s" in form else fields.pack(*expected)
        follows = data[at + len(said) : at + len(said) + 4]
        if data.startswith(said, at) and follows in (b"PK\3\4", b"PK\1\2"):
            return len(said)
    raise Problem(f"its member {_shown(entry.name)} has other sizes or another sum behind its data")


def _in_64_bits(name: bytes, extra: bytes, fields: tuple[int, ...]) -> tuple[int, ...]:
    """The fields, with those that did not fit into 32 bits from where they stand instead (4.5.3)."""
    found = dict(_extras(name, extra))
    if UNICODE_PATH in found:
        raise Problem(f"its member {_shown(name)} has a second name")
    wide = found.get(ZIP64, b"")
    if len(wide) != 8 * fields.count(IN_64_BITS):
        raise Problem(f"its member {_shown(name)} has a size twice, or nowhere")
    values = iter(int.from_bytes(wide[at : at + 8], "little") for at in range(0, len(wide), 8))
    return tuple(next(values) if field == IN_64_BITS else field for field in fields)


def _extras(name: bytes, extra: bytes) -> Iterator[tuple[int, bytes]]:
    at, seen = 0, set()
    while at < len(extra):
        kind, size = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if at + 4 + size > len(extra) or kind in seen:
            raise Problem(f"its member {_shown(name)} has malformed extra fields")
        seen.add(kind)
        yield kind, extra[at + 4 : at + 4 + size]
        at += 4 + size


def _member(entry: _Listed, start: int) -> Member:
    """A plain member; raises Problem for what is encrypted, compressed in another way, or neither file nor folder."""
    name = _name(entry)
    if entry.flags & ~FLAGS:
        raise Problem(f"its member {name!r} is encrypted or patched")
    if entry.method not in (STORED, DEFLATED):
        raise Problem(f"its member {name!r} is compressed by method {entry.method}", "known: stored, deflated")
    kind = stat.S_IFMT(entry.mode)
    if kind not in (0, stat.S_IFDIR if name.endswith("/") else stat.S_IFREG):
        raise Problem(f"its member {name!r} is neither file nor folder")
    if name.endswith("/") and entry.size:
        raise Problem(f"its folder {name!r} has {entry.size} bytes")
    return Member(name, entry.size, bool(entry.mode & 0o111), entry.method, start, entry.packed, entry.crc)


def _name(entry: _Listed) -> str:
    """A relative path that every reader takes for the same; raises Problem for any other."""
    try:
        name = entry.name.decode("utf-8" if entry.flags & UTF8 else "ascii")
    except UnicodeDecodeError:
        raise Problem(f"its member {_shown(entry.name)} has a name in no known encoding") from None
    parts = name.removesuffix("/").split("/")
    if not name.isprintable() or "\\" in name or any(part in ("", ".", "..") for part in parts):
        raise Problem(f"its member {_shown(entry.name)} has a name that is no plain relative path")
    if len(entry.name) > MAX_NAME or len(parts) > MAX_DEPTH or any(len(p.encode()) > MAX_COMPONENT for p in parts):
        raise Problem(f"its member {_shown(entry.name)} has too long a name")
    return name


def _check_names(names: list[str]) -> None:
    """Raise Problem for a name that is there twice, or lies below a file."""
    paths = sorted((name.removesuffix("/") for name in names), key=lambda name: name.split("/"))
    for one, other in pairwise(paths):
        if one == other:
            raise Problem(f"it has {one!r} twice")
    folders = {name[:-1] for name in names if name.endswith("/")}
    files = set(paths) - folders
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in files:
                raise Problem(f"its member {path!r} lies below the file {parent!r}")
            parent = parent.rpartition("/")[0]


def _check_size(listed: list[_Listed], packed: int) -> None:
    size = sum(entry.size for entry in listed)
    if size > MAX_SIZE or size > ALWAYS + MAX_RATIO * packed:
        raise Problem(f"its {packed} bytes would unpack to {size}")


def _shown(name: bytes) -> str:
    return ascii(name.decode("utf-8", "replace"))[:100]
