"""What lies beside a definition: named without leaving its folder, read once, pinned by its bytes.

Here too is what such a package's options mean, and the part of a pin's path behind "#", which carries them.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from imagekit import arch as arches
from imagekit import kept
from imagekit.errors import Problem
from imagekit.package import BESIDE, Package, Pin, Progress, Request, words
from imagekit.store import Store

MAX_BYTES = 1 << 30  # of one file
PIECE = 1 << 20
LOCK_AGAIN = "bring back what was locked, or write the lock again with `imagekit lock` and look at what changed"
NAME = re.compile(r"[A-Za-z0-9@][A-Za-z0-9+._~@/-]*\Z")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.:~_-]*\Z")


class Wanted(NamedTuple):
    """A package as the definition asks for it."""

    place: str  # beside the definition, or an address
    options: Mapping[str, str]


def wanted(request: Request, source: str, known: Sequence[str]) -> list[Wanted]:
    """What a request asks one of these sources for on its architecture; `arch=` restricts a package to one."""
    if request.kernel or request.firmware:
        raise Problem(f"{source}: brings packages alone, neither kernel nor firmware", "take those from debian:")
    found = []
    for text in request.packages:
        with kept.told(source):
            place, options = words(text, (*known, "arch"))
            only = arches.arch(options.get("arch", request.arch)).name
        if only == request.arch:
            found.append(Wanted(place, {name: value for name, value in options.items() if name != "arch"}))
    return found


def told(source: str, place: str) -> AbstractContextManager[None]:
    """Name the package in whatever Problem there is with it, as the definition does."""
    return kept.told(f"{source}:{place}")


def pinned(source: str, asked: Wanted, package: Package, *, size: int, digest: str, options: Mapping[str, str]) -> Pin:
    """The pin of a package that lies beside the definition."""
    path = path_with(asked.place, options)
    return Pin("package", source, package.name, package.version, package.architecture, size, digest, BESIDE, path)


def each_once(pins: Sequence[Pin]) -> tuple[Pin, ...]:
    """The pins; raises Problem for two of one name, whose files nobody could tell apart."""
    seen: dict[str, Pin] = {}
    for pin in pins:
        old = seen.setdefault(pin.name, pin)
        if old is not pin:
            places = " and ".join(one.path.partition("#")[0] for one in (old, pin))
            raise Problem(f"{pin.source}: two packages are called {pin.name!r}: {places}", "give one of them name=NAME")
    return tuple(pins)


def path_with(place: str, options: Mapping[str, str]) -> str:
    """A pin's path with what else its source must know."""
    more = urlencode(sorted(options.items()), quote_via=quote, safe="/@+,:*")
    return f"{place}#{more}" if more else place


def split(pin: Pin) -> tuple[str, dict[str, str]]:
    """The place of a pin and its options, as the lock has them."""
    place, _, more = pin.path.partition("#")
    try:
        return place, dict(parse_qsl(more, strict_parsing=True, keep_blank_values=True)) if more else {}
    except ValueError:
        raise Problem(f"the lock has the malformed path {pin.path!r}", "write it again with `imagekit lock`") from None


def key(form: str, pin: Pin) -> str:
    """What a conversion is remembered by: all that it depends on."""
    about = (form, pin.name, pin.version, pin.architecture, pin.sha256, pin.path)
    return sha256("\n".join(about).encode()).hexdigest()


def prefix(options: Mapping[str, str]) -> str:
    """The folder of the image that `prefix=` names; "" for its root."""
    written = options.get("prefix", "/")
    parts = written.strip("/").split("/") if written.strip("/") else []
    if not written.startswith("/") or any(part in ("", ".", "..") for part in parts) or not written.isprintable():
        raise Problem(f"prefix={written} is no folder of an image", "write it from the root, prefix=/opt/app")
    return "".join(f"/{part}" for part in parts)


def about(options: Mapping[str, str], name: str) -> tuple[str, str]:
    """Name and version of what states neither: as the options say, else by its file's name, and 0."""
    found = options.get("name", name), options.get("version", "0")
    for what, value, pattern in zip(("name", "version"), found, (NAME, VERSION), strict=True):
        if not pattern.match(value):
            raise Problem(f"{value!r} is no {what} of a package", f"give it one with {what}=")
    return found


def path(folder: Path, place: str) -> Path:
    """Where something beside the definition lies; raises Problem for a place that leads out of its folder."""
    parts = place.split("/")
    if any(part in ("", ".", "..") for part in parts) or not place.isprintable() or "#" in place:
        raise Problem("it is no path beside the definition", "name it relative to the definition's folder, without ..")
    return folder.joinpath(*parts)


def check_address(url: str) -> None:
    """Raise Problem for an address that a lock cannot hold."""
    try:
        parts = urlsplit(url)
        is_right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_right = False
    if not is_right or not re.fullmatch("[!-~]+", url):
        raise Problem("it is no address of http or https", "a path is relative to the definition's folder")
    if parts.query or parts.fragment or parts.username is not None:
        raise Problem("an address with a query, a fragment or credentials is not pinned", "a lock is no place for them")


def pieces(folder: Path, place: str) -> Iterator[bytes]:
    """The bytes of a file beside the definition."""
    with opened(path(folder, place)) as file:
        left = MAX_BYTES
        while piece := file.read(PIECE):
            left -= len(piece)
            if left < 0:
                raise Problem(f"it has more than {MAX_BYTES} bytes")
            yield piece


def opened(place: Path, *, follow: bool = True) -> BinaryIO:
    """A regular file, open for reading; anything else is a Problem. A fifo would be waited for otherwise."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        handle = os.open(place, flags)
    except FileNotFoundError:
        raise Problem("there is no such file", f"it is looked for in {place.parent}") from None
    except OSError as error:
        raise Problem(f"{place.name} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Problem(f"{place.name} is no file")
    return os.fdopen(handle, "rb")


def check_files(pins: Sequence[Pin], folder: Path) -> None:
    """Raise Problem when a file beside the definition is gone, or is not the one that was locked."""
    for pin in pins:
        if pin.archive == BESIDE:
            place = split(pin)[0]
            with told(pin.source, place):
                total = sha256()
                for piece in pieces(folder, place):
                    total.update(piece)
                check_digest(total.hexdigest(), pin)


def check_digest(found: str, pin: Pin) -> None:
    """Raise Problem unless this is the pin's digest."""
    if found != pin.sha256:
        raise Problem("it has changed since it was locked", LOCK_AGAIN)


def files(pins: Sequence[Pin], folder: Path) -> list[Path]:
    """The files beside the definition that these pins name."""
    return [path(folder, split(pin)[0]) for pin in pins if pin.archive == BESIDE]


def data(pin: Pin, folder: Path, store: Store) -> bytes:
    """The bytes of a pin, checked: from the store, else from beside the definition through the store."""
    try:
        return store.read(pin.sha256)
    except KeyError:
        check_digest(store.write(pieces(folder, split(pin)[0])), pin)
        return store.read(pin.sha256)


def each(pins: Sequence[Pin], progress: Progress, make: Callable[[Pin], Package]) -> list[Package]:
    """A package for each pin, one after another; raises Problem for one that its pin calls by another name."""
    made, done, size = [], 0, sum(pin.size for pin in pins)
    for pin in pins:
        with told(pin.source, split(pin)[0]):
            package = make(pin)
            if (package.name, package.version, package.architecture) != (pin.name, pin.version, pin.architecture):
                raise Problem(f"the lock calls {package.name} {package.version} {package.architecture} by another name")
        made.append(package)
        done += pin.size
        progress(pin.name, done, size)
    return made
