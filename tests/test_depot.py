"""Publish and pull: what was published comes out again, only what changed moves, and nothing half-done is left."""

import json
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import depot_rig
import pytest
from depot_rig import IMAGE_KEY, KEYS, ONLINE, Depot, Reader, made, noise

from imagekit import key, site
from imagekit.depot import chunks, head, index, pulling, trust
from imagekit.depot.chunks import Entry
from imagekit.errors import Problem, RigProblem
from imagekit.site import Blob, Missing


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def reader(depot: Depot, tmp_path: Path) -> Iterator[Reader]:
    with depot_rig.served(depot.place) as address:
        yield Reader(site.at(address), tmp_path / "reader").trusts(depot.root)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_was_published_is_pulled(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    artifact = made(tmp_path / "made")
    (tmp_path / "made" / "web_1_x86_64.kernel_initrd.tests.json").write_text('{"payload": "..."}')
    depot.publish(artifact)
    pulled = reader.pull()
    assert files(reader.out) == files(tmp_path / "made")
    assert pulled.artifact.verified(IMAGE_KEY)
    again = reader.pull()
    assert again.blobs == 0


@pytest.mark.parametrize("place", ["directory", "http"])
def test_a_new_version_moves_only_what_changed(depot: Depot, reader: Reader, tmp_path: Path, place: str) -> None:
    """Whatever the kernel and most of the initrd are, they move once."""
    if place == "directory":
        reader.site = depot.site
        reader.trusts(depot.root)
    kernel, before, after = noise(1, 2_000_000), noise(2, 1_000_000), noise(3, 500_000)
    depot.publish(made(tmp_path / "1", parts={"kernel": kernel, "initrd": before + after}))
    reader.pull()
    changed = noise(4, 400_000)
    moved = depot.publish(
        made(tmp_path / "2", version="2", parts={"kernel": kernel, "initrd": before + changed + after})
    )
    pulled = reader.pull()
    assert pulled.artifact.manifest["version"] == "2"
    assert moved.size < 1.2 * len(changed)
    assert pulled.size < 1.2 * len(changed)


def test_equal_parts_of_two_images_are_stored_once(depot: Depot, tmp_path: Path) -> None:
    parts = {"kernel": noise(1, 500_000), "initrd": noise(2, 500_000)}
    first = depot.publish(made(tmp_path / "1", parts=parts))
    second = depot.publish(made(tmp_path / "2", name="other", parts=parts))
    assert first.size > 1_000_000
    assert second.size < 10_000


def test_zeros_take_no_room(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    data = noise(1, 5000) + bytes(40 << 20) + noise(2, 5000)
    moved = depot.publish(made(tmp_path / "made", parts={"disk": data}))
    assert moved.size < 30_000
    path = reader.pull().artifact.path.with_name("web_1_x86_64.disk")
    assert path.read_bytes() == data
    assert path.stat().st_blocks * 512 < 1 << 20


def test_the_newest_is_pulled_unless_a_version_is_named(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    for version in ("2", "10", "9"):
        depot.publish(made(tmp_path / version, version=version))
    assert reader.pull().artifact.manifest["version"] == "9"  # published last
    assert reader.pull(version="10").artifact.manifest["version"] == "10"


CHOICES = (
    ({"name": "web"}, "choose by --arch and --format"),
    ({"name": "web", "arch": "aarch64"}, ""),
    ({"name": "web", "format": "uki"}, "it has web:1 aarch64 kernel_initrd, web:1 x86_64 kernel_initrd"),
    ({"name": "nothing"}, "it has web"),
)


@pytest.mark.parametrize(("asked", "words"), CHOICES)
def test_what_is_not_there_or_there_twice_is_told(
    depot: Depot, tmp_path: Path, asked: dict[str, str], words: str
) -> None:
    depot.publish(*(made(tmp_path / arch, arch=arch) for arch in ("x86_64", "aarch64")))
    known = pulling.images(trust.refresh(depot.site, home=depot.keeper).targets)
    if not words:
        assert pulling.choose(known, **asked).arch == "aarch64"
        return
    with pytest.raises(Problem) as caught:
        pulling.choose(known, **asked)
    assert words in caught.value.hint


def test_a_version_is_published_once(depot: Depot, tmp_path: Path) -> None:
    depot.publish(made(tmp_path / "1"))
    before = (depot.place / "metadata/timestamp.json").read_bytes()
    depot.publish(made(tmp_path / "2"))
    assert (depot.place / "metadata/timestamp.json").read_bytes() == before  # the same: nothing to say
    other = made(tmp_path / "3", parts={"kernel": b"other"})
    with pytest.raises(Problem, match="is published already, with other bytes"):
        depot.publish(other)
    depot.publish(other, replace=True)


def test_only_what_the_images_key_signed_is_published(depot: Depot, tmp_path: Path) -> None:
    forged = made(tmp_path / "made", signer=key.from_seed(bytes(31) + b"\1"))
    with pytest.raises(Problem, match="signed by key"):
        depot.publish(forged)
    changed = made(tmp_path / "made")
    (tmp_path / "made" / "web_1_x86_64.kernel").write_bytes(b"changed")
    with pytest.raises(Problem, match=r"web_1_x86_64.kernel has"):
        depot.publish(changed)
    assert not trust.refresh(depot.site, home=depot.keeper).targets


@pytest.mark.parametrize("lacking", ["targets", "snapshot", "timestamp"])
def test_nothing_is_written_to_an_index_that_cannot_be_signed(depot: Depot, tmp_path: Path, lacking: str) -> None:
    before = files(depot.place / "metadata")
    keys = [one for role in ("targets", "snapshot", "timestamp") if role != lacking for one in KEYS[role]]
    with pytest.raises(Problem, match=f"{lacking} needs 1 signatures, and 0 of its keys are at hand"):
        depot.publish(made(tmp_path / "made"), keys=keys)
    assert files(depot.place / "metadata") == before


def test_a_damaged_cache_is_mended(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    depot.publish(made(tmp_path / "made"))
    reader.pull()
    objects = [path for path in (reader.folder / "store/objects").rglob("*") if path.is_file()]
    for path in objects:
        path.chmod(0o644)
        path.write_bytes(b"rotten")
    assert reader.pull().artifact.verified(IMAGE_KEY)


def test_what_a_power_cut_left_too_short_is_published_again(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """Blobs that no index named yet: they are there by name, and not by size."""
    artifact = made(tmp_path / "made")
    depot.publish(artifact)
    blobs = sorted(path for path in (depot.place / "blobs").rglob("*") if path.is_file())
    for number, path in enumerate(blobs):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * number // len(blobs)])
    assert depot.publish(artifact).blobs == len(blobs)
    assert reader.pull().artifact.verified(IMAGE_KEY)


def test_nothing_is_left_of_a_pull_that_failed(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    depot.publish(made(tmp_path / "made"))
    blobs = sorted(path for path in (depot.place / "blobs").rglob("*") if path.is_file())
    blobs[len(blobs) // 2].unlink()
    with pytest.raises(RigProblem, match="dropped this file"):
        reader.pull()
    assert list(reader.out.iterdir()) == []


def test_nobody_is_trusted_unsaid(depot: Depot, tmp_path: Path) -> None:
    stranger = Reader(depot.site, tmp_path / "stranger")
    with pytest.raises(Problem, match="nothing says that"):
        stranger.refresh()
    with pytest.raises(Problem, match="is another: sha256:"):
        trust.adopt(depot.site, "sha256:" + "0" * 64, home=stranger.home)
    trust.adopt(depot.site, f"sha256:{sha256(depot.root).hexdigest()}", home=stranger.home)
    stranger.refresh()
    other = index.create(site.at(str(tmp_path / "other")), KEYS, thresholds={}, days={})
    with pytest.raises(Problem, match="trusted by another root already"):
        trust.adopt(depot.site, other, home=stranger.home)


def test_a_depot_is_made_once(depot: Depot) -> None:
    with pytest.raises(Problem, match="is a depot already"):
        index.create(depot.site, KEYS, thresholds={}, days={})


def test_an_index_is_renewed_by_the_keys_at_hand(depot: Depot, reader: Reader) -> None:
    old = reader.refresh().least
    for keys, renewed in ((ONLINE, index.REST), (KEYS["timestamp"], ("timestamp",))):
        assert index.renew(depot.site, depot.held(), keys=keys, days={}) == renewed
        new = reader.refresh().least
        assert new > old
        old = new


def test_another_tuf_client_reads_it(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """python-tuf's own transport and downloader, as anybody would use them."""
    from tuf.ngclient import Updater

    artifact = made(tmp_path / "made")
    depot.publish(artifact)
    state = tmp_path / "plain"
    state.mkdir()
    plain = Updater(str(state), f"{reader.site.place}/metadata/", str(tmp_path), f"{reader.site.place}/targets/",
                    bootstrap=depot.root)  # fmt: skip
    found = plain.get_targetinfo(head.path_of("web", "1", "x86_64", "kernel_initrd"))
    assert found is not None
    assert json.loads(Path(plain.download_target(found)).read_bytes())["name"] == "web"


def test_a_file_is_cut_where_its_content_says_so() -> None:
    data = noise(1, 3_000_000) + b"text\n" * 100_000 + noise(2, 200_000)
    whole = list(chunks.cut([data]))
    assert b"".join(whole) == data
    assert list(chunks.cut(data[at : at + 70_001] for at in range(0, len(data), 70_001))) == whole
    assert all(len(piece) <= chunks.MOST for piece in whole)
    moved = set(chunks.cut([b"inserted" + data])) - set(whole)
    assert sum(map(len, moved)) < 2 * chunks.MOST
    rows = [{"name": f"package{n}", "sha256": sha256(b"%d" % n).hexdigest(), "version": "1.0-1"} for n in range(1000)]
    text = json.dumps(rows).encode()
    rows[500]["version"] = "1.0-12"
    moved = set(chunks.cut([json.dumps(rows).encode()])) - set(chunks.cut([text]))
    assert sum(map(len, moved)) < 10_000 < len(text) / 10


@pytest.mark.parametrize("size", [0, 1, chunks.LEAST, chunks.MOST + 1, 5_000_000])
def test_a_list_leads_to_its_file(size: int) -> None:
    kept: dict[str, bytes] = {}
    data = noise(size, size)
    listing = chunks.listed([data], lambda blob, stored: kept.__setitem__(blob.digest, stored))

    def read(entries: list[Entry]) -> Iterator[bytes]:
        return (chunks.unpacked(kept[one.blob.digest], one) for one in entries)

    assert b"".join(read(list(chunks.walk(listing, size, read)))) == data
    assert len(listing.entries) <= chunks.TOP
    for wrong in (size - 1, size + 1):
        with pytest.raises(Problem, match=r"the list of a file of|longer than its file"):
            list(chunks.walk(listing, wrong, read))


def test_publishers_take_turns(depot: Depot, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    artifacts = [made(tmp_path / str(n), name=f"web{n}", parts={"disk": noise(n, 10_000)}) for n in range(6)]
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(depot.publish, artifacts))
    assert len(pulling.images(trust.refresh(depot.site, home=depot.keeper).targets)) == 6


def test_places_are_told_by_their_form(tmp_path: Path) -> None:
    for place in ("file:///etc", "ftp://host/x"):
        with pytest.raises(Problem, match="cannot read from"):
            site.at(place)
    assert site.at("http://user:word@host/depot").place == "http://host/depot"
    with pytest.raises(Problem, match="read only"):
        site.at("http://host/depot").write([("a", b"")])
    with pytest.raises(Missing):
        site.at(str(tmp_path)).read("metadata/timestamp.json", 100)


NO_PATHS = (
    "../x",
    "/etc/passwd",
    "a/../b",
    "a//b",
    ".hidden",
    "a/.b",
    "",
    "a\0",
    "a\n",
    "a b",
    "é",
    "a/" * 9 + "a",
    7,
    None,
)
NO_DIGESTS = ("sha256:../../etc/passwd", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "", None, 7)


@pytest.mark.parametrize("path", NO_PATHS)
def test_a_path_that_leads_elsewhere_is_refused(path: object) -> None:
    with pytest.raises(Problem, match="is no path of a depot"):
        site.checked_path(path)


@pytest.mark.parametrize("digest", NO_DIGESTS)
def test_what_is_no_digest_is_never_part_of_a_path(digest: str) -> None:
    with pytest.raises(Problem, match="is no sha256"):
        _ = Blob(digest, 1).path


def test_removed_scratch_of_a_killed_pull(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    depot.publish(made(tmp_path / "made"))
    left = reader.out / ".pulling-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"half")
    left.with_name(left.name + ".lock").write_bytes(b"")
    reader.pull()
    assert not [path for path in reader.out.iterdir() if path.name.startswith(".")]
