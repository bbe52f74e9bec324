"""The least of a rebuild after one change: read the kept parts, compress the changed one, write the output."""

import os
import sys

import zstandard

parts, out = sys.argv[1:]
os.makedirs(out, exist_ok=True)  # noqa: PTH103 - pathlib is no part of the floor
read = {name: open(f"{parts}/{name}", "rb").read() for name in ("kernel", "initrd", "changed")}  # noqa: SIM115
segment = zstandard.ZstdCompressor(level=-1).compress(read["changed"])
with open(f"{out}/initrd", "wb") as initrd, open(f"{out}/kernel", "wb") as kernel:
    initrd.write(read["initrd"])
    initrd.write(segment)
    kernel.write(read["kernel"])
