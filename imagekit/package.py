"""Package: a name, a version, a plain Tree and its digest; no install scripts.

Also here: what a source of packages is. A plug in sources/ turns a request into pins (for the lock), a pin into bytes
(from a mirror, checked), and the bytes into a Package (once, kept in the store).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from imagekit.errors import Problem, RigProblem, unknown
from imagekit.store import Store
from imagekit.tree import Tree

URL, BESIDE, INDEX = "url", "beside", "index"  # of a pin that no signed archive holds: where its path leads


class Origin(NamedTuple):
    """What a package was made from, as vulnerabilities are reported of it: Debian's source package, a project."""

    source: str = ""
    version: str = ""


UNKNOWN = Origin()


@dataclass(frozen=True)
class Package:
    """A plain package: unpacking its tree is all there is to installing it."""

    name: str
    version: str
    architecture: str  # as its source names it: "amd64", "all"
    digest: str  # sha256 of its tree
    tree: Tree
    notes: tuple[str, ...] = ()  # what its install scripts would have done and an image must declare, in words
    origin: Origin = UNKNOWN
    licence: str = ""  # an SPDX expression (SPDX 2.3, annex D), "" where none is stated

    @property
    def owner(self) -> str:
        """Who its entries say brought them: its name, and more where an image may have several versions of it."""
        return next((entry.owner for entry in self.tree.values()), self.name)


class Pin(NamedTuple):
    """One line of a lock: a package of one architecture, by its bytes."""

    role: str  # "package", "kernel", "init" for early boot, "boot" and "firmware" for formats
    source: str  # a plug in sources/
    name: str
    version: str
    architecture: str  # as the source names it
    size: int  # bytes
    sha256: str  # of the file on the mirror
    archive: str  # which of the lock's archives holds it, or URL, BESIDE (the definition), INDEX (of pip, npm)
    path: str  # relative to the archive's address, an address for URL; behind a "#" what else its source must know


class Archive(NamedTuple):
    """Where pins came from, and the digest of the signed metadata that named them."""

    name: str  # "debian", "debian-security"
    suite: str
    sha256: str  # of the signed metadata as it was received
    date: str  # as the metadata states it
    signed_by: str  # fingerprint of the key that signed it


class Request(NamedTuple):
    """What an image asks a source for, on one architecture."""

    packages: tuple[str, ...]  # names, without the source's prefix
    kernel: str  # a kernel package or metapackage, "" for none
    init: tuple[str, ...]  # what early boot needs; taken alone, without what it depends on
    without: tuple[str, ...]  # packages taken as present: neither they nor what only they need
    suite: str
    arch: str  # imagekit's name: "x86_64"
    boot: tuple[str, ...] = ()  # what formats need beside the root; taken alone
    firmware: tuple[str, ...] = ()  # what boards want of the archive's non-free-firmware; taken alone
    folder: Path = Path()  # that the definition lies in
    python: str = ""  # the image's Python, "3.11", as far as it has one


class Resolved(NamedTuple):
    """A source's answer to a Request."""

    pins: tuple[Pin, ...]
    archives: tuple[Archive, ...]
    said: tuple[str, ...] = ()  # what whoever locks should know


class Gone(RigProblem):
    """A pinned package is on the mirror no longer (404): a point release or an update replaced it."""


Progress = Callable[[str, int, int], None]  # (what, done bytes, all bytes)


def words(text: str, known: Sequence[str]) -> tuple[str, Mapping[str, str]]:
    """A package as a definition writes it, "vendor/app.tar.gz prefix=/opt strip=1": its name and its options.

    Raises Problem for an option that is not among the known ones, is given twice, or has no value.
    """
    name, *rest = text.split(" ")
    options: dict[str, str] = {}
    for word in rest:
        option, sign, value = word.partition("=")
        if not sign or not value or not option:
            hint = f"an option is NAME=VALUE, one space before it; known: {', '.join(known)}"
            raise Problem(f"{text!r}: {word!r} is no option", hint)
        if option not in known:
            problem = unknown("option", option, known)
            raise Problem(f"{text!r}: {problem.message}", problem.hint)
        if option in options:
            raise Problem(f"{text!r}: {option} is given twice", f"write {option}= once")
        options[option] = value
    return name, options


def nothing_beside(pins: Sequence[Pin], folder: Path) -> None:
    """Nothing that lies beside a definition is pinned."""
    _ = pins, folder


def no_inputs(pins: Sequence[Pin], folder: Path) -> list[Path]:
    """No file beside a definition is read."""
    _ = pins, folder
    return []


@dataclass(frozen=True)
class Source:
    """A kind of package source, as a value of functions; `folder` is that of the definition."""

    resolve: Callable[[Sequence[Request], Store], list[Resolved]]  # asks the mirror, verifies its metadata
    packages: Callable[..., list[Package]]  # (pins, store, progress, *, folder): fetches and converts what is lacking
    check: Callable[[Sequence[Pin], Path], None] = nothing_beside  # raises Problem when what lies beside has changed
    inputs: Callable[[Sequence[Pin], Path], list[Path]] = no_inputs  # what lies beside the definition and is read
    files: Callable[[Sequence[Pin], Store, Progress], None] | None = None  # brings into a store what pins name
    needs_python: bool = False  # whether `resolve` wants to know the image's Python, and so comes last
