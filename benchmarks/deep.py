"""How long deep verification takes, against hashing as many bytes as the image's files have.

    python benchmarks/deep.py [--mebibytes 100] [--rounds 5]

The image is made up: a kernel_initrd of files of 4 KiB to 1 MiB, in ten parts, half of each file random. It is verified
whole, after imports: signature, parts, unpacking, every file's sha256, the tree's digest. No package lies in the cache.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from imagekit import artifact, deep, key, plugs
from imagekit.artifact import Artifact, Job
from imagekit.key import Key
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

SECONDS = 1.0  # for 100 MiB
SIZES = (1 << 12, 1 << 14, 1 << 16, 1 << 18, 1 << 20)


def made(folder: Path, store: Store, signer: Key, size: int) -> Artifact:
    """An image whose files have so many bytes, or a few more."""
    entries = {"/boot/kernel": file(b"a kernel"), "/boot/cmdline": file(b"quiet\n")}
    total = 0
    while total < size:
        length = SIZES[len(entries) % len(SIZES)]
        data = os.urandom(length // 2) + bytes(length // 2)
        entries[f"/usr/share/file{len(entries)}"] = file(data, owner=f"package{len(entries) % 10}")
        total += length
    tree = Tree(entries).complete()
    plug = plugs.load("formats", "kernel_initrd")
    parts = []
    for role, written in plug.write(tree, job=Job("large", "1", "x86_64", store)).items():
        name = f"large{plug.suffixes[role]}"
        (folder / name).write_bytes(store.read(written.sha256))
        parts.append({"role": role, "file": name, "size": written.size, "sha256": written.sha256})
    text = artifact.canonical({"name": "large", "version": "1", "arch": "x86_64", "format": "kernel_initrd",
                               "kind": "kernel", "parts": parts, "tree": tree.digest, "packages": []})  # fmt: skip
    path = folder / "large.kernel_initrd.manifest.json"
    path.write_bytes(text)
    path.with_name(path.name + ".minisig").write_text(signer.sign(text, comment=""))
    return artifact.load(path)


def main() -> int:
    """Measure and print; 1 where it takes longer than is promised."""
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("--mebibytes", type=int, default=100)
    asked.add_argument("--rounds", type=int, default=5)
    options = asked.parse_args()
    signer = key.from_seed(bytes([7]) * 32)
    data = os.urandom(options.mebibytes << 20)
    with tempfile.TemporaryDirectory() as name:
        store = open_store(Path(name) / "cache")
        image = made(Path(name), store, signer, len(data))
        times, floors = [], []
        for _ in range(options.rounds):
            start = time.perf_counter()
            sha256(data).hexdigest()
            middle = time.perf_counter()
            deep.check(image, key=signer, store=store)
            times.append(time.perf_counter() - middle)
            floors.append(middle - start)
    took, floor = statistics.median(times), statistics.median(floors)
    print(
        f"deep verification of {options.mebibytes} MiB: {took:.3f} s, {took / floor:.1f} times sha256 ({floor:.3f} s)"
    )
    return int(took > SECONDS * options.mebibytes / 100)


if __name__ == "__main__":
    sys.exit(main())
