"""What files of a depot are made of, from the store where it has it and else from the depot, verified either way."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from time import monotonic

from imagekit.depot import chunks
from imagekit.depot.chunks import Entry
from imagekit.errors import Problem, RigProblem
from imagekit.site import Blob, Site
from imagekit.store import Store

BATCH = 256  # blobs that are asked for together
START, SLOWEST = 300.0, 20_000.0  # seconds that a pull may take, and the bytes a second that make it more


class Blobs:
    """The blobs of some files, by one deadline for all."""

    def __init__(self, site: Site, store: Store, *, size: int, say: Callable[[int], object] = lambda _: None) -> None:
        """size: bytes of the files; say: told how many bytes have come."""
        self._site, self._store, self._say = site, store, say
        self._until = monotonic() + START + size / SLOWEST
        self.count = self.size = 0

    def contents(self, entries: Iterable[Entry]) -> Iterator[bytes]:
        """What they are when unpacked, in order; some of them are fetched at a time."""
        rest = iter(entries)
        while some := list(islice(rest, BATCH)):
            self._bring({entry.blob for entry in some})
            for entry in some:
                yield chunks.unpacked(self._read(entry.blob), entry)

    def _bring(self, wanted: Iterable[Blob]) -> None:
        lacking = sorted(blob for blob in wanted if not self._store.has(blob.digest))
        if lacking:
            if monotonic() > self._until:
                raise RigProblem(f"{self._site.place} is too slow: {self.size} bytes have come", "try again")
            self._site.bring(lacking, self._store, lambda _: None, self._until)
            self.count, self.size = self.count + len(lacking), self.size + sum(blob.size for blob in lacking)
            self._say(self.size)

    def _read(self, blob: Blob) -> bytes:
        try:
            data = self._store.read(blob.digest)
        except KeyError:  # what was here had rotted
            self._bring([blob])
            data = self._store.read(blob.digest)
        if len(data) != blob.size:
            raise Problem(f"the blob {blob.digest} has {len(data)} bytes, and its list names {blob.size}")
        return data
