"""Site: where a depot lies (a directory, an HTTP(S) or ssh address), as a value of functions.

A plug in sites/ makes one, and is named after the scheme of its places. Nothing that a site gives is trusted: metadata
is verified by its signatures, and a blob by its name, which is the sha256 of its bytes.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import urlsplit

from imagekit import plugs
from imagekit.errors import Problem, RigProblem
from imagekit.store import Store

DIRECTORY = "directory"
SCHEMES = {"http": "http", "https": "http", "ssh": "ssh"}  # of an address -> the plug that reads it
PATH = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+~-]{0,254}(/[A-Za-z0-9_][A-Za-z0-9._+~-]{0,254}){0,7}\Z")
DIGEST = re.compile(r"[0-9a-f]{64}\Z")
Beat = Callable[[int], None]  # so many more bytes have come


class Blob(NamedTuple):
    """Bytes that are named by what they are."""

    digest: str  # sha256, 64 hexadecimal digits
    size: int  # bytes

    @property
    def path(self) -> str:
        """Where it lies in a depot."""
        return f"blobs/{checked_digest(self.digest)[:2]}/{self.digest}"


class Missing(RigProblem):
    """The site has no such file, and nothing says that it ever had."""


def _cannot(*_: object) -> None:
    raise Problem("nothing can be published there: it is read only", "publish to a directory, or by ssh")


def _cannot_lock() -> AbstractContextManager[None]:
    raise Problem("nothing can be published there: it is read only", "publish to a directory, or by ssh")


@dataclass(frozen=True)
class Site:
    """A place with files by path; every path is checked before a function here is given it."""

    place: str  # as it may be shown
    read: Callable[[str, int], bytes]  # (path, limit): the whole file; raises Missing, or RigProblem if it is larger
    bring: Callable[[Sequence[Blob], Store, Beat, float], None]  # those blobs, verified, into a store, until a moment
    lacks: Callable[[Mapping[str, int]], Iterable[str]] = tuple  # (path -> size): where it has no file of that size
    write: Callable[[Sequence[tuple[str, bytes]]], None] = _cannot  # files in this order, each whole or not at all
    settle: Callable[[], None] = _cannot  # returns when all that was written outlives a power cut
    lock: Callable[[], AbstractContextManager[None]] = _cannot_lock  # among all who publish


def at(place: str) -> Site:
    """The site of a place as a user writes it: a path, http(s)://HOST/PATH or ssh://USER@HOST/PATH."""
    scheme = urlsplit(place).scheme if "://" in place else ""
    if scheme and scheme not in SCHEMES:
        raise Problem(f"cannot read from {scheme}: addresses", f"known: a directory, {', '.join(SCHEMES)}")
    site: Site = plugs.load("sites", SCHEMES.get(scheme, DIRECTORY))(place)
    return site


def checked_digest(digest: object) -> str:
    """A sha256 as it may become part of a path; raises Problem for anything else."""
    if not isinstance(digest, str) or not DIGEST.match(digest):
        raise Problem(f"{ascii(digest)[:80]} is no sha256")
    return digest


def checked_path(path: object) -> str:
    """A path below a site without `..`, hidden names or anything else that leads elsewhere."""
    if not isinstance(path, str) or not PATH.match(path):
        raise Problem(f"{ascii(path)[:80]} is no path of a depot")
    return path
