"""Plain packages of your own: "package:vendor/hello_1.0_x86_64.ikp", as `imagekit package build` makes them.

The file lies beside the definition. It is taken if your own key signed it, or the one that `key=vendor/them.pub` names,
beside the definition too; the lock keeps that key, and every build verifies by it again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from imagekit import kept, options
from imagekit import key as keyring
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.label import ANY
from imagekit.package import BESIDE, Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _beside
from imagekit.store import Store

OPTIONS = ("key",)
NOTE = "own-package"


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """A pin for each file, which is read whole for it."""
    return [
        Resolved(_beside.each_once([_pin(a, request, store) for a in _beside.wanted(request, "package", OPTIONS)]), ())
        for request in requests
    ]


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path) -> list[Package]:
    """The packages of these pins, read from their files if the store lacks them."""
    return _beside.each(pins, progress, lambda pin: _known(pin, store) or _taken(pin, folder, store))


def _pin(asked: _beside.Wanted, request: Request, store: Store) -> Pin:
    from imagekit import plain  # here: a warm build reads no such file

    with _beside.told("package", asked.place):
        path = _beside.path(request.folder, asked.place)
        key = _key(asked.options, request.folder)
        wanted = plain.Asked(architectures=(request.arch, ANY))
        taken = plain.take(path, [key], store=store, asked=wanted)
        made, size = taken.label, path.stat().st_size
        place = _beside.path_with(asked.place, {"key": taken.by.public.hex(), "number": taken.by.number.hex()})
        pin = Pin("package", "package", made.name, made.version, made.architecture, size, taken.sha256, BESIDE, place)
        kept.remember(NOTE, _beside.key("1", pin), taken.columns, store)
    return pin


def _key(given: Mapping[str, str], folder: Path) -> Key:
    if "key" in given:
        return keyring.read(_beside.path(folder, given["key"]))
    return keyring.read(Path(options.lookup("key", None, default=keyring.default_path())))


def _known(pin: Pin, store: Store) -> Package | None:
    columns = kept.load(NOTE, _beside.key("1", pin), store)
    return kept.package(columns, store) if columns else None


def _taken(pin: Pin, folder: Path, store: Store) -> Package:
    from imagekit import plain

    place, about = _beside.split(pin)
    try:
        key = Key(bytes.fromhex(about["number"]), bytes.fromhex(about["key"]))
    except (KeyError, ValueError):
        raise Problem(f"the lock has the malformed path {pin.path!r}", "write it again with `imagekit lock`") from None
    asked = plain.Asked(pin.name, pin.version, (pin.architecture,), pin.sha256)
    taken = plain.take(_beside.path(folder, place), [key], store=store, asked=asked)
    kept.remember(NOTE, _beside.key("1", pin), taken.columns, store)
    return kept.package(taken.columns, store)


SOURCE = Source(resolve=resolve, packages=packages, check=_beside.check_files, inputs=_beside.files)
