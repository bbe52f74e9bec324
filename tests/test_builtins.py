"""The agent's built-in commands, run as a program: files are read, written and told, or it is said why not."""

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from imagekit import early, files
from imagekit.errors import GuestProblem
from imagekit.guest import Finished

AGENT = Path(early.__file__).with_name("inside") / "bin" / f"agent.{os.uname().machine}"


def run(argv: tuple[str, ...], *, input: bytes = b"", **_: Any) -> Finished:
    done = subprocess.run(argv, executable=AGENT, input=input, capture_output=True, check=False, timeout=300)
    return Finished(argv, done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 65535, 65537, 200_000])
def test_what_is_written_is_what_is_read_and_digested(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "file", bytes(n * 7 % 251 for n in range(size))
    path.write_bytes(b"what was there before")
    assert files.write(run, str(path), data, mode=0o640) == hashlib.sha256(data).hexdigest()
    assert path.read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert files.read(run, str(path)) == data
    told = files.stat(run, str(path), digest=True)
    assert (told.kind, told.size, told.mode, told.uid) == ("file", size, 0o640, os.getuid())
    assert told.mtime == pytest.approx(path.stat().st_mtime, abs=1e-3)
    assert told.sha256 == hashlib.sha256(data).hexdigest()


def test_a_part_is_read_and_an_endless_file_has_an_end(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    assert run(("@read", str(tmp_path / "file"), "3", "4")).stdout == b"3456"
    assert files.read(run, "/proc/sys/kernel/ostype") == b"Linux\n"
    with pytest.raises(GuestProblem, match=r"/dev/zero has more than 100000 bytes"):
        files.read(run, "/dev/zero", limit=100_000)
    assert files.read(run, str(tmp_path / "file"), limit=10) == b"0123456789"
    with pytest.raises(GuestProblem, match="more than 9 bytes"):
        files.read(run, str(tmp_path / "file"), limit=9)


def test_a_large_file_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "CHUNK", 1000)
    data = os.urandom(3000)
    (tmp_path / "file").write_bytes(data)
    assert files.read(run, str(tmp_path / "file")) == data
    with (tmp_path / "copy").open("wb") as copy:
        assert files.read_to(run, str(tmp_path / "file"), copy) == hashlib.sha256(data).hexdigest()
    assert (tmp_path / "copy").read_bytes() == data


def test_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert files.read(run, str(tmp_path / "fifo")) == b""
    assert files.stat(run, str(tmp_path / "fifo"), digest=True).kind == "fifo"


def test_every_kind_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("to no\nwhere ")
    told = files.stat(run, str(tmp_path / "link"), digest=True)
    assert (told.kind, told.target, told.sha256) == ("symlink", "to no\nwhere ", "")
    assert files.stat(run, str(tmp_path)).kind == "directory"
    assert files.stat(run, "/dev/null").kind == "char"


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda folder: files.read(run, f"{folder}/none"), "read: .*/none: No such file or directory"),
        (lambda folder: files.read(run, folder), "read: .*: Is a directory"),
        (lambda folder: files.stat(run, f"{folder}/none"), "stat: .*/none: No such file"),
        (lambda folder: files.write(run, f"{folder}/none/file", b""), "write: .*/none/file: No such file"),
        (lambda folder: files.write(run, folder + "/folder", b"x"), "write: .*/folder: Is a directory"),
    ],
)
def test_what_cannot_be_done_is_told_with_its_path(tmp_path: Path, act: Any, words: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(GuestProblem, match=words):
        act(str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (("@none",), 127, b"@none: no such built-in command\n"),
        (("@read", "/etc/passwd"), 2, b"usage: @read PATH OFFSET LENGTH\n"),
        (("@tail", "/none", "0", "1"), 1, b"/none: No such file or directory\n"),
    ],
)
def test_a_wrong_call_shows_the_right_one(argv: tuple[str, ...], code: int, words: bytes) -> None:
    done = run(argv)
    assert (done.code, done.stderr, done.stdout) == (code, words, b"")


@pytest.mark.parametrize(
    "told",
    [b"", b"file 1 644 0 0 1.000000000 - ", b"file 1 999 0 0 1.000000000 - \n", b"dir 1 644 0 0 1.000000000 - \n"],
)
def test_an_answer_that_makes_no_sense_is_told(told: bytes) -> None:
    with pytest.raises(GuestProblem, match="makes no sense"):
        files.stat(lambda argv, **_: Finished(argv, 0, told, b""), "/file")
    with pytest.raises(GuestProblem, match="stored something else"):
        files.write(lambda argv, **_: Finished(argv, 0, told, b""), "/file", b"")
    with pytest.raises(GuestProblem, match="5 were asked for"):
        files.read(lambda argv, **_: Finished(argv, 0, b"sixsix", b""), "/file", limit=4)


def test_tails_are_those_of_what_was_written_since(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "new.log").write_bytes(b"".join(b"line %d\n" % n for n in range(20_000)))
    (tmp_path / "old.log").write_bytes(b"old\n")
    (tmp_path / "cut.log").write_bytes(b"no line end")
    (tmp_path / "link.log").symlink_to("/etc/passwd")
    os.utime(tmp_path / "old.log", (1000, 1000))
    lines = run(("@tail", str(tmp_path), "1001", "2")).stdout.decode()
    assert sorted(lines.split("==> ")[1:]) == [
        f"{tmp_path}/cut.log <==\nno line end\n",
        f"{tmp_path}/deep/new.log <==\nline 19998\nline 19999\n",
    ]
    assert b"old.log <==\nold\n" in run(("@tail", str(tmp_path), "1000", "2")).stdout
    assert b"old.log" not in run(("@tail", str(tmp_path), "-600", "2")).stdout
    assert len(run(("@tail", str(tmp_path), "0", "100000")).stdout) < 20_000


def test_tails_have_an_end(tmp_path: Path) -> None:
    for number in range(100):
        (tmp_path / f"{number}.log").write_bytes(b"x\n")
    assert run(("@tail", str(tmp_path), "0", "5")).stdout.count(b"==> ") == 64
