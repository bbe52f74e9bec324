"""Files of feeds, as the user fetched them: documents, folders of them, and zips of them, which are never unpacked."""

import os
import zipfile
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from imagekit import plugs, strict
from imagekit.advisory import Advisory, Feed, Subject, Told
from imagekit.errors import Problem

LARGEST = 1 << 29  # bytes of a document: the tracker's has some 70 million
LARGEST_RECORD = 1 << 25  # bytes of a document in a zip
LARGEST_ALL = 1 << 31  # bytes of all documents of a zip or folder
MOST = 1_000_000  # documents
HOW = "the Debian security tracker's JSON, an OSV record, or a folder or zip of OSV records"


class Said(NamedTuple):
    """What all files together say of the packages that were asked for."""

    advisories: Mapping[Subject, Sequence[Advisory]]
    covers: frozenset[tuple[str, str]]  # (source, release) that they speak of
    records: int
    dates: Mapping[str, str]  # file -> its own date, "" for one that has none


def read(paths: Sequence[Path], wanted: Collection[Subject]) -> Said:
    """What files say of the wanted packages; raises Problem for the first that is malformed."""
    found: dict[Subject, list[Advisory]] = {}
    covers, records, dates = set[tuple[str, str]](), 0, dict[str, str]()
    every = [plugs.load("advisories", name) for name in plugs.names("advisories")]
    for path in paths:
        dates[str(path)] = ""
        for what, document in _documents(path):
            told = _told(every, document, what, wanted)
            records += told.records
            covers |= set(told.covers)
            dates[str(path)] = max(dates[str(path)], told.date)
            for advisory in told.advisories:
                found.setdefault(advisory.subject, []).append(advisory)
    return Said(found, frozenset(covers), records, dates)


def _told(every: Sequence[Feed], document: bytes, what: str, wanted: Collection[Subject]) -> Told:
    parsed = strict.parse(document, what=what, limit=LARGEST)
    feed = next((one for one in every if one.knows(parsed)), None)
    if feed is None:
        raise Problem(f"{what} is no feed of vulnerabilities", HOW)
    try:
        return feed.read(parsed, wanted)
    except Problem as problem:
        raise Problem(f"{what}: {problem.message}", problem.hint) from problem


def _documents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        yield from _counted(_folder(path), str(path))
    elif zipfile.is_zipfile(path):
        yield from _counted(_zip(path), str(path))
    else:
        yield str(path), _read(path)


def _counted(documents: Iterator[tuple[str, bytes]], what: str) -> Iterator[tuple[str, bytes]]:
    size = count = 0
    for name, data in documents:
        size, count = size + len(data), count + 1
        if size > LARGEST_ALL or count > MOST:
            raise Problem(f"{what} has more than {MOST} documents, or {LARGEST_ALL} bytes")
        yield name, data


def _folder(path: Path) -> Iterator[tuple[str, bytes]]:
    for name in sorted(os.listdir(path)):  # noqa: PTH208 - names alone, of which there may be 200,000
        if name.endswith(".json"):
            yield str(path / name), _read(path / name)


def _zip(path: Path) -> Iterator[tuple[str, bytes]]:
    """The documents of a zip, each read into memory and no further than it may be long, whatever its header says."""
    try:
        with zipfile.ZipFile(path) as file:
            for member in file.infolist():
                if not member.filename.endswith(".json"):
                    continue
                if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise Problem(f"{path}: {ascii(member.filename)[:80]} is packed in a way that OSV's never are")
                with file.open(member) as opened:
                    data = opened.read(LARGEST_RECORD + 1)
                if len(data) > LARGEST_RECORD:
                    raise Problem(f"{path}: {ascii(member.filename)[:80]} is larger than {LARGEST_RECORD} bytes")
                yield f"{path}: {ascii(member.filename)[1:80]}", data
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError, OSError, ValueError) as error:
        raise Problem(f"{path} is a damaged zip: {error}") from error


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}", f"name {HOW}") from error
