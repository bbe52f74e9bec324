"""Pull an image: only what is not here yet moves, and it gets its names when all of it is verified."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit import artifact, host
from imagekit.artifact import MANIFEST_SUFFIX, SIGNATURE_SUFFIX, Artifact
from imagekit.depot import chunks, head, trust
from imagekit.depot.blobs import Blobs
from imagekit.depot.head import File, Head
from imagekit.depot.index import Target
from imagekit.errors import Problem, RigProblem
from imagekit.key import Key
from imagekit.site import Site
from imagekit.store import Store

DRAFT = ".pulling-"
ZEROS = bytes(chunks.MOST)


class Image(NamedTuple):
    """An image that an index names."""

    name: str
    version: str
    arch: str
    format: str
    size: int  # bytes of its files
    since: int  # the version of the index that first had it so; the newest version has the highest

    @property
    def path(self) -> str:
        """What the index calls it."""
        return head.path_of(*self[:4])


class Pulled(NamedTuple):
    """An image that is here and verified."""

    artifact: Artifact
    blobs: int  # that were fetched
    size: int  # bytes of blobs and of the entry; the index is not counted


def images(targets: Mapping[str, Target]) -> list[Image]:
    """Every image that an index names, the versions of one in the order in which they were published."""
    found = []
    for path, target in targets.items():
        kind, *names = path.split("/")
        if kind == "images" and len(names) == len(head.NAMES):
            size, since = (_number(target.about.get(about)) for about in ("size", "since"))
            found.append(Image(names[0], names[1], names[2], names[3], size, since))
    return sorted(found, key=lambda image: (image.name, image.since, *image[1:4]))


def choose(known: Sequence[Image], name: str, *, version: str = "", arch: str = "", format: str = "") -> Image:
    """The newest version of an image that is asked for; raises Problem where that is none, or several."""
    asked = {"name": name, "version": version, "arch": arch, "format": format}
    found = [one for one in known if all(getattr(one, word) == value for word, value in asked.items() if value)]
    if not found:
        there = sorted({f"{one.name}:{one.version} {one.arch} {one.format}" for one in known if one.name == name})
        names = ", ".join(there or sorted({one.name for one in known})) or "nothing"
        raise Problem(f"the depot has no {' '.join(filter(None, asked.values()))}", f"it has {names}")
    newest = max(found, key=lambda one: one.since)
    rest = [one for one in found if one.version == newest.version]
    if len(rest) > 1:
        choices = ", ".join(f"{one.arch} {one.format}" for one in rest)
        raise Problem(f"{name} {newest.version} is there more than once", f"choose by --arch and --format: {choices}")
    return newest


def pull(
    image: Image,
    seen: trust.Seen,
    site: Site,
    *,
    out: Path,
    key: Key,
    store: Store,
    say: Callable[[str], object] = lambda _: None,
) -> Pulled:
    """Fetch what is lacking of an image and write it to a folder, verified by the index and by the image's own key."""
    target = seen.targets[image.path]
    text = site.read(head.stored_at(image.path, target.sha256), min(target.size, head.LARGEST))
    if len(text) != target.size or sha256(text).hexdigest() != target.sha256:
        raise Problem(f"{image.path} is not what the index names", "somebody changed it on its way")
    made = head.read(text, asked=dict(zip(head.NAMES, image[:4], strict=True)))
    what = f"pulling {made.name} {made.arch} {made.format}"
    blobs = Blobs(site, store, size=made.size, say=lambda done: say(f"{what}: {done >> 10} KiB"))
    with _draft(out) as draft:
        for file in made.files:
            _write(file, draft / file.name, blobs)
        return Pulled(_published(_verified(draft, made, key), made, out), blobs.count, blobs.size + len(text))


def _number(found: object) -> int:
    return found if isinstance(found, int) else 0


def _write(file: File, path: Path, blobs: Blobs) -> None:
    """A file from its blobs, hashed while it is written; zeros are left out of it."""
    total = sha256()
    entries = chunks.walk(file.listing, file.size, lambda some: blobs.contents(some))
    hint = "make room, or name another folder with -o"
    try:
        with open(path, "xb") as out:
            for content in blobs.contents(entries):
                total.update(content)
                if content == ZEROS[: len(content)]:
                    out.seek(len(content), os.SEEK_CUR)
                else:
                    out.write(content)
            out.truncate()
    except OSError as error:
        raise RigProblem(f"cannot write {path}: {error.strerror}", hint) from error
    if total.hexdigest() != file.sha256:
        raise Problem(f"{file.name} has the sha256 {total.hexdigest()}, and the depot names {file.sha256}")


def _verified(draft: Path, made: Head, key: Key) -> Artifact:
    """The artifact, if the image's key signed it and it is the one that was asked for."""
    manifests = [file.name for file in made.files if file.name.endswith(MANIFEST_SUFFIX)]
    if len(manifests) != 1:
        raise Problem(f"the depot's entry for {made.path} has {len(manifests)} manifests")
    found = artifact.load(draft / manifests[0])
    found.verify(key)
    for name in head.NAMES:
        if found.manifest.get(name) != getattr(made, name):
            raise Problem(f"the manifest is of {name} {ascii(found.manifest.get(name))[:80]}, where "
                          f"{getattr(made, name)} was asked for", "somebody published it by another name")  # fmt: skip
    return found


def _published(found: Artifact, made: Head, out: Path) -> Artifact:
    """The files by their names in the folder: an old signature goes first, the new one comes last."""
    signature = found.path.name + SIGNATURE_SUFFIX
    names = [file.name for file in made.files if file.name not in (found.path.name, signature)]
    with suppress(FileNotFoundError):
        (out / signature).unlink()
    for name in (*names, found.path.name, signature):
        (found.path.parent / name).replace(out / name)
    return Artifact(out / found.path.name, found.text, found.manifest)


@contextmanager
def _draft(out: Path) -> Iterator[Path]:
    """A folder for what is not whole yet, removed in any case; those of killed pulls are removed by the next."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob(f"{DRAFT}*.lock"):
            host.remove_abandoned(old)
        for old in out.glob(f"{DRAFT}*[0-9a-f]"):
            if not old.with_name(old.name + ".lock").exists():
                shutil.rmtree(old, ignore_errors=True)
        draft = out / f"{DRAFT}{os.urandom(8).hex()}"
        lock = host.open_draft(draft.with_name(draft.name + ".lock"))
        draft.mkdir(mode=0o700)
    except OSError as error:
        raise RigProblem(f"cannot write to {out}: {error.strerror}", "name another folder with -o") from error
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        Path(lock.name).unlink(missing_ok=True)
        lock.close()
