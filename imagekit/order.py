"""Versions in the order of those who gave them: Debian's, PyPI's (PEP 440) and npm's (semver.org).

What is no version there is a Problem, never a version that happens to sort first.
"""

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from imagekit.errors import Problem
from imagekit.sources import _version

LONGEST = 200  # characters; Debian's longest are under 60
DEBIAN = re.compile(r"(?:[0-9]{1,9}:)?[0-9A-Za-z.+~:-]+\Z", re.ASCII)  # deb-version(7)
BINNMU = re.compile(r"\+b[0-9]{1,9}\Z", re.ASCII)  # Developer's Reference, 5.10.2.1
SEMVER = re.compile(
    r"v?([0-9]{1,18})\.([0-9]{1,18})\.([0-9]{1,18})(?:-([0-9A-Za-z.-]+))?(?:\+[0-9A-Za-z.-]+)?\Z", re.ASCII
)
OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "<": lambda a, b: a < b,  # strictly, as everybody but old dpkg reads it
    "=": lambda a, b: a == b,
    ">=": lambda a, b: a >= b,
    ">>": lambda a, b: a > b,
    ">": lambda a, b: a > b,
}


def of(source: str) -> Callable[[str], Any]:
    """The function that gives what a source's versions are sorted by; Debian's where it has no order of its own."""
    return ORDERS.get(source, debian)


@lru_cache(maxsize=100_000)
def debian(version: str) -> Any:
    """What Debian's versions are sorted by."""
    if len(version) > LONGEST or not DEBIAN.match(version):
        raise _no_version(version, "Debian")
    return _version.key(version)


def without_binnmu(version: str) -> str:
    """The version of the source that was only built again: 1.2-3 for 1.2-3+b1."""
    return BINNMU.sub("", version)


def pypi(version: str) -> Any:
    """What PyPI's versions are sorted by."""
    from packaging.version import InvalidVersion, Version  # pytest depends on it

    try:
        if len(version) > LONGEST or not version.isascii() or not version.isprintable() or " " in version:
            raise ValueError(version)
        return Version(version)
    except (InvalidVersion, ValueError):
        raise _no_version(version, "PyPI") from None


def npm(version: str) -> Any:
    """What npm's versions are sorted by (semver.org, 11)."""
    found = SEMVER.match(version) if len(version) <= LONGEST else None
    if not found:
        raise _no_version(version, "npm")
    *numbers, before = found.groups()
    return (*map(int, numbers), before is None, tuple(map(_identifier, before.split("."))) if before else ())


def _identifier(word: str) -> tuple[bool, int, str]:
    """Numbers before words (semver.org, 11.4.3)."""
    return (False, int(word), "") if word.isdecimal() else (True, 0, word)


def _no_version(version: str, whose: str) -> Problem:
    return Problem(f"{ascii(version)[:80]} is no version of {whose}")


ORDERS: Mapping[str, Callable[[str], Any]] = {"debian": debian, "deb": debian, "wheel": pypi, "npm": npm}
