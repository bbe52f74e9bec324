"""How exact the instruction clock is: spread on an idle and a busy host, slowdowns that are caught, false alarms.

    python benchmarks/clock.py [--arch x86_64 --arch aarch64] [--boots 20] [--alarms 50]

Every boot is one of the web image with a further service that counts to a number: to 0, and in the slowed one so far
that the whole boot takes 5 % longer. Half of the boots have every processor of the host kept busy meanwhile.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median

from imagekit import build, definition, key, plugs
from imagekit.arch import ARCHES
from imagekit.baseline import Recorded
from imagekit.boot import Boot
from imagekit.guest import Rig
from imagekit.image import Image, Service, Step
from imagekit.rig import Disk
from imagekit.stores.directory import open_store

PROJECT = Path(__file__).resolve().parent.parent
WEB = PROJECT / "images" / "web.py"
SLOWER = 0.05  # the share of the boot that the slowed service adds
LIMITS = {"kernel and initrd": 0.001, "with a virtio disk": 0.01}
BURN = "import time; end = time.monotonic() + 120\nwhile time.monotonic() < end: pass"  # ends by itself
COUNT = "n=0; while [ $n -lt {} ]; do n=$((n + 1)); done; : > /run/counted; exec sleep 1000000"
DISK = Disk("scratch", "48 MiB")
COPY = "/usr/bin/busybox dd if=/dev/{} of=/dev/{} bs=1M count=48{}"


def web(rounds: int = 0) -> Image:
    """The web image, and a service that is ready when it has counted to a number."""
    image = definition.load(WEB)
    counter = Service("counter", ("/bin/sh", "-c", COUNT.format(rounds)), ready="file:/run/counted",
                      after=("nginx",))  # fmt: skip
    return replace(image, name="clock", services=(*image.services, counter))


def with_disk() -> Image:
    """The web image, after it has written a disk and read it again."""
    steps = Step("write", COPY.format("zero", "vda", " conv=fsync")), Step("read", COPY.format("vda", "null", ""))
    return replace(web(), modules=("virtio_blk",), onboot=steps)


def measure(image: Image, arch: str, *, busy: bool = False, disks: tuple[Disk, ...] = ()) -> Boot:
    """A boot by the instruction clock."""
    store, signer = open_store(), key.read(PROJECT / "fixtures" / "keys" / "test.key")
    wanted = {"folder": WEB.parent, "lock": build.read_lock(WEB), "arch": arch, "format": "kernel_initrd"}
    made = build.artifact(image, key=signer, store=store, **wanted)
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), disks=disks, timeout_scale=4.0)
    with made.opened(signer) as opened, _burning(busy):
        boot: Boot = plugs.load("targets", f"qemu_{arch}").measure(opened, rig=rig, store=store)
    return boot


@contextmanager
def _burning(busy: bool) -> Iterator[None]:
    """Every processor of the host kept busy."""
    burners = [subprocess.Popen([sys.executable, "-c", BURN]) for _ in range((os.cpu_count() or 1) * busy)]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def slowed(boot: Boot, arch: str) -> Image:
    """The image whose boot takes SLOWER longer: counting takes the same for each round."""
    probe, rounds = measure(web(1000), arch), 1000
    each = (probe.seconds - boot.seconds) / rounds
    return web(round(SLOWER * boot.seconds / each))


def spread(arch: str, what: str, seconds: list[float]) -> bool:
    """Print how far boots lie apart, and whether that is within what is promised."""
    found, limit = (max(seconds) - min(seconds)) / median(seconds), LIMITS[what]
    verdict = "within" if found <= limit else "OVER"
    print(f"{arch}: {len(seconds)} boots, {what}, half of them on a busy host: spread {found:.4%} (of {limit:.1%}, "
          f"{verdict}); median {median(seconds):.3f} s", flush=True)  # fmt: skip
    return found <= limit


def judge(arch: str, what: str, found: int, wanted: int, of: int) -> bool:
    """Print how often something was so, and whether that is as promised."""
    print(f"{arch}: {what}: {found} of {of} ({'within' if found == wanted else 'OVER'}: {wanted})", flush=True)
    return found == wanted


def examine(arch: str, boots: int, alarms: int) -> bool:
    """Boot, and say whether every promise is kept."""
    plain = [measure(web(), arch, busy=number % 2 == 1) for number in range(max(boots, alarms))]
    good = spread(arch, "kernel and initrd", [boot.seconds for boot in plain[:boots]])
    record = Recorded("clock", WEB, plain[0])
    raised = [boot for boot in plain[:alarms] if record.unusable(boot) or record.slower(boot)]
    good &= judge(arch, "false alarms for an unchanged image", len(raised), 0, alarms)
    slow = slowed(plain[0], arch)
    late = [measure(slow, arch, busy=number % 2 == 1) for number in range(boots)]
    caught = [boot for boot in late if record.slower(boot) and "service counter" in boot.growth(plain[0])[0]]
    share = median(boot.seconds for boot in late) / plain[0].seconds - 1
    good &= judge(arch, f"a service slowed by {share:.1%} of the boot is caught and named", len(caught), boots, boots)
    runs = [seconds for number in range(-(-boots // 3))
            for seconds in measure(with_disk(), arch, busy=number % 2 == 1, disks=(DISK,)).runs]  # fmt: skip
    return spread(arch, "with a virtio disk", runs[:boots]) and good


def main() -> int:
    """Measure, print, and end with 1 when a promise is not kept."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--arch", action="append", choices=sorted(ARCHES))
    asked.add_argument("--boots", type=int, default=20)
    asked.add_argument("--alarms", type=int, default=50)
    options = asked.parse_args()
    kept = [examine(arch, options.boots, options.alarms) for arch in options.arch or sorted(ARCHES)]
    return int(not all(kept))


if __name__ == "__main__":
    sys.exit(main())
