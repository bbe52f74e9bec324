"""The tars that people publish, as rows of a package: read by disk/tarread.py, which refuses what is read in two ways.

Owners, times and extended attributes are passed over.
"""

from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from imagekit import kept
from imagekit.disk import tarread
from imagekit.errors import Problem
from imagekit.sources import _placed, _tar


class Style(NamedTuple):
    """What is made of an archive's members."""

    strip: int = 0  # leading components that are taken off each name
    prefix: str = ""  # the folder of the image that links may not lead out of
    is_npms: bool = False  # as npm packs: links are passed over, a file may come twice if it is the same both times


def contents(pieces: Iterator[bytes], rows: dict[str, kept.Row], notes: list[str], *, style: Style) -> Iterator[bytes]:
    """The bytes of every file, one after another, while `rows` fills with where each lies, `notes` with the rest."""
    reader = tarread.Reader(pieces, most=_tar.MAX_BYTES)
    offset = 0
    for member in members(reader):
        digest = sha256()
        for piece in reader.body():
            digest.update(piece)
            yield bytes(piece)
        path = _stripped(member.name, member.kind, style)
        if path and (not style.is_npms or not member.kind.endswith("link")):
            _add(path, member, digest.hexdigest() if member.kind == "file" else "", offset, rows, style)
            if member.mode & 0o7000 and member.kind == "file":
                notes.append(f"mode: {path} was {member.mode:o}")
        offset += member.size
    if not rows:
        raise Problem("it holds nothing", f"strip={style.strip} takes off so many folders of each name")
    kept.check_parents(rows)  # here, so that the store drops the draft of a package that is refused


def members(reader: tarread.Reader) -> Iterator[_tar.Member]:
    """Every member in the order of the archive. The caller takes a file's bytes before the next one."""
    for _ in range(_tar.MAX_MEMBERS):
        found = reader.member()
        if found is None:
            return
        name, kind = _tar.text(found.name), _tar.KINDS.get(found.kind)
        if kind is None:
            raise Problem(f"{name!r} has the type {found.kind!r}; a package holds files, folders and links only")
        yield _tar.Member(name, kind, found.mode, 0, 0, found.size, _tar.text(found.target))
    raise Problem(f"the archive has more than {_tar.MAX_MEMBERS} members")


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
