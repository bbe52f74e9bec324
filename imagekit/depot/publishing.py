"""Publish artifacts: blobs first, index last; a reader sees all of it or nothing, whenever the publisher ends."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit.artifact import CHUNK, MANIFEST_SUFFIX, MAX_SIGNATURE, SIGNATURE_SUFFIX, Artifact
from imagekit.depot import catalogued, chunks, head, index, trust
from imagekit.depot.head import File, Head
from imagekit.depot.index import Target
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.site import Blob, Site, checked_path
from imagekit.store import Store

BATCH = 256  # blobs that are asked about together
MOST_BESIDE = 8 << 20  # bytes of a statement beside an artifact


class Moved(NamedTuple):
    """What a publication took."""

    paths: tuple[str, ...]  # of the images in the index
    blobs: int  # that were written
    size: int  # bytes of blobs and entries that were written; the index is not counted


class Blobs:
    """Blobs on their way to a site, which is asked first what it lacks."""

    def __init__(self, site: Site) -> None:
        self._site, self._pending = site, dict[str, bytes]()
        self._had: set[str] = set()
        self.count = self.size = 0

    def put(self, blob: Blob, data: bytes) -> None:
        """Bring a blob there, sooner or later."""
        if blob.path not in self._had:
            self._pending[blob.path] = data
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Bring there what is pending."""
        lacking = set(self._site.lacks({path: len(data) for path, data in self._pending.items()}))
        files = [(path, data) for path, data in self._pending.items() if path in lacking]
        if files:
            self._site.write(files)
        self._had |= set(self._pending)
        self._pending.clear()
        self.count, self.size = self.count + len(files), self.size + sum(len(data) for _, data in files)


def publish(
    artifacts: Sequence[Artifact],
    site: Site,
    *,
    key: Key,
    keys: Sequence[Key],
    store: Store,
    days: Mapping[str, int] | None = None,
    home: Path | None = None,
    replace: bool = False,
    listing: catalogued.Listing = catalogued.nothing,
    say: Callable[[str], object] = lambda _: None,
) -> Moved:
    """Verify artifacts by the image's key, bring their blobs to a depot, and name them in its index and catalogue.

    store: has the catalogue of last time, or will.
    """
    trusted, text = trust.trusted(site, home=home), b""
    blobs, targets, files = Blobs(site), dict[str, Target](), list[tuple[str, bytes]]()
    by_path: dict[str, Artifact] = {}
    for artifact in artifacts:
        say(f"publishing {artifact.name} {artifact.arch} {artifact.format}")
        made = _head(artifact, key, blobs)
        entry = head.write(made)
        targets[made.path] = Target(sha256(entry).hexdigest(), len(entry), {"size": made.size})
        by_path[made.path] = artifact
        files.append((head.stored_at(made.path, targets[made.path].sha256), entry))
    blobs.flush()
    site.write(files)
    site.settle()
    with site.lock():
        held = index.load(site, trusted, least=trust.newest(site, home=home), had=trust.had(site, home=home))
        new = _new(held, targets, replace=replace)
        images = {path: by_path[path] for path in new}
        target, data = catalogued.following(site, held, images, store=store, keep=blobs.put, listing=listing)
        blobs.flush()
        if new:
            files.append((head.stored_at(catalogued.PATH, target.sha256), data))
            site.write(files[-1:])
            site.settle()
            new[catalogued.PATH] = target
            text = index.add(site, held, new, keys=keys, days=days or {})
    trust.refresh(site, home=home, targets=text)
    return Moved(tuple(targets), blobs.count, blobs.size + sum(len(data) for _, data in files))


def beside(artifact: Artifact) -> list[Path]:
    """What others say of an artifact, signed, in files beside it: provenance, tests, rebuilds."""
    stem, known = artifact.path.name.removesuffix(MANIFEST_SUFFIX), {part.file for part in artifact.files}
    found = artifact.path.parent.glob(f"{stem}.*.json")
    return sorted(path for path in found if path.name not in known and path != artifact.path)


def _new(held: index.Held, targets: Mapping[str, Target], *, replace: bool) -> dict[str, Target]:
    """Those that the index does not have; a version that is published is not published again with other bytes."""
    new = {}
    for path, target in targets.items():
        old = held.targets.signed.targets.get(path)
        if old is not None and old.hashes["sha256"] == target.sha256:
            continue
        if old is not None and not replace:
            raise Problem(f"{path} is published already, with other bytes",
                          "give the image another version, or take back the old one with --replace")  # fmt: skip
        new[path] = target
    return new


def _head(artifact: Artifact, key: Key, blobs: Blobs) -> Head:
    """An artifact's files as lists of blobs: the bytes that are published are the bytes that were verified."""
    files, manifest = [], artifact.manifest
    path = head.path_of(artifact.name, str(manifest["version"]), artifact.arch, artifact.format)
    with artifact.opened(key) as opened:
        for part in artifact.parts:
            files.append(_file(part.file, _pieces(opened.handles[part.role]), blobs))
    if artifact.sbom:
        files.append(_file(artifact.sbom.file, [artifact.read_sbom()], blobs))
    files += [_file(one.name, [_small(one, MOST_BESIDE)], blobs) for one in beside(artifact)]
    files.append(_file(artifact.path.name, [artifact.text], blobs))
    signature = artifact.path.with_name(artifact.path.name + SIGNATURE_SUFFIX)
    files.append(_file(signature.name, [_small(signature, MAX_SIGNATURE)], blobs))
    _, name, version, arch, format = checked_path(path).split("/")
    return Head(name, version, arch, format, tuple(files))


def _file(name: str, pieces: Iterable[bytes], blobs: Blobs) -> File:
    total, size = sha256(), 0

    def counted() -> Iterator[bytes]:
        nonlocal size
        for piece in pieces:
            total.update(piece)
            size += len(piece)
            yield piece

    listing = chunks.listed(counted(), blobs.put)
    return File(name, size, total.hexdigest(), listing)


def _pieces(handle: int) -> Iterator[bytes]:
    at = 0
    while piece := os.pread(handle, CHUNK, at):
        yield piece
        at += len(piece)


def _small(path: Path, limit: int) -> bytes:
    with open(path, "rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise Problem(f"{path} is larger than {limit} bytes")
    return data
