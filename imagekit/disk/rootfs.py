"""The members of a root, however a format packed it: as one .tar.gz, or as a tar of layers that are one each."""

import json
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from imagekit.disk import untar
from imagekit.errors import Problem
from imagekit.tree import Entry

STEP = 1 << 20
GZIP = b"\x1f\x8b"


def members(handle: int) -> Iterator[tuple[str, Entry]]:
    """Every member with its bytes, layer after layer; folders may come again. Raises Problem for what is not ours."""
    if os.pread(handle, 2, 0) == GZIP:
        yield from untar.members(_inflated(_pieces(handle)))
        return
    files = {path: entry.content for path, entry in untar.members(_pieces(handle)) if entry.kind == "file"}
    held = {path: data for path, data in files.items() if isinstance(data, bytes)}
    try:
        stack = _docker(held) if "/manifest.json" in held else _oci(held)
    except (LookupError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise Problem(f"the archive is no container image of ours: {type(error).__name__}: {error}") from error
    for layer in stack:
        yield from untar.members(_inflated([layer]))


def _docker(files: Mapping[str, bytes]) -> list[bytes]:
    return [files[f"/{name}"] for name in json.loads(files["/manifest.json"])[0]["Layers"]]


def _oci(files: Mapping[str, bytes]) -> list[bytes]:
    def blob(descriptor: Mapping[str, Any]) -> bytes:
        return files["/blobs/" + descriptor["digest"].replace(":", "/")]

    manifest = json.loads(blob(json.loads(files["/index.json"])["manifests"][0]))
    return [blob(layer) for layer in manifest["layers"]]


def _pieces(handle: int) -> Iterator[bytes]:
    at = 0
    while data := os.pread(handle, STEP, at):
        at += len(data)
        yield data


def _inflated(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The tar in a .tar.gz of one member, a MiB at a time."""
    packer, rest = zlib.decompressobj(wbits=31), iter(pieces)
    while not packer.eof:
        data = packer.unconsumed_tail or next(rest, b"")
        if not data:
            raise Problem("the compressed archive is cut short")
        yield packer.decompress(data, STEP)
    if packer.unused_data or next(rest, b""):
        raise Problem("something follows the end of the compressed archive")
