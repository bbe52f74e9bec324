"""What it costs to take Debian packages: converting them cold, and putting them together.

python benchmarks/packages.py [--rounds 5] [--suite bookworm]

109 packages (nginx, OpenSSH, Redis, Python and what Debian calls essential, with apt) are fetched once. Then, in turn:
    converted   each .deb lies in the store and nothing else does: unpacked, indexed, every file hashed, kept
    floor       the compressed member of each .deb decompressed by Python's lzma on two threads, and thrown away
    merged      the trees of all packages as one
Seconds on the wall decide; those of the processors, which others on the machine disturb less, are told beside them.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

PROJECT = Path(__file__).resolve().parents[1]
ESSENTIAL = (
    "base-files base-passwd bash bsdutils coreutils dash debianutils diffutils dpkg findutils grep gzip hostname "
    "init-system-helpers libc-bin login ncurses-base ncurses-bin perl-base sed sysvinit-utils tar util-linux"
)
ASKED = tuple(f"{ESSENTIAL} apt nginx-light openssh-server dropbear-bin redis-server python3-minimal".split())
CONVERTED, MERGED = 1.5, 0.010  # times the floor; seconds
FLOOR = """
import lzma, sys
from concurrent.futures import ThreadPoolExecutor
def member(path):
    data = open(path, "rb").read()
    at = 8
    while at < len(data):
        name, size = data[at:at+16].decode().strip().rstrip("/"), int(data[at+48:at+58])
        if name.startswith("data.tar"):
            return name, data[at+60:at+60+size]
        at += 60 + size + size % 2
def unpack(path):
    name, packed = member(path)
    assert name.endswith(".xz"), name
    unpacker, size = lzma.LZMADecompressor(), 0
    piece = unpacker.decompress(packed, 1 << 20)
    while piece or not (unpacker.eof or unpacker.needs_input):
        size += len(piece)
        piece = b"" if unpacker.eof else unpacker.decompress(b"", 1 << 20)
    return size
with ThreadPoolExecutor(2) as pool:
    print(sum(pool.map(unpack, sys.argv[1:])))
"""
CONVERT = """
import pickle, sys
from pathlib import Path
from imagekit.sources.debian import SOURCE
from imagekit.stores.directory import open_store
pins = pickle.loads(Path(sys.argv[1]).read_bytes())
SOURCE.packages(pins, open_store(Path(sys.argv[2])), lambda *_: None)
"""


class Taken(NamedTuple):
    """Seconds of a process."""

    wall: float
    cpu: float  # of all processors


def main() -> int:
    """Exit status 1 when a limit is passed."""
    words = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    words.add_argument("--rounds", type=int, default=5)
    words.add_argument("--suite", default="bookworm")
    asked = words.parse_args()
    sys.path.insert(0, str(PROJECT))
    with tempfile.TemporaryDirectory() as scratch:
        return measure(Path(scratch), asked.suite, asked.rounds)


def measure(scratch: Path, suite: str, rounds: int) -> int:
    """Fetch, then convert and decompress in turn, and merge what was converted."""
    import pickle

    from imagekit.package import Request
    from imagekit.sources.debian import SOURCE
    from imagekit.stores.directory import open_store
    from imagekit.tree import union

    store = open_store()
    [resolved] = SOURCE.resolve([Request(ASKED, "", (), (), suite, "x86_64")], store)
    packages = SOURCE.packages(resolved.pins, store, lambda *_: None)
    (scratch / "pins").write_bytes(pickle.dumps(resolved.pins))
    for pin in resolved.pins:
        store.read(pin.sha256)  # KeyError: it was converted long ago and its .deb was swept; another cache has all
    files = [str(store.path(pin.sha256)) for pin in sorted(resolved.pins, key=lambda pin: -pin.size)]
    pairs = [
        (_converted(scratch / f"cache{n}", store, resolved.pins), _timed("-c", FLOOR, *files))
        for n in range(rounds + 1)
    ][1:]
    ratio = statistics.median(a.wall / b.wall for a, b in pairs)
    own, floor = (statistics.median(pair[n].wall for pair in pairs) for n in (0, 1))
    work, least = (statistics.median(pair[n].cpu for pair in pairs) for n in (0, 1))
    entries = sum(len(package.tree) for package in packages)
    merged = statistics.median(_merged(union, packages) for _ in range(rounds * 3))
    size = sum(pin.size for pin in resolved.pins) / 1e6
    print(f"{len(packages)} packages, {size:.0f} MB, {entries} entries")
    print(f"converted cold: {ratio:.2f} times decompressing (of {CONVERTED:g}); {own:.2f} s against {floor:.2f} s; "
          f"processors: {work / least:.2f}, {work:.2f} s against {least:.2f} s")  # fmt: skip
    print(f"merged: {merged * 1e3:.1f} ms (of {MERGED * 1e3:g} ms)")
    return int(ratio > CONVERTED or merged > MERGED)


def _converted(cache: Path, store: "object", pins: "object") -> Taken:
    """In a cache of its own, which stays: a file system may look through what was just removed to make a file."""
    cache.mkdir(mode=0o700)
    for pin in pins:
        own = cache / "objects" / pin.sha256[:2] / pin.sha256
        own.parent.mkdir(parents=True, exist_ok=True)
        own.symlink_to(store.path(pin.sha256))
    return _timed("-c", CONVERT, str(cache.parent / "pins"), str(cache))


def _timed(*words: str) -> Taken:
    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, started = cpu(), time.perf_counter()
    subprocess.run([sys.executable, *words], check=True, cwd=PROJECT, stdout=subprocess.DEVNULL)
    return Taken(time.perf_counter() - started, cpu() - before)


def _merged(union: "object", packages: "object") -> float:
    started = time.perf_counter()
    union(package.tree for package in packages)
    return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
