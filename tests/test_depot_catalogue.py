"""The catalogue of a depot: it has what was published, goes with the index, and is refused when it is not that."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from depot_rig import IMAGE_KEY, Depot, Reader, files, holding, made

from imagekit import cli, query
from imagekit.depot import catalogued, publishing, trust
from imagekit.errors import Problem


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path)


@pytest.fixture
def reader(depot: Depot, tmp_path: Path) -> Reader:
    return Reader(depot.site, tmp_path / "reader").trusts(depot.root)


def found(reader: Reader, *questions: str) -> list[str]:
    known = catalogued.read(reader.site, reader.refresh().targets, store=reader.store)
    return [one.image.place for one in query.ask(known, questions).found]


def test_what_is_published_is_found(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """One image after the other, and an image that is published in another's place takes it."""
    out = tmp_path / "made"
    depot.publish(holding(out, "web", "1", ("openssl", "3.0.14-1"), ("curl", "7.88-1")), listing=files)
    depot.publish(holding(out, "db", "1", ("openssl", "3.0.15-1")), made(out, name="bare"))
    web, db = "images/web/1/x86_64/kernel_initrd", "images/db/1/x86_64/kernel_initrd"
    assert found(reader, "openssl<3.0.15") == [web]
    assert found(reader, "openssl") == [db, web]
    assert found(reader, "path:/usr/bin/*") == [web]
    assert len(catalogued.read(reader.site, reader.refresh().targets, store=reader.store)) == 3
    depot.publish(holding(out, "web", "1", ("openssl", "3.0.15-2")), replace=True)
    assert found(reader, "openssl<3.0.15") == []
    assert found(reader, "openssl") == [db, web]


def test_the_same_images_in_another_order_are_the_same_catalogue(tmp_path: Path) -> None:
    digests = set()
    for turn in (1, -1):
        depot = Depot(tmp_path / str(turn))
        for name in ("a", "b", "c")[::turn]:
            depot.publish(holding(tmp_path / f"made{turn}", name, "1", ("openssl", "1-1")))
        digests.add(depot.held().targets.signed.targets[catalogued.PATH].hashes["sha256"])
    assert len(digests) == 1


def test_a_catalogue_that_is_not_the_indexs_is_refused(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    with pytest.raises(Problem, match="has no catalogue"):
        found(reader, "a")
    depot.publish(holding(tmp_path / "made", "web", "1", ("openssl", "1-1")))
    (stored,) = (depot.place / "targets/search").iterdir()
    data = stored.read_bytes()
    stored.chmod(0o644)
    stored.write_bytes(data[:-1] + b"x")
    with pytest.raises(Problem, match="is not what the index names"):
        found(reader, "openssl")
    stored.unlink()
    with pytest.raises(Problem, match="lacks the catalogue"):
        found(reader, "openssl")
    seen = reader.refresh()
    huge = {catalogued.PATH: seen.targets[catalogued.PATH]._replace(size=1 << 40)}
    with pytest.raises(Problem, match="more than one can have"):
        catalogued.read(reader.site, huge, store=reader.store)


def test_it_is_there_before_the_index_names_it(depot: Depot, reader: Reader, tmp_path: Path) -> None:
    """A publisher who ends after the catalogue was written leaves readers with the one of before."""
    depot.publish(holding(tmp_path / "made", "web", "1", ("openssl", "1-1")))
    site = depot.site

    def dying(written: Any) -> None:
        listed = list(written)
        site.write(listed)
        if any(path.startswith("targets/search/") for path, _ in listed):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        publishing.publish([holding(tmp_path / "made", "db", "1", ("openssl", "1-1"))], replace(site, write=dying),
                           key=IMAGE_KEY, keys=[], home=depot.keeper, store=depot.store)  # fmt: skip
    assert found(reader, "openssl") == ["images/web/1/x86_64/kernel_initrd"]


def test_it_is_asked_by_the_verb(
    depot: Depot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    depot.publish(holding(tmp_path / "made", "web", "1", ("openssl", "3.0.14-1")))
    words = ["search", "openssl<3.0.15", "--depot", str(depot.place)]
    assert cli.main(words) != 0, "nobody trusts it yet"
    trust.adopt(depot.site, depot.root)
    capsys.readouterr()
    assert cli.main(words) == 0
    assert "images/web/1/x86_64/kernel_initrd" in capsys.readouterr().out
