"""What is removed from a cache is nothing that lies outside or is another's, whatever lies where."""

import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from cache_rig import later, names

from imagekit import clearing, inuse
from imagekit.cli import main
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.stores.directory import open_store

is_root = pytest.mark.skipif(os.getuid() != 0, reason="takes root")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")


OUTSIDE: list[tuple[str, str, Callable[[Path, Path], object], str]] = [
    ("objects lie elsewhere", "objects", lambda at, of: at.symlink_to(of), "objects: is no folder; left"),
    ("a shard lies elsewhere", "objects/ab", lambda at, of: at.symlink_to(of), "objects/ab: is no folder; left"),
    ("notes lie elsewhere", "notes/kind", lambda at, of: at.symlink_to(of), "notes/kind: is no folder; left"),
    ("an artifact lies elsewhere", "artifacts/one", lambda at, of: at.symlink_to(of), "artifacts/one: is no folder"),
    ("an artifact holds a link", "artifacts/one/way", lambda at, of: at.symlink_to(of), ""),
    ("a link for an object", "objects/ab/" + "ab" * 32, lambda at, of: at.symlink_to(of / "file"), ""),
    ("a link for a draft", "drafts/x", lambda at, of: at.symlink_to(of / "file"), ""),
    ("a link for the folder of what goes", "gone", lambda at, of: at.symlink_to(of), "cannot remove what lies in gone"),
    ("a pipe", "objects/ab/pipe", lambda at, _: os.mkfifo(at), ""),
    ("a socket", "notes/kind/socket", lambda at, _: _socket(at), ""),
    ("a folder for an object", "objects/ab/" + "ab" * 32, lambda at, _: (at / "deep").mkdir(parents=True), ""),
    ("a hard link to what lies outside", "objects/ab/x", lambda at, of: os.link(of / "file", at), ""),
]


@pytest.mark.parametrize(("place", "make", "words"), [row[1:] for row in OUTSIDE], ids=[row[0] for row in OUTSIDE])
def test_nothing_outside_is_touched(
    tmp_path: Path, root: Path, place: str, make: Callable[[Path, Path], object], words: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    open_store(root)
    outside = tmp_path / "outside"
    (outside / "ab").mkdir(parents=True)
    for name in ("file", "ab/file"):
        (outside / name).write_bytes(b"mine" * 5000)
    (root / place).parent.mkdir(parents=True, exist_ok=True)
    make(root / place, outside)
    later()
    code = main(["store", "gc", "--older-than", "0"])
    said = "".join(capsys.readouterr())
    assert words in said
    assert code == int("cannot" in words)
    assert os.path.lexists(root / place) == bool(words)
    assert [(outside / name).read_bytes() for name in ("file", "ab/file")] == [b"mine" * 5000] * 2
    assert code or " 0 B freed" in said or " 4.0 KiB freed" in said, "a link at most: what lives on is not freed"


def test_a_tree_deeper_than_any_path_goes(store: Store, root: Path) -> None:
    here = os.open(store.folder("roots"), os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 40, dir_fd=here)
        inner = os.open("d" * 40, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(os.open("file", os.O_CREAT, dir_fd=here))
    os.close(here)
    later()
    try:
        assert clearing.clear(root, days=0).counts == {"roots": 1}
        assert [*(root / "roots").iterdir(), *(root / "gone").iterdir()] == []
    finally:
        subprocess.run(["rm", "-rf", root], check=True)  # pytest itself could not


@is_root
def test_what_others_own_is_left_and_told(store: Store, root: Path) -> None:
    path = store.path(store.write([b"x"]))
    os.chown(path.parent, 12345, -1)
    done = clearing.clear(root, keep=0)
    assert done.strange == [f"objects/{path.parent.name}: belongs to user 12345, not to you; left as it is"]
    assert path.exists()


@is_root
def test_an_ordinary_user_can_remove_folders_that_cannot_be_written_to(store: Store, root: Path) -> None:
    place = store.folder("roots") / "one" / "inner"
    place.mkdir(parents=True)
    (place / "file").write_text("x")
    place.chmod(0o500)
    place.parent.chmod(0o500)
    for path in (root.parent, root, *root.rglob("*")):
        os.chown(path, 12345, 12345)
    child = os.fork()
    if not child:
        code = 1
        try:
            os.chdir(root)  # the folders above are closed to others
            os.setuid(12345)
            code = int(clearing.clear(Path(), keep=0).counts != {"roots": 1})
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert names(root) == set()


def test_a_disk_that_cannot_be_written_to_is_said(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("IMAGEKIT_CACHE", str(small))
    digest = open_store(small).write([b"x"])
    os.close(inuse._HELD.pop((os.getpid(), str(small))))
    subprocess.run(["mount", "-o", "remount,ro", small], check=True)
    assert open_store(small).read(digest) == b"x", "reading goes on"
    assert main(["store", "gc", "--keep", "0"]) == 1
    assert f"objects/{digest[:2]}/{digest}: Read-only file system" in capsys.readouterr().out
    os.close(inuse._HELD.pop((os.getpid(), str(small))))


def test_a_disk_without_a_byte_left_is_cleared(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEKIT_CACHE", str(small))
    store = open_store(small)
    store.remember("kind", "key", b"note")
    place = store.folder("artifacts") / "one"
    place.mkdir()
    os.link(store.path(store.write([os.urandom(1 << 20)])), place / "part")
    with suppress(OSError), open(store.folder("templates") / "full", "wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    found = os.statvfs(small)
    limit = f"remount,nr_inodes={found.f_files - found.f_ffree}"
    subprocess.run(["mount", "-o", limit, small], check=True)
    with pytest.raises(OSError, match="No space left"):
        (small / "one more").mkdir()
    time.sleep(0.02)
    assert main(["store", "gc", "--older-than", "0"]) == 0
    assert names(small) == {"templates/full"}, "which is no folder, and nobody's"
    os.close(inuse._HELD.pop((os.getpid(), str(small))))


SIZES = [("0", 0), ("10", 10), ("1K", 1024), ("1.5 GiB", 3 << 29), ("2GB", 2 * 10**9), ("3 T", 3 << 40)]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_a_size_is_read(text: str, size: int) -> None:
    assert clearing.size_of(text) == size


@pytest.mark.parametrize("text", ["", "-1", "1 X", "GiB", "1e9", "nan", "1,5G", "9" * 99, "1G 2"])
def test_what_is_no_size_is_told(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Problem, match="is no size"):
        clearing.size_of(text)
    for words in (["--keep", text], ["--older-than", text or "x"]):
        if words != ["--older-than", "1e9"]:
            with pytest.raises(SystemExit):
                main(["store", "gc", *words])
    capsys.readouterr()
