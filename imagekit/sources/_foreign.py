"""A strict reader of the tars that people publish: ustar, GNU long names, PAX records, and the tar of 1979.

What tar programs read in different ways is refused rather than guessed at: a size that PAX and header do not agree on,
two PAX headers or names for one member, a global name, an archive that ends early or goes on after its end. Owners,
times and extended attributes are passed over.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from imagekit import kept
from imagekit.errors import Problem
from imagekit.sources import _placed, _tar

MAX_RECORDS = 1 << 20  # bytes of the PAX records of one member
USED = {b"path": b"L", b"linkpath": b"K"}  # PAX's names of what GNU tar has members of their own for
PASSED_OVER = re.compile(  # POSIX.1-2017, "pax Extended Header"; libarchive's and star's own
    rb"(mtime|atime|ctime|comment|uid|gid|uname|gname|charset|hdrcharset|LIBARCHIVE\..*|NODETAR\..*"
    rb"|SCHILY\.(dev|ino|nlink|fflags|xattr\..*|acl\..*)|RHT\..*|MSWINDOWS\..*)\Z"
)
NOBODY = b"0000000\0" * 2  # in place of owners, which some leave blank, and nobody asks for
V7 = bytes(8)  # in place of a magic
CONTIGUOUS = b"7"  # a file, where a system has no such thing (POSIX.1-2017, typeflag)
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")


class Style(NamedTuple):
    """What is made of an archive's members."""

    strip: int = 0  # leading components that are taken off each name
    prefix: str = ""  # the folder of the image that links may not lead out of
    is_npms: bool = False  # as npm packs: links are passed over, a file may come twice if it is the same both times


def contents(
    pieces: Iterator[bytes], rows: dict[str, kept.Row], notes: list[str], *, style: Style
) -> Iterator[memoryview]:
    """The bytes of every file, one after another, while `rows` fills with where each lies, `notes` with the rest."""
    stream = _tar.Stream(pieces)
    offset = 0
    for member in members(stream):
        digest = sha256()
        if member.kind == "file":
            for piece in _tar.file_bytes(stream, member.size):
                digest.update(piece)
                yield piece
        path = _stripped(member.name, member.kind, style)
        if path and (not style.is_npms or not member.kind.endswith("link")):
            _add(path, member, digest.hexdigest() if member.kind == "file" else "", offset, rows, style)
            if member.mode & 0o7000 and member.kind == "file":
                notes.append(f"mode: {path} was {member.mode:o}")
        offset += member.size
    if not rows:
        raise Problem("it holds nothing", f"strip={style.strip} takes off so many folders of each name")
    kept.check_parents(rows)  # here, so that the store drops the draft of a package that is refused


def members(stream: _tar.Stream) -> Iterator[_tar.Member]:
    """Every member in the order of the archive. The caller takes a file's bytes before the next one."""
    for _ in range(_tar.MAX_MEMBERS):
        member = _member(stream)
        if member is None:
            return
        yield member
    raise Problem(f"the archive has more than {_tar.MAX_MEMBERS} members")


def _member(stream: _tar.Stream) -> _tar.Member | None:
    """The next member with its long name and target, or None at the proper end."""
    said: dict[bytes, bytes] = {}
    seen: set[bytes] = set()  # what stood before this member
    while (header := stream.read(_tar.BLOCK)) != bytes(_tar.BLOCK):
        _tar.check_header(header, magics=(*_tar.MAGICS, V7))
        flag, size = header[156:157], _tar.number(header[124:136], "size")
        if flag not in (b"x", b"g", b"L", b"K"):
            return _made(header, flag, size, said)
        if flag in seen or (flag == b"g" and seen):
            raise Problem("two headers of one kind stand before one member")
        before = _before(flag, size, stream)
        if said.keys() & before.keys():
            raise Problem("a member has two long names")
        said |= before
        seen |= {flag} - {b"g"}
    if seen:
        raise Problem("a long name belongs to no member")
    _tar.check_end(stream)
    return None


def _before(flag: bytes, size: int, stream: _tar.Stream) -> dict[bytes, bytes]:
    """What a header that stands before a member says of it; a global one may say nothing that counts."""
    is_name = flag in (b"L", b"K")
    if not 0 < size <= (_tar.MAX_NAME + 1 if is_name else MAX_RECORDS):
        raise Problem("a long name or PAX header is empty or too long")
    body = stream.read(size)
    stream.read(-size % _tar.BLOCK)
    if is_name:
        return {flag: body.removesuffix(b"\0")}
    records = dict(_records(body))
    if flag == b"g" and records:
        raise Problem("a global PAX header names what belongs to one member")
    return records


def _records(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """What PAX records say that counts: the name (L), the target (K), the size."""
    seen, at = set(), 0
    while at < len(body):
        match = _RECORD.match(body, at)
        end = at + int(match[1]) if match else 0
        if not match or not match.end() < end <= len(body) or body[end - 1 : end] != b"\n" or match[2] in seen:
            raise Problem(f"a PAX record is malformed or repeated: {body[at : at + 80]!r}")
        value = body[match.end() : end - 1]
        seen.add(match[2])
        if match[2] in USED or match[2] == b"size":
            if not value or b"\0" in value:
                raise Problem(f"the PAX record {match[2]!r} is empty or holds a zero byte")
            yield USED.get(match[2], match[2]), value
        elif not PASSED_OVER.match(match[2]):
            raise Problem(f"the PAX record {match[2][:80]!r} is not read")
        at = end


def _made(header: bytes, flag: bytes, size: int, said: dict[bytes, bytes]) -> _tar.Member:
    if b"size" in said and said.pop(b"size") != str(size).encode():
        raise Problem("a member's size in its PAX record is not that of its header")
    name = said.get(b"L", _tar.short_name(header))
    while b"/./" in name:  # the same for every reader, and in many of npm's
        name = name.replace(b"/./", b"/")
    said[b"L"] = name
    is_old_folder = header[257:265] == V7 and flag in (b"\0", b"0") and name.endswith(b"/")
    kind = b"5" if is_old_folder else b"0" if flag == CONTIGUOUS else flag
    mode = header[100:108] if header[100:108].strip(b" \0") else b"0000755\0" if kind == b"5" else b"0000644\0"
    return _tar.made(header[:100] + mode + NOBODY + header[124:], kind, size, said)


def _stripped(name: str, kind: str, style: Style) -> str:
    """The path of a member without its leading components; "" for the folders that are taken off."""
    parts = name.split("/") if name else []
    left = parts[style.strip :]
    if parts and not left and kind != "dir":
        raise Problem(f"{name} is no folder, and strip={style.strip} would drop it", "take off less of each name")
    return "".join(f"/{part}" for part in left)


def _add(path: str, member: _tar.Member, digest: str, offset: int, rows: dict[str, kept.Row], style: Style) -> None:
    target = member.target
    if member.kind == "symlink":
        _check_link(path, target, style.prefix)
    if member.kind == "hardlink":
        target = _stripped(target, member.kind, style)
        if rows.get(target, ("",))[0] not in ("file", "hardlink"):
            raise Problem(f"the hard link {path} names {target}, which is no file before it")
    row = _placed.row(member.kind, member.mode, size=member.size, sha256=digest, target=target, offset=offset)
    old = rows.setdefault(path, row)
    is_same = style.is_npms and old[:7] == row[:7]
    if old is not row and not is_same and (old[0], row[0]) != ("dir", "dir"):
        raise Problem(f"it holds {path} twice")


def _check_link(path: str, target: str, prefix: str) -> None:
    """Raise Problem for a link that leads out of the folder that the archive is laid out in."""
    at = [] if target.startswith("/") else f"{prefix}{path}".strip("/").split("/")[:-1]
    home = prefix.strip("/").split("/") if prefix else []
    for part in target.split("/"):
        at = at[:-1] if part == ".." else at if part in ("", ".") else [*at, part]
    if at[: len(home)] != home:
        raise Problem(f"the link {path} leads out of the archive, to {target}")
