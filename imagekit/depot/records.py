"""A catalogue as a depot keeps it: a record a line, in pieces that end where another name begins.

What changes then moves alone: a new version of a package is a line among its own, a new version of an image one too,
and no record tells another by its number, which would shift. The pieces become blobs (chunks.py), and a reader makes of
them the catalogue that it asks (imagekit/catalogue.py), once. Whatever they say was written by whoever may publish.

    ["package", [name, version, architecture, source, origin, its version, licence, digest], [path of a file, ...]]
    ["image", [name, version, arch, format, suite, place, mark, digest], "packages, 24 digits each"]

Packages first, each kind sorted. A package is named by the beginning of the sha256 of its second column.
"""

import json
from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import Any
from zlib import crc32

from imagekit import catalogue
from imagekit.catalogue import Image, Known, Package
from imagekit.depot import chunks
from imagekit.errors import Problem

LARGEST = 1 << 27  # bytes of all records
NAMED = 24  # hexadecimal digits: nobody finds two packages that begin with the same ones
SHARE = {"package": 8, "image": 4}  # one in so many names begins a piece, whatever stands before it
ENOUGH = 16 << 10  # bytes of a piece that ends with its last name
Row = list[str]


def pieces(known: Known) -> Iterator[bytes]:
    """The records, each piece large enough for a blob and small enough for one; the same for the same images."""
    held, last = b"", ""
    for kind, name, line in _lines(known):
        begins = name != last and (crc32(name.encode()) % SHARE[kind] == 0 or len(held) >= ENOUGH)
        if held and len(held) >= chunks.LEAST and (begins or len(held) + len(line) > chunks.MOST):
            yield held
            held = b""
        held, last = held + line, name
        while len(held) > chunks.MOST:
            yield held[: chunks.MOST]
            held = held[chunks.MOST :]
    if held:
        yield held


def read(data: bytes) -> Known:
    """What records say; raises Problem for any that is not as they are written."""
    packages: dict[str, Package] = {}
    paths: dict[bytes, Sequence[str]] = {}
    images: dict[Image, Sequence[Package]] = {}
    try:
        lines = data.decode().split("\n")
        if lines.pop():
            raise ValueError("its last line has no end")
        for line in lines:
            kind, row, rest = json.loads(line)
            if kind == "package" and not images:
                package = _package(row)
                packages[_name(row)] = package
                if rest:
                    paths[package.digest] = _texts(rest)
            elif kind == "image":
                images[Image(*_texts(row))] = [packages[name] for name in _names(rest)]
            else:
                raise ValueError(f"{ascii(kind)[:40]} has no place")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise Problem(f"the depot's catalogue is malformed: {ascii(str(error))[1:200]}") from error
    return Known(images, paths)


def _lines(known: Known) -> Iterator[tuple[str, str, bytes]]:
    """Kind, name and line of each record, in order."""
    names: dict[Package, str] = {}
    for package in sorted({package for held in known.images.values() for package in held}):
        row = [*package[:-1], package.digest.hex()]
        names[package] = _name(row)
        paths = known.paths.get(package.digest, ()) if package.digest != catalogue.UNKNOWN else ()
        yield "package", package.name, _line("package", row, sorted(paths))
    if len(set(names.values())) != len(names):
        raise Problem("two packages of the catalogue are named alike", "somebody tried for long to make them so")
    for image in sorted(known.images):
        held = "".join(names[package] for package in sorted(set(known.images[image])))
        yield "image", image.name, _line("image", [*image], held)


def _line(*columns: Any) -> bytes:
    return (json.dumps(columns, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _name(row: Row) -> str:
    return sha256(json.dumps(row, ensure_ascii=False).encode()).hexdigest()[:NAMED]


def _names(text: str) -> Iterator[str]:
    return (text[at : at + NAMED] for at in range(0, len(text), NAMED))


def _package(row: Row) -> Package:
    *words, digest = _texts(row)
    raw = bytes.fromhex(digest)
    if len(raw) != len(catalogue.UNKNOWN):
        raise ValueError(f"{digest[:80]} is no sha256")
    return Package._make([*words, raw])


def _texts(found: object) -> list[str]:
    if not isinstance(found, list):
        raise TypeError(f"{ascii(found)[:80]} is no list")
    return [catalogue.text(one) for one in found]
