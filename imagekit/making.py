"""Making: a recipe becomes a plain package. Its sources by their hashes, then files laid out or steps run, then signed.

Steps run in a room without network (workshop.py) over a locked build image, which is built like any other. Whatever
user builds, and when, the package has the same bytes as far as the steps give the same bytes: no time, name or number
of the machine reaches them but the kernel's version and its processors.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from imagekit import build, compose, definition, host, kept, label, namespace, workshop
from imagekit.disk import tar
from imagekit.errors import Problem
from imagekit.image import Directory, File, Symlink, Text, path_of
from imagekit.key import Key
from imagekit.package import Package
from imagekit.recipe import Recipe, Source, Steps
from imagekit.rig import Rig
from imagekit.sources import _beside, _foreign, _placed
from imagekit.store import Store
from imagekit.targets import _namespace
from imagekit.tree import Entry, Tree, directory, file, folder_tree

Say = Callable[[str], None]
MAX_LOG = 64 << 20  # bytes that the steps may print
LAST = 30  # lines of them that a failure shows
END = bytes(1024)  # of a tar, also of an empty one
SLACK = 16 << 20  # bytes of a tar beside its files' own


class Made(NamedTuple):
    """A package, what it was made from as (URL or path, sha256), and which files may be setuid."""

    package: Package
    sources: tuple[tuple[str, str], ...]
    setuid: tuple[str, ...]


class Got(NamedTuple):
    """A source as it is here: its digest, and its bytes or the folder's tree."""

    source: Source
    digest: str
    entries: Mapping[str, Entry]  # below /build, by name


def make(recipe: Recipe, arch: str, *, key: Key, store: Store, say: Say) -> Made:
    """The package of a recipe for one of its architectures; raises Problem when it cannot be made.

    key: what the build image is signed with.
    """
    if arch not in recipe.architectures:
        raise Problem(
            f"{recipe.name} is not made for {arch}", f"its package.toml has: {', '.join(recipe.architectures)}"
        )
    got = [_got(source, recipe.folder, store, say) for source in recipe.sources]
    if recipe.build:
        tree = _stepped(recipe, arch, got, key=key, store=store, say=say)
    else:
        tree = _laid(recipe, {one.source.name: one for one in got})
    for path, entry in tree.items():
        label.check_entry(path, entry, recipe.setuid)
    package = Package(
        recipe.name, recipe.version, arch, tree.digest, tree, recipe.notes, recipe.origin, recipe.licence
    )  # fmt: skip
    return Made(package, tuple(sorted((one.source.place, one.digest) for one in got)), recipe.setuid)


# --- sources --------------------------------------------------------------------------------------------------------


def _got(source: Source, folder: Path, store: Store, say: Say) -> Got:
    if source.is_url:
        return Got(source, source.sha256, {source.name: _fetched(source, store, say)})
    place = folder / source.place
    if not _is_inside(folder, source.place):
        raise Problem(
            f"the source {source.place} is not beside package.toml", "bring it there: no link is followed out"
        )
    if place.is_dir():
        entries = {path.removeprefix("/"): entry for path, entry in folder_tree(place, f"/{source.name}").items()}
        digest = Tree(folder_tree(place, "")).digest
        got = Got(source, digest, {source.name: directory(), **entries})
    else:
        mode = (
            0o755 if place.exists() and place.stat().st_mode & 0o100 else 0o644
        )  # not whether we may: others build it too
        entry = file(b"".join(_beside.pieces(folder, source.place)), mode=mode)
        got = Got(source, entry.sha256, {source.name: entry})
    if source.sha256 and got.digest != source.sha256:
        raise Problem(f"source {source.place} has the sha256 {got.digest}, not {source.sha256}", "is it the right one?")
    return got


def _fetched(source: Source, store: Store, say: Say) -> Entry:
    from imagekit import download

    def take(line: download.Line, url: str) -> str:
        return download.take(line, url, _beside.MAX_BYTES, algorithm="sha256", digest=source.sha256, store=store)

    try:
        return file(store.read(source.sha256))
    except KeyError:
        say(f"{source.name}: fetching")
        download.each(take, [source.place])
        return file(store.read(source.sha256))


# --- files ----------------------------------------------------------------------------------------------------------


def _laid(recipe: Recipe, got: Mapping[str, Got]) -> Tree:
    """The files of a recipe; what was fetched lies at the paths that ask for it."""
    entries: dict[str, Entry] = {}
    for written, content in sorted(recipe.files.items()):
        path = path_of(written)
        if written in recipe.fetched:
            assert isinstance(content, File)
            source = got[recipe.fetched[written]]
            if source.source.name not in source.entries or source.entries[source.source.name].kind != "file":
                raise Problem(f"files: {written}: the source {source.source.name} is a folder", "lay out its files")
            entry = source.entries[source.source.name]
            found: Mapping[str, Entry] = {path: entry._replace(mode=content.mode or 0o644)}
        else:
            if isinstance(content, File) and not _is_inside(recipe.folder, content.source):
                raise Problem(f"files: {written}: {content.source} is not beside package.toml", "bring it there")
            found = compose.contents(path, content, recipe.folder)
        for name, entry in found.items():
            if name in entries:
                raise Problem(f"files: {name} is given twice, once by {written!r}")
            uid, gid = _ids(content)
            entries[name] = entry._replace(uid=uid, gid=gid, owner=recipe.name)
    return Tree(entries)


def _ids(content: File | Text | Symlink | Directory) -> tuple[int, int]:
    """Owner and group, which a recipe gives as numbers."""
    if isinstance(content, Symlink):
        return 0, 0
    uid, gid = (0 if isinstance(one, str) else one for one in (content.owner, content.group))
    return uid, gid


def _is_inside(folder: Path, place: str) -> bool:
    """Whether a path lies below the folder, also by where links lead: a stranger's recipe takes no file of yours."""
    real = os.path.realpath(folder)
    return os.path.commonpath((real, os.path.realpath(folder / place))) == real


# --- steps ----------------------------------------------------------------------------------------------------------


def _stepped(recipe: Recipe, arch: str, got: list[Got], *, key: Key, store: Store, say: Say) -> Tree:
    machine, asked = os.uname().machine, recipe.build
    assert asked is not None
    if arch not in (label.ANY, machine):
        raise Problem(
            f"the steps of {recipe.name} are to make it for {arch}, and this machine is {machine}",
            "build it on such a machine: nothing of another architecture is run",
        )
    given = {name: entry for one in got for name, entry in one.entries.items()}
    with ExitStack() as stack:
        root = _root(recipe.folder / asked.image, machine, key=key, store=store, say=say, stack=stack)
        say(f"{recipe.name} {recipe.version}: building")
        written = _ran(root, asked, given, stack)
    rows: dict[str, kept.Row] = {}
    notes: list[str] = []
    if not any(written):
        raise Problem(
            f"the steps of {recipe.name} left nothing in $OUT", "they install into it: make DESTDIR=$OUT install"
        )
    blob = store.write(_foreign.contents(iter([written]), rows, notes, style=_foreign.Style()))
    columns: kept.Columns = {"object": blob, "notes": [], "digest": "", "licence": "", "name": recipe.name}
    columns |= {"version": recipe.version, "architecture": machine, "source": "", "source_version": ""}
    return kept.package(columns | kept.columns(kept.finish(_placed.below(rows, ""))), store).tree


def _root(place: Path, arch: str, *, key: Key, store: Store, say: Say, stack: ExitStack) -> Path:
    """The build image, built from its lock and unpacked."""
    image = definition.load(place)
    if "tar" not in image.formats:
        raise Problem(f"the build image {place.name} is not offered as a tar", 'formats=("tar",) in its definition')
    made = build.artifact(
        image, folder=place.parent, lock=build.read_lock(place), arch=arch, format="tar", key=key, store=store, say=say
    )
    held = _namespace.unpacked(stack.enter_context(made.opened(key)), store, Rig(say=say))
    stack.callback(os.close, held.handle)
    return Path(held.root)


def _ran(root: Path, asked: Steps, given: Mapping[str, Entry], stack: ExitStack) -> bytes:
    """The tar of what the steps left in $OUT."""
    import subprocess

    limits = asked.limits
    spec = {"steps": asked.steps, "env": dict(asked.env), "memory": limits.memory, "processes": limits.processes,
            "output": limits.output}  # fmt: skip
    sources = b"".join([*tar.chunks(sorted(given.items())), END])
    files = [_namespace.memory(data, stack) for data in (json.dumps(spec).encode(), sources)]
    words = [*host.PYTHON, workshop.__file__, str(root), *map(str, files)]
    pipe = subprocess.PIPE
    process = host.launch(words, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, pass_fds=files)
    try:
        done = host.converse(process, timeout=limits.seconds, limit=max(limits.output + SLACK, MAX_LOG))
    except TimeoutError:
        raise Problem(f"the steps did not end within {limits.seconds} s", "limits.seconds in package.toml") from None
    if done.code:
        raise _failure(done)
    return done.stdout


def _failure(done: host.Done) -> Problem:
    lines = host.printable(done.stderr).rstrip().split("\n")
    told = [line for line in lines if line.startswith("imagekit: ")]
    printed = "\n".join([line for line in lines if line not in told[-1:]][-LAST:])
    why = told[-1].removeprefix("imagekit: ") if told else f"the room of the build ended with {done.code}"
    hints = {workshop.LIMIT: "limits of package.toml", namespace.FAILED: _namespace.HINT}
    said = f"; what was printed last:\n{printed}" if printed.strip() else ""
    return Problem(f"{why}{said}", hints.get(done.code, ""))


def file_of(made: Made, *, key: Key) -> Iterator[bytes]:
    """The signed file of the package."""
    from imagekit import plain

    return plain.write(made.package, key=key, sources=made.sources, setuid=made.setuid)
