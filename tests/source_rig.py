"""What tests of sources share: one that is asked as an image asks it, by the words of a definition."""

from collections.abc import Sequence
from pathlib import Path

from imagekit import plugs
from imagekit.package import Package, Pin, Request, Source
from imagekit.store import Store


def source(written: str) -> tuple[str, Source]:
    """The source that a definition's words name, and what they ask it for."""
    name, _, text = written.partition(":")
    return text, plugs.load("sources", name)


def request(folder: Path, *texts: str, arch: str = "x86_64", **more: str) -> Request:
    """A request of a definition that lies in `folder`."""
    asked = Request(packages=texts, kernel="", init=(), without=(), suite="bookworm", arch=arch, folder=folder)
    return asked._replace(**more)


def locked(folder: Path, *written: str, store: Store, arch: str = "x86_64") -> tuple[Pin, ...]:
    """The pins of some packages of one source."""
    texts = [source(one)[0] for one in written]
    found = source(written[0])[1].resolve([request(folder, *texts, arch=arch)], store)
    return found[0].pins


def obtained(pins: Sequence[Pin], folder: Path, store: Store) -> list[Package]:
    """The packages of these pins, which are of one source."""
    kind: Source = plugs.load("sources", pins[0].source)
    kind.check(pins, folder)
    return kind.packages(pins, store, lambda *_: None, folder=folder)


def taken(folder: Path, written: str, *, store: Store, arch: str = "x86_64") -> Package:
    """A package as it is locked and then obtained."""
    (package,) = obtained(locked(folder, written, store=store, arch=arch), folder, store)
    return package
