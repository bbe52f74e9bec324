"""Supply: what an image asks its sources of packages for, the lock that pins the answers, and what is fetched by it."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path

from imagekit import assets, early, host, offer, plugs
from imagekit import lock as locks
from imagekit.arch import arch as arch_named
from imagekit.errors import Problem
from imagekit.image import Image
from imagekit.lock import Lock
from imagekit.package import Package, Pin, Request, Source
from imagekit.store import Store

Say = Callable[[str], None]
PYTHON = re.compile(r"(?:lib)?python(3\.\d+)(?:-minimal|-stdlib)?\Z")  # Debian's names of a Python
FOUND_OUT = ("folder", "python")  # of a request, what is no wish of the definition


def quiet(line: str) -> None:
    """Say nothing."""
    _ = line


def read_lock(definition: Path) -> Lock:
    """The lock beside a definition."""
    return locks.read(locks.beside(definition))


def write_lock(image: Image, path: Path, *, store: Store, say: Say = quiet, tell: Say = quiet) -> Lock:
    """Resolve an image against its archives as they are now, and write the lock beside its definition.

    tell: what is worth knowing of what was found, a line each.
    """
    check_protection(image)
    say(f"{image.name}: resolving for {', '.join(image.arches)}")
    pins: dict[str, tuple[Pin, ...]] = dict.fromkeys(image.arches, ())
    archives, said = set(), dict[str, None]()
    for name, asked in _requests(image).items():
        source: Source = plugs.load("sources", name)
        known = [r._replace(folder=path.parent, python=_python(pins[r.arch])) for r in asked]
        for request, resolved in zip(known, source.resolve(known, store), strict=True):
            pins[request.arch] += resolved.pins
            archives |= set(resolved.archives)
            said |= dict.fromkeys(resolved.said)
    lock = Lock(_request_digest(image), tuple(sorted(archives)), pins)
    with host.draft(path) as file:
        file.write(lock.text().encode())
    for line in said:
        tell(line)
    return lock


def check_protection(image: Image) -> None:
    """Raise Problem for what cannot be right of how an image is protected."""
    if image.disk.guards:
        from imagekit import hardened  # here: most images have nothing of it

        hardened.check(image)


def check_lock(image: Image, lock: Lock) -> None:
    """Raise Problem when the lock was written for another request than the definition makes now."""
    if lock.request != _request_digest(image):
        raise Problem(
            f"image {image.name!r}: the lock is behind its definition",
            "packages, without, kernel, suite or arches changed since: write it again with `imagekit lock`",
        )


def check_beside(lock: Lock, arch: str, *, folder: Path) -> None:
    """Raise Problem when a package that lies beside the definition is not what was pinned."""
    for source, pins in _by_source(lock.pins.get(arch, ())):
        source.check(pins, folder)


def inputs(lock: Lock, *, folder: Path) -> list[Path]:
    """The files and folders beside the definition that packages come from."""
    return [
        path for pins in lock.pins.values() for source, own in _by_source(pins) for path in source.inputs(own, folder)
    ]


def licences(lock: Lock, *, store: Store, say: Say = quiet) -> list[str]:
    """A line for each package that is not free: how its licence begins."""
    pins = {pin.sha256: pin for arch in lock.pins for pin in lock.pins[arch] if pin.role == "firmware"}
    found = fetched(tuple(pins.values()), folder=Path(), store=store, say=say)  # firmware comes from archives alone
    return sorted({assets.licence(package) for _, package in found})


def packages(image: Image, lock: Lock, arch: str, *, folder: Path, store: Store, say: Say) -> list[tuple[Pin, Package]]:
    """The packages of one architecture, with their pins."""
    if arch not in lock.pins:
        raise Problem(f"image {image.name!r}: the lock has nothing for {arch}", "write it again with `imagekit lock`")
    return fetched(lock.pins[arch], f"{image.name} {arch}: ", folder=folder, store=store, say=say)


def fetched(pins: Sequence[Pin], who: str = "", *, folder: Path, store: Store, say: Say) -> list[tuple[Pin, Package]]:
    """The packages of these pins, fetched where the store lacks them."""

    def progress(what: str, done: int, total: int) -> None:
        say(f"{who}{what} {done * 100 // max(total, 1)} %")

    found: list[tuple[Pin, Package]] = []
    for source, own in _by_source(pins):
        found += zip(own, source.packages(own, store, progress, folder=folder), strict=True)
    return found


def _by_source(pins: Sequence[Pin]) -> Iterator[tuple[Source, list[Pin]]]:
    for name in sorted({pin.source for pin in pins}):
        yield plugs.load("sources", name), [pin for pin in pins if pin.source == name]


def _requests(image: Image) -> Mapping[str, list[Request]]:
    """What the image asks each source for, one request per architecture; who wants to know of a Python comes last."""
    without = offer.left_out(image)[0]
    kernel_source, _, kernel = image.kernel.partition(":")
    asked = (*image.packages, *image.firmware, *filter(None, [image.kernel]))
    names = {package.partition(":")[0] for package in asked}
    sources = {name: plugs.load("sources", name) for name in names}  # an unknown one is told before anything is fetched
    return {
        name: [
            Request(
                packages=tuple(p.partition(":")[2] for p in image.packages if p.startswith(f"{name}:")),
                kernel=kernel if name == kernel_source else "",
                init=early.INIT_PACKAGES if kernel and name == kernel_source else (),
                without=without,
                suite=image.suite,
                arch=arch_named(arch).name,
                boot=assets.packages(offer.assets(image, arch), arch) if kernel and name == kernel_source else (),
                firmware=_firmware(image, name, arch),
            )
            for arch in image.arches
        ]
        for name in sorted(names, key=lambda name: (sources[name].needs_python, name))
    }


def _firmware(image: Image, source: str, arch: str) -> tuple[str, ...]:
    """What is not free and was asked for all the same, on the architectures that have a format with a use for it."""
    if not assets.take_firmware(offer.assets(image, arch), arch):
        return ()
    return tuple(p.partition(":")[2] for p in image.firmware if p.startswith(f"{source}:"))


def _python(pins: Sequence[Pin]) -> str:
    """The version of the Python among the pins, "3.11"; the highest one of several, "" for none."""
    found = {match[1] for pin in pins if pin.role == "package" and (match := PYTHON.match(pin.name))}
    return max(found, key=lambda version: int(version.partition(".")[2]), default="")


def _request_digest(image: Image) -> str:
    asked = {name: [_asked(request) for request in requests] for name, requests in sorted(_requests(image).items())}
    return sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()


def _asked(request: Request) -> Mapping[str, object]:
    """Without what later versions can ask for and this image does not: a lock outlives the version that wrote it."""
    fields = {k: v for k, v in request._asdict().items() if k not in FOUND_OUT}
    return {k: v for k, v in fields.items() if v or k not in Request._field_defaults}
