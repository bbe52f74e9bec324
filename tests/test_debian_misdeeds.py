"""Debian as a source, against mirrors that lie, cut, stall and withhold; nothing wrong is kept."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from debian_archive import Archive, xz
from debian_mirror import Answer
from debian_shop import CALM, HASTY, check_store, obtain, resolve, stocked

from imagekit import download
from imagekit.errors import RigProblem
from imagekit.package import Gone
from imagekit.store import Store
from imagekit.stores.directory import open_store


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with stocked(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


def index_path(debian: Archive) -> str:
    paths = (debian.folder / "debian/dists/bookworm/main/binary-amd64/by-hash/SHA256").iterdir()
    return "/" + next(paths).relative_to(debian.folder).as_posix()


def other_bytes(answer: Answer) -> None:
    data = (answer.mirror.folder / answer.path.lstrip("/")).read_bytes()
    answer.body(data[:-1] + bytes([data[-1] ^ 1]))


def longer(answer: Answer) -> None:
    answer.body((answer.mirror.folder / answer.path.lstrip("/")).read_bytes() + b"more")


def cut(answer: Answer) -> None:
    data = (answer.mirror.folder / answer.path.lstrip("/")).read_bytes()
    answer.body(data[: len(data) // 2], length=len(data))


def stall(answer: Answer) -> None:
    answer.mirror.over.wait(20)


def endless(answer: Answer) -> None:
    answer.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while not answer.mirror.over.is_set():
        answer.wfile.write(bytes(100_000))


def missing(answer: Answer) -> None:
    answer.body(b"", 404)


def elsewhere(answer: Answer) -> None:
    answer.body(b"", 302, Location="http://127.0.0.1:1/")


MISDEEDS: dict[str, tuple[Callable[[Answer], None], str]] = {
    "same size, other bytes": (other_bytes, "with the sha256"),
    "longer than said": (longer, "announces [0-9]+ bytes where [0-9]+ are expected"),
    "cut": (cut, "cut the body"),
    "stall": (stall, "silent"),
    "endless": (endless, "sends more than"),
    "404": (missing, "dropped this file|answers 404"),
    "redirect elsewhere": (elsewhere, "redirects elsewhere"),
}


@pytest.mark.parametrize(("misdeed", "words"), MISDEEDS.values(), ids=MISDEEDS)
def test_a_package_that_does_not_come_as_pinned(
    debian: Archive,
    store: Store,
    misdeed: Callable[[Answer], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if misdeed is stall:
        monkeypatch.setattr(download, "PATIENCE", HASTY)
    pins = resolve(store, "nginx")
    path = "/debian/" + next(pin.path for pin in pins if pin.name == "nginx")
    debian.mirror.answers[path] = misdeed
    with pytest.raises(RigProblem, match=words) as caught:
        obtain(pins, store)
    assert "nginx_1_amd64.deb" in caught.value.message
    assert isinstance(caught.value, Gone) == (misdeed is missing)
    check_store(store)
    debian.mirror.answers.clear()
    monkeypatch.setattr(download, "PATIENCE", CALM)
    assert {package.name for package in obtain(pins, store)} == {"adduser", "libc", "nginx"}
    check_store(store)


@pytest.mark.parametrize(("misdeed", "words"), MISDEEDS.values(), ids=MISDEEDS)
def test_an_index_that_does_not_come_as_signed(
    debian: Archive,
    store: Store,
    misdeed: Callable[[Answer], None],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if misdeed is stall:
        monkeypatch.setattr(download, "PATIENCE", HASTY)
    debian.mirror.answers[index_path(debian)] = misdeed
    with pytest.raises(RigProblem, match=words):
        resolve(store, "nginx")
    check_store(store)
    debian.mirror.answers.clear()
    monkeypatch.setattr(download, "PATIENCE", CALM)
    assert resolve(store, "nginx")


def tampered(archive: Archive) -> None:
    path = archive.in_release()
    path.write_bytes(path.read_bytes().replace(b"Acquire-By-Hash: yes", b"Acquire-By-Hash: no "))


def around(archive: Archive) -> None:
    path = archive.in_release("-security")
    path.write_bytes(b"Codename: bookworm-security\n\n" + path.read_bytes())


def swapped(archive: Archive) -> None:
    archive.in_release("-security").write_bytes(archive.in_release("-updates").read_bytes())


def unsigned(archive: Archive) -> None:
    archive.in_release().write_text("Codename: bookworm\nSHA256:\n")


def withheld(archive: Archive) -> None:
    archive.in_release("-security").unlink()  # security updates must not vanish in silence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tampered, "suite bookworm: its metadata is not signed"),
        (around, "suite bookworm-security: .*nothing else"),
        (swapped, "suite bookworm-security: the mirror serves the metadata of 'bookworm-updates'"),
        (unsigned, "suite bookworm: .*not one signed message"),
        (withheld, "no suite 'bookworm-security'"),
        (lambda archive: archive.publish(**{"Valid-Until": "Mon, 01 Jan 2024 00:00:00 UTC"}), "was valid until 2024"),
    ],
)
def test_metadata_that_cannot_be_believed(
    debian: Archive, store: Store, change: Callable[[Archive], None], words: str
) -> None:
    change(debian)
    with pytest.raises(RigProblem, match=words):
        resolve(store, "nginx")
    check_store(store)


def test_a_mirror_without_by_hash(debian: Archive, store: Store) -> None:
    debian.publish(**{"Acquire-By-Hash": "no"})
    path = debian.folder / index_path(debian).lstrip("/")
    for index in path.parents[4].rglob("by-hash/SHA256/*"):
        index.rename(index.parents[2] / "Packages.xz")
    for dists in (debian.in_release("-updates").parent, debian.in_release("-security").parent):
        for index in dists.rglob("by-hash/SHA256/*"):
            index.rename(index.parents[2] / "Packages.xz")
    assert resolve(store, "nginx")
    assert not any("by-hash" in path for path in debian.mirror.requests)


@pytest.mark.parametrize("packed", [b"no xz at all", xz(b"Package: a\n")[:-9], b""])
def test_a_signed_index_that_does_not_unpack(
    debian: Archive, store: Store, packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("debian_archive.xz", lambda _: packed)
    debian.publish()
    with pytest.raises(RigProblem, match=r"does not unpack|is cut"):
        resolve(store, "nginx")


def test_the_first_failure_ends_the_other_transfers(
    debian: Archive, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", download.Patience(stall=60))
    pins = resolve(store, "nginx")
    heard: list[bytes] = []

    def listen(answer: Answer) -> None:
        debian.mirror.answers["/debian/" + pins[0].path] = missing
        answer.connection.settimeout(30)
        heard.append(answer.connection.recv(1))

    def wait_then_miss(answer: Answer) -> None:
        answer.mirror.over.wait(0.3)
        missing(answer)

    debian.mirror.answers |= {"/debian/" + pin.path: listen for pin in pins} | {
        "/debian/" + pins[0].path: wait_then_miss
    }
    with pytest.raises(Gone):
        obtain(pins, store)
    debian.mirror.over.wait(0.5)
    assert b"" in heard  # the connection was closed from this side, though its mirror was silent still
    check_store(store)
