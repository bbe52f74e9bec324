"""Label: what the file of a plain package says of it and its signer signs; and what may be in a package at all."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagekit import strict
from imagekit.arch import ARCHES
from imagekit.disk import frames
from imagekit.errors import Problem
from imagekit.image import NAME, path_of
from imagekit.package import UNKNOWN, Origin
from imagekit.tree import Entry

MAGIC = b"imagekit package 1\n"  # in what is signed: one key signs images and statements too
ANY = "all"  # the architecture of what runs on every one
MAX_TEXT = 4 << 20  # bytes
MAX_SIZE = 2 << 30  # of the tar
MAX_WORD, MAX_LINES = 500, 200
MAX_NAME, MAX_COMPONENT, MAX_DEPTH, MAX_ID = 4096, 255, 64, 1 << 31
VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.+~-]{0,99}\Z", re.ASCII)  # Debian's order sorts it; no epoch: a file name
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
LICENCE = re.compile(r"[A-Za-z0-9.+()-]+(?: [A-Za-z0-9.+()-]+)*\Z", re.ASCII)  # an expression of SPDX 2.3, annex D
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Label:
    """A plain package in words and digests."""

    name: str
    version: str
    architecture: str  # imagekit's name, "x86_64", or "all"
    digest: str  # sha256 of the tree
    origin: Origin
    licence: str
    notes: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]  # what it was made from: (URL or path, sha256)
    setuid: tuple[str, ...]  # the files that may be setuid or setgid
    size: int  # of the tar
    zstd: str  # the version that packed it
    frames: tuple[tuple[int, str], ...]  # (size, sha256) of each


def text(made: Label) -> bytes:
    """The label as the one line of JSON that is signed."""
    fields = {name: _plain(value) for name, value in vars(made).items()}
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def read(data: bytes) -> Label:
    """The label that `text` gave; raises Problem for whatever it would not have written."""
    fields = strict.parse(data, what="its metadata", limit=MAX_TEXT)
    if set(fields) != set(FIELDS):
        raise Problem(f"its metadata has the fields {', '.join(sorted(fields))[:300]}; known: {', '.join(FIELDS)}")
    try:
        made = Label(**{name: take(fields[name]) for name, (take, _) in FIELDS.items()})
    except (TypeError, ValueError) as error:
        raise Problem(f"its metadata is malformed: {error}") from error
    check(made)
    if text(made) != data:
        raise Problem("its metadata is not written as imagekit writes it")
    return made


def check(made: Label) -> None:
    """Raise Problem for a label that cannot be right."""
    for name, (_, is_right) in FIELDS.items():
        if not is_right(getattr(made, name)):
            raise Problem(f"its {name} {str(getattr(made, name))[:80]!r} is none")
    if len(made.frames) != frames.count(made.size):
        raise Problem(f"its {len(made.frames)} frames do not hold {made.size} bytes")


def check_entry(path: str, entry: Entry, setuid: Sequence[str]) -> None:
    """Raise Problem for what may not be in a package: it would be dangerous, or lie elsewhere than its name says."""
    check_path(path)
    if entry.kind not in ("file", "dir", "symlink", "hardlink"):
        raise Problem(f"{path} is a {entry.kind}; a package holds files, folders and links")
    if entry.mode & 0o6000 and path not in setuid:
        raise Problem(f"{path} is setuid or setgid (mode {entry.mode:04o})", "package.toml: setuid = [...] allows it")
    if entry.mode & ~(0o7777 if entry.kind == "dir" else 0o6777):
        raise Problem(f"{path} has the mode {entry.mode:04o}")
    if entry.xattrs:
        raise Problem(f"{path} has extended attributes: {', '.join(name for name, _ in entry.xattrs)}")
    if not (0 <= entry.uid < MAX_ID and 0 <= entry.gid < MAX_ID and 0 <= entry.size <= MAX_SIZE):
        raise Problem(f"{path} has the owner {entry.uid}:{entry.gid} and {entry.size} bytes")
    if entry.kind == "symlink":
        _check_symlink(path, entry)


def check_path(path: str) -> None:
    """Raise Problem for a path that no package has, or that is not written in its one form."""
    _check_text(path)
    parts = path.split("/")[1:]
    if path != path_of(path) or path == "/" or any(part in ("", ".", "..") for part in parts):
        raise Problem(f"{path!r} is no path of a package")
    if len(parts) > MAX_DEPTH or any(len(part.encode()) > MAX_COMPONENT for part in parts):
        raise Problem(f"{path[:80]!r} is too deep or has too long a name in it")


def _check_symlink(path: str, entry: Entry) -> None:
    """A link may be absolute, which is below the image's root; it may not climb out of it."""
    _check_text(entry.target)
    depth = 0 if entry.target.startswith("/") else path.count("/") - 1
    for part in entry.target.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            raise Problem(f"the symlink {path} leads out of the tree: {entry.target}")
    if not entry.target or entry.mode != 0o777:
        raise Problem(f"the symlink {path} leads nowhere, or has a mode of its own")


def _check_text(name: str) -> None:
    try:
        raw = name.encode()
    except UnicodeEncodeError:
        raise Problem(f"the name {ascii(name)[:80]} is not UTF-8") from None
    if _CONTROL.search(name) or len(raw) > MAX_NAME:
        raise Problem(f"the name {ascii(name)[:80]} has control characters or is too long")


def _plain(value: Any) -> Any:
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{str(value)[:80]!r} is no text")
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"{str(value)[:80]!r} is no number")
    return value


def _words(value: Any) -> tuple[str, ...]:
    return tuple(_text(one) for one in _list(value))


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"{str(value)[:80]!r} is no list")
    return value


def _origin(value: Any) -> Origin:
    source, version = _words(value)
    return Origin(source, version)


def _sources(value: Any) -> tuple[tuple[str, str], ...]:
    return tuple((place, digest) for place, digest in map(_words, _list(value)))


def _frames(value: Any) -> tuple[tuple[int, str], ...]:
    return tuple((_number(size), _text(digest)) for size, digest in map(_list, _list(value)))


def is_line(value: str) -> bool:
    """Whether this is one line of text, of no more than MAX_WORD characters, that a terminal does not obey."""
    return 0 < len(value) <= MAX_WORD and value.isprintable()


def is_licence(value: str) -> bool:
    """Whether this has the form of an SPDX expression: names joined by AND, OR and WITH, brackets in pairs."""
    if not value or not LICENCE.match(value) or len(value) > MAX_WORD:
        return not value
    depth, wants_name = 0, True
    for word in value.replace("(", "( ").replace(")", " )").split():
        if word == "(" or (word not in (")", "AND", "OR", "WITH")):
            if not wants_name:
                return False
            depth, wants_name = depth + (word == "("), word == "("
        elif wants_name:
            return False
        else:
            depth, wants_name = depth - (word == ")"), word != ")"
        if depth < 0:
            return False
    return depth == 0 and not wants_name


def _few(lines: Sequence[Any], is_right: Callable[[Any], bool]) -> bool:
    return len(lines) <= MAX_LINES and len(set(lines)) == len(lines) and all(map(is_right, lines))


def _is_origin(origin: Origin) -> bool:
    return origin == UNKNOWN or all(is_line(word) and " " not in word for word in origin)


def _is_path(path: str) -> bool:
    check_path(path)
    return True


FIELDS: Mapping[str, tuple[Callable[[Any], Any], Callable[[Any], bool]]] = {  # how to read it, and whether it is right
    "name": (_text, lambda name: bool(NAME.match(name)) and len(name) <= 100),
    "version": (_text, lambda version: bool(VERSION.match(version))),
    "architecture": (_text, lambda name: name == ANY or name in ARCHES),
    "digest": (_text, lambda digest: bool(SHA256.match(digest))),
    "origin": (_origin, _is_origin),
    "licence": (_text, is_licence),
    "notes": (_words, lambda notes: _few(notes, is_line)),
    "sources": (_sources, lambda rows: _few(rows, lambda row: is_line(row[0]) and bool(SHA256.match(row[1])))),
    "setuid": (_words, lambda paths: _few(paths, _is_path) and list(paths) == sorted(paths)),
    "size": (_number, lambda size: 0 < size <= MAX_SIZE),
    "zstd": (_text, lambda version: bool(VERSION.match(version))),
    "frames": (_frames, lambda rows: all(0 < n <= frames.LARGEST and SHA256.match(d) for n, d in rows)),
}
