"""A catalogue as a depot keeps it: it says the same, what changed moves alone, and what a stranger wrote is checked."""

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from depot_rig import ONLINE, Depot, Reader, files, holding, made

from imagekit import catalogue, query
from imagekit.catalogue import Image, Known, Package
from imagekit.depot import catalogued, chunks, head, index, records
from imagekit.depot.index import Target
from imagekit.errors import Problem


def package(number: int, version: str = "1") -> Package:
    digest = sha256(f"{number} {version}".encode()).digest()
    return Package(f"package{number}", version, "amd64", "debian", f"source{number}", version, "MIT", digest)


def image(name: str, version: str = "1") -> Image:
    return Image(name, version, "x86_64", "tar", "bookworm", f"images/{name}/{version}/x86_64/tar", "", "0" * 64)


def known(images: int = 40, packages: int = 100) -> Known:
    held = {image(f"image{n}"): [package(p) for p in range(n, n + packages)] for n in range(images)}
    paths = {package(p).digest: [f"/usr/bin/{p}", f"/usr/share/doc/ä {p}"] for p in range(0, images + packages, 2)}
    return Known(held, paths)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def test_records_say_what_the_catalogue_said() -> None:
    """Whatever the order, with a package whose files are more than a piece holds, and one that has no digest."""
    large = {package(3).digest: [f"/usr/share/{n}" for n in range(20_000)]}
    whole = known()
    whole = Known(
        {**whole.images, image("more"): [package(7)._replace(digest=catalogue.UNKNOWN)]}, {**whole.paths, **large}
    )
    pieces = list(records.pieces(whole))
    assert all(chunks.LEAST <= len(piece) <= chunks.MOST for piece in pieces[:-1])
    back = Known(dict(reversed(whole.images.items())), dict(reversed(whole.paths.items())))
    assert list(records.pieces(back)) == pieces
    assert catalogue.write(records.read(b"".join(pieces))) == catalogue.write(whole)
    assert not list(records.pieces(Known({}, {})))


@pytest.mark.parametrize("change", ["version", "package", "image"])
def test_what_changed_moves_alone(change: str) -> None:
    before = known(400, 200)
    images = dict(before.images)
    if change == "image":
        images[image("another")] = [package(n) for n in range(100)]
    else:
        later = [package(p, "2" if p == 230 else "1") for p in range(200, 400 + (change == "package"))]
        images[image("image200", "2")] = later
    pieces = set(records.pieces(before))
    moved = [piece for piece in records.pieces(Known(images, before.paths)) if piece not in pieces]
    assert moved
    assert sum(map(len, moved)) < 60_000 < sum(map(len, pieces)) / 20


ROW = ["openssl", "1", "amd64", "debian", "openssl", "1", "MIT", "ab" * 32]
WEB = ["web", "1", "x86_64", "tar", "bookworm", "images/web", "", ""]


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\n",
        b"{}\n",
        b"[",
        b"[]\n",
        b"\n",
        b"[" * 100_000 + b"\n",
        lines(["package", ROW, []])[:-1],
        lines(["package", ROW]),
        lines(["package", ROW[:-1], []]),
        lines(["package", [*ROW[:-1], "ab"], []]),
        lines(["package", [*ROW[:-1], 7], []]),
        lines(["package", "openssl", []]),
        lines(["package", ROW, "/usr"]),
        lines(["package", ROW, ["/usr\x1b[2J"]]),
        lines(["package", ["open\nssl", *ROW[1:]], []]),
        lines(["package", ["o" * 5000, *ROW[1:]], []]),
        lines(["image", WEB[:-1], ""]),
        lines(["image", WEB, "ab"]),
        lines(["image", WEB, 7]),
        lines(["image", WEB, "0" * records.NAMED]),
        lines(["image", WEB, ""], ["package", ROW, []]),
        lines(["key", WEB, ""]),
    ],
)
def test_records_of_another_form_are_refused(data: bytes) -> None:
    with pytest.raises(Problem):
        records.read(data)


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def reader(depot: Depot, tmp_path: Path) -> Reader:
    return Reader(depot.site, tmp_path / "reader").trusts(depot.root)


def found(reader: Reader, question: str) -> list[str]:
    answer = query.ask(catalogued.read(reader.site, reader.refresh().targets, store=reader.store), [question])
    return [one.image.place for one in answer.found]


def test_a_search_reads_again_what_changed(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """Nothing of the catalogue but its entry when nothing changed, and it heals when what was made of it rots."""
    depot.publish(holding(tmp_path / "made", "web", "1", ("openssl", "3.0.14-1")), listing=files)
    assert found(reader, "openssl") == ["images/web/1/x86_64/kernel_initrd"]
    brought: list[Any] = []
    counting = replace(reader.site, bring=lambda blobs, *rest: brought.extend(blobs) or depot.site.bring(blobs, *rest))
    reader = Reader(counting, reader.folder)
    assert found(reader, "openssl")
    assert not brought
    for path in (reader.folder / "store/objects").rglob("*"):
        if path.is_file():
            path.chmod(0o644)
            path.write_bytes(b"rotten")
    assert found(reader, "openssl")
    assert brought


def test_a_publisher_does_not_fetch_what_it_wrote(depot: Depot, tmp_path: Path) -> None:
    read: list[str] = []

    def reading(path: str, limit: int) -> bytes:
        read.append(path)
        return depot.site.read(path, limit)

    for version in ("1", "2"):
        artifact = made(tmp_path / version, version=version)
        depot.publish(artifact, site=replace(depot.site, read=reading, bring=lambda *_: pytest.fail("a blob")))
    assert not [path for path in read if path.endswith("targets.json") and not path.startswith("metadata/1.")]


def test_a_catalogue_in_one_piece_is_read_and_followed(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """As depots had it before: nothing of it is lost with the next publication."""
    old = catalogue.write(known(3, 5))
    target = Target(sha256(old).hexdigest(), len(old), {})
    depot.site.write([(head.stored_at(catalogued.PATH, target.sha256), old)])
    index.add(depot.site, depot.held(), {catalogued.PATH: target}, keys=ONLINE, days={})
    assert len(found(reader, "package2")) == 3
    depot.publish(holding(tmp_path / "made", "web", "1", ("package2", "9")))
    assert len(found(reader, "package2")) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size": records.LARGEST + 1}, "more than one can have"),
        ({"sha256": "0" * 64}, "has the sha256"),
        ({"imagekit-catalogue": 3}, "not of a form"),
        ({"blobs": []}, "names"),
    ],
)
def test_a_catalogue_whose_entry_lies_is_refused(
    depot: Depot, reader: Reader, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    """Signed by who may publish, and wrong all the same."""
    depot.publish(holding(tmp_path / "made", "web", "1", ("openssl", "1-1")))
    held = depot.held().targets.signed.targets[catalogued.PATH]
    entry = json.loads(depot.site.read(head.stored_at(catalogued.PATH, held.hashes["sha256"]), held.length))
    text = json.dumps({**entry, **change}).encode()
    target = Target(sha256(text).hexdigest(), len(text), {})
    depot.site.write([(head.stored_at(catalogued.PATH, target.sha256), text)])
    with pytest.raises(Problem, match=words):
        catalogued.read(reader.site, {catalogued.PATH: target}, store=reader.store)
