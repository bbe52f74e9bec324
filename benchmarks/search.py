"""How long a search over many images takes, and how large their catalogue is, against reading the manifests.

    python benchmarks/search.py [--images 1000] [--packages 200] [--files 40]

The images are made up: their packages are drawn from an archive of 1,000 packages in five versions each, the common
ones more often, with digests, origins and licences as manifests have them, and as many files each as is asked for. A
search is all that a process does after its imports: the file is read, checked and asked.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from imagekit import artifact, catalogue, order, query
from imagekit.catalogue import Known
from imagekit.depot import chunks, records
from imagekit.sources import _version

SECONDS, SHARE = 0.050, 0.2  # a search may take, and of the manifests' bytes a catalogue may have
LICENCES = ("MIT", "Apache-2.0", "GPL-2.0-or-later", "GPL-3.0-or-later AND MIT", "BSD-3-Clause OR GPL-3.0-only", "")
QUESTIONS = ("package7<1.5", "package7>=1.1,<1.4", "package999", "lib*7<1.5", "path:/usr/bin/package7-3",
             "path:/usr/bin/package7*", "path:/usr/**/package99-*", "licence:GPL-3.0*")  # fmt: skip
ROUNDS = 7


def row(number: int, version: int) -> dict[str, Any]:
    """A made-up package, as a manifest lists it."""
    name, text = f"{'lib' * (number % 3 == 0)}package{number}", f"1.{version}-1+deb12u{number % 4}"
    digest = sha256(f"{name} {text}".encode()).hexdigest()
    return {"name": name, "version": text, "architecture": "amd64", "sha256": digest, "size": number * 1000,
            "digest": sha256(digest.encode()).hexdigest(), "source": "debian", "origin": [f"package{number}", text],
            "licence": LICENCES[number % len(LICENCES)]}  # fmt: skip


def manifests(images: int, packages: int) -> list[dict[str, Any]]:
    """Made-up manifests: each image has packages of its own choice, in one of five versions each."""
    chance, archive = random.Random(7), [[row(n, v) for v in range(1, 6)] for n in range(1000)]
    weights = [1 / (1 + n / 100) for n in range(1000)]
    made = []
    for number in range(images):
        chosen: set[int] = set()
        while len(chosen) < packages:
            chosen.update(chance.choices(range(1000), weights, k=packages - len(chosen)))
        rows = [archive[n][chance.randrange(5)] for n in sorted(chosen)]
        made.append({"name": f"image{number}", "version": "1", "arch": "x86_64", "format": "tar", "kind": "root",
                     "suite": "bookworm", "parts": [], "packages": rows})  # fmt: skip
    return made


def known(made: list[dict[str, Any]], files: int) -> Known:
    """What a catalogue is made of."""
    images = {catalogue.image(m, place=f"images/{m['name']}/1/x86_64/tar", mark="", digest=""): catalogue.packages(m)
              for m in made}  # fmt: skip
    every = {package for held in images.values() for package in held}
    folders = ("/usr/bin", "/usr/lib/x86_64-linux-gnu", "/usr/share/doc", "/etc")
    paths = {p.digest: [f"{folders[n % 4]}/{p.origin}-{n - 1}" for n in range(files)] for p in every}
    return Known(images, paths)


def seconds(act: Callable[[], Any]) -> float:
    """The median of a few rounds."""
    taken = []
    for _ in range(ROUNDS):
        order.debian.cache_clear()  # a new process remembers no version
        _version.key.cache_clear()
        began = time.perf_counter()
        act()
        taken.append(time.perf_counter() - began)
    return median(taken)


def in_a_depot(whole: Known, size: int) -> int:
    """Bytes of it as blobs of a depot, and how long the first search takes to make the catalogue of them."""
    packed = dict[str, int]()
    pieces = list(records.pieces(whole))
    chunks.listed_as(pieces, lambda blob, _: packed.__setitem__(blob.digest, blob.size))
    stored, data = sum(packed.values()), b"".join(pieces)
    taken = seconds(lambda: catalogue.write(records.read(data)))
    print(f"  in a depot: {stored:,} bytes in {len(packed)} blobs: 1/{size / stored:.0f}; "
          f"made of them in {taken:.2f} s, once")  # fmt: skip
    return stored


def main() -> int:
    """Print each figure and what it may be; 1 if any is above."""
    asked = argparse.ArgumentParser(description=__doc__)
    for name, default in (("images", 1000), ("packages", 200), ("files", 40)):
        asked.add_argument(f"--{name}", type=int, default=default)
    given = asked.parse_args()
    made = manifests(given.images, given.packages)
    texts = [artifact.canonical(m) for m in made]
    size, is_well = sum(map(len, texts)), True
    with TemporaryDirectory() as folder:
        file = Path(folder) / "catalogue"
        for files in (0, given.files):
            data = catalogue.write(known(made, files))
            file.write_bytes(data)
            is_well &= len(data) <= size * SHARE
            print(f"catalogue, {files} files a package: {len(data):,} of {size:,} bytes: 1/{size / len(data):.0f}")
            is_well &= in_a_depot(known(made, files), size) <= size * SHARE
        places = [Path(folder) / f"{number}.manifest.json" for number in range(len(texts))]
        for place, text in zip(places, texts, strict=True):
            place.write_bytes(text)
        began = time.perf_counter()
        for place in places:
            artifact.load(place)
        scan = time.perf_counter() - began
        print(f"reading every manifest: {scan:.2f} s")
        for question in QUESTIONS:
            taken = seconds(lambda: query.ask(catalogue.read(file.read_bytes()), [question]))  # noqa: B023 - called here
            found = query.ask(catalogue.read(file.read_bytes()), [question]).found
            is_well &= taken <= SECONDS
            print(
                f"{question}: {taken * 1000:.1f} ms, {len(found)} images, 1/{scan / taken:.0f} of reading the manifests"
            )
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
