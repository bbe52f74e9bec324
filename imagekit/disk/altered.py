"""Altered: a disk of which parts are others than they were written, as a value; the disk below it is only read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem

CLUSTER = 1 << 16  # bytes: those of a qcow2 file


@dataclass(frozen=True)
class Altered:
    """A disk and what is otherwise: `disk.write(offset, data)` is another such disk."""

    base: Sparse
    clusters: Mapping[int, bytes] = field(default_factory=dict, repr=False)  # number -> its bytes

    @property
    def size(self) -> int:
        """Bytes of the disk."""
        return self.base.size

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; raises Problem where the disk has fewer."""
        self._check(offset, size)
        first, last = offset // CLUSTER, -(-(offset + size) // CLUSTER)
        whole = b"".join(self._cluster(number) for number in range(first, last))
        return whole[offset - first * CLUSTER :][:size]

    def write(self, offset: int, data: bytes) -> "Altered":
        """The same disk with other bytes there."""
        return self.write_all([(offset, data)])

    def write_all(self, pieces: Iterable[tuple[int, bytes]]) -> "Altered":
        """The same disk with other bytes in several places; what is as it was already takes no room."""
        written = dict(self.clusters)
        for offset, data in pieces:
            self._check(offset, len(data))
            at = 0
            while at < len(data):
                number, inside = divmod(offset + at, CLUSTER)
                old = written[number] if number in written else self.base.read(number * CLUSTER, CLUSTER)
                part = data[at : at + CLUSTER - inside]
                if old[inside : inside + len(part)] != part:
                    written[number] = old[:inside] + part + old[inside + len(part) :]
                at += len(part)
        return replace(self, clusters=written)

    def flip(self, offset: int, bit: int = 0) -> "Altered":
        """The same disk with one bit turned over."""
        return self.write(offset, bytes([self.read(offset, 1)[0] ^ 1 << bit]))

    def disk(self) -> Sparse:
        """All of it, for whoever reads disks."""
        pieces, at = list[Piece](), 0
        for number in (*sorted(self.clusters), -(-self.size // CLUSTER)):
            start = min(number * CLUSTER, self.size)
            pieces += [piece._replace(offset=at + piece.offset) for piece in self.base.part(at, start - at).pieces]
            if number in self.clusters:
                pieces.append(Piece(start, self.clusters[number][: self.size - start]))
                at = start + CLUSTER
        return laid(self.size, pieces)

    def _cluster(self, number: int) -> bytes:
        found = self.clusters.get(number)
        return self.base.read(number * CLUSTER, CLUSTER) if found is None else found

    def _check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise Problem(f"the disk has {self.size} bytes, and none at {offset} to {offset + size}")
