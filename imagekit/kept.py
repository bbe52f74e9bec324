"""Kept: a package as it was once converted: its files' bytes in one object of the store, its tree as columns in a note.

Columns, because a build loads dozens of such notes before it knows that there is nothing to do: a few long strings and
lists load several times faster than a list of rows.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from itertools import repeat
from typing import Any

from imagekit.errors import Problem
from imagekit.package import Origin, Package
from imagekit.store import Store
from imagekit.tree import Entry, Slice, Tree

Row = tuple[str, int, int, int, int, str, str, int]  # kind, mode, uid, gid, size, sha256, target, offset
Columns = dict[str, Any]


def load(kind: str, key: str, store: Store) -> Columns | None:
    """What was remembered under this kind and key, if note and object are whole; None if it must be converted again."""
    note = store.recall(kind, key)
    seal, _, body = (note or b"").partition(b"\n")
    if not body or sha256(body).hexdigest().encode() != seal:
        return None  # the store does not hash its notes, and a power cut may tear one
    columns: Columns = json.loads(body)
    return columns if columns["of"] == key and _is_whole(kind, columns, store) else None


def remember(kind: str, key: str, columns: Columns, store: Store) -> None:
    """Remember columns, and that their object was whole just now."""
    columns |= {"of": key, "hashed": _state(columns["object"], store)}
    body = json.dumps(columns, separators=(",", ":")).encode()
    store.remember(kind, key, sha256(body).hexdigest().encode() + b"\n" + body)


def package(columns: Columns, store: Store) -> Package:
    """The package of these columns."""
    return Package(
        name=columns["name"],
        version=columns["version"],
        architecture=columns["architecture"],
        digest=columns["digest"],
        tree=_tree(columns, str(store.path(columns["object"]))),
        notes=tuple(columns["notes"]),
        origin=Origin(columns["source"], columns["source_version"]),
        licence=columns["licence"],
    )


def columns(rows: Mapping[str, Row]) -> Columns:
    """The tree as columns; its paths hold no line ends."""
    styles: dict[tuple[str, int, int, int], int] = {}
    return {
        "path": "\n".join(rows),
        "style": [styles.setdefault(row[:4], len(styles)) for row in rows.values()],
        "styles": list(styles),
        "bytes": [row[4] for row in rows.values()],
        "sha256": "\n".join(row[5] for row in rows.values()),
        "target": "\n".join(row[6] for row in rows.values()),
        "offset": [row[7] for row in rows.values()],
    }


def finish(rows: dict[str, Row]) -> dict[str, Row]:
    """The rows sorted by components; of paths that share a file, the first is the file and the others are its links."""
    rows = dict(sorted(rows.items(), key=lambda item: item[0].split("/")))
    first: dict[str, str] = {}
    for path in rows:
        first.setdefault(_file_of(path, rows), path)
    finished: dict[str, Row] = {}
    for path in rows:
        file = _file_of(path, rows)
        is_first = path == first[file]
        # A link repeats the file's mode and owner: mke2fs takes them from whichever it meets last.
        finished[path] = rows[file] if is_first else ("hardlink", *rows[file][1:4], 0, "", first[file], 0)
    return finished


def check_parents(rows: Mapping[str, Row]) -> None:
    """Raise Problem for a path below something that is no folder: it would be written through a link, or vanish."""
    fine = {""}  # the folders that were looked at, up to the root
    for path in rows:
        parent = path.rpartition("/")[0]
        while parent not in fine:
            if parent in rows and rows[parent][0] != "dir":
                raise Problem(f"{path} lies below {parent}, which is a {rows[parent][0]}")
            fine.add(parent)
            parent = parent.rpartition("/")[0]


@contextmanager
def told(name: str) -> Iterator[None]:
    """Name the package in whatever Problem there is with it."""
    try:
        yield
    except Problem as problem:
        raise type(problem)(f"{name}: {problem.message}", problem.hint) from problem


def _is_whole(kind: str, columns: Columns, store: Store) -> bool:
    """Whether the object with the files' bytes is untouched since it was hashed, or else hashes to its name still."""
    try:
        if _state(columns["object"], store) == columns["hashed"]:
            return True
        store.read(columns["object"])  # sets it aside if it is bad
    except (FileNotFoundError, KeyError):
        return False
    remember(kind, columns["of"], columns, store)
    return True


def _state(digest: str, store: Store) -> list[int]:
    state = store.path(digest).stat()
    return [state.st_size, state.st_mtime_ns]


def _file_of(path: str, rows: Mapping[str, Row]) -> str:
    while rows[path][0] == "hardlink":
        path = rows[path][6]
    return path


def _tree(columns: Columns, blob: str) -> Tree:
    """The tree of these columns, its bytes in `blob`; built by tuple construction, without a Python frame per entry."""
    if not columns["path"]:
        return Tree()
    paths = columns["path"].split("\n")
    kinds, modes, uids, gids = zip(*map(columns["styles"].__getitem__, columns["style"]), strict=True)
    slices = map(partial(tuple.__new__, Slice), zip(repeat(blob), columns["offset"], columns["bytes"]))
    contents = [there if kind == "file" else b"" for kind, there in zip(kinds, slices, strict=True)]
    rows = zip(
        kinds, modes, uids, gids, columns["bytes"], columns["sha256"].split("\n"), columns["target"].split("\n"),
        repeat((0, 0)), repeat(()), contents, repeat(columns.get("owner") or columns["name"]),
    )  # fmt: skip
    return Tree(zip(paths, map(partial(tuple.__new__, Entry), rows), strict=True))
