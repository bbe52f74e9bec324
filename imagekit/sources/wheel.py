"""Wheels of Python: "wheel:fastapi>=0.115,<0.116" with all it needs, or one that lies beside: "wheel:vendor/x.whl".

Resolved for the image's Python and architecture, whatever machine this is; pinned by sha256, checked file by file
against the wheel's RECORD, laid out below /usr/local, where Debian's Python looks. Nothing of a wheel is ever run.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from imagekit.errors import Problem
from imagekit.package import BESIDE, INDEX, Gone, Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _beside
from imagekit.store import Store

if TYPE_CHECKING:  # at run time only where they are used: a warm build asks nobody
    from packaging.requirements import Requirement

    from imagekit.download import Line
    from imagekit.sources import _metadata, _python, _simple


class Asked(NamedTuple):
    """What a definition wants on an architecture: projects of the index, and files beside it."""

    requirements: "tuple[Requirement, ...]"
    places: tuple[str, ...]


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """A pin for each wheel that an image needs."""
    from imagekit import download

    return download.each(lambda line, request: Resolved(_pins(line, request, store), ()), requests)


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path) -> list[Package]:
    """The packages of these pins; fetched and converted if the store lacks them."""
    from imagekit.sources import _wheel

    found = {pin: _wheel.load(pin.sha256, _python_of(pin), store) for pin in pins}
    lacking = [pin for pin in pins if found[pin] is None]
    if lacking:
        _fetch([pin for pin in lacking if pin.archive == INDEX and not store.has(pin.sha256)], store)
    return _beside.each(pins, progress, lambda pin: found[pin] or _made(pin, folder, store))


def _pins(line: "Line", request: Request, store: Store) -> tuple[Pin, ...]:
    from imagekit.sources import _closure, _python, _simple

    python = _python.of(request.python, request.arch, request.suite)
    asked = _asked(request)
    index = _simple.address() if asked.requirements or asked.places else ""
    given = {place: _given(place, request.folder, python, store) for place in asked.places}
    places = {about.name: place for place, (about, _) in given.items()}

    def files(project: str) -> "list[_simple.File]":
        if project not in places:
            return _simple.files(line, index, project)
        place = places[project]  # there is no other version of it
        return [_simple.File(place.rpartition("/")[2], "", given[place][1], "", is_yanked=False)]

    search = _closure.Index(files, lambda file: _told(line, file, store))
    own = [_closure.requirement(f"{about.name}=={about.version}") for about, _ in given.values()]
    chosen = _closure.solve([*asked.requirements, *own], python, search, without=request.without)
    pins = []
    for of in chosen:
        archive, file = (BESIDE, places[of.project]) if of.project in places else (INDEX, of.file.name)
        pins.append(_pin(of.project, str(of.version), file, of.file.sha256, archive, python, store))
    return _beside.each_once(sorted(pins, key=lambda pin: pin.name))


def _asked(request: Request) -> Asked:
    from imagekit.sources import _closure

    wanted = _beside.wanted(request, "wheel", ())
    places = tuple(one.place for one in wanted if one.place.endswith(".whl") and "@" not in one.place)
    requirements = []
    for one in wanted:
        if one.place not in places:
            with _beside.told("wheel", one.place):
                requirements.append(_closure.requirement(one.place))
    return Asked(tuple(requirements), places)


def _given(
    place: str, folder: Path, python: "_python.Python", store: Store
) -> "tuple[_metadata.About, str]":  # fmt: skip
    """What a wheel beside the definition says of itself, and its sha256."""
    from packaging.utils import canonicalize_name

    from imagekit.sources import _wheel

    with _beside.told("wheel", place):
        digest = store.write(_beside.pieces(folder, place))
        file = place.rpartition("/")[2]
        _wheel.check_fits(_wheel.name(file), file, python)
        about = _wheel.metadata(store.read(digest), file)
    return about._replace(name=canonicalize_name(about.name)), digest


def _told(line: "Line", file: "_simple.File", store: Store) -> "_metadata.About":
    """What a wheel of the index says of itself: it is fetched, for it is about to be wanted anyway."""
    from imagekit.sources import _wheel

    with _beside.told("wheel", file.name):
        return _wheel.metadata(_bytes(line, file, store), file.name)


def _bytes(line: "Line", file: "_simple.File", store: Store) -> bytes:
    from imagekit import download

    try:
        return store.read(file.sha256)
    except KeyError:
        download.take(line, file.url, _beside.MAX_BYTES, algorithm="sha256", digest=file.sha256, store=store)
        return store.read(file.sha256)


def _pin(
    name: str, version: str, file: str, digest: str, archive: str, python: "_python.Python", store: Store
) -> Pin:  # fmt: skip
    from imagekit.sources import _wheel

    about = {"python": python.version, "arch": python.arch, "glibc": str(python.glibc)}
    data = store.read(digest)
    with _beside.told("wheel", file):
        made = _wheel.convert(data, file.rpartition("/")[2], python, digest=digest, store=store)  # what is wrong is
    path = _beside.path_with(file, about)  # told when it is locked, not when it is built
    return Pin("package", "wheel", name, version, made.architecture, len(data), digest, archive, path)


def _python_of(pin: Pin) -> "_python.Python":
    from imagekit.sources import _python

    about = _beside.split(pin)[1]
    arch, glibc = about.get("arch", ""), about.get("glibc", "")
    if arch not in _python.FIRST or not glibc.isdecimal() or len(glibc) > 3:
        raise Problem(f"the lock has the malformed path {pin.path!r}", "write it again with `imagekit lock`")
    return _python.of(about.get("python", ""), arch, "")._replace(glibc=int(glibc))


def _fetch(pins: Sequence[Pin], store: Store) -> None:
    """Bring the wheels of these pins into the store, from whatever address the index has for them now."""
    from imagekit import download
    from imagekit.sources import _simple

    index = _simple.address() if pins else ""

    def fetch(line: "Line", pin: Pin) -> None:
        file = _beside.split(pin)[0]
        known = {one.sha256: one for one in _simple.files(line, index, pin.name)}
        if pin.sha256 not in known:
            raise Gone(
                f"wheel:{file}: the index has this file no longer",
                "`imagekit lock` would pin what it holds now; another index may still have this one",
            )
        _bytes(line, known[pin.sha256], store)

    download.each(fetch, pins)


def _made(pin: Pin, folder: Path, store: Store) -> Package:
    from imagekit.sources import _wheel

    file = _beside.split(pin)[0].rpartition("/")[2]
    return _wheel.convert(
        _beside.data(pin, folder, store), file, _python_of(pin), digest=pin.sha256, store=store
    )  # fmt: skip


SOURCE = Source(resolve=resolve, packages=packages, check=_beside.check_files, inputs=_beside.files, needs_python=True)
