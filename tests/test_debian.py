"""Debian as a source of packages, whole: from a wish to plain packages."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from debian_archive import Archive, Item, deb
from debian_shop import NGINX, check_store, obtain, request, resolve, stocked

from imagekit.errors import Problem, RigProblem
from imagekit.package import Request
from imagekit.sources.debian import SOURCE
from imagekit.store import Store
from imagekit.stores.directory import open_store


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with stocked(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


def test_from_a_wish_to_packages(debian: Archive, store: Store) -> None:
    wishes = [
        request("nginx", kernel="linux-image-cloud", init=("runit", "libc"), arch=arch)
        for arch in ("x86_64", "aarch64")
    ]
    x86, arm = SOURCE.resolve(wishes, store)
    assert [(pin.role, pin.name, pin.version, pin.architecture, pin.archive) for pin in x86.pins] == [
        ("package", "adduser", "1-1", "all", "debian"),
        ("package", "libc", "3", "all", "debian-security"),
        ("kernel", "linux-image-6.1.0-9-cloud-amd64", "6.1", "amd64", "debian"),
        ("package", "nginx", "1", "amd64", "debian"),
        ("init", "runit", "1", "all", "debian"),
    ]
    assert [pin.name for pin in arm.pins] == ["libc", "linux-image-6.1.0-9-cloud-arm64", "nginx", "runit"]
    assert [(archive.name, archive.suite) for archive in x86.archives] == [
        ("debian", "bookworm"), ("debian", "bookworm-updates"), ("debian-security", "bookworm-security"),
    ]  # fmt: skip
    assert len([path for path in debian.mirror.requests if path.endswith("InRelease")]) == 3
    packages = {package.name: package for package in obtain(x86.pins, store)}
    assert packages["nginx"].tree.read("/usr/bin/nginx") == NGINX
    assert packages["libc"].tree.read("/usr/lib/libc.so") == b"libc 3"
    assert packages["adduser"].tree["/usr/sbin/adduser"].owner == "adduser"
    check_store(store)


def test_what_the_store_has_needs_no_network(debian: Archive, store: Store) -> None:
    pins = resolve(store, "nginx")
    first = obtain(pins, store)
    debian.mirror.requests.clear()
    assert obtain(pins, store) == first
    assert debian.mirror.requests == []
    resolve(store, "nginx")
    assert all(path.endswith("/InRelease") for path in debian.mirror.requests)  # the indices are kept as well


@pytest.mark.usefixtures("debian")
def test_without_a_mirror_what_the_store_has_is_enough(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = resolve(store, "nginx")
    first = obtain(pins, store)
    (Path(store.location) / "notes/debian-package").rename(Path(store.location) / "away")  # must be converted again
    monkeypatch.setenv("IMAGEKIT_MIRROR", "this is no mirror")
    assert obtain(pins, store) == first


@pytest.mark.usefixtures("debian")
def test_progress_adds_up(store: Store) -> None:
    pins = resolve(store, "nginx")
    seen: list[tuple[str, int, int]] = []
    SOURCE.packages(pins, store, lambda *step: seen.append(step))
    size = sum(pin.size for pin in pins)
    assert seen[-1][1:] == (size, size)
    assert {what for what, _, _ in seen} == {pin.name for pin in pins}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


def test_firmware_is_looked_for_only_where_it_is_asked_for(debian: Archive, store: Store) -> None:
    plain, opted = SOURCE.resolve([request("nginx"), request("nginx", firmware=("blobs",), arch="aarch64")], store)
    assert "blobs" not in {pin.name for pin in plain.pins}
    (blobs,) = (pin for pin in opted.pins if pin.role == "firmware")
    assert (blobs.name, blobs.path) == ("blobs", "pool/non-free-firmware/blobs_1_all.deb")  # alone, as it is asked for
    read = [path for path in debian.mirror.requests if "non-free-firmware" in path]
    assert 2 <= len(read) <= 3  # of three suites; two of these indices are the same empty file, fetched at once or once
    assert all("/binary-arm64/by-hash/" in path for path in read)
    assert obtain((blobs,), store)[0].tree.read("/usr/lib/start.elf") == b"\x7fELF"
    debian.mirror.requests.clear()
    assert [pin.name for pin in resolve(store, "nginx")] == ["adduser", "libc", "nginx"]
    assert not any("non-free" in path for path in debian.mirror.requests)


@pytest.mark.usefixtures("debian")
def test_non_free_firmware_is_no_source_of_packages(store: Store) -> None:
    with pytest.raises(Problem, match="no package 'blobs'"):
        SOURCE.resolve([request("nginx", "blobs", firmware=("blobs",))], store)


@pytest.mark.usefixtures("debian")
def test_without_is_taken_as_present(store: Store) -> None:
    (resolved,) = SOURCE.resolve([request("nginx", without=("adduser",))], store)
    assert [pin.name for pin in resolved.pins] == ["libc", "nginx"]


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    ("wish", "words"),
    [
        (request("ngins"), "no package 'ngins'"),
        (request("runit"), "runit needs missing"),
        (request("nginx", init=("runti",)), "no package 'runti'"),
        (request("nginx", firmware=("blob",)), "firmware: bookworm has no package 'blob' in non-free-firmware"),
        (request("nginx", firmware=("libc",)), "firmware: 'libc' is in Debian's main"),
        (request("nginx", kernel="linux-image-clod"), "unknown kernel package of bookworm 'linux-image-clod'"),
    ],
)
def test_a_wish_that_cannot_be_met(store: Store, wish: Request, words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        SOURCE.resolve([wish], store)
    assert not isinstance(caught.value, RigProblem)


@pytest.mark.usefixtures("debian")
def test_a_suite_that_the_mirror_lacks(store: Store) -> None:
    with pytest.raises(RigProblem, match=r"no suite 'trixie.*' in its archive 'debian") as caught:
        SOURCE.resolve([request("nginx")._replace(suite="trixie")], store)
    assert "IMAGEKIT_MIRROR" in caught.value.hint
    with pytest.raises(Problem, match="unknown architecture"):
        SOURCE.resolve([request("nginx", arch="riscv64")], store)


def test_a_package_of_the_right_digest_that_is_broken(debian: Archive, store: Store) -> None:
    debian.add("bad", data=deb("bad", [Item("./../etc/passwd", b"root")]))
    debian.publish()
    pins = resolve(store, "bad")
    with pytest.raises(Problem, match=r"bad 1: .*no name of a member"):
        obtain(pins, store)
    check_store(store)


@pytest.mark.usefixtures("debian")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "other"}, "calls nginx 1 amd64 by another name: other"),
        ({"version": "2"}, "nginx 2"),
        ({"architecture": "all"}, "nginx 1 all"),
        ({"archive": "elsewhere"}, "names the archive 'elsewhere'"),
        ({"size": 5}, "announces [0-9]+ bytes where 5 are expected"),
        ({"sha256": "ab" * 32}, "not abab"),
        ({"path": "pool/none.deb"}, "dropped this file"),
    ],
)
def test_a_pin_that_is_wrong(store: Store, change: dict[str, object], words: str) -> None:
    pin = next(pin for pin in resolve(store, "nginx") if pin.name == "nginx")._replace(**change)
    with pytest.raises(Problem, match=words):
        obtain((pin,), store)
    check_store(store)


def test_bytes_that_rotted_in_the_store_are_fetched_again(debian: Archive, store: Store) -> None:
    pins = resolve(store, "nginx")
    first = obtain(pins, store)
    for digest in (pins[0].sha256, first[0].tree["/usr/sbin/adduser"].sha256):
        path = store.path(digest)
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1])
    debian.mirror.requests.clear()
    assert obtain(pins, store)[0].tree.read("/usr/sbin/adduser") == b"#!/bin/sh\n"
    assert debian.mirror.requests == ["/debian/" + pins[0].path]
    check_store(store)
