"""A host of images that lies, drips, cuts and sends without end: bounded in bytes and in time, and nothing is kept."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

import pytest
from debian_mirror import Answer, Mirror, serving
from depot_rig import Depot, Reader, made, noise

from imagekit import download, site
from imagekit.depot import blobs, index
from imagekit.errors import Problem, RigProblem

CALM = download.Patience(stall=20, start=60, tries=2, pause=0.01)
HANG = 120  # seconds: a misdeed that did not end would take for ever
HASTY = download.Patience(stall=0.3, start=1, slowest=1e9, tries=2, pause=0.01)
KINDS = ("timestamp", "2.snapshot", "2.targets", "entry", "blob")  # every kind of file that a pull asks for


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    found = Depot(tmp_path)
    found.publish(made(tmp_path / "1"))
    return found


@pytest.fixture
def mirror(depot: Depot) -> Iterator[Mirror]:
    with serving(depot.place) as running:
        yield running


@pytest.fixture
def reader(depot: Depot, mirror: Mirror, tmp_path: Path) -> Reader:
    return Reader(site.at(mirror.address), tmp_path / "reader").trusts(depot.root)


def address_of(depot: Depot, kind: str) -> str:
    """The path on the server of one file of a kind."""
    folder = {"entry": "targets", "blob": "blobs"}.get(kind)
    found = sorted(path for path in (depot.place / (folder or "metadata")).rglob("*") if path.is_file())
    path = found[0] if folder else depot.place / f"metadata/{kind}.json"
    return "/" + path.relative_to(depot.place).as_posix()


def file_of(answer: Answer) -> bytes:
    return (answer.mirror.folder / answer.path.lstrip("/")).read_bytes()


def endless(answer: Answer) -> None:
    answer.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not answer.mirror.over.is_set():
        answer.wfile.write(bytes(100_000))


def drip(answer: Answer) -> None:
    """A byte now and then, for ever: never silent, never done."""
    data = file_of(answer)
    answer.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
    for byte in data:
        answer.wfile.write(bytes([byte]))
        answer.wfile.flush()
        if answer.mirror.over.wait(0.1):
            return


def stall(answer: Answer) -> None:
    answer.mirror.over.wait(20)


def cut(answer: Answer) -> None:
    data = file_of(answer)
    answer.body(data[: len(data) // 2], length=len(data))


def truncated(answer: Answer) -> None:
    answer.body(file_of(answer)[:-1])


def longer(answer: Answer) -> None:
    answer.body(file_of(answer) + b" " * (6 << 20))


def gone(answer: Answer) -> None:
    answer.body(b"", 404)


def broken(answer: Answer) -> None:
    answer.body(b"", 500)


def bomb(answer: Answer) -> None:
    import gzip

    answer.body(gzip.compress(bytes(8 << 20)), Content_Encoding="gzip")


def leads(to: str) -> Callable[[Answer], None]:
    return lambda answer: answer.body(b"", 302, Location=to)


def circle(answer: Answer) -> None:
    answer.body(b"", 302, Location=answer.path)


MISDEEDS: dict[str, Callable[[Answer], None]] = {
    "endless data": endless,
    "slow retrieval": drip,
    "silence": stall,
    "cut": cut,
    "truncated": truncated,
    "wrong length": longer,
    "404 midway": gone,
    "500 midway": broken,
    "gzip bomb": bomb,
    "redirect to another host": leads("http://127.0.0.1:1/x"),
    "redirect to a file": leads("file:///etc/passwd"),
    "redirect to another scheme": leads("ftp://127.0.0.1/x"),
    "redirect in a circle": circle,
}
SLOW = ("endless data", "slow retrieval", "silence")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_misdeed_ends_a_pull_soon(
    depot: Depot, mirror: Mirror, reader: Reader, misdeed: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", HASTY if misdeed in SLOW else CALM)
    mirror.answers[address_of(depot, kind)] = MISDEEDS[misdeed]
    started = monotonic()
    with pytest.raises(Problem):
        reader.pull()
    assert monotonic() - started < HANG
    assert not reader.out.exists() or not list(reader.out.iterdir())
    del mirror.answers[address_of(depot, kind)]
    monkeypatch.setattr(download, "PATIENCE", CALM)
    assert reader.pull().artifact.manifest["version"] == "1"  # and nothing bad was kept


def test_a_host_that_is_slow_with_every_blob_is_too_slow_with_all(
    depot: Depot, mirror: Mirror, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No blob exceeds its own deadline, but the image has one too."""
    monkeypatch.setattr(download, "PATIENCE", replace(CALM, tries=1))
    monkeypatch.setattr(blobs, "START", 0.5)
    monkeypatch.setattr(blobs, "SLOWEST", 1e9)

    def late(answer: Answer) -> None:
        if answer.path.startswith("/blobs/"):
            sleep(0.4)
        answer.file()

    mirror.answers["*"] = late
    with pytest.raises(Problem, match="too slow"):
        reader.pull()
    assert depot.place.is_dir()


def test_an_index_behind_the_blobs_is_the_old_index(
    depot: Depot, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Publication ends when all is there but the index: readers see the old image, and the rest is not moved again."""
    second = made(tmp_path / "2", version="2", parts={"kernel": noise(9, 300_000)})
    with monkeypatch.context() as ending:
        ending.setattr(index, "add", lambda *_, **__: (_ for _ in ()).throw(RigProblem("the power went")))
        with pytest.raises(RigProblem, match="the power went"):
            depot.publish(second)
    assert reader.pull().artifact.manifest["version"] == "1"
    assert depot.publish(second).blobs == 0
    assert reader.pull().artifact.manifest["version"] == "2"
