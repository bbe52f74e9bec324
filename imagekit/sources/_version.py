"""Debian's versions in their order (deb-version(7))."""

import re
from collections.abc import Callable
from functools import cache

from imagekit.errors import Problem

_DIGITS = re.compile(r"([0-9]+)")
_Key = tuple[object, ...]
OPERATORS: dict[str, Callable[[_Key, _Key], bool]] = {
    "<<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    "=": lambda a, b: a == b,
    ">=": lambda a, b: a >= b,
    ">>": lambda a, b: a > b,
    "<": lambda a, b: a <= b,  # what dpkg makes of the old spellings
    ">": lambda a, b: a >= b,
}


@cache
def key(version: str) -> _Key:
    """What versions are sorted by."""
    epoch, colon, rest = version.partition(":")
    if not colon:
        epoch, rest = "0", version
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, "0"
    if not epoch.isdecimal() or not upstream:
        raise Problem(f"{version!r} is no version of a Debian package")
    return int(epoch), _part(upstream), _part(revision)


def fulfils(version: str, operator: str, wanted: str) -> bool:
    """Whether a version stands in this relation to another; every version does in the relation ""."""
    return not operator or OPERATORS[operator](key(version), key(wanted))


def _part(text: str) -> _Key:
    """Words and numbers by turns; a text that ends with a word is followed by 0, as in dpkg."""
    pieces = _DIGITS.split(text)
    if pieces[-1]:
        pieces += ["0", ""]
    return tuple(int(piece) if at % 2 else _word(piece) for at, piece in enumerate(pieces))


def _word(text: str) -> tuple[int, ...]:
    """~ before the end of the text, the end before letters, letters before all else."""
    return (*(-1 if c == "~" else ord(c) if c.isalpha() else ord(c) + 256 for c in text), 0)
