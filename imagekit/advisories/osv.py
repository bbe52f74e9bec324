"""OSV records, as osv.dev exports them for each ecosystem: Debian, PyPI and npm are read.

https://ossf.github.io/osv-schema/: affected packages with ranges of versions by events, and severities as CVSS vectors.
"""

import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from imagekit import cvss
from imagekit.advisory import LEVELS, Advisory, Feed, Range, Subject, Told, listing, mapping, summary, text
from imagekit.errors import Problem

SOURCES = {"Debian": "debian", "PyPI": "wheel", "npm": "npm"}
RELEASES = {"10": "buster", "11": "bullseye", "12": "bookworm", "13": "trixie", "14": "forky"}
WORDS = {"LOW": "low", "MODERATE": "medium", "MEDIUM": "medium", "HIGH": "high", "CRITICAL": "critical",
         "unimportant": "none", "low": "low", "medium": "medium", "high": "high"}  # fmt: skip
EVENTS = ("introduced", "fixed", "last_affected", "limit")
MOST_EVENTS = 10_000
DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]{5,20}Z\Z", re.ASCII)


def knows(document: Mapping[str, Any]) -> bool:
    """It has the two fields that every record must have."""
    return isinstance(document.get("id"), str) and "modified" in document


def read(document: Mapping[str, Any], wanted: Collection[Subject]) -> Told:
    """The advisories of the wanted packages; a record that was withdrawn says nothing."""
    what = text(document["id"], "id")
    date = text(document["modified"], f"modified of {what}")
    if not DATE.match(date):
        raise Problem(f"modified of {what}, {date!a}, is no time as OSV writes it", "as in 2024-01-31T12:00:00Z")
    found, covers = list[Advisory](), set[tuple[str, str]]()
    for one in listing(document.get("affected"), f"affected of {what}"):
        affected = mapping(one, f"affected of {what}")
        package = mapping(affected.get("package", {}), f"package of {what}")
        source, release = _ecosystem(text(package.get("ecosystem", ""), f"ecosystem of {what}"))
        name = text(package.get("name", ""), f"name of {what}")
        if not source:
            continue
        covers.add((source, release))
        subject = (source, normal(source, name))
        if subject in wanted and "withdrawn" not in document:
            found.append(_advisory(document, affected, subject, release))
    return Told(found, covers, 1, date)


def normal(source: str, name: str) -> str:
    """A name as its ecosystem compares it (PyPI's: packaging.python.org, "Name normalization")."""
    return re.sub("[-_.]+", "-", name).lower() if source == "wheel" else name


def _ecosystem(name: str) -> tuple[str, str]:
    ecosystem, _, release = name.partition(":")
    return SOURCES.get(ecosystem, ""), RELEASES.get(release, release)


def _advisory(document: Mapping[str, Any], affected: Mapping[str, Any], subject: Subject, release: str) -> Advisory:
    what = document["id"]
    ranges = _ranges(affected, what)
    versions = frozenset(
        text(v, f"versions of {what}") for v in listing(affected.get("versions"), f"versions of {what}")
    )
    fixes = [version for events in ranges for event, version in events if event == "fixed"]
    score = max((s for of in (affected, document) for s in _scores(of, what)), default=None)
    severity = cvss.level(score) if score is not None else _word(affected, document)
    about = summary(document.get("summary") or document.get("details"))
    status = "undetermined" if not ranges and not versions else "resolved" if fixes else "open"
    return Advisory(_identifier(document), subject, release, ranges, versions, status, severity, score,
                    fixes[-1] if fixes else "", about)  # fmt: skip


def _identifier(document: Mapping[str, Any]) -> str:
    """The CVE's, where there is exactly one: other feeds call it so."""
    own = text(document["id"], "id")
    others = [text(name, f"aliases of {own}") for field in ("aliases", "upstream")
              for name in listing(document.get(field), f"{field} of {own}")]  # fmt: skip
    cves = {name for name in others if name.startswith("CVE-")}
    return cves.pop() if len(cves) == 1 and not own.startswith("CVE-") else own


def _ranges(affected: Mapping[str, Any], what: str) -> tuple[Range, ...]:
    """The events of each range of versions; those of commits say nothing of versions."""
    found = list[Range]()
    for one in listing(affected.get("ranges"), f"ranges of {what}"):
        ranged = mapping(one, f"a range of {what}")
        if ranged.get("type") == "GIT":
            continue
        listed = listing(ranged.get("events"), f"events of {what}", most=MOST_EVENTS)
        pairs = [pair for event in listed for pair in mapping(event, f"an event of {what}").items()]
        if any(kind not in EVENTS for kind, _ in pairs) or not any(kind == "introduced" for kind, _ in pairs):
            raise Problem(f"{what} has a range whose events are not {', '.join(EVENTS)}, or that begins nowhere")
        told = [(kind, text(version, f"{kind} of {what}")) for kind, version in pairs]
        found.append(tuple(event for event in told if event[0] != "limit"))  # of commits alone (schema, "limit")
    return tuple(found)


def _scores(of: Mapping[str, Any], what: str) -> list[float]:
    found = [mapping(one, f"severity of {what}") for one in listing(of.get("severity"), f"severity of {what}")]
    scores = []
    for one in found:
        vector = text(one.get("score"), f"severity of {what}")
        with suppress(Problem):  # without a vector that can be read it is unrated, which counts
            scores += [cvss.score(vector)] if one.get("type") == "CVSS_V3" else []
    return scores


def _word(affected: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """The word of a database where there is no vector: GitHub's severity, Debian's urgency."""
    for of in (affected, document):
        for field in ("ecosystem_specific", "database_specific"):
            said = of.get(field) or {}
            for name in ("severity", "urgency"):
                word = mapping(said, field).get(name)
                if isinstance(word, str) and WORDS.get(word) in LEVELS:
                    return WORDS[word]
    return ""


FEED = Feed(knows, read)
