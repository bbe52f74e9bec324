"""How often a sealed appliance opens: as it was built, and after its maker's update.

    python benchmarks/sealed_opens.py [--opens 20] [--updates 5] [--arch x86_64]

Each boot is a machine of its own, with copies of what one first boot left. An update opens when its image has said that
it is kept: it was tried, its services became ready, and it lost its boot counter.
"""

import argparse
import os
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from imagekit import build, definition, key, plugs, sealed
from imagekit.artifact import Artifact
from imagekit.checks.updates import updated
from imagekit.errors import Problem
from imagekit.image import Image
from imagekit.rig import Rig
from imagekit.stores.directory import open_store

PROJECT = Path(__file__).resolve().parents[1]
KEYS = PROJECT / "fixtures/keys"
DEFINITION = PROJECT / "images/appliance.py"
ARCHES = ("x86_64", "aarch64")


def made(image: Image, arch: str, format: str) -> Artifact:
    """The appliance, or an update to it."""
    return build.artifact(image, folder=DEFINITION.parent, lock=build.read_lock(DEFINITION), arch=arch, format=format,
                          key=key.read(KEYS / "test.key"), store=open_store())  # fmt: skip


def later(image: Image, version: str) -> Image:
    """The same with another version and a new generation."""
    assert image.disk.seal
    seal = replace(image.disk.seal, generation=int(version))
    return replace(image, version=version, disk=replace(image.disk, seal=seal))


def run(arch: str, *, opens: int, updates: int) -> bool:
    """Both figures of one architecture, printed; whether all opened."""
    image, signer, store = definition.load(DEFINITION), key.read(KEYS / "test.key"), open_store()
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"))
    target = plugs.load("targets", f"qemu_{arch}_uefi")
    update = updated(made(later(image, "2"), arch, "update"), signer)
    counts = {"as built": 0, "updated": 0}
    with ExitStack() as held:
        opened = held.enter_context(made(image, arch, "raw_efi").opened(signer))
        first = sealed.provisioned(opened, target, rig=rig, store=store, held=held)
        for what, number, tampers in (("as built", opens, ()), ("updated", updates, (update,))):
            for turn in range(number):
                try:
                    with ExitStack() as alone:
                        sealed.Sealed(first, alone).opens(*tampers)
                    counts[what] += 1
                except Problem as problem:
                    print(f"{arch} {what}, boot {turn + 1}: {problem}", flush=True)
    print(f"{arch}: opened {counts['as built']} of {opens} as it was built, "
          f"{counts['updated']} of {updates} after the maker's update", flush=True)  # fmt: skip
    return counts == {"as built": opens, "updated": updates}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--opens", type=int, default=20)
    parser.add_argument("--updates", type=int, default=5)
    parser.add_argument("--arch", choices=ARCHES, action="append")
    asked = parser.parse_args()
    os.environ.setdefault("IMAGEKIT_BOOT_KEYS", str(KEYS / "boot"))
    return 0 if all(run(arch, opens=asked.opens, updates=asked.updates) for arch in asked.arch or ARCHES) else 1


if __name__ == "__main__":
    sys.exit(main())
