"""Keep what locks pin in a depot, by its sha256, so that it can be built when its mirror has dropped it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from imagekit import plugs
from imagekit.depot import index
from imagekit.errors import Problem
from imagekit.package import Pin, Source
from imagekit.site import Blob, Site
from imagekit.store import Store


class Kept(NamedTuple):
    """What a mirroring took."""

    files: int  # that the depot has now
    passed: int  # pins of sources whose files no depot keeps
    new: int  # files that were written
    size: int  # their bytes


def mirror(pins: Sequence[Pin], site: Site, store: Store, *, say: Callable[[str], object] = lambda _: None) -> Kept:
    """Bring the files of pins to a depot that lacks them; one that has them is not fetched from its mirror."""
    if not index.is_at(site):
        raise Problem(f"{site.place} is no depot", "`imagekit depot init` makes one")
    sources: dict[str, Source] = {name: plugs.load("sources", name) for name in {pin.source for pin in pins}}
    wanted = {Blob(pin.sha256, pin.size): pin for pin in pins if sources[pin.source].files}
    lacking = set(site.lacks({blob.path: blob.size for blob in wanted}))
    new = [(blob, pin) for blob, pin in sorted(wanted.items()) if blob.path in lacking]
    for blob, pin in new:  # one at a time: some have a hundred megabytes
        say(f"mirroring {pin.name} {pin.version}")
        site.write([(blob.path, _bytes(pin, sources[pin.source], store))])
    if new:
        site.settle()
    passed = len({pin.sha256 for pin in pins}) - len({blob.digest for blob in wanted})
    return Kept(len(wanted), passed, len(new), sum(blob.size for blob, _ in new))


def _bytes(pin: Pin, source: Source, store: Store) -> bytes:
    """What a pin names, verified: the store hashes all that is read from it."""
    assert source.files
    source.files([pin], store, lambda *_: None)
    data = store.read(pin.sha256)
    if len(data) != pin.size:
        raise Problem(f"{pin.name}: the lock names {pin.size} bytes, and there are {len(data)}", "write the lock again")
    return data
