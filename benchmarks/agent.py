"""How quick the agent is: a round trip of `true`, and a file of 10 MB that is read, on each architecture.

    python benchmarks/agent.py [--arch x86_64 --arch aarch64] [--rounds 50]

The machine is that of the web image. Writing goes by a serial line whatever the size, so its rate is told, not judged.
"""

import argparse
import hashlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from fresh import SIGNER, artifact

from imagekit import plugs
from imagekit.arch import ARCHES
from imagekit.guest import Guest, Rig
from imagekit.stores.directory import open_store

TRUE_SECONDS, READ_SECONDS = 0.020, 1.0
SIZE, WRITTEN = 10_000_000, 100_000  # bytes


def timed(act: Callable[[], Any], rounds: int) -> list[float]:
    """How many seconds each of the rounds took."""
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - began)
    return seconds


def judge(name: str, seconds: list[float], limit: float) -> bool:
    """Print a figure and whether it is within its limit."""
    middle = median(seconds)
    verdict = "within" if middle <= limit else "OVER"
    spread = f"{min(seconds) * 1000:.1f} to {max(seconds) * 1000:.1f}"
    print(f"{name}: median of {len(seconds)} {middle * 1000:.1f} ms ({spread}): {verdict} {limit * 1000:.0f} ms")
    return middle <= limit


def measure(guest: Guest, rounds: int) -> bool:
    """Both figures of one machine."""
    data = os.urandom(WRITTEN)
    guest.run("true").check()
    is_quick = judge(f"{guest.arch} true", timed(lambda: guest.run("true").check(), rounds), TRUE_SECONDS)
    guest.run(["dd", "if=/dev/urandom", "of=/tmp/large", "bs=1000000", f"count={SIZE // 1_000_000}"]).check()
    is_quick &= judge(f"{guest.arch} read of 10 MB", timed(lambda: guest.read("/tmp/large"), 7), READ_SECONDS)
    assert hashlib.sha256(guest.read("/tmp/large")).hexdigest() == guest.stat("/tmp/large", digest=True).sha256
    rate = WRITTEN / median(timed(lambda: guest.write("/tmp/written", data), 3)) / 1000
    print(f"{guest.arch} write: {rate:.0f} kB/s")
    return is_quick


def main() -> int:
    """Measure, print, and judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", action="append", choices=[name for name in ARCHES if name in ("x86_64", "aarch64")])
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    good = True
    for arch in options.arch or ["x86_64", "aarch64"]:
        made = artifact(arch)
        with made.opened(SIGNER) as opened:
            target = plugs.load("targets", f"qemu_{arch}")
            with target.start(opened, rig=replace(Rig(), fresh=False), store=open_store()) as guest:
                good &= measure(guest, options.rounds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
