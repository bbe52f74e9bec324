"""How long the care of a cache takes, against the least that can do it; as ratios in the same run.

    python benchmarks/store.py [--objects 10000] [--rounds 7]

gc:     `imagekit store gc --older-than 0` of a cache of so many objects of 4 KiB, a fifth as many notes, and artifacts
        of a hundred parts each, against `find -type f -delete` of the same; both as whole processes
adopt:  32 objects of 1 MiB taken from a shared cache, against `cp` of the files and `sha256sum` of the copies
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from pairs import Ratio, alternate, timed

from imagekit.stores.directory import open_store

PARTS, MIB = 100, 1 << 20


def fill(root: Path, objects: int) -> None:
    """A cache of so many objects, with notes and artifacts."""
    for name in ("objects", "notes/kind", "artifacts"):
        (root / name).mkdir(mode=0o700, parents=True)
    for shard in range(256):
        (root / f"objects/{shard:02x}").mkdir()
    for number in range(objects):
        data = number.to_bytes(8, "big") * 512
        digest = sha256(data).hexdigest()
        place = root / "objects" / digest[:2] / digest
        place.write_bytes(data)
        if number % 5 == 0:
            (root / "notes/kind" / digest).write_bytes(data[:200])
        if number % 10 == 0:
            artifact = root / "artifacts" / str(number // PARTS // 10)
            artifact.mkdir(exist_ok=True)
            (artifact / digest).hardlink_to(place)


def removal(scratch: Path, *, objects: int, rounds: int) -> Ratio:
    """A gc that removes all, against find."""

    def run(argv: list[str]) -> float:
        cache = scratch / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        cache.mkdir(mode=0o700)
        fill(cache, objects)
        time.sleep(0.05)  # nothing is used in the tick of the kernel in which gc looks
        seconds = timed(argv, env={"IMAGEKIT_CACHE": str(cache)})
        left = [path for path in cache.rglob("*") if path.is_file() and path.name != "in-use"]
        assert not left, f"{len(left)} files were left"
        return seconds

    gc = [sys.executable, "-m", "imagekit.cli", "store", "gc", "--older-than", "0"]
    find = ["find", str(scratch / "cache"), "-type", "f", "-delete"]
    what = f"gc of {objects} objects, against find -delete"
    return alternate(what, lambda: run(gc), lambda: run(find), rounds=rounds, limit=3)


def adoption(scratch: Path, *, rounds: int) -> Ratio:
    """Objects taken from a shared cache, against copies that are hashed."""
    others = open_store(scratch / "others")
    digests = [others.write([os.urandom(MIB)]) for _ in range(32)]
    files = [str(others.path(digest)) for digest in digests]
    os.environ["IMAGEKIT_SHARED_CACHE"] = others.location

    def adopt() -> float:
        shutil.rmtree(scratch / "own", ignore_errors=True)
        own, started = open_store(scratch / "own"), time.perf_counter()
        assert all(own.has(digest) for digest in digests)
        return time.perf_counter() - started

    def copy() -> float:
        shutil.rmtree(scratch / "copies", ignore_errors=True)
        (scratch / "copies").mkdir()
        started = time.perf_counter()
        subprocess.run(["cp", *files, scratch / "copies"], check=True)
        copies = [str(path) for path in (scratch / "copies").iterdir()]
        subprocess.run(["sha256sum", *copies], check=True, stdout=subprocess.DEVNULL)
        return time.perf_counter() - started

    return alternate("32 objects from a shared cache, against cp and sha256sum", adopt, copy, rounds=rounds, limit=1)


def main() -> int:
    """Measure, print, and end with 1 when a ratio is over its limit."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--objects", type=int, default=10_000)
    asked.add_argument("--rounds", type=int, default=7)
    options = asked.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        ratios = [
            removal(scratch, objects=options.objects, rounds=options.rounds),
            adoption(scratch, rounds=options.rounds),
        ]
    print("\n".join(ratio.line() for ratio in ratios))
    return int(any(ratio.median > ratio.limit for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
