"""Tarhead: the headers of tar archives that hold a disk, in the few dialects that their makers agree on.

POSIX ustar (IEEE Std 1003.1-2017, pax, "ustar Interchange Format") and GNU tar's ("Basic Tar Format" of its manual).
"""

from typing import NamedTuple

from imagekit.errors import Problem

BLOCK = 512
USTAR, GNU = b"ustar\x0000", b"ustar  \0"
FILES = (b"0", b"\0")  # the types of an ordinary file
SPARSE = b"S"  # GNU's, of a file whose zeros are left out
MOST = 0o77777777777  # bytes that eleven digits tell of


class Member(NamedTuple):
    """What a header says."""

    name: str
    kind: bytes
    size: int  # bytes that follow, before they are filled up to a whole block


def header(name: str, size: int, *, magic: bytes = USTAR) -> bytes:
    """The header of an ordinary file, root's and of no time."""
    block = bytearray(BLOCK)
    block[: len(name)] = name.encode()
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = b"%011o\0" % size if size <= MOST else (size | 1 << 95).to_bytes(12)  # base-256, GNU's
    block[136:148] = b"%011o\0" % 0
    block[148:156] = b" " * 8  # the checksum counts as blanks while it is made
    block[156:157] = FILES[0]
    block[257:265] = magic
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(block: bytes) -> Member:
    """What a header says; raises Problem for what is none."""
    if len(block) != BLOCK or block[257:262] != USTAR[:5]:
        raise Problem("not an archive, or one that is cut short")
    if sum(block[:148]) + sum(block[156:]) + 8 * 32 != number(block[148:156]):
        raise Problem("an archive with a damaged header")
    name = block[:100].partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return Member(name.removeprefix("./"), block[156:157], number(block[124:136]))


def number(field: bytes) -> int:
    """Octal digits, or base-256 as GNU tar writes what they cannot hold."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    try:
        return int(field.strip(b"\0 ") or b"0", 8)
    except ValueError:
        raise Problem(f"an archive with the number {field[:12]!r}") from None
