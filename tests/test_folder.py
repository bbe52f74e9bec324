"""A tree as a folder of this machine: whole, sparse, and never outside of it."""

import os

import pytest

from imagekit.disk import folder
from imagekit.errors import Problem
from imagekit.tree import Entry, directory, file, symlink


def test_writes_every_kind(tmp_path):
    entries = [
        ("/a/b/file", file(b"1", mode=0o4755)),
        ("/a", directory(0o555)),
        ("/a/link", symlink("/etc/passwd")),
        ("/dev/null", Entry("char", device=(1, 3))),
        ("/pipe", Entry("fifo", 0o600)),
        ("/hard", Entry("hardlink", target="/a/b/file")),
    ]
    folder.write(entries, tmp_path / "root")
    root = tmp_path / "root"
    assert sorted(p.relative_to(root).as_posix() for p in root.rglob("*")) == [
        "a", "a/b", "a/b/file", "a/link", "dev", "hard", "pipe",
    ]  # fmt: skip
    assert os.readlink(root / "a/link") == "/etc/passwd"  # noqa: PTH115 - the text itself
    assert (root / "hard").samefile(root / "a/b/file")
    as_root = os.getuid() == 0
    assert (root / "a").stat().st_mode & 0o7777 == (0o555 if as_root else 0o755)
    assert (root / "a/b/file").stat().st_mode & 0o7777 == (0o4755 if as_root else 0o755)
    (root / "a").chmod(0o755)


def test_zeros_take_no_space(tmp_path):
    data = b"head" + bytes(4 << 20) + b"tail" + bytes(1 << 20)
    folder.write([("/firmware", file(data))], tmp_path / "root")
    written = tmp_path / "root/firmware"
    assert written.read_bytes() == data
    assert written.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([("/../x", file(b""))], "no path of a tree"),
        ([("/a/../../x", file(b""))], "no path of a tree"),
        ([("x", file(b""))], "no path of a tree"),
        ([("//x", file(b""))], "no path of a tree"),
        ([("/a/./x", file(b""))], "no path of a tree"),
        ([("/x\0", file(b""))], "no path of a tree"),
        ([("/l", symlink("..")), ("/l/x", file(b""))], "below the symlink /l"),
        ([("/l", symlink("..")), ("/l", directory()), ("/l/x", file(b""))], "comes twice"),
        ([("/l", symlink("..")), ("/l", file(b""))], "comes twice"),
        ([("/f", file(b"")), ("/f/x", file(b""))], "below the file /f"),
        ([("/d", directory()), ("/d", symlink("/"))], "comes twice"),
        ([("/", symlink("/etc"))], "comes twice"),
        ([("/h", Entry("hardlink", target="/etc/passwd"))], "no file before it"),
        ([("/l", symlink("/etc/passwd")), ("/h", Entry("hardlink", target="/l"))], "no file before it"),
        ([("/h", Entry("hardlink", target="/../../etc/passwd"))], "no file before it"),
    ],
)
def test_nothing_leaves_the_folder(tmp_path, entries, words):
    with pytest.raises(Problem, match=words):
        folder.write(entries, tmp_path / "root")
    assert [p.name for p in tmp_path.iterdir()] == ["root"]
