"""A strict reader of the tar that tar.py writes: ustar, PAX records for what ustar cannot hold, nothing else.

Own code, because Python's tarfile hangs on some headers, passes over a cut in silence, and takes headers that other
readers see otherwise. What a tar of ours never holds is refused, not guessed at.
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imagekit.errors import Problem
from imagekit.tree import Entry

BLOCK = 512
END = 2 * BLOCK  # zeros
PIECE = 1 << 20
MAX_RECORDS = 1 << 20  # bytes of PAX records of one member
KINDS = {b"0": "file", b"1": "hardlink", b"2": "symlink", b"3": "char", b"4": "block", b"5": "dir", b"6": "fifo"}
_NUMBER = re.compile(rb"([0-7]+)[ \0]*\Z")


class Stream:
    """Exact reads from a run of pieces."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; raises Problem when the archive ends before."""
        parts, missing = [], size
        while missing:
            if not self._rest:
                self._rest = memoryview(next(self._pieces, b""))
                if not self._rest:
                    raise Problem("the archive is cut short")
            parts.append(self._rest[:missing])
            self._rest = self._rest[missing:]
            missing -= len(parts[-1])
        return b"".join(parts)

    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return not self._rest and not any(self._pieces)


class Head(NamedTuple):
    """What stands before a member's bytes."""

    path: str
    entry: Entry  # without its bytes and their digest
    raw: bytes  # the header, behind its PAX header


def members(pieces: Iterable[bytes]) -> Iterator[tuple[str, Entry]]:
    """Every member as (absolute path, entry with its bytes), in the archive's order; Problem for what is not ours."""
    stream = Stream(pieces)
    for head in heads(stream):
        yield head.path, head.entry._replace(content=b"".join(body(stream, head.entry.size)))


def heads(stream: Stream) -> Iterator[Head]:
    """The head of every member; the caller takes a member's bytes, `body`, before it asks for the next one."""
    records: dict[bytes, bytes] = {}
    before = b""
    while (header := stream.read(BLOCK)) != bytes(BLOCK):
        _check(header)
        if header[156:157] == b"x":
            if records:
                raise Problem("two PAX headers stand before one member")
            size = _number(header[124:136])
            if size > MAX_RECORDS:
                raise Problem(f"{size} bytes of PAX records")
            padded = stream.read(size + -size % BLOCK)
            records, before = _records(padded[:size]), header + padded
        else:
            yield Head(*_member(header, records), before + header)
            records, before = {}, b""
    if records:
        raise Problem("a PAX header belongs to no member")
    if stream.read(END - BLOCK).strip(b"\0") or not stream.is_at_end():
        raise Problem("something follows the end of the archive")


def body(stream: Stream, size: int) -> Iterator[bytes]:
    """The bytes of the member whose head was just given, a MiB at a time; reads the padding as well."""
    for at in range(0, size, PIECE):
        yield stream.read(min(PIECE, size - at))
    if stream.read(-size % BLOCK).strip(b"\0"):
        raise Problem("something lies between two members")


def _member(header: bytes, records: dict[bytes, bytes]) -> tuple[str, Entry]:
    kind = KINDS.get(header[156:157])
    if kind is None:
        raise Problem(f"a member has the type {header[156:157]!r}")
    size = _number(records[b"size"], decimal=True) if b"size" in records else _number(header[124:136])
    if size and kind != "file":
        raise Problem(f"a {kind} has a size")
    path = "/" + _text(records.get(b"path", header[:100].split(b"\0")[0])).strip("/")
    target = _text(records.get(b"linkpath", header[157:257].split(b"\0")[0]))
    mode, uid, gid = (_number(header[at : at + 8]) for at in (100, 108, 116))
    device = (_number(header[329:337]), _number(header[337:345])) if kind in ("char", "block") else (0, 0)
    xattrs = tuple((k[13:].decode(), value) for k, value in sorted(records.items()) if k.startswith(b"SCHILY.xattr."))
    target = "/" + target if kind == "hardlink" else target
    return path, Entry(kind, mode & 0o7777, uid, gid, size, "", target, device, xattrs)


def _records(body: bytes) -> dict[bytes, bytes]:
    records: dict[bytes, bytes] = {}
    while body:
        length, _, _ = body.partition(b" ")
        size = _number(length, decimal=True)
        record, body = body[len(length) + 1 : size], body[size:]
        key, _, value = record.partition(b"=")
        known = key in (b"path", b"linkpath", b"size") or key.startswith(b"SCHILY.xattr.")
        if not known or key in records or not value.endswith(b"\n") or len(length) + 1 + len(record) != size:
            raise Problem(f"a PAX record is not ours: {record[:80]!r}")
        records[key] = value[:-1]
    return records


def _check(header: bytes) -> None:
    if header[257:265] != b"ustar\x0000" or header[345:500].strip(b"\0"):
        raise Problem("a header is not ours")
    if sum(header[:148]) + sum(header[156:]) + 8 * 32 != _number(header[148:156]):
        raise Problem("a header does not match its checksum")


def _number(field: bytes, *, decimal: bool = False) -> int:
    if decimal:
        if not field.isdigit():
            raise Problem(f"a PAX record has the number {field[:40]!r}")
        return int(field[:20])
    if field[0] == 0x80:  # base-256, for owners beyond seven octal digits
        return int.from_bytes(field[1:], "big")
    match = _NUMBER.match(field)
    if not match:
        raise Problem(f"a header has the number {field!r}")
    return int(match[1], 8)


def _text(raw: bytes) -> str:
    if b"\0" in raw:
        raise Problem(f"the name {raw[:80]!r} holds a zero byte")
    return raw.decode("utf-8", "surrogateescape")
