"""Bring the sources that sources.sha256 names from a mirror of Debian, each by its digest: python fetch.py FOLDER."""

import shutil
import sys
from pathlib import Path

from imagekit import download, mirror
from imagekit.stores.directory import open_store

PINS = Path(__file__).with_name("sources.sha256")
LARGEST = 8 << 20  # bytes


def fetch(folder: Path) -> None:
    """Have all of them in a folder; those that the cache has are not fetched again."""
    store, line = open_store(), download.Calls().line()
    for pin in PINS.read_text().splitlines():
        digest, path = pin.split()
        if not store.has(digest):
            url = f"{mirror.find().main}/{path}"
            download.take(line, url, LARGEST, algorithm="sha256", digest=digest, store=store)
        shutil.copy(store.path(digest), folder / Path(path).name)


if __name__ == "__main__":
    fetch(Path(sys.argv[1]))
