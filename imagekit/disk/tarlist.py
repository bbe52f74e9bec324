"""The members of a tar file that may be anybody's: their names, and where their bytes lie. Nothing is unpacked.

Source: POSIX.1-2017, "pax", for ustar and PAX headers; GNU's long names (tar's manual, "Basic Tar Format"). untar.py
reads our own, and all of it.
"""

from collections.abc import Iterator
from typing import NamedTuple

from imagekit.disk.sparse import Sparse
from imagekit.errors import Problem

BLOCK = 512
MOST_MEMBERS, LONGEST_RECORDS = 65536, 1 << 16
PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK = b"x", b"g", b"L", b"K"
FILES = (b"0", b"\0", b"7")


class Member(NamedTuple):
    """A member of an archive."""

    name: str
    is_file: bool
    offset: int
    size: int


def members(disk: Sparse) -> Iterator[Member]:
    """Every member in order; raises Problem where the archive is damaged, cut, or has more than 65536 of them."""
    at, name, size = 0, b"", -1
    for _ in range(MOST_MEMBERS):
        header = disk.read(at, BLOCK)
        if header == bytes(len(header)):  # some leave the end out
            return
        _check(header, at)
        kind, length = header[156:157], _number(header[124:136])
        length = size if size >= 0 and kind not in (PAX, PAX_GLOBAL, GNU_NAME, GNU_LINK) else length
        end = at + BLOCK + -(-length // BLOCK) * BLOCK
        if at + BLOCK + length > disk.size:
            raise Problem("the archive is cut short")
        if kind in (PAX, GNU_NAME):
            name, size = _before(kind, _records(disk, at + BLOCK, length), name, size)
        elif kind not in (PAX_GLOBAL, GNU_LINK):
            found = (name or _name(header)).decode("utf-8", "backslashreplace")
            yield Member(found, kind in FILES, at + BLOCK, length)
            name, size = b"", -1
        at = end
    raise Problem(f"the archive has more than {MOST_MEMBERS} members")


def _before(kind: bytes, data: bytes, name: bytes, size: int) -> tuple[bytes, int]:
    """What a header that stands before a member's says of its name and size."""
    if kind == GNU_NAME:
        return data.rstrip(b"\0"), size
    while data:
        digits = data.partition(b" ")[0]
        if not digits.isdigit() or len(digits) > 6 or not len(digits) + 2 < int(digits) <= len(data):
            raise Problem("a PAX record of the archive is damaged")
        key, _, value = data[len(digits) + 1 : int(digits) - 1].partition(b"=")
        if key == b"path":
            name = value
        elif key == b"size":
            if not value.isdigit() or len(value) > 19:
                raise Problem("a PAX record of the archive has no size")
            size = int(value)
        data = data[int(digits) :]
    return name, size


def _records(disk: Sparse, at: int, size: int) -> bytes:
    if size > LONGEST_RECORDS:
        raise Problem(f"a header of the archive has {size} bytes of records")
    return disk.read(at, size)


def _check(header: bytes, at: int) -> None:
    if len(header) < BLOCK:
        raise Problem("the archive is cut short")
    if sum(header[:148]) + sum(header[156:]) + 8 * 32 != _number(header[148:156]):
        raise Problem(f"the header at {at} of the archive does not match its checksum")


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].partition(b"\0")[0], header[345:500].partition(b"\0")[0]
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _number(field: bytes) -> int:
    if field[0] == 0x80:  # base-256, of what has more than octal digits for
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise Problem(f"a header of the archive has the number {field!r}")
    return int(digits or b"0", 8)
