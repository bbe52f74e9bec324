"""A folder beside the definition: "directory:site prefix=/srv" lays all below it out in the image.

Its pin is the digest of its tree, which depends on names, bytes, links and who may execute; not on times, umask, owner
or the order of the folder. Links stay as they are written, also one that leads out of the folder: nothing follows it
here, and what it means is for the image to say. Sockets, fifos and devices are refused.
"""

import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit import kept
from imagekit.errors import Problem
from imagekit.package import BESIDE, Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _beside, _placed, _tar
from imagekit.store import Store

OPTIONS = ("prefix", "without", "name", "version")


class Where(NamedTuple):
    """A folder, less what is called by one of some names wherever it lies in it."""

    path: Path
    without: tuple[str, ...]  # shell patterns of names


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """A pin for each folder."""
    asked = [_beside.wanted(request, "directory", OPTIONS) for request in requests]
    return [
        Resolved(_beside.each_once([_pin(one, request.folder, store) for one in of]), ())
        for request, of in zip(requests, asked, strict=True)
    ]


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path) -> list[Package]:
    """The packages of these pins, read from their folders if the store lacks them."""
    return _beside.each(pins, progress, lambda pin: _placed.load(pin, store) or _made(pin, folder, store))


def check(pins: Sequence[Pin], folder: Path) -> None:
    """Raise Problem when a folder is not what was locked."""
    for pin in pins:
        with _beside.told("directory", _beside.split(pin)[0]):
            rows: dict[str, kept.Row] = {}
            for _ in _contents(_where(*_beside.split(pin), folder), rows):
                pass
            _beside.check_digest(_placed.digest(rows), pin)


def inputs(pins: Sequence[Pin], folder: Path) -> list[Path]:
    """The folders with all below them; of a link that is changed its folder tells."""
    found = []
    for pin in pins:
        where = _where(*_beside.split(pin), folder)
        found += [where.path, *(path for _, path, state in _found(where) if not stat.S_ISLNK(state.st_mode))]
    return found


def _where(place: str, options: Mapping[str, str], folder: Path) -> Where:
    without = tuple(options["without"].split(",")) if "without" in options else ()
    for name in without:
        if not name or "/" in name:
            raise Problem(f"without={options['without']} names no files", "names, or *.pyc, with commas between them")
    return Where(_beside.path(folder, place), without)


def _pin(asked: _beside.Wanted, folder: Path, store: Store) -> Pin:
    place = asked.place.removesuffix("/")
    with _beside.told("directory", asked.place):
        laid = _read(_where(place, asked.options, folder), store)
        name, version = _beside.about(asked.options, place.rpartition("/")[2])
        size, prefix = sum(row[4] for row in laid.rows.values()), _beside.prefix(asked.options)
        without = {"without": asked.options["without"]} if "without" in asked.options else {}
        path = _beside.path_with(place, {"prefix": prefix or "/", **without})
        digest = _placed.digest(laid.rows)
        pin = Pin("package", "directory", name, version, "all", size, digest, BESIDE, path)
        _placed.keep(laid, pin, store)
    return pin


def _made(pin: Pin, folder: Path, store: Store) -> Package:
    laid = _read(_where(*_beside.split(pin), folder), store)
    _beside.check_digest(_placed.digest(laid.rows), pin)
    return _placed.keep(laid, pin, store)


def _read(where: Where, store: Store) -> _placed.Laid:
    rows: dict[str, kept.Row] = {}
    blob = store.write(_contents(where, rows))
    return _placed.Laid(rows, blob)


def _contents(where: Where, rows: dict[str, kept.Row]) -> Iterator[bytes]:
    """The bytes of every file, one after another, while `rows` fills with where each lies."""
    offset = 0
    for path, found, state in _found(where):
        if stat.S_ISREG(state.st_mode):
            digest, size = sha256(), 0
            for piece in _file(found):
                digest.update(piece)
                size += len(piece)
                if offset + size > _tar.MAX_BYTES:
                    raise Problem(f"it holds more than {_tar.MAX_BYTES} bytes")
                yield piece
            mode = 0o755 if state.st_mode & 0o100 else 0o644  # as files=File(...) has it: umask leaves no trace
            rows[path] = _placed.row("file", mode, size=size, sha256=digest.hexdigest(), offset=offset)
            offset += size
        elif stat.S_ISLNK(state.st_mode):
            rows[path] = _placed.row("symlink", 0, target=_tar.text(os.fsencode(found.readlink())))
        elif stat.S_ISDIR(state.st_mode):
            rows[path] = _placed.row("dir", 0o755)
        else:
            raise Problem(f"{path[1:]} is neither file, folder nor symlink", "an image takes none of it from a folder")


def _file(path: Path) -> Iterator[bytes]:
    with _beside.opened(path, follow=False) as file:
        while piece := file.read(_beside.PIECE):
            yield piece


def _found(where: Where) -> Iterator[tuple[str, Path, os.stat_result]]:
    """All below a folder, sorted, as paths from it, where they lie, and their state; no link is followed."""
    place, waiting, count = where.path, [""], 0
    while waiting:
        below = waiting.pop()
        try:
            there = sorted(os.listdir(f"{place}{below}"))  # noqa: PTH208 - there may be many
            names = [name for name in there if not any(fnmatchcase(name, pattern) for pattern in where.without)]
            states = {name: os.lstat(f"{place}{below}/{name}") for name in names}
        except OSError as error:
            raise Problem(f"the folder cannot be read: {error.strerror}", f"it is looked for at {place}") from error
        count += len(states)
        if count > _tar.MAX_MEMBERS:
            raise Problem(f"it holds more than {_tar.MAX_MEMBERS} paths")
        for name, state in states.items():
            path = f"{below}/{name}"
            _tar.clean_name(os.fsencode(path[1:]))
            yield path, Path(f"{place}{path}"), state
        waiting += [f"{below}/{name}" for name, state in reversed(states.items()) if stat.S_ISDIR(state.st_mode)]


SOURCE = Source(resolve=resolve, packages=packages, check=check, inputs=inputs)
