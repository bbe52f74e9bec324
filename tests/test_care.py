"""The care of a cache tells what lies in it and finds whatever is not what was put there, and nothing else."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from imagekit import care
from imagekit.cli import main
from imagekit.store import Store
from imagekit.stores.directory import open_store

GOOD, OTHER = b"good" * 5000, b"evil" * 5000
DIGEST = sha256(GOOD).hexdigest()


@pytest.fixture
def store(root: Path) -> Store:
    made = open_store(root)
    made.write([GOOD])
    made.remember("kind", "key", b"a note")
    return made


def artifact(root: Path, name: str, plan: str) -> Path:
    """As a build lays one down: its part is the object, by another name."""
    place = root / "artifacts" / plan
    place.mkdir(parents=True)
    os.link(root / "objects" / DIGEST[:2] / DIGEST, place / f"{name}_1_x86_64.tar")
    (place / f"{name}_1_x86_64.tar.manifest.json").write_text("{}")
    return place


def _replace(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)


def _instead(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


def _listen(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")  # sun_path has 108 bytes


SPOILT: list[tuple[str, Callable[[Path], None], str]] = [
    ("truncated", lambda path: _replace(path, GOOD[:-1]), "its bytes hash to"),
    ("longer", lambda path: _replace(path, GOOD + b"\0"), "its bytes hash to"),
    ("empty", lambda path: _replace(path, b""), "its bytes hash to"),
    ("replaced by one as long", lambda path: _replace(path, OTHER), f"its bytes hash to {sha256(OTHER).hexdigest()}"),
    ("a pipe that nobody writes to", _instead(os.mkfifo), "is a pipe, not a file"),
    ("a link to a file elsewhere", _instead(lambda path: path.symlink_to("/etc/passwd")), "is a symbolic link"),
    ("a socket", _instead(_listen), "is a socket"),
]


@pytest.mark.parametrize(("spoil", "words"), [row[1:] for row in SPOILT], ids=[row[0] for row in SPOILT])
def test_a_spoilt_object_is_told_and_set_aside(
    store: Store, root: Path, spoil: Callable[[Path], None], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(store.path(DIGEST))
    assert main(["store", "verify"]) == 1
    said = capsys.readouterr().out
    assert f"objects/{DIGEST[:2]}/{DIGEST}: {words}" in said
    assert "set aside in bad/" in said
    assert not store.has(DIGEST)
    assert os.path.lexists(root / "bad" / DIGEST)
    assert main(["store", "verify"]) == 0, "what was set aside is no fault any more"
    assert store.write([GOOD]) == DIGEST, "it can be made again"


@pytest.mark.skipif(os.getuid() != 0, reason="making a device and giving a file away takes root")
def test_a_device_and_a_stranger_are_told(store: Store, root: Path) -> None:
    path = store.path(DIGEST)
    os.chown(path, 65534, 65534)
    assert [str(fault) for fault in care.verify(root)[1]] == [
        f"objects/{DIGEST[:2]}/{DIGEST}: belongs to user 65534, not to you"
    ]
    path.unlink()
    os.mknod(path, 0o020444, os.makedev(1, 5))  # /dev/zero has no end
    assert ["is a device" in fault.why for fault in care.verify(root)[1]] == [True]


def test_a_torn_note_is_told_and_forgotten(store: Store, root: Path) -> None:
    path = root / "notes/kind/key"
    _replace(path, path.read_bytes()[:-1])
    assert [str(fault) for fault in care.verify(root)[1]] == [
        "notes/kind/key: it is torn: its bytes are not those of its first line; set aside in bad/"
    ]
    assert store.recall("kind", "key") is None
    assert not path.exists()


@pytest.mark.parametrize("what", ["objects", "notes/kind", "notes/kind/key"])
def test_what_others_can_write_to_is_told_and_left(store: Store, root: Path, what: str) -> None:
    (root / what).chmod(0o777)
    assert [str(fault) for fault in care.verify(root)[1]] == [f"{what}: others can write to it (mode 0777)"]
    assert store.read(DIGEST) == GOOD


def test_a_whole_cache_has_no_faults_whatever_else_lies_there(store: Store, root: Path) -> None:
    artifact(root, "web", "a" * 64)
    assert care.verify(root) == (2, [])
    assert store.read(DIGEST) == GOOD


def test_bytes_that_an_artifact_shares_are_counted_once(
    store: Store, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, plan in (("web", "a"), ("web", "b"), ("shell", "c")):
        artifact(root, name, plan * 64)
    found = {kind.name: kind for kind in care.kinds(root)}
    part = store.path(DIGEST).stat().st_blocks * 512
    assert (found["objects"].count, found["objects"].bytes) == (1, part)
    assert found["artifacts"].count == 3
    assert found["artifacts"].bytes < part, "manifests alone"
    du = subprocess.run(["du", "-s", "-B1", "--", root], capture_output=True, text=True, check=True).stdout.split()[0]
    folders = sum(p.stat().st_blocks * 512 for p in (root, *root.rglob("*")) if p.is_dir())
    assert sum(kind.bytes for kind in found.values()) == int(du) - folders
    assert [(row.name, row.count) for row in care.images(root)] == [("web", 2), ("shell", 1)]
    assert main(["store", "ls"]) == 0
    assert "objects" in capsys.readouterr().out


@pytest.mark.usefixtures("store")
def test_objects_written_meanwhile_are_no_faults(root: Path) -> None:
    code = "import sys; from pathlib import Path; from imagekit.stores.directory import open_store as o\n"
    code += (
        "s = o(Path(sys.argv[1]))\nfor n in range(10**6): s.write([b'%d' % (n % 50)]); s.remember('k', '%d' % n, b'x')"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, str(root)])
    try:
        while not (root / "notes/k").exists():
            assert writer.poll() is None
        for _ in range(20):
            assert care.verify(root)[1] == []
        assert writer.poll() is None, "it wrote all the while"
    finally:
        writer.kill()
        writer.wait()
