"""What verifying a signed image costs: against unpacking it alone, by the same threads, and when it is opened.

python benchmarks/signed.py [--rounds 15] [--size 125] [--from /usr]

A tar of files of a folder is signed, as many as pack to SIZE MB. Both kinds of rounds read each chunk into memory of
their own and inflate it, in turn; one of them hashes it before. What comes out is thrown away. Rows are ratios of wall
and of processor seconds, the latter for busy machines, and for the exit status; then the time that opening takes, and
for comparison gzip, which uses one processor and verifies a CRC only.
"""

import argparse
import os
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from pairs import Ratio, timed

from imagekit import key, signing
from imagekit.disk import inflate, signedchunks, signedfile
from imagekit.disk.signedfile import Signed

PROJECT = Path(__file__).resolve().parents[1]
KEY = key.read(PROJECT / "fixtures" / "keys" / "test.key")
LIMIT = 1.15
ABOUT = signing.About("benchmark", "1", "any")


class Took(NamedTuple):
    """Seconds of a round."""

    wall: float
    processor: float


def took(work: Callable[[], object]) -> Took:
    """Run it once."""
    before, started = time.process_time(), time.perf_counter()
    work()
    return Took(time.perf_counter() - started, time.process_time() - before)


def made(folder: Path, source: Path, size: int) -> Path:
    """A signed image of about so many bytes."""
    tar = folder / "source.tar"
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        total = 0
        for path in sorted(source.rglob("*")):
            if path.is_file() and not path.is_symlink() and len(str(path)) < 90 and path.stat().st_size < 1 << 30:
                archive.add(path, recursive=False)
                total += path.stat().st_size
                if total > 4 * size:
                    break
    out = folder / "image.tar.gz"
    found = signing.sign(tar, out, about=ABOUT, key=KEY)
    if found.said.body > size * 1.1:  # signed again, of as many chunks as make it up
        share = size / found.said.body
        os.truncate(tar, int(found.said.size * share) // 512 * 512)
        signing.sign(tar, out, about=ABOUT, key=KEY)
    tar.unlink()
    return out


def plain(handle: int, signed: Signed, threads: int) -> Iterator[bytes]:
    """The same as signedchunks.pieces, but for the hash."""

    def make(number: int) -> bytes:
        at, packed, size, _ = signed.chunks[number]
        data = os.pread(handle, packed, at)
        return inflate.inflate(signedfile.deflate(data, signed, number), size)

    return inflate.each(len(signed.chunks), make, threads=threads)


def drained(pieces: Iterator[bytes]) -> None:
    """Take all, keep none."""
    for _ in pieces:
        pass


def compared(what: str, handle: int, signed: Signed, *, threads: int, rounds: int) -> list[Ratio]:
    """Rounds with and without hashing, in turn: wall seconds, then those of all processors."""
    drained(plain(handle, signed, threads))
    with_, without = [], []
    for _ in range(rounds):
        with_.append(took(lambda: drained(signedchunks.pieces(handle, signed, threads=threads))))
        without.append(took(lambda: drained(plain(handle, signed, threads))))
    return [
        Ratio(f"{what}, {kind}", [getattr(one, kind) for one in with_], [getattr(one, kind) for one in without], LIMIT)
        for kind in Took._fields
    ]


def main() -> int:
    """Exit status 1 when the limit is not kept."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--size", type=int, default=125, metavar="MB")
    parser.add_argument("--from", dest="source", type=Path, default=Path("/usr"))
    parser.add_argument("--image", type=Path, help="a signed image of the test key, in place of one that is made")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = asked.image or made(Path(folder), asked.source, asked.size * 10**6)
        handle = os.open(path, os.O_RDONLY)
        signed = signedfile.read(handle, [KEY])
        print(
            f"{signed.said.body / 1e6:.0f} MB, {signed.said.size / 1e6:.0f} MB unpacked, {len(signed.chunks)} chunks;"
            f" inflated by {inflate.decompressobj.__module__}"
        )
        rows = compared("two threads", handle, signed, threads=2, rounds=asked.rounds)
        rows += compared("one thread", handle, signed, threads=1, rounds=asked.rounds)
        print("\n".join(row.line() for row in rows))
        opened = min(took(lambda: signedfile.read(handle, [KEY])).wall for _ in range(200))
        print(f"opened, signature and table verified: {opened * 1e6:.0f} us")
        print(f"gzip -t: {timed(['gzip', '-t', str(path)]) * 1e3:.0f} ms")
    return int(rows[1].median > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
