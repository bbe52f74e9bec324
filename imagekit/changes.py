"""Changes: what is different between two artifacts: packages, files, sizes, and last the first byte."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, NamedTuple

from imagekit import difference
from imagekit.artifact import Artifact
from imagekit.disk import anatomy
from imagekit.disk.parts import printable, size
from imagekit.errors import Problem

FILES = ("cpio", "tar", "FAT volume", "ISO 9660")  # whose parts are files, by paths that begin with /
CASES = ("disk", "UEFI program", "zstd", "gzip")  # whose parts hold such
CLOSED = ("squashfs", "erofs", "ext4", "qcow2", "VHD", "VHDX", "VMDK")  # whose files are not read
FIELDS = ("type", "mode", "uid", "gid", "mtime", "linkname")  # of a file, that a user set
OTHERS = ("uname", "gname", "devmajor", "devminor", *anatomy.CPIO)
ARCHIVES = ("/oci-layout", "/manifest.json")  # of containers: their members are archives in turn
DEEPEST = 8
ORDERED = ("debian", "deb")  # sources whose versions are Debian's

Files = dict[str, dict[str, Any]]  # path -> size, sha256 and fields


class Change(NamedTuple):
    """Something that one of the two has otherwise, or alone."""

    name: str
    how: str  # "added", "removed", "newer", "older" or "changed"
    before: str = ""
    after: str = ""

    def __str__(self) -> str:
        if self.how in ("added", "removed"):
            return f"{'+' if self.how == 'added' else '-'} {self.name}  {self.after or self.before}"
        return f"  {self.name}  {self.before} -> {self.after}" + (f"  ({self.how})" if self.how != "changed" else "")


@dataclass(frozen=True)
class Changes:
    """What is different between two artifacts; all of it is empty where nothing is."""

    packages: tuple[Change, ...]
    files: tuple[Change, ...]
    sizes: tuple[Change, ...]  # of parts that differ
    bytes: tuple[str, ...]  # the first difference of each part, or of the manifests
    unread: tuple[str, ...]  # kinds of file systems and containers whose files were not compared

    @property
    def same(self) -> bool:
        """Whether the two are the same, byte by byte."""
        return not self.bytes

    def lines(self) -> Iterator[str]:
        """All of it for people."""
        for title in ("packages", "files", "sizes", "bytes"):
            found = getattr(self, title)
            if found:
                yield f"{title}:"
                yield from (printable(f"  {one}") for one in found)
        if self.unread and not self.same:
            yield f"files in {', '.join(self.unread)} were not compared"

    def json(self) -> dict[str, Any]:
        """The same for programs."""
        found = asdict(self)
        for name in ("packages", "files", "sizes"):
            found[name] = [one._asdict() for one in getattr(self, name)]
        return {"same": self.same, **found}


def between(one: Artifact, other: Artifact) -> Changes:
    """What is different between two artifacts that were verified."""
    if one.text == other.text:
        return Changes((), (), (), (), ())
    sides = ({part.role: part for part in one.parts}, {part.role: part for part in other.parts})
    files: tuple[Files, Files] = ({}, {})
    unread: set[str] = set()
    sizes: list[Change] = []
    for role in dict.fromkeys((*sides[0], *sides[1])):
        parts = [side.get(role) for side in sides]
        if len({part and part.sha256 for part in parts}) > 1:
            sizes.append(_change(role, *(f"{part.size} bytes" if part else "" for part in parts)))
            for made, part, known in zip((one, other), parts, files, strict=True):
                if part:
                    unread |= _read(made.path.parent / part.file, part.size, known)
    return Changes(
        packages=tuple(_packages(one.manifest, other.manifest)),
        files=tuple(_files(*files)),
        sizes=tuple(sizes),
        bytes=tuple(_bytes(one, other)),
        unread=tuple(sorted(unread)),
    )


def _bytes(one: Artifact, other: Artifact) -> Iterator[str]:
    """As difference.py tells it, of parts with one role; of the manifests where those are all the same."""
    others = {part.role: part for part in other.parts}
    found = False
    for part in one.parts:
        same = others.get(part.role)
        if same and same.sha256 != part.sha256:
            found = True
            yield difference.first(one.path.parent / part.file, other.path.parent / same.file, what=part.role)
    if not found:
        yield difference.of_bytes(one.text, other.text, what="manifest")


def _packages(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    old, new = _versions(before), _versions(after)
    for name in sorted(old.keys() | new.keys()):
        (source, versions), (_, others) = old.get(name, new.get(name, ("", {}))), new.get(name, ("", {}))
        if name not in old:
            versions = {}
        if versions == others:
            continue
        texts = ", ".join(sorted(versions)), ", ".join(sorted(others))
        if texts[0] == texts[1]:
            yield Change(name, "changed", f"{texts[0]} sha256 {_short(versions)}", f"sha256 {_short(others)}")
        else:
            yield _change(name, *texts, how=_order(source, [*versions], [*others]))


def _versions(manifest: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, str]]]:
    """Each package with its source, and its versions by what was fetched."""
    found: dict[str, tuple[str, dict[str, str]]] = {}
    for row in manifest.get("packages", ()):
        source = str(row.get("source", "debian"))
        name = row["name"] if source == "debian" else f"{source}:{row['name']}"
        found.setdefault(name, (source, {}))[1][row["version"]] = row["sha256"]
    return found


def _short(versions: Mapping[str, str]) -> str:
    return ", ".join(digest[:12] for digest in versions.values())


def _order(source: str, before: Sequence[str], after: Sequence[str]) -> str:
    """Which of two versions is the newer, as dpkg sees it; "changed" where there are more than two, or none."""
    from imagekit.sources import _version

    if source not in ORDERED or len(before) != 1 or len(after) != 1:
        return "changed"
    try:
        return "newer" if _version.key(after[0]) > _version.key(before[0]) else "older"
    except Problem:  # dpkg would not take it either
        return "changed"


def _change(name: str, before: str, after: str, *, how: str = "changed") -> Change:
    return Change(name, "added" if not before else "removed" if not after else how, before, after)


def _files(before: Files, after: Files) -> Iterator[Change]:
    for path in sorted(before.keys() | after.keys()):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        if old is None or new is None:
            yield _change(path, *("" if one is None else size(one["size"]) for one in (old, new)))
            continue
        names = [name for name in (*FIELDS, "size") if old.get(name) != new.get(name)] or ["sha256"]
        texts = (", ".join(f"{name} {str(one.get(name))[:20]}" for name in names) for one in (old, new))
        yield Change(path, "changed", *texts)


def _read(path: Any, size: int, known: Files) -> set[str]:
    """Add the files of a part to those that are known; which kinds in it cannot be read."""
    if size > difference.LARGEST:
        return {f"parts of more than {difference.LARGEST >> 30} GiB"}
    closed: set[str] = set()
    _collect(path.read_bytes(), known, closed, depth=0)
    return closed


def _collect(data: bytes, known: Files, closed: set[str], *, depth: int) -> None:
    kind, parts = anatomy.parts(data) if depth < DEEPEST else ("", {})
    if kind in CLOSED:
        closed.add(kind)
    elif kind in CASES:
        for inner in parts.values():
            _collect(inner, known, closed, depth=depth + 1)
    elif kind in FILES:
        has_inner = kind not in ("cpio", "tar") or any(name in parts for name in ARCHIVES)
        for name, inner in parts.items():
            if name.startswith("/") and not _is_field(name, parts):
                _add(name, inner, parts, known)
                if has_inner:
                    _collect(inner, known, closed, depth=depth + 1)
            elif not name.startswith("/"):
                _collect(inner, known, closed, depth=depth + 1)  # what follows an archive may be one more


def _is_field(name: str, parts: Mapping[str, bytes]) -> bool:
    path, colon, field = name.rpartition(": ")
    return bool(colon) and field in (*FIELDS, *OTHERS) and path in parts


def _add(path: str, data: bytes, parts: Mapping[str, bytes], known: Files) -> None:
    fields = {name: parts[f"{path}: {name}"].decode() for name in FIELDS if f"{path}: {name}" in parts}
    if "mode" in fields:
        fields["mode"] = f"{int(fields['mode']):o}"
    known.setdefault(path, {"size": len(data), "sha256": sha256(data).hexdigest(), **fields})
