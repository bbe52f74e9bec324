"""The matrix: which machines an image offers, and which of them were asked for.

arch x format x target, where a target starts the architecture and the format's kind. A test needs a part of that
chain: a tree has an architecture, an artifact a format as well, a machine also a target.
"""

import re
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from imagekit import plugs
from imagekit.arch import ARCHES
from imagekit.errors import Problem, unknown
from imagekit.image import Image


class Point(NamedTuple):
    """A place in the matrix; what a test does not need is empty."""

    arch: str = ""
    format: str = ""
    target: str = ""


UNNAMED = Image("unnamed")  # stands for an image that a fixture will make: the default formats and architectures
NOWHERE = Point("-", "-", "-")  # for a test of what its image does not offer: no selection admits it


class Placed(NamedTuple):
    """A test and where it stands."""

    item: Any
    file: object
    image: Image | None  # None for a test of something else, which is never deselected
    point: Point


class Selection(NamedTuple):
    """What was asked for; an empty tuple stands for everything."""

    arch: tuple[str, ...] = ()
    format: tuple[str, ...] = ()
    target: tuple[str, ...] = ()

    def admits(self, point: Point, chain: Iterable[Point]) -> bool:
        """Whether a chain that was asked for leads through the point."""
        return any(self._names(full) and leads_through(full, point) for full in chain)

    def _names(self, full: Point) -> bool:
        return all(not asked or name in asked for asked, name in zip(self, full, strict=True))


def known(dimension: str) -> Sequence[str]:
    """The names of a dimension ("arch", "format" or "target")."""
    return tuple(ARCHES) if dimension == "arch" else plugs.names(f"{dimension}s")


def check(dimension: str, given: str | Sequence[str]) -> tuple[str, ...]:
    """The names in a list, or in words of a variable; raises a Problem that lists the known ones for any other."""
    names = re.split(r"[\s,]+", given.strip()) if isinstance(given, str) else given
    for name in names:
        if name not in known(dimension):
            raise unknown(dimension, str(name), known(dimension))
    return tuple(names)


def offered(image: Image) -> tuple[Point, ...]:
    """Every full chain of an image; the target is empty where no machine starts the format on the architecture."""
    return _offered(image.arches, image.formats)


def places(image: Image, *, depth: int, lives: Sequence[str] = ("guest",)) -> list[Point]:
    """Where a test runs that needs a tree (depth 1), an artifact (2), or a machine (3) of one of these LIVES."""
    chains = offered(image)
    if depth == 3:
        chains = tuple(full for full in chains if any(LIVES[life](full) for life in lives))
    return list(dict.fromkeys(Point(*full[:depth]) for full in chains))


def _is_guest(full: Point) -> bool:
    """A machine whose guest can be asked."""
    target = plugs.load("targets", full.target) if full.target else None
    return target is not None and target.boots and target.has_agent


def _is_sandbox(full: Point) -> bool:
    """The tree alone."""
    return bool(full.target) and not plugs.load("targets", full.target).boots


def _is_shipped(full: Point) -> bool:
    """A machine that starts the image as it is: by the firmware that it is made for, where it is made for any."""
    target = plugs.load("targets", full.target) if full.target else None
    firmware = plugs.load("formats", full.format).firmware
    return target is not None and target.boots and (target.firmware in firmware if firmware else not target.firmware)


LIVES = {"guest": _is_guest, "sandbox": _is_sandbox, "shipped": _is_shipped}


def arranged(tests: Sequence[Placed], chosen: Selection) -> tuple[list[Any], list[Any]]:
    """The items that were asked for, in an order that starts every machine once, and those that were not."""
    files = {test.file: place for place, test in reversed(list(enumerate(tests)))}
    kept: list[tuple[tuple[int, ...], Any]] = []
    left = []
    for test in tests:
        chain = offered(test.image) if test.image else ()
        if test.image and not chosen.admits(test.point, chain):
            left.append(test.item)
        else:
            kept.append(((files[test.file], *rank(test.point, chain)), test.item))
    return [item for _, item in sorted(kept, key=lambda pair: pair[0])], left


def leads_through(full: Point, point: Point) -> bool:
    """Whether a chain passes a point: each name that the point has is the chain's own."""
    return all(not name or name == own for name, own in zip(point, full, strict=True))


def rank(point: Point, chain: Sequence[Point]) -> tuple[int, int]:
    """Where a point stands in an order that makes all things once: a tree, its artifacts, their machines, the next."""
    depth = sum(map(bool, point))
    return next((n for n, full in enumerate(chain) if leads_through(full, point)), 0) if depth else -1, depth


@cache
def _offered(arches: tuple[str, ...], formats: tuple[str, ...]) -> tuple[Point, ...]:
    chains = []
    for arch in arches:
        for name in formats:
            if arch in plugs.load("formats", name).arches:
                fitting = [target for target in known("target") if fits(target, arch, name)]
                chains += [Point(arch, name, target) for target in fitting or ("",)]
    return tuple(chains)


def machine(arch: str, format: str) -> str:
    """The first of the machines that can start what is written in a format; raises Problem where there is none."""
    found = [name for name in known("target") if plugs.load("targets", name).boots and fits(name, arch, format)]
    if not found:
        formats = [name for name in plugs.own("formats") if any(fits(target, arch, name) for target in known("target"))]
        raise Problem(f"no machine starts {format} of {arch}", f"of {arch}, machines start: {', '.join(formats)}")
    return found[0]


def fits(target: str, arch: str, name: str) -> bool:
    """Whether a machine can start what is written in a format: by its kind, and by what starts it."""
    plug, format = plugs.load("targets", target), plugs.load("formats", name)
    if arch not in plug.arches or format.kind not in plug.kinds:
        return False
    starts = {plug.firmware, *plug.reads} - {""}
    return bool(starts & set(format.firmware)) if format.firmware else not plug.firmware
