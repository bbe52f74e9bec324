"""Catalogue: which images hold which packages, and which packages which files: one file, searched as it is.

A package that a thousand images hold is written once, and beside it the numbers of those images; so the file is small
without being compressed: its bytes depend on no compressor, and it cannot be a bomb. Whatever it says was written by
whoever published it: every number that is used is checked.

The file is MAGIC, each of SECTIONS as its length (8 bytes, little-endian) and bytes, and the sha256 of all before.
Texts are sorted and ended by line ends; everything else is columns of 32 bits that name them by their number.
"""

import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any, NamedTuple

from imagekit.errors import Problem

MAGIC = b"imagekit catalogue 1\n"
SECTIONS = ("texts", "packages", "digests", "images", "starts", "holders", "paths", "path_starts", "owners")
LARGEST = 1 << 29  # bytes
LONGEST = 4096  # bytes of a text, as PATH_MAX
UNKNOWN = bytes(32)  # of a package whose manifest names no digest
HOW = "make it again with `imagekit search`"


class Package(NamedTuple):
    """A package as manifests list it; "" for what they do not say."""

    name: str
    version: str
    architecture: str
    source: str  # a plug in sources/
    origin: str  # its source package
    origin_version: str
    licence: str
    digest: bytes = UNKNOWN  # what its files are found by: of the bytes that were fetched, or else of its tree


class Image(NamedTuple):
    """An image that the catalogue knows."""

    name: str
    version: str
    arch: str
    format: str
    suite: str
    place: str  # where it lies: a manifest's path, or what a depot calls it
    mark: str  # which state of that was read
    digest: str  # sha256 of its manifest


class Known(NamedTuple):
    """What a catalogue is made of."""

    images: Mapping[Image, Sequence[Package]]
    paths: Mapping[bytes, Sequence[str]]  # digest of a package -> its files


def packages(manifest: Mapping[str, Any]) -> tuple[Package, ...]:
    """The packages that a manifest lists, each once; raises Problem where it does not list them as it should."""
    rows = manifest.get("packages")
    if not isinstance(rows, list):
        raise Problem("the manifest lists no packages")
    return tuple(sorted({_package(row) for row in rows}))


def image(manifest: Mapping[str, Any], *, place: str, mark: str, digest: str) -> Image:
    """An image by its manifest."""
    words = [text(manifest.get(name, "")) for name in ("name", "version", "arch", "format", "suite")]
    return Image._make([*words, text(place), text(mark), text(digest)])


def write(known: Known) -> bytes:
    """The catalogue as bytes: the same for the same images and paths, in whatever order they came."""
    images = sorted(known.images)
    rows = sorted({package for held in known.images.values() for package in held})
    texts = sorted({word for row in rows for word in row[:-1]} | {word for one in images for word in one})
    number = {text: at for at, text in enumerate(texts)}
    held_by: dict[Package, list[int]] = {row: [] for row in rows}
    for at, one in enumerate(images):
        for row in set(known.images[one]):
            held_by[row].append(at)
    starts, holders = _joined(held_by.values())
    owners: dict[str, list[int]] = {}
    for at, row in enumerate(rows):
        for path in known.paths.get(row.digest, ()) if row.digest != UNKNOWN else ():
            owners.setdefault(text(path), []).append(at)
    path_starts, owned = _joined(owners[path] for path in sorted(owners))
    sections = {
        "texts": _lines(texts),
        "packages": _columns([[number[word] for word in row[:-1]] for row in rows]),
        "digests": b"".join(row.digest for row in rows),
        "images": _columns([[number[word] for word in one] for one in images]),
        "starts": starts,
        "holders": holders,
        "paths": _lines(sorted(owners)),
        "path_starts": path_starts,
        "owners": owned,
    }
    body = MAGIC + b"".join(len(sections[name]).to_bytes(8, "little") + sections[name] for name in SECTIONS)
    return body + sha256(body).digest()


@dataclass(frozen=True)
class Catalogue:
    """A catalogue to be asked; each part is read when it is needed."""

    sections: Mapping[str, memoryview]

    @cached_property
    def texts(self) -> list[str]:
        """Every text, by its number."""
        return _unlined(self.sections["texts"])

    @cached_property
    def _rows(self) -> "_Table":
        return _Table(self.sections["packages"], len(Package._fields) - 1, self.texts)

    @cached_property
    def _images(self) -> "_Table":
        return _Table(self.sections["images"], len(Image._fields), self.texts)

    @cached_property
    def _holders(self) -> "_Lists":
        return _Lists(self.sections["starts"], self.sections["holders"], len(self._rows), len(self._images))

    @cached_property
    def _owners(self) -> "_Lists":
        paths = self.sections["paths"]
        return _Lists(self.sections["path_starts"], self.sections["owners"], _count(paths), len(self._rows))

    def __len__(self) -> int:
        return len(self._images)

    def numbers(self, column: str) -> Sequence[int]:
        """The numbers of the texts in a column of the packages, in their order."""
        return self._rows.columns[Package._fields.index(column)]

    def package(self, row: int) -> Package:
        """The package in a row."""
        return Package._make([*self._rows.row(row), self.digest(row)])

    def digest(self, row: int) -> bytes:
        """What its files are found by."""
        digest = bytes(self.sections["digests"][row * 32 : row * 32 + 32])
        if len(digest) != 32:
            raise _damaged("a package has no digest")
        return digest

    def image(self, number: int) -> Image:
        """An image by its number."""
        return Image(*self._images.row(number))

    def images(self) -> list[Image]:
        """Every image."""
        return [self.image(number) for number in range(len(self))]

    def holders(self, row: int) -> Sequence[int]:
        """The numbers of the images that hold a package."""
        return self._holders.at(row)

    def owners(self, path: int) -> Sequence[int]:
        """The packages that have a file, by its path's number."""
        return self._owners.at(path)

    @cached_property
    def paths(self) -> bytes:
        """Every path, ended by a line end, after one line end."""
        return b"\n" + bytes(self.sections["paths"])

    @cached_property
    def listed(self) -> set[int]:
        """The packages whose files are known."""
        return set(self._owners.values)

    def known(self) -> Known:
        """All that it says, to write another from."""
        rows = [self.package(row) for row in range(len(self._rows))]
        images: dict[Image, list[Package]] = {one: [] for one in self.images()}
        numbered = list(images.values())
        if len(numbered) != len(self):
            raise _damaged("an image is there twice")
        for at, row in enumerate(rows):
            for number in self.holders(at):
                numbered[number].append(row)
        paths: dict[bytes, list[str]] = {}
        for number, path in enumerate(_unlined(self.sections["paths"])):
            for digest in {rows[owner].digest for owner in self.owners(number)}:
                paths.setdefault(digest, []).append(path)
        return Known(images, paths)


def read(data: bytes) -> Catalogue:
    """The catalogue that these bytes are; raises Problem for bytes that are cut, damaged or something else."""
    if len(data) > LARGEST:
        raise Problem(f"a catalogue of {len(data)} bytes is larger than one can be")
    if not data.startswith(MAGIC):
        raise Problem("that is no catalogue of imagekit's", HOW)
    body, seal = memoryview(data)[:-32], data[-32:]
    if sha256(body).digest() != seal:
        raise _damaged("its sha256 does not fit")
    sections, at = dict[str, memoryview](), len(MAGIC)
    for name in SECTIONS:
        size = int.from_bytes(body[at : at + 8], "little")
        sections[name] = body[at + 8 : at + 8 + size]
        at += 8 + size
        if at > len(body):
            raise _damaged(f"{name} is cut")
    if at != len(body):
        raise _damaged("something follows it")
    return Catalogue(sections)


class _Table:
    """Columns of numbers of texts."""

    def __init__(self, data: memoryview, width: int, texts: Sequence[str]) -> None:
        numbers = _numbers(data)
        if len(numbers) % width:
            raise _damaged("a row is cut")
        self._length = len(numbers) // width
        self.columns = [numbers[at * self._length : (at + 1) * self._length] for at in range(width)]
        self._texts = texts
        if numbers and max(numbers) >= len(texts):
            raise _damaged("a row names a text that is not there")

    def __len__(self) -> int:
        return self._length

    def row(self, number: int) -> list[str]:
        return [self._texts[column[number]] for column in self.columns]


class _Lists:
    """A list of numbers for each of `count` things, one after the other."""

    def __init__(self, starts: memoryview, values: memoryview, count: int, limit: int) -> None:
        self._starts, self.values = _numbers(starts), _numbers(values)
        if len(self._starts) != count + 1 or self._starts[-1] != len(self.values):
            raise _damaged("its lists do not fit what they belong to")
        if self.values and max(self.values) >= limit:
            raise _damaged("a list names what is not there")

    def at(self, number: int) -> Sequence[int]:
        first, end = self._starts[number], self._starts[number + 1]
        found = self.values[first:end]
        if first > end or sorted(set(found)) != found.tolist():
            raise _damaged("a list is not in order")
        return found


def _package(row: object) -> Package:
    if not isinstance(row, dict):
        raise Problem("the manifest lists a package that is no object")
    origin = row.get("origin") or ("", "")
    if not isinstance(origin, list | tuple) or len(origin) != 2:
        raise Problem(f"the manifest's origin {ascii(origin)[:80]} is no name and version")
    words = [text(row.get(name, "")) for name in ("name", "version", "architecture")]
    if not words[0] or not words[1]:
        raise Problem("the manifest lists a package without a name or version")
    source = text(row.get("source", "debian"))  # older manifests had no other
    digest = row.get("sha256") or row.get("digest") or ""
    try:
        raw = bytes.fromhex(digest)
    except (ValueError, TypeError):
        raw = b""
    rest = [source, *map(text, origin), text(row.get("licence") or ""), raw if len(raw) == 32 else UNKNOWN]
    return Package._make([*words, *rest])


def text(value: object) -> str:
    """A text that is one line and no terminal's command."""
    if not isinstance(value, str) or len(value) > LONGEST or not value.isprintable():
        raise Problem(f"{ascii(value)[:80]} is no text for a catalogue")
    return value


def _lines(texts: Iterable[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


def _unlined(data: memoryview) -> list[str]:
    try:
        texts = bytes(data).decode().split("\n")
    except UnicodeDecodeError as error:
        raise _damaged("a text is not UTF-8") from error
    if texts.pop():
        raise _damaged("a text is cut")
    if not "".join(texts).isprintable():
        raise _damaged("a text has what no text has")
    return texts


def _count(lines: memoryview) -> int:
    return bytes(lines).count(b"\n")


def _joined(lists: Iterable[Sequence[int]]) -> tuple[bytes, bytes]:
    starts, values = [0], array("I")
    for one in lists:
        values.extend(one)
        starts.append(len(values))
    return _packed(array("I", starts)), _packed(values)


def _columns(rows: Sequence[Sequence[int]]) -> bytes:
    return _packed(array("I", [number for column in zip(*rows, strict=True) for number in column]))


def _packed(numbers: "array[int]") -> bytes:
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


def _numbers(data: memoryview) -> "array[int]":
    if len(data) % 4:
        raise _damaged("a number is cut")
    numbers = array("I")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _damaged(why: str) -> Problem:
    return Problem(f"the catalogue is damaged: {why}", HOW)
