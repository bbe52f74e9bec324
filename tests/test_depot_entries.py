"""Entries, blobs and lists that lie under an index that is true: what who publishes could do to who reads."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import zstandard
from depot_rig import ONLINE, Depot, Reader, noise, refuse

from imagekit.depot import chunks, head, index, trust
from imagekit.errors import Problem


def publish_entry(depot: Depot, data: bytes, path: str) -> None:
    """Name any bytes in the index, as who has the keys can."""
    target = index.Target(sha256(data).hexdigest(), len(data), {})
    depot.site.write([(head.stored_at(path, target.sha256), data)])
    index.add(depot.site, depot.held(), {path: target}, keys=ONLINE, days={})


# --- what lies below the index ----------------------------------------------------------------------------------------


def entry(depot: Depot, **changes: Any) -> dict[str, Any]:
    """The entry of an image with one file, by hand."""
    kept: list[tuple[str, bytes]] = []
    listing = chunks.listed([noise(5, 10_000)], lambda blob, data: kept.append((blob.path, data)))
    depot.site.write(kept)
    blobs = [[one.blob.digest, one.blob.size, one.size] for one in listing.entries]
    file = {"file": "web.disk", "size": 10_000, "sha256": "0" * 64, "depth": 0, "blobs": blobs, **changes}
    return {"imagekit-depot": 1, "name": "web", "version": "7", "arch": "x86_64", "format": "tar", "files": [file]}


DIGEST = "0" * 64
ENTRIES = (
    ({"blobs": [["sha256:../../etc/passwd", 10, 10_000]]}, "is no sha256"),
    ({"blobs": [["../../../../etc/passwd", 10, 10_000]]}, "is no sha256"),
    ({"blobs": [[DIGEST[:-1], 10, 10_000]]}, "is no sha256"),
    ({"blobs": [[DIGEST + "\n", 10, 10_000]]}, "is no sha256"),
    ({"blobs": [[None, 10, 10_000]]}, "is no sha256"),
    ({"blobs": [[DIGEST, 0, 0]]}, "is no size of a blob"),
    ({"blobs": [[DIGEST, -1, 10_000]]}, "is no size of a blob"),
    ({"blobs": [[DIGEST, 10, 1 << 40]]}, "is no size of a blob"),
    ({"blobs": [[DIGEST, True, 10_000]]}, "is no size of a blob"),
    ({"blobs": [[DIGEST, 20_000, 10_000]]}, "is stored in 20000 bytes"),
    ({"blobs": [[DIGEST, 10]]}, "is no size|is no sha256"),
    ({"blobs": [DIGEST]}, "is no list"),
    ({"blobs": "x"}, "is no list"),
    ({"blobs": [[DIGEST, 10, 10_000]] * 100}, "is no list of at most"),
    ({"file": "../../etc/cron.d/x"}, "is no name of one"),
    ({"file": "/etc/passwd"}, "is no name of one"),
    ({"file": ".bashrc"}, "is no name of one"),
    ({"file": "a\0b"}, "is no name of one"),
    ({"file": 7}, "is no name of one"),
    ({"size": -1}, "has a file of -1 bytes"),
    ({"size": 1 << 60}, "has a file of"),
    ({"size": 1.5}, "has a file of"),
    ({"size": 9_999}, "names more"),
    ({"size": 10_001}, "names 10000"),
    ({"depth": 99}, "is no depth"),
    ({"depth": -1}, "is no depth"),
    ({"depth": 1}, "a list of blobs is"),
    ({"sha256": "0" * 64}, "has the sha256"),
    ({"sha256": "sha256:../../etc/passwd"}, "is no sha256"),
)


@pytest.mark.parametrize(("changes", "words"), ENTRIES)
def test_an_entry_that_lies(depot: Depot, reader: Reader, changes: dict[str, Any], words: str) -> None:
    """Named by the index: whoever publishes may be hostile, or have lost the key."""
    publish_entry(depot, json.dumps(entry(depot, **changes)).encode(), "images/web/7/x86_64/tar")
    refuse(reader, words)


TEXTS = (
    (b'{"imagekit-depot": 1, "imagekit-depot": 1}', "given twice"),
    (b'{"imagekit-depot": 2}', "does not read"),
    (b'{"imagekit-depot": NaN}', "strict JSON"),
    (b"[" * 100_000, "deeper|JSON"),
    (b"\xff\xfe", "UTF-8"),
    (b"{" + b" " * (2 << 20) + b"}", "larger|announces"),
)


@pytest.mark.parametrize(("data", "words"), TEXTS)
def test_an_entry_that_is_none(depot: Depot, reader: Reader, data: bytes, words: str) -> None:
    publish_entry(depot, data, "images/web/7/x86_64/tar")
    refuse(reader, words)


def test_two_files_of_one_name(depot: Depot, reader: Reader) -> None:
    whole = entry(depot)
    whole["files"] *= 2
    publish_entry(depot, json.dumps(whole).encode(), "images/web/7/x86_64/tar")
    refuse(reader, "names a file twice")


@pytest.mark.parametrize(
    ("window", "claimed", "words"),
    [
        (17, 9_000, "does not unpack to the 9000 bytes"),
        (17, chunks.MOST, "does not unpack to the"),
        (24, chunks.MOST, "too much memory"),
    ],
)
def test_a_bomb_of_zstd_is_unpacked_no_further_than_it_may_go(
    depot: Depot, reader: Reader, window: int, claimed: int, words: str
) -> None:
    how = zstandard.ZstdCompressionParameters.from_level(3, window_log=window)
    bomb = zstandard.ZstdCompressor(compression_params=how).compress(bytes(64 << 20))
    digest = sha256(bomb).hexdigest()
    assert len(bomb) < claimed
    depot.site.write([(f"blobs/{digest[:2]}/{digest}", bomb)])
    whole = entry(depot, size=claimed, blobs=[[digest, len(bomb), claimed]])
    publish_entry(depot, json.dumps(whole).encode(), "images/web/7/x86_64/tar")
    refuse(reader, words)


def test_a_list_that_leads_to_itself_ends(depot: Depot, reader: Reader) -> None:
    """Six lists above one another, each of which names the one below it a thousand times."""
    line = f"{DIGEST} 1000 1000\n"
    for _ in range(5):
        page = (line * 1000).encode()
        digest = sha256(page).hexdigest()
        depot.site.write([(f"blobs/{digest[:2]}/{digest}", page)])
        line = f"{digest} {len(page)} {len(page)}\n"
    top = [line.split()[0], int(line.split()[1]), int(line.split()[2])]
    whole = entry(depot, depth=5, size=10_000_000, blobs=[top])
    publish_entry(depot, json.dumps(whole).encode(), "images/web/7/x86_64/tar")
    refuse(reader, "a list of blobs is longer than its file allows")


def test_a_root_of_somebody_else(depot: Depot, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="is not JSON"):
        trust.adopt(depot.site, b"no json", home=tmp_path / "x")
    unsigned = json.loads(depot.root)
    unsigned["signatures"] = unsigned["signatures"][:1]
    with pytest.raises(Problem, match="is not signed by enough"):
        trust.adopt(depot.site, json.dumps(unsigned).encode(), home=tmp_path / "x")
    assert not list((tmp_path / "x").rglob(trust.ROOT))
