"""How long the containers of a disk take to write: as ratios to writing and hashing the raw disk once, in the same run.

python benchmarks/disks.py [--rounds 5] [RAW]

The disk is a raw one, or half of 96 MiB that do not shrink, a sixth of text and a third of zeros. Each row is written
to a file and hashed on the way, as a store does.
"""

import argparse
import hashlib
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pairs import alternate

from imagekit.disk import containers
from imagekit.disk.sparse import Piece, Sparse, laid

MIB = 1 << 20
LIMITS = {"qcow2": 5.0, "vhd": 5.0, "vhd_dynamic": 5.0, "vhdx": 5.0, "vmdk": 5.0, "ova": 5.0}  # gcp: a GiB of zeros


def usual() -> Sparse:
    """A disk of 96 MiB, the same every time."""
    noise = random.Random(1).randbytes(48 * MIB)
    text = b"".join(b"%d: a line of a text that shrinks\n" % number for number in range(500_000))[: 16 * MIB]
    return laid(96 * MIB, [Piece(MIB, noise), Piece(60 * MIB, text)])


def kept(chunks: Iterable[bytes], path: Path) -> float:
    """Seconds to write and hash."""
    started, total = time.perf_counter(), hashlib.sha256()
    with open(path, "wb") as file:
        for chunk in chunks:
            total.update(chunk)
            file.write(chunk)
    return time.perf_counter() - started


def row(name: str, disk: Sparse, folder: Path) -> Callable[[], float]:
    """What writes the disk in a container once."""
    write = containers.KINDS[name].write
    return lambda: kept(write(disk, folder), folder / name)


def main() -> int:
    """Print the rows; 1 if one is over its limit."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("raw", type=Path, nargs="?")
    asked = parser.parse_args()
    over = 0
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        folder = Path(scratch)
        laid_out = containers.raw(asked.raw) if asked.raw else usual()
        raw = folder / "disk.img"
        kept(laid_out.chunks(), raw)
        disk = containers.raw(raw)
        data = list(disk.chunks())
        for name, limit in LIMITS.items():
            found = alternate(f"{name}, against writing and hashing the raw disk", row(name, disk, folder),
                              lambda: kept(data, folder / "floor"), rounds=asked.rounds, limit=limit)  # fmt: skip
            print(found.line(), flush=True)
            over += found.median > limit
    return min(over, 1)


if __name__ == "__main__":
    sys.exit(main())
