"""What a depot says of one image: its files, and the blobs that they are made of. The index answers for these bytes.

Canonical JSON, so that the same image is the same file. Who reads one has verified it by the index, and still trusts
none of its numbers and names: they were written by whoever may publish.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from imagekit import strict
from imagekit.artifact import FILE_NAME
from imagekit.depot import chunks
from imagekit.depot.chunks import Listing
from imagekit.errors import Problem
from imagekit.site import checked_digest, checked_path

KIND = "imagekit-depot"
VERSION = 1
LARGEST = 1 << 20  # bytes
MOST_FILES = 64
LARGEST_FILE = 1 << 46  # bytes
NAMES = ("name", "version", "arch", "format")


class File(NamedTuple):
    """A file of an image."""

    name: str
    size: int
    sha256: str
    listing: Listing


class Head(NamedTuple):
    """An image in a depot."""

    name: str
    version: str
    arch: str
    format: str
    files: tuple[File, ...]

    @property
    def path(self) -> str:
        """What the index calls it."""
        return path_of(self.name, self.version, self.arch, self.format)

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(file.size for file in self.files)


def path_of(name: str, version: str, arch: str, format: str) -> str:
    """What the index calls an image; raises Problem where that is no path."""
    return checked_path(f"images/{name}/{version}/{arch}/{format}")


def stored_at(path: str, digest: str) -> str:
    """Where a file of the index lies: its name carries its digest, so that old and new ones lie side by side."""
    folder, _, name = checked_path(path).rpartition("/")
    return f"targets/{folder}/{checked_digest(digest)}.{name}"


def write(head: Head) -> bytes:
    """The head as bytes."""
    found: dict[str, Any] = {KIND: VERSION, **{name: getattr(head, name) for name in NAMES}}
    found["files"] = list(map(_described, head.files))
    return _text(found)


def write_file(kind: str, version: int, file: File) -> bytes:
    """A file that is no image's as bytes."""
    return _text({kind: version, **_described(file)})


def read_file(kind: str, version: int, data: bytes) -> File:
    """The file that these bytes are; raises Problem for another kind, or another version of it."""
    found = strict.parse(data, what=f"the depot's {kind}", limit=LARGEST)
    if found.get(kind) != version:
        raise Problem(f"the depot's {kind} is not of a form that this imagekit reads", "another imagekit may")
    return _file(found)


def read(data: bytes, *, asked: Mapping[str, str]) -> Head:
    """The head that these bytes are; raises Problem for one of another image than was asked for."""
    found = strict.parse(data, what="the image's entry in the depot", limit=LARGEST)
    if found.get(KIND) != VERSION:
        raise Problem("the depot has an entry that this imagekit does not read", "a newer imagekit may")
    for name in NAMES:
        if found.get(name) != asked[name]:
            raise Problem(f"the depot gave {name} {ascii(found.get(name))[:80]}, where {asked[name]} was asked for")
    files = tuple(map(_file, _list(found.get("files"), MOST_FILES)))
    if len({file.name for file in files}) != len(files):
        raise Problem("the depot's entry names a file twice")
    return Head(asked["name"], asked["version"], asked["arch"], asked["format"], files)


def _text(found: Mapping[str, Any]) -> bytes:
    return (json.dumps(found, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _described(file: File) -> Mapping[str, Any]:
    blobs = [[entry.blob.digest, entry.blob.size, entry.size] for entry in file.listing.entries]
    return {"file": file.name, "size": file.size, "sha256": file.sha256, "depth": file.listing.depth, "blobs": blobs}


def _file(found: object) -> File:
    if not isinstance(found, dict):
        raise Problem("the depot's entry has a file without a name")
    name, size = found.get("file"), found.get("size")
    if not isinstance(name, str) or not FILE_NAME.match(name):
        raise Problem(f"the depot's entry has a file {ascii(name)[:80]}, which is no name of one")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= LARGEST_FILE:
        raise Problem(f"the depot's entry has a file of {ascii(size)[:40]} bytes")
    lists = [list(_list(blob, 3)) for blob in _list(found.get("blobs"), chunks.TOP)]
    entries = tuple(chunks.entry(*(one if len(one) == 3 else (None, None, None))) for one in lists)
    return File(
        name, size, checked_digest(found.get("sha256")), Listing(chunks.checked_depth(found.get("depth")), entries)
    )


def _list(found: object, most: int) -> Iterable[Any]:
    if not isinstance(found, list) or len(found) > most:
        raise Problem(f"the depot's entry is malformed: {ascii(found)[:80]} is no list of at most {most}")
    return found
