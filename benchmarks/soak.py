"""Many boots on a busy host: none may fail because of that.

    python benchmarks/soak.py --boots 300 --load 8 [--fresh]

Bounded by a count and by --minutes. benchmarks/kills.py kills test runs instead.
"""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from threading import Event

from imagekit import build, definition, host, key, plugs
from imagekit.errors import Problem
from imagekit.guest import Guest, Rig
from imagekit.stores.directory import open_store

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
KEY = PROJECT / "fixtures/keys/test.key"
ARCHES = ("x86_64", "aarch64")
IMAGES = ("shell", "web")
BURN = "while True: pass"
AT_ONCE = 2  # boots, as with pytest -n 2


@contextmanager
def load(burners: int) -> Iterator[None]:
    """So many busy loops, each in a session of its own, which the scheduler may take for a group; none outlives us."""
    started = [host.launch([sys.executable, "-S", "-c", BURN]) for _ in range(burners)]
    try:
        yield
    finally:
        for process in started:
            host.end(process)


def judge(guest: Guest, name: str) -> None:
    """What a test would do with it; raises a Problem when it does not work."""
    said = guest.run("uname -m").check().text
    if said != guest.arch:
        raise Problem(f"uname said {said}")
    if name == "web" and guest.http.get("/").status != 200:
        raise Problem("no page")
    guest.stop()
    if guest.facts["stopped"] != "the guest powered off":
        raise Problem(f"its end: {guest.facts['stopped']}")


def boots(count: int, burners: int, until: float, *, fresh: bool) -> int:
    """Boot images of both architectures in turn, and count what failed."""
    store, signer = open_store(), key.read(KEY)
    places = [(name, arch) for name in IMAGES for arch in ARCHES]
    made = {}
    for name, arch in places:
        path = PROJECT / "images" / f"{name}.py"
        image, lock = definition.load(path), build.read_lock(path)
        made[name, arch] = build.artifact(image, folder=path.parent, lock=lock, arch=arch,
                                          format="kernel_initrd", key=signer, store=store)  # fmt: skip
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), fresh=fresh)
    seconds: list[float] = []
    work: list[float] = []
    ends, out_of_time = Counter[str](), Event()

    def boot(number: int) -> None:
        name, arch = places[number % len(places)]
        if time.monotonic() > until or out_of_time.is_set():
            out_of_time.set()
            return
        began = time.monotonic()
        try:
            with made[name, arch].opened(signer) as opened:
                guest = plugs.load("targets", f"qemu_{arch}").start(opened, rig=rig, store=store)
                with guest:
                    seconds.append(time.monotonic() - began)
                    work.append(guest.facts["qemu_cpu_seconds"])
                    ends[str(guest.facts.get("fresh", "booted"))] += 1
                    judge(guest, name)
        except Problem as problem:
            ends["failed"] += 1
            print(
                f"boot {number} of {name} {arch} failed after {time.monotonic() - began:.0f} s: {problem}", flush=True
            )
        if number % 10 == 9:
            print(f"{number + 1} boots: {dict(ends)}, load {os.getloadavg()[0]:.1f}", flush=True)

    began = time.monotonic()
    with load(burners), ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(boot, range(count)))
    took, done = time.monotonic() - began, ends.total() - ends["failed"]
    print(f"{count} boots wanted, {done} ready, {ends['failed']} failures, in {took / 60:.1f} minutes")
    print(f"beside them {burners} busy loops, {AT_ONCE} boots at once; {dict(ends)}")
    for what, found in (("on the wall", seconds), ("of processor", work)):
        print(f"until ready, {what}: {min(found):.1f} to {max(found):.1f} s, median {median(found):.1f} s", flush=True)
    return int(bool(ends["failed"]) or done < count)


def main() -> int:
    """Soak, print, and end with 1 when something failed or was left, or when the time was too short."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--boots", type=int, default=0, metavar="N")
    asked.add_argument("--load", type=int, default=8, metavar="N", help="busy loops beside the boots")
    asked.add_argument("--fresh", action="store_true", help="restore machines from a template where that can be")
    asked.add_argument("--minutes", type=float, default=120.0)
    options = asked.parse_args()
    until = time.monotonic() + 60 * options.minutes
    failed = 0
    if options.boots:
        failed += boots(options.boots, options.load, until, fresh=options.fresh)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
