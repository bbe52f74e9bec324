"""What `imagekit search` is asked: openssl<3.0.15, openssl>=3,<3.0.15, path:/usr/bin/curl, licence:GPL-3.0*.

A question gives the packages of a catalogue that it means; an image is found that holds one for every question.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from imagekit import order
from imagekit.catalogue import Catalogue, Image, Package
from imagekit.errors import Problem

LONGEST, MOST_STARS = 500, 4  # a pattern with more stars would try more places than anybody wants to wait for
ASKED = re.compile(r"([A-Za-z0-9@*?][A-Za-z0-9@/+._*?-]*)((?:<<|<=|>>|>=|[<>=]).*)?\Z", re.ASCII)
CLAUSE = re.compile(r"(<<|<=|>>|>=|[<>=])\s*([0-9A-Za-z.+~:-]+)\Z", re.ASCII)
HOW = "as in 'openssl<3.0.15', 'openssl>=3,<3.0.15', 'path:/usr/bin/curl' or 'licence:GPL-3.0*'"
Rows = dict[int, str]  # a package's number -> what of it was found


class Found(NamedTuple):
    """An image and what in it was asked for."""

    image: Image
    packages: tuple[tuple[Package, str], ...]


class Answer(NamedTuple):
    """What a catalogue says to some questions."""

    found: tuple[Found, ...]
    unsure: tuple[str, ...]  # what could not be decided, in words


def ask(catalogue: Catalogue, questions: Sequence[str]) -> Answer:
    """The images that hold something for every question, in order."""
    unsure: list[str] = []
    every = [question(text)(catalogue, unsure) for text in questions]
    if not every:
        raise Problem("nothing was asked", HOW)
    meant = {row: what for rows in every for row, what in rows.items()}
    holders = {row: catalogue.holders(row) for row in sorted(meant)}
    images = [set().union(*(holders[row] for row in rows)) for rows in every]
    found: dict[int, list[tuple[Package, str]]] = {number: [] for number in sorted(set.intersection(*images))}
    for row, numbers in holders.items():
        held = (catalogue.package(row), meant[row])
        for number in numbers:
            if number in found:
                found[number].append(held)
    return Answer(tuple(Found(catalogue.image(number), tuple(held)) for number, held in found.items()), tuple(unsure))


def question(text: str) -> Callable[[Catalogue, list[str]], Rows]:
    """A question from its text; raises Problem for one that means nothing."""
    kind, colon, rest = text.partition(":")
    if colon and kind in KINDS and rest and len(text) <= LONGEST:
        return lambda catalogue, unsure: KINDS[kind](catalogue, rest, unsure)
    found = ASKED.match(text) if len(text) <= LONGEST else None
    if not found:
        raise Problem(f"{ascii(text)[:90]} is no question", HOW)
    name, clauses = found[1], [_clause(clause, text) for clause in (found[2] or "").split(",") if clause]
    return lambda catalogue, unsure: _named(catalogue, _pattern(name), clauses, unsure)


def _clause(clause: str, text: str) -> tuple[str, str]:
    found = CLAUSE.match(clause.strip())
    if not found:
        raise Problem(f"{ascii(clause)[:60]} in {ascii(text)[:90]} is no range of versions", HOW)
    return found[1], found[2]


def _named(
    catalogue: Catalogue, pattern: "re.Pattern[bytes]", clauses: Sequence[tuple[str, str]], unsure: list[str]
) -> Rows:
    """Packages whose own name, or whose source's, is meant, each compared by the version that goes with the name."""
    texts, numbers = catalogue.texts, {at for at, text in enumerate(catalogue.texts) if pattern.match(text.encode())}
    found: Rows = {}
    for names, versions in (("name", "version"), ("origin", "origin_version")):
        by_name = [row for row, number in enumerate(catalogue.numbers(names)) if number in numbers]
        column, sources = catalogue.numbers(versions), catalogue.numbers("source")
        for row in by_name:
            version = texts[column[row]]
            if not version and not texts[catalogue.numbers(names)[row]]:
                continue
            try:
                if row not in found and _fits(version, clauses, texts[sources[row]]):
                    found[row] = version
            except Problem as problem:
                unsure.append(f"{texts[catalogue.numbers('name')[row]]}: {problem.message}")
    return found


def _fits(version: str, clauses: Sequence[tuple[str, str]], source: str) -> bool:
    key = order.of(source)
    installed = key(order.without_binnmu(version) if key is order.debian else version) if clauses else None
    return all(order.OPERATORS[operator](installed, key(wanted)) for operator, wanted in clauses)


def _licensed(catalogue: Catalogue, asked: str, unsure: list[str]) -> Rows:
    """Packages whose expression, or a licence in it, is meant; those that name none are told."""
    pattern, texts, column = _pattern(asked), catalogue.texts, catalogue.numbers("licence")
    fitting = {at for at in set(column) if any(pattern.match(word.encode()) for word in _licences(texts[at]))}
    unknown = sum(not texts[number] for number in column)
    if unknown:
        unsure.append(f"of {unknown} packages no licence is known")
    return {row: texts[number] for row, number in enumerate(column) if number in fitting}


def _licences(expression: str) -> list[str]:
    return [expression, *re.split(r"[\s()]+|AND|OR|WITH", expression)] if expression else []


def _with_path(catalogue: Catalogue, asked: str, unsure: list[str]) -> Rows:
    """Packages with a file of this path; those whose files are not known are told."""
    pattern, text = _pattern(asked, path=True), catalogue.paths
    found: Rows = {}
    for hit, number in _lines(text, pattern, asked):
        for row in catalogue.owners(number):
            found.setdefault(row, hit.decode("utf-8", "backslashreplace"))
    unknown = len(catalogue.numbers("name")) - len(catalogue.listed)
    if unknown:
        unsure.append(f"of {unknown} packages the files are not known")
    return found


def _lines(text: bytes, pattern: "re.Pattern[bytes]", asked: str) -> list[tuple[bytes, int]]:
    """Each line that fits, and its number; a path without a star is looked for as it is."""
    hits, at, number = list[tuple[bytes, int]](), 0, -1
    if not set(asked) & set("*?["):
        place = text.find(b"\n" + asked.encode() + b"\n")
        return [(asked.encode(), text.count(b"\n", 0, place))] if place >= 0 else []
    for match in re.compile(rb"(?m)^" + pattern.pattern.removesuffix(rb"\Z") + rb"$").finditer(text, 1):
        number += text.count(b"\n", at, match.start())
        at = match.start()
        hits.append((match[0], number))
    return hits


def _pattern(glob: str, *, path: bool = False) -> "re.Pattern[bytes]":
    """A glob as a pattern: * stays in one folder of a path, ** does not."""
    if glob.count("*") - glob.count("**") > MOST_STARS:
        raise Problem(f"{ascii(glob)[:90]} has more than {MOST_STARS} stars")
    star = rb"[^/\n]*" if path else rb"[^\n]*"
    meaning: Mapping[bytes, bytes] = {b"**": rb"[^\n]*", b"*": star, b"?": rb"[^/\n]"}
    words = re.findall(rb"\*\*|\*|\?|[^*?]+", glob.encode())
    return re.compile(b"".join(meaning.get(word) or re.escape(word) for word in words) + rb"\Z")


KINDS: Mapping[str, Callable[[Catalogue, str, list[str]], Any]] = {
    "path": _with_path,
    "licence": _licensed,
    "license": _licensed,
}
