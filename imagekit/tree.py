"""Tree: a whole file system as an immutable value with a digest.

A Tree maps absolute paths to entries. `a | b` is their union, in any order with the same digest; a path that differs
between the two is a Problem that names both owners. Nothing is ever unpacked on the host to be written out: an entry
says where its bytes lie, and reading them checks them.
"""

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, ValuesView
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit.errors import Problem, RigProblem

CHANGED = "something changed it meanwhile; when it is of the cache, build again"
KINDS = ("file", "dir", "symlink", "hardlink", "char", "block", "fifo")


class Slice(NamedTuple):
    """Bytes that lie in a file of the store: `size` bytes at `offset`."""

    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """The bytes, unchecked; raises RigProblem when the file is gone or too short."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise RigProblem(f"cannot read {self.path}: {error.strerror}", CHANGED) from error
        if len(data) != self.size:
            raise RigProblem(f"{self.path} is shorter than it was", CHANGED)
        return data


class Entry(NamedTuple):
    """One path of a Tree. A NamedTuple, not a dataclass: a build makes thousands of them on its way to a no-op."""

    kind: str  # one of KINDS
    mode: int = 0o755  # permission bits with setuid, setgid and sticky
    uid: int = 0
    gid: int = 0
    size: int = 0  # bytes, of a file
    sha256: str = ""  # hexadecimal, of a file's bytes
    target: str = ""  # of a symlink: its text; of a hard link: the path it shares its bytes with
    device: tuple[int, int] = (0, 0)  # major and minor number
    xattrs: tuple[tuple[str, bytes], ...] = ()  # sorted by name
    content: bytes | Slice = b""  # not part of the identity: the same bytes may lie anywhere
    owner: str = ""  # who brought it: a package's name, or "image"; not part of the identity

    @property
    def identity(self) -> tuple[object, ...]:
        """Everything that the written image shows of this entry."""
        return self[:9]

    def read(self) -> bytes:
        """The bytes of a file; raises RigProblem unless they are the ones that the digest names."""
        data = self.content if isinstance(self.content, bytes) else self.content.read()
        if sha256(data).hexdigest() != self.sha256:
            raise RigProblem(
                f"stored bytes of a file of {self.owner or 'a package'} are not what they were",
                "the cache was changed or the disk is failing; `imagekit doctor` tells where the cache is",
            )
        return data


def file(data: bytes, *, mode: int = 0o644, uid: int = 0, gid: int = 0, owner: str = "image") -> Entry:
    """An entry for a regular file with these bytes."""
    return Entry("file", mode, uid, gid, len(data), sha256(data).hexdigest(), content=data, owner=owner)


def directory(mode: int = 0o755, *, uid: int = 0, gid: int = 0, owner: str = "image") -> Entry:
    """An entry for a directory."""
    return Entry("dir", mode, uid, gid, owner=owner)


def symlink(target: str, *, owner: str = "image") -> Entry:
    """An entry for a symbolic link."""
    return Entry("symlink", 0o777, target=target, owner=owner)


class Tree(Mapping[str, Entry]):
    """An immutable mapping of absolute paths to entries; see the module's docstring."""

    def __init__(
        self, entries: Mapping[str, Entry] | Iterable[tuple[str, Entry]] = (), *, whole: "Tree | None" = None
    ) -> None:
        """The entries of a tree; `whole`: the tree that has these very entries and more, in its order."""
        self._entries = dict(entries)
        self._lines: dict[str, bytes] = whole._lines if whole is not None else {}  # of the digest, made once
        if whole is not None and "paths" in whole.__dict__:
            self.__dict__["paths"] = tuple(path for path in whole.paths if path in self._entries)

    def __getitem__(self, path: str) -> Entry:
        return self._entries[path]

    def __contains__(self, path: object) -> bool:
        return path in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def items(self) -> ItemsView[str, Entry]:
        """Every path with its entry, in the order in which they came; a Mapping's own would look each of them up."""
        return self._entries.items()

    def values(self) -> ValuesView[Entry]:
        """Every entry."""
        return self._entries.values()

    def __repr__(self) -> str:
        return f"<Tree of {len(self)} paths, {self.size} bytes>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tree) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __or__(self, other: "Tree") -> "Tree":
        return union((self, other))

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """Every path, parents before children: sorted by components, which end with what is less than any letter."""
        return tuple(sorted(self._entries, key=lambda path: path.replace("/", "\0")))

    @cached_property
    def digest(self) -> str:
        """sha256 over every path and its identity, whatever the order they were added in."""
        lines, entries = self._lines, self._entries
        for path in self.paths:
            if path not in lines:
                lines[path] = repr((path, *entries[path].identity)).encode("utf-8", "surrogateescape")
        return sha256(b"".join((b"imagekit tree 1\n", *(lines[path] for path in self.paths)))).hexdigest()

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self._entries.values())

    def read(self, path: str) -> bytes:
        """The bytes of a file, through hard links; raises Problem for a path that is not there or not a file."""
        entry = self._entries.get(path)
        if entry and entry.kind == "hardlink":
            path, entry = entry.target, self._entries.get(entry.target)  # once: its target is a file, never a link
        if entry is None:
            raise Problem(f"{path} is not in the tree")
        if entry.kind != "file":
            raise Problem(f"{path} is a {entry.kind}, not a file")
        return entry.read()

    def filter(self, keep: Callable[[str], bool]) -> "Tree":
        """The part whose paths `keep` accepts."""
        return Tree({path: entry for path, entry in self._entries.items() if keep(path)}, whole=self)

    def without(self, paths: Iterable[str]) -> "Tree":
        """The tree without these paths and all below them; hard links to what is gone become the file itself."""
        gone = tuple(path.rstrip("/") for path in paths)
        below = tuple(path + "/" for path in gone)
        kept = {p: e for p, e in self._entries.items() if p not in gone and not p.startswith(below)}
        if len(kept) == len(self._entries):
            return self
        healed = _heal_links(kept, self._entries)
        is_part = all(entry is self._entries[path] for path, entry in healed.items())
        return Tree(healed, whole=self if is_part else None)

    def override(self, other: "Tree") -> "Tree":
        """The tree with the paths of `other` in place of its own: how an image's own files replace a package's.

        A hard link to what is replaced keeps the old bytes, as it would on a disk.
        """
        kept = {path: entry for path, entry in self._entries.items() if path not in other._entries}
        return Tree({**_heal_links(kept, self._entries), **other._entries})

    def complete(self) -> "Tree":
        """The tree with every missing parent directory added: an initramfs silently drops a file without one."""
        entries = dict(self._entries)
        for path in self._entries:
            _complete(path, entries)
        return self if len(entries) == len(self._entries) else Tree(entries)

    def sizes(self) -> dict[str, int]:
        """Bytes per owner, largest first."""
        totals: dict[str, int] = {}
        for entry in self._entries.values():
            totals[entry.owner] = totals.get(entry.owner, 0) + entry.size
        return dict(sorted(totals.items(), key=lambda item: (-item[1], item[0])))

    def by_owner(self) -> dict[str, "Tree"]:
        """One Tree per owner, by name: what formats compress apart, so that a change costs only its own part."""
        parts: dict[str, dict[str, Entry]] = {}
        for path in self.paths:
            entry = self._entries[path]
            holder = self._entries.get(entry.target, entry) if entry.kind == "hardlink" else entry
            parts.setdefault(holder.owner, {})[path] = entry
        found = {owner: Tree(parts[owner]) for owner in sorted(parts)}
        for part in found.values():
            part._lines = self._lines
            part.__dict__["paths"] = tuple(part)
        return found


def union(trees: Iterable[Tree]) -> Tree:
    """All the trees as one; raises Problem where two owners bring different things under one path."""
    entries: dict[str, Entry] = {}
    for tree in trees:
        for path, entry in tree.items():
            old = entries.setdefault(path, entry)
            if old is not entry:
                entries[path] = _merge(path, old, entry)
    return Tree(entries)


def below_symlink(tree: Tree) -> tuple[str, str] | None:
    """The first path below a symlink (or a file), and that symlink: such a file vanishes when it is written."""
    leaves = {path for path, entry in tree.items() if entry.kind != "dir"}
    fine = {""}  # the folders that were looked at, up to the root
    for path in tree.paths:
        parent = path.rpartition("/")[0]
        while parent not in fine:
            if parent in leaves:
                return path, parent
            fine.add(parent)
            parent = parent.rpartition("/")[0]
    return None


def folder_tree(folder: Path, prefix: str, *, owner: str = "image") -> Tree:
    """A host folder as a Tree below `prefix`: modes 0755 or 0644, owner root, so that umask and user leave no trace."""
    entries: dict[str, Entry] = {}
    for path in sorted(folder.rglob("*")):
        name = f"{prefix.rstrip('/')}/{path.relative_to(folder).as_posix()}"
        if path.is_symlink():
            entries[name] = symlink(str(path.readlink()), owner=owner)
        elif path.is_dir():
            entries[name] = directory(owner=owner)
        elif path.is_file():
            mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            entries[name] = file(path.read_bytes(), mode=mode, owner=owner)
        else:
            raise Problem(f"{path} is neither file, folder nor symlink", "an image takes none of it from a folder")
    return Tree(entries)


def _merge(path: str, old: Entry, new: Entry) -> Entry:
    if old.identity != new.identity:
        raise Problem(
            f"{path} differs between {old.owner or 'one tree'} and {new.owner or 'the other'}: {_difference(old, new)}",
            "leave one of the two out with without=(...)",
        )
    return min(old, new, key=lambda entry: entry.owner)  # by name, so that the order of the union leaves no trace


def _difference(old: Entry, new: Entry) -> str:
    for field in ("kind", "mode", "uid", "gid", "size", "sha256", "target", "device", "xattrs"):
        a, b = getattr(old, field), getattr(new, field)
        if a != b:
            return f"{field} {oct(a)} against {oct(b)}" if field == "mode" else f"{field} {a} against {b}"
    return "nothing"


def _heal_links(kept: dict[str, Entry], all_entries: Mapping[str, Entry]) -> dict[str, Entry]:
    moved: dict[str, str] = {}
    for path in sorted(path for path, of in kept.items() if of.kind == "hardlink" and of.target not in kept):
        entry = kept[path]
        if entry.target in moved:
            kept[path] = entry._replace(target=moved[entry.target])
        else:
            moved[entry.target] = path
            kept[path] = all_entries[entry.target]
    return kept


def _complete(path: str, entries: dict[str, Entry]) -> None:
    parent = path.rpartition("/")[0]
    while parent and parent not in entries:
        entries[parent] = directory()
        parent = parent.rpartition("/")[0]
