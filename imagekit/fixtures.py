"""What a test may ask for. Which of these it names decides how far its image is built.

Plain functions whose parameters are each other's names; plugin.py makes pytest's fixtures of them, and a module or a
conftest.py may override any. `request` is pytest's; the names with an underscore are filled in by the matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # at run time when a fixture is first asked for: this file is loaded in every run of pytest
    from imagekit.artifact import Artifact
    from imagekit.baseline import Recorded
    from imagekit.bench import Bench
    from imagekit.comparison import Comparison
    from imagekit.guest import Guest, Rig
    from imagekit.image import Image
    from imagekit.key import Key
    from imagekit.lock import Lock
    from imagekit.rig import Node
    from imagekit.sealed import First, Sealed
    from imagekit.store import Store
    from imagekit.topology import Topology
    from imagekit.tree import Tree

CLEAN = "the guest powered off"
SCOPES: dict[str, Literal["session", "module", "function"]] = {
    **dict.fromkeys(("key", "store"), "session"),
    **dict.fromkeys(
        ("image", "lock", "arch", "tree", "artifact", "rebuilt", "sandbox", "guest", "shipped", "rig"), "module"
    ),
    **dict.fromkeys(("recorded", "comparison", "system", "provisioned", "release"), "module"),
    **dict.fromkeys(("fresh", "boot", "sealed"), "function"),
    "topology": "module",
}


def param(request: Any) -> str:
    """What the matrix filled in for a test."""
    from imagekit.errors import Problem

    if not hasattr(request, "param"):
        raise Problem(
            "the matrix was made without this test: it asked for a fixture when it ran already",
            "name tree, artifact, sandbox or guest among the test's arguments",
        )
    return str(request.param)


def image(request: Any) -> Image:
    """The image that the module defines, a value."""
    from imagekit.errors import Problem
    from imagekit.image import Image

    found = getattr(request.module, "image", None)
    if not isinstance(found, Image):
        raise Problem(f"{request.path} defines no image", "write `image = Image(...)`, or override the fixture `image`")
    return found


def lock(request: Any, image: Image) -> Lock:
    """What the image is pinned to, read from beside its definition; a lock that is behind is a Problem."""
    from imagekit import build

    found = build.read_lock(request.path)
    build.check_lock(image, found)
    return found


def arch(_imagekit_arch: str) -> str:
    """The architecture under test."""
    return _imagekit_arch


def tree(request: Any, image: Image, lock: Lock, arch: str, store: Store, _imagekit: Bench) -> Tree:
    """The composed file system: `"/usr/bin/dpkg" not in tree`."""
    from imagekit import build

    return build.tree(image, folder=request.path.parent, lock=lock, arch=arch, store=store, say=_imagekit.say)


def artifact(
    request: Any, image: Image, lock: Lock, arch: str, _imagekit_format: str, key: Key, store: Store, _imagekit: Bench
) -> Artifact:
    """The image written in a format, signed and kept: made once per digest, whichever worker asks first."""
    from imagekit import report

    made = _built(request.path, image, lock, arch, _imagekit_format, key, store, _imagekit)
    _imagekit.facts[request.path, arch, _imagekit_format, ""] = report.of_artifact(made, image)
    _imagekit.artifacts[request.path, arch, _imagekit_format] = made
    return made


def rebuilt(
    request: Any, image: Image, arch: str, _imagekit_format: str, artifact: Artifact, key: Key, store: Store,
    _imagekit: Bench,
) -> Iterator[Artifact]:  # fmt: skip
    """The artifact made once more, elsewhere, with nothing remembered but the packages: see twice.py."""
    from imagekit import borrowed, twice

    place = f"{image.name}-{arch}-{_imagekit_format}"
    with twice.built(request.path, arches=[arch], formats=[_imagekit_format], store=store,
                     place=place, say=_imagekit.say, tools=_imagekit.option("tools", "auto"),
                     key_text=borrowed.key_text(key, [artifact])) as again:  # fmt: skip
        yield again.artifacts[0]


def _built(
    path: Path, image: Image, lock: Lock, arch: str, format: str, key: Key, store: Store, bench: Bench
) -> Artifact:
    from imagekit import build

    return build.artifact(image, folder=path.parent, lock=lock, arch=arch, format=format, key=key, store=store,
                          say=bench.say, tools=bench.option("tools", "auto"))  # fmt: skip


def guest(
    request: Any, image: Image, artifact: Artifact, _imagekit_target: str, key: Key, rig: Rig, store: Store,
    _imagekit: Bench,
) -> Iterator[Guest]:  # fmt: skip
    """The image booted and ready: one machine per module, and a clean one after a test that broke it."""
    from dataclasses import replace

    from imagekit import plugs, report

    target = plugs.load("targets", _imagekit_target)
    place = request.path, artifact.arch, artifact.format, _imagekit_target
    again = replace(rig, fresh=True) if place in _imagekit.damaged else rig
    with artifact.opened(key) as opened, target.start(opened, rig=again, store=store) as started:
        _imagekit.facts[place] = report.of_guest(started, image)
        yield started
        is_alive = started.is_alive()
    if is_alive and rig.channel:
        _check_end(started)


def shipped(
    request: Any, image: Image, artifact: Artifact, _imagekit_shipped: str, key: Key, rig: Rig, store: Store,
    _imagekit: Bench,
) -> Iterator[Guest]:  # fmt: skip
    """The image as it is shipped, started by its firmware, nothing added: a console, a network, and no agent."""
    from dataclasses import replace

    from imagekit import plugs, report

    target = plugs.load("targets", _imagekit_shipped)
    alone = replace(rig, channel=False)
    with artifact.opened(key) as opened, target.start(opened, rig=alone, store=store) as started:
        _imagekit.facts[request.path, artifact.arch, artifact.format, _imagekit_shipped] = report.of_guest(
            started, image
        )
        yield started


def fresh(
    artifact: Artifact, _imagekit_target: str, key: Key, rig: Rig, store: Store, _imagekit: Bench
) -> Iterator[Guest]:
    """A booted machine of the test's own, restored from a template where that can be: facts["fresh"] says so."""
    from dataclasses import replace

    from imagekit import plugs

    target = plugs.load("targets", _imagekit_target)
    with (
        artifact.opened(key) as opened,
        target.start(opened, rig=replace(rig, fresh=True), store=store) as started,
    ):
        yield started


class Boots:
    """A factory of machines that are started specially: `boot(memory=512, disks=(Disk("data", size="64 MiB"),))`."""

    def __init__(self, start: Callable[[Rig], Guest], rig: Rig) -> None:
        self.started: list[Guest] = []
        self.awaited: list[Guest] = []  # of these, those that were to come to something else than ready
        self._start, self._rig = start, rig

    def __call__(self, **options: Any) -> Guest:
        """Start a machine; the options are fields of Rig. It is stopped when the test ends."""
        from dataclasses import fields, replace

        from imagekit.errors import unknown

        known = [field.name for field in fields(self._rig) if field.name not in ("say", "tools")]
        for name in options:
            if name not in known:
                raise unknown("option of boot()", name, known)
        rig = replace(self._rig, **options)
        guest = self._start(rig)
        self.started.append(guest)
        if rig.wait != "ready":  # what it came to is what was asked for
            self.awaited.append(guest)
        return guest


def boot(artifact: Artifact, _imagekit_target: str, key: Key, rig: Rig, store: Store) -> Iterator[Boots]:
    """A factory for special boots: firmware, media, memory, disks, kernel arguments, what to wait for."""
    from dataclasses import replace

    from imagekit import plugs

    target = plugs.load("targets", _imagekit_target)
    with ExitStack() as stack:
        opened = stack.enter_context(artifact.opened(key))

        def start(rig: Rig) -> Guest:
            if rig.firmware != "direct" and not artifact.has_kernel:  # nothing can be added to what firmware starts
                rig = replace(rig, channel=False)
            started: Guest = stack.enter_context(target.start(opened, rig=rig, store=store))
            return started

        yield Boots(start, rig)


def provisioned(artifact: Artifact, _imagekit_shipped: str, key: Key, rig: Rig, store: Store) -> Iterator[First]:
    """The first boot of an image with a sealed disk on a machine with a new TPM: what it left, as values."""
    from imagekit import plugs, sealed

    target = plugs.load("targets", _imagekit_shipped)
    with ExitStack() as held, artifact.opened(key) as opened:
        yield sealed.provisioned(opened, target, rig=rig, store=store, held=held)


def sealed(provisioned: First) -> Iterator[Sealed]:
    """A factory of further boots of that machine, each on copies: `sealed.refuses(tamper)`."""
    from imagekit.sealed import Sealed

    with ExitStack() as held:
        yield Sealed(provisioned, held)


def release(
    request: Any, image: Image, lock: Lock, arch: str, key: Key, store: Store, _imagekit: Bench
) -> Callable[..., Artifact]:
    """A later version of the image as an update: `release("2", generation=2)`; what is named are fields of its Seal."""
    from dataclasses import replace

    def made(version: str, **seal: Any) -> Artifact:
        sealed = replace(image.disk.seal, **seal) if image.disk.seal else None
        later = replace(image, version=version, disk=replace(image.disk, seal=sealed))
        return _built(request.path, later, lock, arch, "update", key, store, _imagekit)

    return made


def comparison(
    request: Any, artifact: Artifact, guest: Guest, _imagekit_target: str, key: Key, rig: Rig, store: Store,
    _imagekit: Bench,
) -> Comparison:  # fmt: skip
    """The image against the one of the revision that --compare names: size, packages, and boots in pairs."""
    from tempfile import TemporaryDirectory

    from imagekit import build, comparison, definition, plugs

    revision = str(_imagekit.option("compare", ""))
    with TemporaryDirectory(dir=store.folder("compared")) as place:
        path = comparison.checkout(request.path, revision, Path(place))
        other, arch, format = definition.load(path), artifact.arch, artifact.format
        made = _built(path, other, build.read_lock(path), arch, format, key, store, _imagekit)
        target = plugs.load("targets", _imagekit_target)
        if target.measure is None:
            return comparison.Comparison(revision, made, artifact)
        with made.opened(key) as opened:
            first = [guest.boot]
            boots = comparison.pairs(
                lambda: target.measure(opened, rig=rig, store=store),
                lambda: first.pop() if first else guest.measure(),
            )
    return comparison.Comparison(revision, made, artifact, boots)


def system(guest: Guest) -> Guest:
    """The image at each depth that it offers: a booted machine, and a namespace."""
    return guest


def _check_end(guest: Guest) -> None:
    """Raise GuestProblem when a machine that was asked to power off did not."""
    from imagekit.errors import GuestProblem

    how = guest.facts.get("stopped", CLEAN)
    if how != CLEAN:
        end = f"\n{guest.console.end()}"
        raise GuestProblem(
            f"it did not power off cleanly when it was asked to: {how}{end}", "see onshutdown and stop_timeout"
        )


def recorded(
    request: Any, guest: Guest, artifact: Artifact, _imagekit_target: str, store: Store, _imagekit: Bench
) -> Recorded:
    """How the image booted when it was last put on record; with --update-baseline, how it boots now."""
    from imagekit import baseline

    place = f"{artifact.arch} {artifact.format} {_imagekit_target}"
    if _imagekit.option("update-baseline", None):
        return baseline.record(request.path, place, guest.boot, locks=store.folder("locks"))
    return baseline.recorded(request.path, place)


def sandbox(artifact: Artifact, _imagekit_sandbox: str, key: Key, rig: Rig, store: Store) -> Iterator[Guest]:
    """The tree in a namespace: milliseconds, no kernel, no services."""
    from imagekit import plugs

    target = plugs.load("targets", _imagekit_sandbox)
    with artifact.opened(key) as opened, target.start(opened, rig=rig, store=store) as started:
        yield started


def topology(
    request: Any, artifact: Artifact, _imagekit_target: str, key: Key, rig: Rig, store: Store, _imagekit: Bench
) -> Iterator[Callable[[Mapping[str, Node]], Topology]]:
    """A factory of several machines on private networks: `topology({"web": Node(), "client": Node("shell.py")})`."""
    from imagekit import build, definition, plugs
    from imagekit import topology as topologies

    def made(name: str) -> Artifact:
        path = request.path.parent / name
        other = definition.load(path)
        arch, format = artifact.arch, artifact.format
        return _built(path, other, build.read_lock(path), arch, format, key, store, _imagekit)

    target = plugs.load("targets", _imagekit_target)
    with ExitStack() as stack:

        def start(nodes: Mapping[str, Node]) -> Topology:
            others = {node.definition: made(node.definition) for node in nodes.values() if node.definition}
            artifacts = {"": artifact, **others}
            return stack.enter_context(topologies.boot(nodes, artifacts, target, key=key, rig=rig, store=store))

        yield start


def host(guest: Guest) -> Any:
    """testinfra's own noun over the guest: `host.service("nginx").is_running`; where pytest-testinfra is installed."""
    from imagekit import testinfra

    return testinfra.host(guest)


def rig(_imagekit: Bench) -> Rig:
    """How machines are started: where their tools come from, the accelerator, the memory."""
    from imagekit.guest import Rig

    tools, accelerator = _imagekit.option("tools", "auto"), _imagekit.option("accel", "auto")
    scale = timeout_scale(_imagekit.option("timeout-scale", 1.0))
    return Rig(tools=tools, accelerator=accelerator, say=_imagekit.say, timeout_scale=scale)


def timeout_scale(given: Any) -> float:
    """What every time-out is multiplied by; raises Problem for anything but a number above 0."""
    from imagekit.errors import Problem

    try:
        scale = float(given)
    except (TypeError, ValueError):
        scale = 0.0
    if not 0 < scale < 1e6:
        raise Problem(f"--timeout-scale {given!r} is no scale", "a number above 0: 3 waits three times as long")
    return scale


def key(_imagekit: Bench) -> Key:
    """The key that signs and verifies: --key, else your own."""
    from imagekit import key

    return key.read(Path(_imagekit.option("key", key.default_path())))


def store() -> Store:
    """Where packages and artifacts are kept."""
    from imagekit.stores.directory import open_store

    return open_store()
