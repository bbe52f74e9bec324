"""What a lock pins lies in a depot: builds whose mirror has dropped a package take it from there, and nothing else."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from debian_archive import Archive
from debian_shop import check_store, obtain, resolve, stocked
from depot_rig import Depot, served

from imagekit import cli, lock, package
from imagekit.depot import mirroring
from imagekit.errors import Problem
from imagekit.lock import Lock
from imagekit.package import Gone, Pin
from imagekit.site import Blob
from imagekit.store import Store
from imagekit.stores.directory import open_store


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with stocked(tmp_path / "archive", monkeypatch) as made:
        yield made


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def another(tmp_path: Path) -> Store:
    """Of a machine that has never built."""
    return open_store(tmp_path / "another")


def drop(debian: Archive, pins: tuple[Pin, ...]) -> None:
    """The mirror has other versions now."""
    for pin in pins:
        next(debian.folder.rglob(Path(pin.path).name)).unlink()


def blob_of(depot: Depot, pin: Pin) -> Path:
    return depot.place / Blob(pin.sha256, pin.size).path


@pytest.mark.parametrize("way", ["directory", "server"])
def test_what_the_mirror_dropped_comes_from_the_depot(
    debian: Archive, depot: Depot, store: Store, another: Store, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = resolve(store, "nginx")
    kept = mirroring.mirror(pins, depot.site, store)
    assert (kept.files, kept.new, kept.passed) == (len(pins), len(pins), 0)
    wanted = [made.digest for made in obtain(pins, store)]
    drop(debian, pins)
    with pytest.raises(Gone, match="dropped"):
        obtain(pins, another)
    with served(depot.place) as address:
        monkeypatch.setenv("IMAGEKIT_DEPOT", address if way == "server" else str(depot.place))
        assert [made.digest for made in obtain(pins, another)] == wanted
    check_store(another)


def test_only_what_the_depot_lacks_moves(debian: Archive, depot: Depot, store: Store, another: Store) -> None:
    mirroring.mirror(resolve(store, "adduser"), depot.site, store)
    pins = resolve(store, "nginx")  # needs adduser
    drop(debian, tuple(pin for pin in pins if pin.name == "adduser"))  # so it is not even fetched
    kept = mirroring.mirror(pins, depot.site, another)
    assert (kept.files, kept.new) == (len(pins), len(pins) - 1)
    assert kept.size == sum(pin.size for pin in pins if pin.name != "adduser")
    assert mirroring.mirror(pins, depot.site, another).size == 0


@pytest.mark.parametrize(
    ("spoil", "kind", "words"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x"), Problem, "named after"),
        (lambda path: path.write_bytes(path.read_bytes() + b"x"), Problem, "larger than"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), Problem, "named after"),
        (lambda path: path.unlink(), Gone, "does not have it either"),
    ],
    ids=["changed", "longer", "shorter", "missing"],
)
def test_a_depot_that_lies_is_not_believed(
    debian: Archive, depot: Depot, store: Store, another: Store, monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object], kind: type[Problem], words: str,
) -> None:  # fmt: skip
    pins = resolve(store, "adduser")
    mirroring.mirror(pins, depot.site, store)
    drop(debian, pins)
    for pin in pins:
        spoil(blob_of(depot, pin))
    monkeypatch.setenv("IMAGEKIT_DEPOT", str(depot.place))
    with pytest.raises(kind, match=words):
        obtain(pins, another)
    check_store(another)


def test_what_is_no_depot_is_not_made_one(debian: Archive, tmp_path: Path, store: Store) -> None:
    from imagekit import site

    with pytest.raises(Problem, match="is no depot"):
        mirroring.mirror(resolve(store, "adduser"), site.at(str(tmp_path / "typo")), store)
    assert not (tmp_path / "typo").exists()
    assert debian.folder.exists()


def test_it_is_typed(
    debian: Archive, depot: Depot, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("IMAGEKIT_CACHE", store.location)
    pins = resolve(store, "adduser")
    beside = Pin("package", "tarball", "app", "1", "all", 5, "0" * 64, package.BESIDE, "app.tar.gz")
    path = tmp_path / "web.lock"
    path.write_text(Lock("0" * 64, (), {"x86_64": (*pins, beside), "aarch64": pins}).text())
    assert lock.read(path).pins["aarch64"] == pins
    assert cli.main(["mirror", str(path), "--to", str(depot.place)]) == 0
    said = capsys.readouterr().out
    assert f"{len(pins)} packages in {depot.place}, of which {len(pins)} are new" in said
    assert "1 of other sources than debian: were passed over" in said
    assert all(blob_of(depot, pin).stat().st_size == pin.size for pin in pins)
    assert debian.folder.exists()
