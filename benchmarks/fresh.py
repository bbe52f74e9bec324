"""How soon a restored machine is ready, against a booted one, in turn; and what eight of them take of memory.

    python benchmarks/fresh.py [--arch x86_64 --arch aarch64] [--rounds 10]

Both are the web image, asked for its page once before memory is counted: the kernel's proportional set size, in which
what eight machines share is counted once.
"""

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from pairs import alternate

from imagekit import build, definition, key, plugs
from imagekit.arch import ARCHES
from imagekit.artifact import Artifact, Opened
from imagekit.guest import Guest, Rig
from imagekit.stores.directory import open_store

PROJECT = Path(__file__).resolve().parent.parent
MACHINES, MEMORY_LIMIT, TIME_LIMIT = 8, 3.0, 1 / 8
SIGNER = key.read(PROJECT / "fixtures" / "keys" / "test.key")


def artifact(arch: str) -> Artifact:
    """The web image, built if it is not in the cache."""
    path = PROJECT / "images" / "web.py"
    return build.artifact(
        definition.load(path),
        folder=path.parent,
        lock=build.read_lock(path),
        arch=arch,
        format="kernel_initrd",
        key=SIGNER,
        store=open_store(),
    )


def start(opened: Opened, *, fresh: bool) -> tuple[Guest, float]:
    """A machine that is ready, and how many seconds that took."""
    target, began = plugs.load("targets", f"qemu_{opened.artifact.arch}"), time.perf_counter()
    guest = target.start(opened, rig=replace(Rig(), fresh=fresh), store=open_store())
    seconds = time.perf_counter() - began
    if fresh and guest.facts["fresh"] != "restored":
        raise SystemExit(f"not restored: {guest.facts['fresh']}")
    return guest, seconds


def ready(opened: Opened, *, fresh: bool) -> float:
    """Seconds until it is ready."""
    guest, seconds = start(opened, fresh=fresh)
    guest.power.cut()
    guest.stop()
    return seconds


def memory(opened: Opened, count: int, *, fresh: bool) -> float:
    """MB of so many machines together, each of which has served a page."""
    with ExitStack() as stack:
        guests = [stack.enter_context(start(opened, fresh=fresh)[0]) for _ in range(count)]
        for guest in guests:
            guest.http.get("/")
        return sum(_proportional(guest.facts["pid"]) for guest in guests)


def _proportional(pid: int) -> float:
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().split()
    return int(rollup[rollup.index("Pss:") + 1]) / 1000


def measure(arch: str, rounds: int) -> bool:
    """Measure one architecture, print, and tell whether it is within both limits."""
    with artifact(arch).opened(SIGNER) as opened:
        what = f"{arch}: ready by restoring, against booting"
        ratio = alternate(what, lambda: ready(opened, fresh=True), lambda: ready(opened, fresh=False),
                          rounds=rounds, limit=TIME_LIMIT)  # fmt: skip
        print(ratio.line(), flush=True)
        one, many = memory(opened, 1, fresh=False), memory(opened, MACHINES, fresh=True)
    verdict = "within" if many / one <= MEMORY_LIMIT else "OVER"
    print(f"{arch}: memory of {MACHINES} restored machines, against one that booted: {many / one:.2f} "
          f"(of {MEMORY_LIMIT:g}, {verdict}); {many:.0f} MB against {one:.0f} MB", flush=True)  # fmt: skip
    return ratio.median <= TIME_LIMIT and many / one <= MEMORY_LIMIT


def main() -> int:
    """Measure, print, and end with 1 when a figure is over its limit."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--arch", action="append", choices=sorted(ARCHES))
    asked.add_argument("--rounds", type=int, default=10)
    options = asked.parse_args()
    within = [measure(arch, options.rounds) for arch in options.arch or sorted(ARCHES)]
    return int(not all(within))


if __name__ == "__main__":
    sys.exit(main())
