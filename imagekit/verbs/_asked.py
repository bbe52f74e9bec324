"""What verbs share: where the store and the keys are, what the paths name, and how progress is shown."""

import os
import sys

TYPE_CHECKING = False  # typing's own would cost a third of a no-op build

if TYPE_CHECKING:
    from argparse import Namespace
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from imagekit.artifact import Artifact
    from imagekit.image import Image
    from imagekit.key import Key
    from imagekit.progress import Lines
    from imagekit.store import Store

_LINES: "list[Lines]" = []


def definitions(paths: "Sequence[Path]") -> "Iterator[tuple[Path, Image]]":
    """Every definition that the paths name; a folder stands for all definitions right in it."""
    from imagekit import definition
    from imagekit.errors import Problem

    found = []
    for path in paths:
        if not path.exists():
            raise Problem(f"there is no {path}", "name a definition, as in images/web.py, or a folder of them")
        found += sorted(path.glob("*.py")) if path.is_dir() else [path]
    shown = 0
    for path in found:
        if path not in paths and not definition.looks_like_one(path):
            continue
        shown += 1
        yield path, definition.load(path)
    if not shown:
        raise Problem(f"no image is defined in {', '.join(map(str, paths))}", "a definition has `image = Image(...)`")


def combinations(asked: "Namespace", image: "Image") -> "list[tuple[str, str]]":
    """(arch, format) of all that was asked for and the image is made for."""
    from imagekit import repertoire
    from imagekit.errors import Problem

    made = {name: repertoire.format(name).arches for name in image.formats}
    pairs = [(a, f) for a in image.arches for f in image.formats if a in made[f]]
    wanted = [(a, f) for a, f in pairs if a in (asked.arch or image.arches) and f in (asked.format or image.formats)]
    if not wanted:
        each = (f"{name} as {', '.join(f for a, f in pairs if a == name)}" for name in image.arches)
        offered = "; ".join(each)
        raise Problem(f"image {image.name!r} is not made for what was asked", f"it is made for: {offered}")
    return wanted


def artifact(asked: "Namespace", key: "Key", store: "Store", *, kinds: "Sequence[str]") -> "Artifact":
    """The artifact that a path names; a definition is built first, in a format of one of the kinds."""
    from imagekit import arch, artifact, build, definition, plugs
    from imagekit.errors import Problem

    if asked.path.suffix != ".py":
        return artifact.load(asked.path)
    found = definition.load(asked.path)
    fitting = [name for name in found.formats if plugs.load("formats", name).kind in kinds]
    if not fitting:
        raise Problem(f"image {found.name!r} has no format of kind {' or '.join(kinds)}", f"it has {found.formats}")
    wanted = asked.arch or (arch.host().name if arch.host().name in found.arches else found.arches[0])
    return build.artifact(found, folder=asked.path.parent, lock=build.read_lock(asked.path), arch=wanted,
                          format=fitting[0], key=key, store=store, say=say, tools=asked.tools)  # fmt: skip


def size(size: int) -> str:
    """Bytes, for people."""
    from imagekit.disk import parts

    return parts.size(size)


def store() -> "Store":
    """The store of this user."""
    from imagekit.stores.directory import open_store

    return open_store()


def trim() -> "Callable[[Store], None]":
    """What makes a store as small as the option cache-size says, to be called last; raises Problem for a wrong size."""
    from imagekit import options

    if options.lookup("cache-size") is None:
        return lambda _: None
    from pathlib import Path

    from imagekit import room

    most = room.most()
    return lambda store: room.limit(Path(store.location), most, say=note)


def option(asked: "Namespace", name: str, default: str) -> str:
    """An option, wherever it was given."""
    from imagekit import options

    return str(options.lookup(name, getattr(asked, name, None), default=default))


def key(asked: "Namespace") -> "tuple[Key, Path]":
    """The key that was named, else your own, and its file."""
    from pathlib import Path

    from imagekit import key, options

    path = Path(options.lookup("key", asked.key, default=key.default_path()))
    return key.read(path), path


def keys(given: "Sequence[Path] | None") -> "list[Key]":
    """The keys that are trusted: those that were named, else your own."""
    from pathlib import Path

    from imagekit import key, options

    paths = given or [Path(options.lookup("key", None, default=key.default_path()))]
    return [key.read(path) for path in paths]


def show(line: str) -> None:
    """A line on stdout, without anything that a terminal would obey."""
    from imagekit import host

    print(host.printable(line.encode()))


def note(line: str) -> None:
    """A line on stderr that stays, beside what is shown."""
    from imagekit import host

    quiet()
    print(host.printable(line.encode()), file=sys.stderr)


def say(line: str) -> None:
    """A progress line on stderr: one that changes on a terminal, plain lines elsewhere."""
    _lines().say(line)


def quiet() -> None:
    """Take the progress line away, before something else is printed."""
    _lines().clear()


def _lines() -> "Lines":
    from imagekit import progress

    if not _LINES:
        columns = os.get_terminal_size(2).columns if sys.stderr.isatty() else 0
        _LINES.append(progress.Lines(lambda text: print(text, end="", file=sys.stderr, flush=True), columns=columns))
    return _LINES[0]
