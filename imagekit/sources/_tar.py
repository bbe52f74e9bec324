"""A strict reader of the tar that dpkg writes: ustar and GNU long names, nothing else.

Own code, because Python's tarfile is neither a safe nor a strict reader: it hangs on some headers, passes over
truncation in silence and takes headers that other readers see otherwise. dpkg refuses PAX headers (dpkg's lib/dpkg/
tarfn.c: "unsupported PAX tar header type"), so a .deb has none and carries no extended attributes; we refuse them too.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from zlib import adler32

from imagekit.errors import Problem

BLOCK = 512
PIECE = 1 << 20
MAX_BYTES = 2 << 30  # unpacked; Debian's largest kernel package has 400 MB
MAX_MEMBERS = 200_000
MAX_NAME = 4096
MAX_DEPTH = 64
MAGICS = (b"ustar\x0000", b"ustar  \0")  # POSIX.1-1988, GNU
KINDS = {b"0": "file", b"\0": "file", b"1": "hardlink", b"2": "symlink", b"5": "dir"}
_NUMBER = re.compile(rb" *([0-7]+)[ \0]*\Z")
_USUAL = re.compile(rb"([0-7]{7})\0([0-7]{7})\0([0-7]{7})\0")  # mode, uid and gid as most headers have them
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(rb"(?:\./)?(?!\.)[!-.0-~]{1,200}(?:/(?!\.)[!-.0-~]{1,200}){0,30}\Z")  # what most names are


class Member(NamedTuple):
    """One entry of an archive; its bytes, if it is a file, come next in the stream."""

    name: str  # relative, without ./ and trailing slash; "" is the root
    kind: str  # file, dir, symlink or hardlink
    mode: int
    uid: int
    gid: int
    size: int
    target: str  # of a symlink its text, of a hard link a name like `name`


class Stream:
    """Exact reads from a run of pieces, with an end that is known to have come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._at = 0
        self._taken = 0

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes; raises Problem when the archive ends before."""
        data = self._piece[self._at : self._at + size]
        self._at += len(data)
        if len(data) < size:
            data = b"".join((data, *self._more(size - len(data))))
        return data

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Exactly `size` bytes as they lie in the pieces: none is copied, and a large file is never whole in memory."""
        while size:
            if self._at == len(self._piece) and not self._next():
                raise Problem("the archive is cut short")
            data = memoryview(self._piece)[self._at : self._at + size]
            self._at += len(data)
            size -= len(data)
            yield data

    def rest(self) -> Iterator[bytes]:
        """Whatever is left."""
        yield self._piece[self._at :]
        while self._next():
            yield self._piece

    def _more(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._next():
                raise Problem("the archive is cut short")
            self._at = min(size, len(self._piece))
            size -= self._at
            yield self._piece[: self._at]

    def _next(self) -> bool:
        self._piece, self._at = next(self._pieces, b""), 0
        self._taken += len(self._piece)
        if self._taken > MAX_BYTES:
            raise Problem(f"the archive unpacks to more than {MAX_BYTES} bytes")
        return bool(self._piece)


def members(stream: Stream) -> Iterator[Member]:
    """Every member in the order of the archive. The caller takes a file's bytes, `file_bytes`, before the next one."""
    for _ in range(MAX_MEMBERS):
        member = _member(stream)
        if member is None:
            return
        yield member
    raise Problem(f"the archive has more than {MAX_MEMBERS} members")


def file_bytes(stream: Stream, size: int) -> Iterator[memoryview]:
    """The bytes of the file whose member was just yielded; reads the padding as well."""
    yield from stream.pieces(size)
    stream.read(-size % BLOCK)


def _member(stream: Stream) -> Member | None:
    """The next member with its long name and target, or None at the proper end."""
    long: dict[bytes, bytes] = {}
    while (header := stream.read(BLOCK)) != bytes(BLOCK):
        check_header(header)
        flag = header[156:157]
        size = number(header[124:136], "size")
        if flag not in (b"L", b"K"):
            return made(header, flag, size, long)
        if flag in long or not 0 < size <= MAX_NAME + 1:
            raise Problem("a GNU long name is repeated, empty or too long")
        long[flag] = stream.read(size).removesuffix(b"\0")
        stream.read(-size % BLOCK)
    if long:
        raise Problem("a GNU long name belongs to no member")
    check_end(stream)
    return None


def check_end(stream: Stream) -> None:
    """Raise Problem unless a second block of zeros follows the first, and after it nothing but zeros."""
    if any(piece.strip(b"\0") for piece in (stream.read(BLOCK), *stream.rest())):
        raise Problem("something follows the end of the archive")


def made(header: bytes, flag: bytes, size: int, long: Mapping[bytes, bytes]) -> Member:
    """The member that a header describes, with the long name (L) and the long target (K) that stood before it."""
    kind = KINDS.get(flag)
    short = short_name(header)
    name = clean_name(long.get(b"L", short), directory=kind == "dir")
    if kind is None:
        raise Problem(f"{name!r} has the type {flag!r}; a package holds files, folders and links only")
    if kind != "file" and size:
        raise Problem(f"{name!r} is a {kind} with a size")
    written = long.get(b"K", header[157:257].split(b"\0")[0])
    target = clean_name(written) if kind == "hardlink" else text(written) if kind == "symlink" else ""
    if kind in ("symlink", "hardlink") and not target:
        raise Problem(f"{name!r} is a link to nothing")
    usual = _USUAL.match(header, 100)
    mode, uid, gid = map(_octal, usual.groups()) if usual else _numbers(header)
    return Member(name, kind, mode & 0o7777, uid, gid, size, target)


def _octal(digits: bytes) -> int:
    return int(digits, 8)


def _numbers(header: bytes) -> Iterator[int]:
    return (number(header[at : at + 8], "number") for at in (100, 108, 116))


def clean_name(raw: bytes, *, directory: bool = False) -> str:
    """A member's name without ./ and trailing slash; raises Problem for one that would lead out of the tree."""
    if directory:
        raw = raw.removesuffix(b"/")
    if len(raw) <= MAX_NAME and _PLAIN.match(raw):
        return raw.decode("ascii").removeprefix("./")
    name = text(raw).removeprefix("./")
    if name in ("", "."):
        return ""
    parts = name.split("/")
    if (
        name.startswith("/")
        or len(parts) > MAX_DEPTH
        or any(p in ("", ".", "..") or len(p.encode()) > 255 for p in parts)
    ):
        raise Problem(f"{name!r} is no name of a member")
    return name


def short_name(header: bytes) -> bytes:
    """The name that a header holds itself."""
    name = header[:100].split(b"\0")[0]
    prefix = header[345:500].split(b"\0")[0] if header[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name


def check_header(header: bytes) -> None:
    """Raise Problem for a header that was damaged, or is of a kind of tar that is not read."""
    if header[257:265] not in MAGICS:
        raise Problem("a header is neither ustar nor GNU tar")
    if _sum(header[:148]) + 8 * 32 + _sum(header[156:256]) + _sum(header[256:]) != number(header[148:156], "checksum"):
        raise Problem("a header does not match its checksum")


def _sum(some: bytes) -> int:
    """The sum of at most 256 bytes: less than what Adler-32 counts modulo (RFC 1950), ten times sooner than sum()."""
    return (adler32(some) & 0xFFFF) - 1


def number(field: bytes, what: str) -> int:
    """The number in a field of a header, which is octal; `what` it is."""
    match = _NUMBER.match(field)  # refuses base-256, thus sizes of 8 GiB and more and all negative ones
    if not match:
        raise Problem(f"a header has the {what} {field!r}")
    return int(match[1], 8)


def text(raw: bytes) -> str:
    """A name or target as text; raises Problem for one that is not UTF-8, or could not be written in a line."""
    try:
        found = raw.decode()
    except UnicodeDecodeError as error:
        raise Problem(f"the name {raw!r} is not UTF-8") from error
    if _CONTROL.search(found) or len(raw) > MAX_NAME:
        raise Problem(f"the name {found[:80]!r} has control characters or is too long")
    return found
