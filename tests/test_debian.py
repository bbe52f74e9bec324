"""Debian as a source of packages, whole: from a wish to plain packages, against mirrors and disks that misbehave."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path

import pytest
from debian_archive import SUITE, Archive, Item, archive, deb, folders, xz
from debian_mirror import Answer

from imagekit.errors import Problem, RigProblem
from imagekit.package import Gone, Package, Pin, Request
from imagekit.sources import _fetch
from imagekit.sources.debian import SOURCE
from imagekit.store import Store
from imagekit.stores.directory import open_store

HASTY = _fetch.Patience(stall=0.3, start=2.0, slowest=1e9, tries=2, pause=0.01)
NGINX = b"not really nginx" * 5000


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """An archive with a few packages, and everything pointed at it."""
    with archive(tmp_path) as made:
        usr = folders("usr", "usr/bin")
        made.add("nginx", [*usr, Item("./usr/bin/nginx", NGINX, mode=0o755)], architecture="amd64",
                 fields={"Depends": "libc (>= 2), adduser"})  # fmt: skip
        made.add(
            "nginx", [*usr, Item("./usr/bin/nginx", NGINX[::-1])], architecture="arm64", fields={"Depends": "libc"}
        )
        made.add("libc", [*folders("lib"), Item("./lib/libc.so", b"libc 2")], version="2")
        made.add("libc", [*folders("lib"), Item("./lib/libc.so", b"libc 3")], version="3", part="-security")
        made.add(
            "adduser",
            [*folders("sbin"), Item("./sbin/adduser", b"#!/bin/sh\n", mode=0o755)],
            version="1-1",
            part="-updates",
        )
        made.add("runit", [*usr, Item("./usr/bin/runit", b"runit")], fields={"Depends": "missing"})
        for arch in ("amd64", "arm64"):
            image = f"linux-image-6.1.0-9-cloud-{arch}"
            made.add(f"linux-image-cloud-{arch}", architecture=arch, fields={"Depends": f"{image} (= 6.1), missing"})
            made.add(image, [Item("./boot/vmlinuz", arch.encode())], version="6.1", architecture=arch)
        made.publish()
        made.use(monkeypatch)
        monkeypatch.setattr(_fetch, "PATIENCE", HASTY)
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


def request(
    *packages: str, kernel: str = "", init: tuple[str, ...] = (), without: tuple[str, ...] = (), arch: str = "x86_64"
) -> Request:
    return Request(packages, kernel=kernel, init=init, without=without, suite=SUITE, arch=arch)


def resolve(store: Store, *packages: str) -> tuple[Pin, ...]:
    return SOURCE.resolve([request(*packages)], store)[0].pins


def obtain(pins: tuple[Pin, ...], store: Store) -> list[Package]:
    return SOURCE.packages(pins, store, lambda *_: None)


def check_store(store: Store) -> None:
    """Nothing in the store is wrong: every object is what its name says, and nothing lies about."""
    for path in Path(store.location).rglob("objects/*/*"):
        assert sha256(path.read_bytes()).hexdigest() == path.name
    assert list(Path(store.location).rglob("drafts/*")) == []


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


# --- mirrors that misbehave -----------------------------------------------------------------------------------------


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
    debian: Archive, store: Store, misdeed: Callable[[Answer], None], words: str
) -> None:
    pins = resolve(store, "nginx")
    path = "/debian/" + next(pin.path for pin in pins if pin.name == "nginx")
    debian.mirror.answers[path] = misdeed
    with pytest.raises(RigProblem, match=words) as caught:
        obtain(pins, store)
    assert "nginx_1_amd64.deb" in caught.value.message
    assert isinstance(caught.value, Gone) == (misdeed is missing)
    check_store(store)
    debian.mirror.answers.clear()
    assert {package.name for package in obtain(pins, store)} == {"adduser", "libc", "nginx"}
    check_store(store)


@pytest.mark.parametrize(("misdeed", "words"), MISDEEDS.values(), ids=MISDEEDS)
def test_an_index_that_does_not_come_as_signed(
    debian: Archive, store: Store, misdeed: Callable[[Answer], None], words: str
) -> None:
    debian.mirror.answers[index_path(debian)] = misdeed
    with pytest.raises(RigProblem, match=words):
        resolve(store, "nginx")
    check_store(store)
    debian.mirror.answers.clear()
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
    monkeypatch.setattr(_fetch, "PATIENCE", _fetch.Patience(stall=60))
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


# --- pins and packages that are wrong -------------------------------------------------------------------------------


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


# --- processes: a full disk, a kill, two at once --------------------------------------------------------------------

CHILD = """
import os, resource, signal, sys
from hashlib import sha256
from imagekit.package import Request
from imagekit.errors import Problem
from imagekit.sources.debian import SOURCE
from imagekit.stores.directory import open_store

store = open_store()

def obtain(*names):
    (resolved,) = SOURCE.resolve([Request(names, "linux-image-cloud", ("runit",), (), "bookworm", "x86_64")], store)
    return SOURCE.packages(resolved.pins, store, lambda *_: None)

def try_to_obtain(*names):
    try:
        obtain(*names)
    except Problem as problem:
        print(type(problem).__name__, problem)
    for folder, _, files in os.walk(store.location + "/objects"):
        for name in files:
            assert sha256(open(folder + "/" + name, "rb").read()).hexdigest() == name, name
    assert not os.listdir(store.location + "/drafts")
"""
KILLED = """
left = int(sys.argv[1])
def hook(event, arguments):
    global left
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writes or event in ("os.rename", "os.mkdir", "os.remove", "os.chmod"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
obtain("nginx")
"""


def start(code: str, store: Store, *argv: object, before: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    command = [*before, sys.executable, "-W", "ignore", "-c", CHILD + code, *map(str, argv)]
    env = {**os.environ, "IMAGEKIT_CACHE": store.location}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(process: "subprocess.Popen[str]") -> tuple[int, str]:
    with process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


@pytest.mark.usefixtures("debian")
def test_killed_at_any_moment_the_next_run_is_right(store: Store) -> None:
    moment, killed = 1, 0
    while True:
        code, output = finish(start(KILLED, store, moment))
        assert code in (0, -9), output
        for path in Path(store.location).rglob("objects/*/*"):
            assert sha256(path.read_bytes()).hexdigest() == path.name
        if code == 0:
            break
        killed += 1
        moment = moment + 1 if moment < 8 else moment + 5
    assert killed > 3
    assert finish(start("obtain('nginx')", store)) == (0, "")


FULL_DISKS: dict[str, tuple[str, tuple[str, ...]]] = {  # what the child does first, and the program that starts it
    "a limit on files": ("resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n", ()),
    "a small disk": (
        "",
        ("unshare", "--map-root-user", "--mount", "sh", "-c",
         'mount -t tmpfs -o size=800k,mode=700 none "$IMAGEKIT_CACHE" && exec "$@"', "sh"),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("first", "before"), FULL_DISKS.values(), ids=FULL_DISKS)
def test_a_full_disk_is_said_and_nothing_wrong_is_kept(
    debian: Archive, store: Store, first: str, before: tuple[str, ...]
) -> None:
    if before and subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode:
        pytest.skip("user namespaces are blocked here: no small disk can be mounted")
    debian.add("big", [Item("./big", bytes(range(256)) * 8000)])
    debian.publish()
    code, output = finish(start(first + "try_to_obtain('big')", store, before=before))
    assert code == 0, output
    assert re.search("RigProblem .*cannot write to the cache", output)
    assert "make room" in output
    assert finish(start("try_to_obtain('big')", store)) == (0, "")


def test_two_at_once_fetch_each_file_once(debian: Archive, store: Store) -> None:
    both = [start("obtain('nginx')", store), start("obtain('nginx')", store)]
    assert [finish(process) for process in both] == [(0, ""), (0, "")]
    fetched = [path for path in debian.mirror.requests if path.endswith(".deb")]
    assert len(fetched) == len(set(fetched)) == 5
    check_store(store)
