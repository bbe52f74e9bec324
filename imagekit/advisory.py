"""Advisory: that some versions of a package are vulnerable, as a feed says it; what a feed is.

A plug in advisories/ reads one format of feeds. Feeds are files that the user fetched: nothing here asks a network.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from imagekit.errors import Problem

LEVELS = ("none", "low", "medium", "high", "critical")  # CVSS v3.1, section 5
STATUSES = ("open", "resolved", "undetermined", "ignored")
LONGEST = 300  # characters of a name (npm has had some of 214), a version, an identifier
SHOWN = 160  # characters of a summary
Subject = tuple[str, str]  # (a plug in sources/, the name of a source package there)
Range = tuple[tuple[str, str], ...]  # ("introduced", version), ("fixed", version), ("last_affected", version)


class Advisory(NamedTuple):
    """What a feed says of one vulnerability in one package."""

    id: str  # the CVE's where it has one
    subject: Subject
    release: str  # of Debian, "" for every release
    ranges: tuple[Range, ...]
    versions: frozenset[str] = frozenset()  # that are vulnerable whatever the ranges say
    status: str = "open"  # of STATUSES; "resolved": there is a version without it
    severity: str = ""  # of LEVELS; "" where nobody has rated it
    score: float | None = None  # CVSS v3
    fixed: str = ""
    summary: str = ""


class Told(NamedTuple):
    """What one document of a feed says."""

    advisories: Sequence[Advisory]  # of the packages that were asked for
    covers: Collection[tuple[str, str]]  # (source, release) that it speaks of, whatever was asked for
    records: int
    date: str  # ISO 8601, its own word for its age; "" where it has none


@dataclass(frozen=True)
class Feed:
    """A format of feeds, as a value of functions."""

    knows: Callable[[Mapping[str, Any]], bool]  # whether a document is of this format
    read: Callable[[Mapping[str, Any], Collection[Subject]], Told]


def text(value: object, what: str, *, limit: int = LONGEST) -> str:
    """A text as a feed has it; raises Problem for anything else."""
    if not isinstance(value, str) or len(value) > limit or not value.isprintable():
        raise Problem(f"{what} {ascii(value)[:80]} is no text of at most {limit} characters")
    return value


def mapping(value: object, what: str) -> Mapping[str, Any]:
    """An object as a feed has it; raises Problem for anything else."""
    if not isinstance(value, dict):
        raise Problem(f"{what} is {ascii(value)[:80]}, and should be an object")
    return value


def listing(value: object, what: str, *, most: int = 100_000) -> Sequence[Any]:
    """A list as a feed has it, nothing for None; raises Problem for anything else."""
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > most:
        raise Problem(f"{what} is {ascii(value)[:80]}, and should be a list of at most {most}")
    return value


def summary(value: object) -> str:
    """The beginning of a description, as one line."""
    return "".join(c if c.isprintable() else " " for c in value[:SHOWN]).strip() if isinstance(value, str) else ""
