"""A .deb beside the definition: "deb:vendor/agent_1_amd64.deb"; taken as it is, what it depends on is yours to name.

It must be of the image's architecture, or of all. Its install scripts are read for notes and never run.
"""

from collections.abc import Sequence
from pathlib import Path

from imagekit import arch as arches
from imagekit.errors import Problem
from imagekit.host import printable
from imagekit.package import Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _beside, _deb
from imagekit.store import Store


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """A pin for each .deb, by what its control file says."""
    found = []
    for request in requests:
        pins = _beside.each_once([_pin(one, request, store) for one in _beside.wanted(request, "deb", ())])
        needs = {pin.name: _deb.depends(store.read(pin.sha256)) for pin in pins}
        said = [
            f"deb: {name} needs {printable(of.encode())}; name what the image lacks" for name, of in needs.items() if of
        ]
        found.append(Resolved(pins, (), tuple(said)))
    return found


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path) -> list[Package]:
    """The packages of these pins, converted once."""

    def made(pin: Pin) -> Package:
        return _deb.load(pin.sha256, store) or _deb.convert(_beside.data(pin, folder, store), pin.sha256, store)

    return _beside.each(pins, progress, made)


def _pin(asked: _beside.Wanted, request: Request, store: Store) -> Pin:
    wanted = arches.arch(request.arch)
    with _beside.told("deb", asked.place):
        digest = store.write(_beside.pieces(request.folder, asked.place))
        data = store.read(digest)
        package = _deb.load(digest, store) or _deb.convert(data, digest, store)
        if package.architecture not in ("all", wanted.debian):
            raise Problem(
                f"it is made for {package.architecture}, and the image's {wanted.name} is {wanted.debian}",
                f"take the .deb for {wanted.debian}; arch=NAME behind a package takes it for one architecture alone",
            )
        return _beside.pinned("deb", asked, package, size=len(data), digest=digest, options={})


SOURCE = Source(resolve=resolve, packages=packages, check=_beside.check_files, inputs=_beside.files)
