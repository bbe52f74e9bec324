"""A tar, plain or packed: "tarball:vendor/app.tar.gz prefix=/opt/app strip=1", or an address with its sha256.

"tarball:https://example.org/app-1.0.tar.xz sha256=... strip=1 prefix=/opt/app" is fetched when it is locked and kept;
whatever the server holds later, only these bytes are taken. Everything belongs to root, nothing is setuid, nobody else
may write it; links that lead out of the folder it is laid out in are refused.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from imagekit import kept
from imagekit.errors import Problem
from imagekit.package import BESIDE, URL, Gone, Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _beside, _foreign, _packed, _placed
from imagekit.store import Store

if TYPE_CHECKING:
    from imagekit.download import Line

OPTIONS = ("sha256", "strip", "prefix", "name", "version")
SUFFIX = re.compile(r"(\.tar)?(\.(gz|xz|zst|bz2))?\Z|\.t(gz|xz|zst|bz2)\Z")
ZIP = b"PK\3\4"
SHA256 = re.compile(r"[0-9a-f]{64}\Z")


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """A pin for each archive; what has an address is fetched once."""
    return [
        Resolved(
            _beside.each_once([_pin(a, request.folder, store) for a in _beside.wanted(request, "tarball", OPTIONS)]), ()
        )
        for request in requests
    ]


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path) -> list[Package]:
    """The packages of these pins, each laid out once."""

    def made(pin: Pin) -> Package:
        return _placed.load(pin, store) or _laid_out(pin, _bytes(pin, folder, store), store)

    return _beside.each(pins, progress, made)


def _pin(asked: _beside.Wanted, folder: Path, store: Store) -> Pin:
    is_address = "://" in asked.place
    with _beside.told("tarball", asked.place):
        wanted = _sha256(asked.options, is_address=is_address)
        strip, prefix = _strip(asked.options), _beside.prefix(asked.options)
        file = (urlsplit(asked.place).path if is_address else asked.place).rpartition("/")[2]
        name, version = _beside.about(asked.options, SUFFIX.sub("", file, count=1))
        if is_address:
            digest, data = wanted, _fetched(asked.place, wanted, store)
        else:
            digest, data = _read(asked.place, wanted, folder, store)
        path = _beside.path_with(asked.place, {"prefix": prefix or "/", "strip": str(strip)})
        archive = URL if is_address else BESIDE
        pin = Pin("package", "tarball", name, version, "all", len(data), digest, archive, path)
        _laid_out(pin, data, store)
    return pin


def _laid_out(pin: Pin, data: bytes, store: Store) -> Package:
    if data.startswith(ZIP):
        raise Problem("it is a zip archive, not a tar", "pack it again with tar; a wheel is for wheel:")
    options = _beside.split(pin)[1]
    rows: dict[str, kept.Row] = {}
    notes: list[str] = []
    style = _foreign.Style(_strip(options), _beside.prefix(options))
    blob = store.write(_foreign.contents(_packed.unpacked(data), rows, notes, style=style))
    return _placed.keep(_placed.Laid(rows, blob, tuple(notes)), pin, store)


def _read(place: str, wanted: str, folder: Path, store: Store) -> tuple[str, bytes]:
    digest = store.write(_beside.pieces(folder, place))
    if wanted and digest != wanted:
        raise Problem(f"its sha256 is {digest}, not the one that is written", "is it the right file?")
    return digest, store.read(digest)


def _bytes(pin: Pin, folder: Path, store: Store) -> bytes:
    if pin.archive == BESIDE:
        return _beside.data(pin, folder, store)
    return _fetched(_beside.split(pin)[0], pin.sha256, store)


def _fetched(url: str, wanted: str, store: Store) -> bytes:
    """The bytes of this sha256, from the store, else from the server through the store."""
    from imagekit import download

    _beside.check_address(url)
    try:
        return store.read(wanted)
    except KeyError:
        pass

    def take(line: "Line", url: str) -> str:
        return download.take(line, url, _beside.MAX_BYTES, algorithm="sha256", digest=wanted, store=store)

    try:
        download.each(take, [url])
    except download.Missing as missing:
        hint = "name another address that has the same bytes: the sha256 may stay as it is"
        raise Gone(f"the server has no such file: {missing.message}", hint) from missing
    return store.read(wanted)


def _sha256(options: Mapping[str, str], *, is_address: bool) -> str:
    written = options.get("sha256", "")
    if is_address and not written:
        raise Problem("an address needs sha256=...", "whoever answers there may answer something else tomorrow")
    if written and not SHA256.match(written):
        raise Problem(f"sha256={written} is no sha256", "write the 64 digits that sha256sum prints")
    return written


def _strip(options: Mapping[str, str]) -> int:
    written = options.get("strip", "0")
    if written not in map(str, range(10)):
        raise Problem(f"strip={written} is no number of leading folders", "0 to 9; strip=1 takes off the first")
    return int(written)


SOURCE = Source(resolve=resolve, packages=packages, check=_beside.check_files, inputs=_beside.files)
