"""Packages of Debian: resolved like apt from signed metadata, fetched as pinned, converted once, scripts never run.

A suite is taken with its updates and its security archive. Of its components `main` is all that is looked into; only
for a request that wants firmware non-free-firmware is, and nothing else is taken from there. Where the mirror is:
imagekit/mirror.py.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cache, partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from imagekit import arch as arches
from imagekit import host, mirror
from imagekit.errors import Problem
from imagekit.package import Archive, Gone, Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _deb
from imagekit.store import Store

if TYPE_CHECKING:  # at run time only where they are used: a warm build asks nobody
    from imagekit.download import Line
    from imagekit.sources._index import Candidate
    from imagekit.sources._resolver import Universe

ROLLING = ("sid", "unstable", "experimental")  # they have neither updates nor a security archive


class Part(NamedTuple):
    """One suite of an archive, and the suite of the request that it belongs to."""

    suite: str
    archive: str
    name: str


class Wanted(NamedTuple):
    """Packages that are asked for as a whole: of a suite, for one of Debian's architectures, in a component."""

    suite: str
    arch: str
    component: str


class Tally:
    """How much of all that is needed has come, told to whoever shows it; threads take turns."""

    def __init__(self, progress: Progress, size: int) -> None:
        self._progress = progress
        self._size = size
        self._done = 0
        self._lock = Lock()

    def add(self, what: str, size: int) -> None:
        """So many bytes more; fewer, when a try was for nothing."""
        with self._lock:
            self._done += size
            self._progress(what, self._done, self._size)


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """What each request comes to, as its suite is now; the metadata is fetched and verified once for all of them."""
    universes, archives = _metadata(sorted({wanted for request in requests for wanted in _wanted(request)}), store)
    return [
        Resolved(_pins(request, *(universes[wanted] for wanted in _wanted(request))), archives[request.suite])
        for request in requests
    ]


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path = Path()) -> list[Package]:
    """The packages of these pins; fetched and converted if the store lacks them, and no network is asked if not."""
    _ = folder  # nothing of Debian's lies beside a definition
    found = {pin.sha256: _deb.load(pin.sha256, store) for pin in pins}
    lacking = {pin.sha256: pin for pin in pins if found[pin.sha256] is None}
    if lacking:
        found |= _obtained(lacking.values(), store, progress)
    return [_checked(found[pin.sha256], pin) for pin in pins]


def files(pins: Sequence[Pin], store: Store, progress: Progress) -> None:
    """Bring the packages of these pins into a store, just as the archive has them."""
    from imagekit import download

    place, tally = cache(mirror.find), Tally(progress, sum(pin.size for pin in pins))

    def one(line: "Line", pin: Pin) -> None:
        _bytes(line, place, pin, store, tally)

    download.each(one, pins)


def _wanted(request: Request) -> tuple[Wanted, ...]:
    """What a request is resolved in: main, and non-free-firmware where its definition opted in."""
    from imagekit.sources._archive import FIRMWARE_COMPONENT, MAIN_COMPONENT

    components = (MAIN_COMPONENT, FIRMWARE_COMPONENT) if request.firmware else (MAIN_COMPONENT,)
    arch = arches.arch(request.arch).debian
    return tuple(Wanted(request.suite, arch, component) for component in components)


def _metadata(
    wanted: Sequence[Wanted], store: Store
) -> tuple[dict[Wanted, "Universe"], dict[str, tuple[Archive, ...]]]:
    """All packages of what is wanted; for each suite the archives that say so."""
    from imagekit import download
    from imagekit.sources import _archive
    from imagekit.sources._resolver import Universe

    place, keyring = mirror.find(), mirror.keyring()
    parts = [part for suite in sorted({one.suite for one in wanted}) for part in _parts(suite)]
    asked = download.each(
        lambda line, part: _archive.fetch_release(line, place, part.archive, part.name, keyring=keyring, store=store),
        parts,
    )
    releases = dict(zip(parts, asked, strict=True))
    jobs = [(one, part) for one in wanted for part in _parts(one.suite)]
    read = download.each(
        lambda line, job: _archive.fetch_index(
            line, place, releases[job[1]], job[0].arch, store=store, component=job[0].component
        ),
        jobs,
    )
    indices = dict(zip(jobs, read, strict=True))
    universes = {one: Universe([indices[one, part] for part in _parts(one.suite)], one.suite) for one in wanted}
    return universes, {
        suite: tuple(releases[part].archive for part in _parts(suite)) for suite in {one.suite for one in wanted}
    }


def _parts(suite: str) -> tuple[Part, ...]:
    main = Part(suite, mirror.MAIN, suite)
    if suite in ROLLING:
        return (main,)
    return main, Part(suite, mirror.MAIN, f"{suite}-updates"), Part(suite, mirror.SECURITY, f"{suite}-security")


def _pins(request: Request, universe: "Universe", firmware: "Universe | None" = None) -> tuple[Pin, ...]:
    """A pin for each package that is needed; one that is needed twice is a package first, then init, then boot."""
    from imagekit.sources import _resolver

    chosen = _resolver.solve(universe, request.packages, request.without)
    pins = {name: _pin("package", choice.candidate) for name, choice in chosen.items()}
    for role, name in (*(("init", name) for name in request.init), *(("boot", name) for name in request.boot)):
        candidate = universe.candidate(name)
        if candidate is None:
            raise universe.no_such(name)
        pins.setdefault(name, _pin(role, candidate))
    if firmware:
        pins |= {name: _pin("firmware", _firmware(name, firmware, universe)) for name in request.firmware}
    if request.kernel:
        kernel = _resolver.kernel(universe, request.kernel, arches.arch(request.arch).debian)
        pins[kernel.name] = _pin("kernel", kernel)
    return tuple(pins[name] for name in sorted(pins))


def _firmware(name: str, firmware: "Universe", main: "Universe") -> "Candidate":
    """A package of non-free-firmware; raises Problem for any other, which needs no opting in."""
    candidate = firmware.candidate(name)
    if candidate is None and main.candidate(name):
        raise Problem(
            f"firmware: {name!r} is in Debian's main, not in non-free-firmware", f"packages=('debian:{name}',)"
        )
    if candidate is None:
        problem = firmware.no_such(name)
        raise Problem(f"firmware: {problem.message} in non-free-firmware", problem.hint)
    return candidate


def _pin(role: str, of: "Candidate") -> Pin:
    return Pin(role, "debian", of.name, of.version, of.architecture, of.size, of.sha256, of.archive, of.path)


def _obtained(lacking: Collection[Pin], store: Store, progress: Progress) -> dict[str, Package]:
    """The packages of these pins by digest, each made once however many processes ask; the largest first."""
    from imagekit import download

    place = cache(mirror.find)  # asked for only if something must be fetched
    tally = Tally(progress, sum(pin.size for pin in lacking))
    locks = store.folder("locks")

    def obtain(line: "Line", pin: Pin) -> Package:
        with host.once(locks, f"debian-{pin.name.replace('/', '-')}"):
            made = _deb.load(pin.sha256, store)
            return made or _convert(_bytes(line, place, pin, store, tally), pin, store)

    largest_first = sorted(lacking, key=lambda pin: -pin.size)
    made = download.each(obtain, largest_first)
    return {pin.sha256: package for pin, package in zip(largest_first, made, strict=True)}


def _bytes(line: "Line", place: Callable[[], mirror.Mirror], pin: Pin, store: Store, tally: Tally) -> bytes:
    """The bytes of a pin, from the store if it has them, else through it from the mirror, or from a depot."""
    from imagekit import download

    try:
        data = store.read(pin.sha256)
        tally.add(pin.name, pin.size)
    except KeyError:
        address, beat = place().address(pin.archive), partial(tally.add, pin.name)
        try:
            download.fetch(line, address, pin.path, size=pin.size, digest=pin.sha256, store=store, beat=beat)
        except Gone as gone:
            from imagekit.sources import _dropped

            _dropped.bring(pin, store, beat, gone)
        data = store.read(pin.sha256)
    return data


def _convert(data: bytes, pin: Pin, store: Store) -> Package:
    try:
        return _deb.convert(data, pin.sha256, store)
    except Problem as problem:
        raise type(problem)(f"{pin.name} {pin.version}: {problem.message}", problem.hint) from problem


def _checked(package: Package | None, pin: Pin) -> Package:
    """The package, if it is what its pin calls it."""
    assert package is not None
    if (package.name, package.version, package.architecture) != (pin.name, pin.version, pin.architecture):
        raise Problem(
            f"the lock calls {package.name} {package.version} {package.architecture} by another name: "
            f"{pin.name} {pin.version} {pin.architecture}",
            "write the lock again with `imagekit lock`",
        )
    return package


SOURCE = Source(resolve=resolve, packages=packages, files=files)
