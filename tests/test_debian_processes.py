"""Debian as a source, whole processes of it: a full disk, a kill at every write, two at once."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from signal import SIGINT
from threading import Event

import pytest
from debian_archive import Archive, Item
from debian_mirror import Answer
from debian_shop import check_store, stocked

from imagekit.store import Store
from imagekit.stores.directory import open_store


@pytest.fixture
def debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    with stocked(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


CHILD = """
import os, resource, signal, sys
from hashlib import sha256
from imagekit.package import Request
from imagekit.errors import Problem
from imagekit.sources.debian import SOURCE
from imagekit.stores.directory import open_store

store = open_store()
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in a shell's background begins with it ignored

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
        output, _ = process.communicate(timeout=300)
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


def test_ctrl_c_ends_a_silent_transfer(debian: Archive, store: Store) -> None:
    asked = Event()

    def stall(answer: Answer) -> None:
        asked.set()
        answer.mirror.over.wait(600)

    debian.mirror.answers |= {f"/debian/pool/main/{name}_1_amd64.deb": stall for name in ("nginx", "libc")}
    process = start("obtain('nginx')", store)
    assert asked.wait(300)
    process.send_signal(SIGINT)
    code, output = finish(process)  # long before the mirror's silence would be noticed twice over
    assert code != 0
    assert output.rstrip().endswith("KeyboardInterrupt")
    assert list(Path(store.location).rglob("drafts/*")) == []
