"""The memory of a QEMU that runs the web image, as the kernel counts it.

python benchmarks/machine.py
"""

import sys
from pathlib import Path

from imagekit import build, definition, key, plugs
from imagekit.guest import Rig
from imagekit.stores.directory import open_store

PROJECT = Path(__file__).resolve().parent.parent
LIMIT = 300  # MB


def resident(arch: str) -> tuple[float, float]:
    """MB of a machine that has served a page: proportional and resident set size."""
    path, store = PROJECT / "images" / "web.py", open_store()
    signer = key.read(PROJECT / "fixtures" / "keys" / "test.key")
    wanted = {"arch": arch, "format": "kernel_initrd", "key": signer, "store": store}
    made = build.artifact(definition.load(path), folder=path.parent, lock=build.read_lock(path), **wanted)
    target = plugs.load("targets", f"qemu_{arch}")
    with made.opened(signer) as opened, target.start(opened, rig=Rig(), store=store) as guest:
        guest.http.get("/")
        rollup = Path(f"/proc/{guest.facts['pid']}/smaps_rollup").read_text()
    sizes = {line.split()[0]: int(line.split()[1]) / 1000 for line in rollup.splitlines()[1:]}
    return sizes["Pss:"], sizes["Rss:"]


def main() -> int:
    """Measure, print, and end with 1 when a machine is larger than promised."""
    found = {arch: resident(arch) for arch in ("x86_64", "aarch64")}
    for arch, (shared, whole) in found.items():
        print(f"qemu_{arch}: {shared:.0f} MB PSS, {whole:.0f} MB RSS (of {LIMIT}), for a guest of 256 MiB")
    return int(any(whole > LIMIT for _, whole in found.values()))


if __name__ == "__main__":
    sys.exit(main())
