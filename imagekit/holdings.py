"""The catalogue of the images that lie here: those of the cache and of folders, brought up to date when it is asked.

Only manifests that a trusted key signed are taken. What was read before and has not changed is not read again.
"""

import os
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit import artifact, catalogue
from imagekit.artifact import MANIFEST_SUFFIX, Artifact
from imagekit.catalogue import Catalogue, Known, Package
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.sources import _deb
from imagekit.store import Store

DEEPEST = 3  # folders in one another that are looked through


class Holdings(NamedTuple):
    """A catalogue, and the manifests that are not in it."""

    catalogue: Catalogue
    left_out: dict[str, str]  # place -> why


def find(folders: Sequence[Path]) -> list[Path]:
    """Every manifest in some folders and a few folders below, in order; a manifest stands for itself."""
    return sorted({path for folder in folders for path in _manifests(folder, DEEPEST)})


def update(folders: Sequence[Path], *, keys: Sequence[Key], store: Store) -> Holdings:
    """The catalogue of the artifacts in some folders, kept in the store's cache."""
    places = find(folders)
    asked = "\n".join([*sorted(key.public.hex() for key in keys), *map(str, folders)])
    kept = store.folder("catalogues") / sha256(asked.encode()).hexdigest()
    before = _kept(kept)
    marked = {(one.place, one.mark) for one in before.images()} if before else set()
    taken, left_out, same = dict[catalogue.Image, Sequence[Package]](), dict[str, str](), set[tuple[str, str]]()
    for path in places:
        try:
            mark = _mark(path)
            if (str(path), mark) in marked:
                same.add((str(path), mark))
            else:
                one, held = _taken(artifact.load(path), mark, keys)
                taken[one] = held
        except Problem as problem:
            left_out[str(path)] = problem.message
    if before and not taken and same == marked:
        return Holdings(before, left_out)
    old = before.known() if before else Known({}, {})
    known = {one: held for one, held in old.images.items() if (one.place, one.mark) in same} | taken
    files = dict(old.paths)
    wanted = {package.digest for held in known.values() for package in held}
    for digest in sorted(wanted - files.keys() - {catalogue.UNKNOWN}):
        files[digest] = listing(digest, store)
    data = catalogue.write(Known(known, {digest: files[digest] for digest in sorted(wanted & files.keys())}))
    _keep(kept, data)
    return Holdings(catalogue.read(data), left_out)


def listing(digest: bytes, store: Store) -> Sequence[str]:
    """The files of a package by the sha256 of its .deb, if the store has it; none for one that is not here."""
    package = _deb.load(digest.hex(), store)
    tree = package.tree if package else {}
    return [path for path, entry in tree.items() if entry.kind != "dir" and path.isprintable()]


def _kept(path: Path) -> Catalogue | None:
    """The catalogue of last time; one that is damaged is made again."""
    try:
        return catalogue.read(path.read_bytes())
    except (FileNotFoundError, Problem):
        return None


def _keep(path: Path, data: bytes) -> None:
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_bytes(data)
    draft.replace(path)


def _taken(made: Artifact, mark: str, keys: Sequence[Key]) -> tuple[catalogue.Image, Sequence[Package]]:
    why = "no key was named"
    for key in keys:
        try:
            made.verify_manifest(key)
            break
        except Problem as problem:
            why = problem.message
    else:
        raise Problem(why)
    image = catalogue.image(made.manifest, place=str(made.path), mark=mark, digest=made.digest)
    return image, catalogue.packages(made.manifest)


def _mark(path: Path) -> str:
    try:
        found = path.stat()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    return f"{found.st_mtime_ns} {found.st_size} {found.st_ino}"


def _manifests(path: Path, depth: int) -> Iterator[Path]:
    if not path.is_dir():
        yield from [path] if path.name.endswith(MANIFEST_SUFFIX) else []
        return
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(MANIFEST_SUFFIX) and entry.is_file():
                yield path / entry.name
            elif depth and entry.is_dir(follow_symlinks=False):
                yield from _manifests(path / entry.name, depth - 1)
