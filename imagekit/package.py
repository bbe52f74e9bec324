"""Package: a name, a version, a plain Tree and its digest; no install scripts.

Also here: what a source of packages is. A plug in sources/ turns a request into pins (for the lock), a pin into bytes
(from a mirror, checked), and the bytes into a Package (once, kept in the store).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imagekit.errors import RigProblem
from imagekit.store import Store
from imagekit.tree import Tree


@dataclass(frozen=True)
class Package:
    """A plain package: unpacking its tree is all there is to installing it."""

    name: str
    version: str
    architecture: str  # as its source names it: "amd64", "all"
    digest: str  # sha256 of its tree
    tree: Tree
    notes: tuple[str, ...] = ()  # what its install scripts would have done and an image must declare, in words


class Pin(NamedTuple):
    """One line of a lock: a package of one architecture, by its bytes."""

    role: str  # "package", "kernel", "init" for early boot, "boot" and "firmware" for formats
    source: str  # a plug in sources/
    name: str
    version: str
    architecture: str  # as the source names it
    size: int  # bytes
    sha256: str  # of the file on the mirror
    archive: str  # which of the lock's archives holds it
    path: str  # relative to the archive's address


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


class Resolved(NamedTuple):
    """A source's answer to a Request."""

    pins: tuple[Pin, ...]
    archives: tuple[Archive, ...]


class Gone(RigProblem):
    """A pinned package is on the mirror no longer (404): a point release or an update replaced it."""


Progress = Callable[[str, int, int], None]  # (what, done bytes, all bytes)


@dataclass(frozen=True)
class Source:
    """A kind of package source, as a value of functions."""

    resolve: Callable[[Sequence[Request], Store], list[Resolved]]  # asks the mirror, verifies its metadata
    packages: Callable[[Sequence[Pin], Store, Progress], list[Package]]  # fetches and converts what the store lacks
