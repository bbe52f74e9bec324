"""sftp.py against OpenSSH's server, and against programs that lie."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import openssh_rig
import pytest
from signed_rig import KEY, large, signed

from imagekit import remote, sftp
from imagekit.errors import Problem
from imagekit.ranged import Again
from imagekit.wire import Patience

CALM = Patience(stall=20, start=60, tries=3, pause=0.01)
HASTY = Patience(stall=0.5, start=2, slowest=1e9, tries=3, pause=0.01)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return openssh_rig.program(tmp_path_factory.mktemp("sshd") / "tree")


@pytest.fixture
def openssh(sshd: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with openssh_rig.running(sshd, tmp_path, monkeypatch) as keys:
        yield keys


def test_by_openssh(openssh: Path, tmp_path: Path) -> None:
    """A real server, by both of the schemes; the second finds the copy of the first."""
    assert openssh
    image = signed(tmp_path, large(), name="large")
    for scheme in ("sftp", "scp"):
        copy = remote.fetch(f"{scheme}://far{image}", (KEY,), cache=tmp_path / "cache", say=lambda _: None)
        assert copy.read_bytes() == image.read_bytes()
    with pytest.raises(Problem, match="is not there"):
        sftp.Sftp(f"sftp://far{tmp_path}/none", CALM).tail(9)
    with closing(sftp.Sftp(f"sftp://far{image}", CALM)) as file:
        data = image.read_bytes()
        pieces = file.pieces(5, len(data))
        next(pieces)
        pieces.close()  # what was under way is no answer to what is asked next
        assert b"".join(file.pieces(7, 100_007)) == data[7:100_007]
        assert file.tail(10) == data[-10:]


LIES = {
    "nothing": b"",
    "another program": b"Welcome to this machine!\n" * 100,
    "a huge packet": b"\x7f\xff\xff\xff\x02" + bytes(100),
    "an empty packet": bytes(4),
    "an old version": b"\0\0\0\5\2\0\0\0\1",
    "another answer": b"\0\0\0\5\2\0\0\0\3" + b"\0\0\0\x09\x66\0\0\0\x63\0\0\0\0",
    "a refusal": b"\0\0\0\5\2\0\0\0\3" + b"\0\0\0\x09\x65\0\0\0\1\0\0\0\3",
    "data in place of a handle": b"\0\0\0\5\2\0\0\0\3" + b"\0\0\0\x09\x67\0\0\0\1\0\0\0\0",
}


@pytest.mark.parametrize("what", LIES)
def test_evil_sftp_servers(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "lie").write_bytes(LIES[what])
    (tmp_path / "bin/ssh").write_text(f"#!/bin/sh\ncat {tmp_path}/lie\n")
    (tmp_path / "bin/ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    with pytest.raises((Problem, Again)):
        sftp.Sftp("sftp://far/x", HASTY).tail(9)


def test_what_ssh_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ssh").write_text("#!/bin/sh\necho 'Host key verification \033failed.' >&2\nexit 255\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(Problem, match=r"ssh says: Host key verification .x1bfailed"):
        remote.fetch("sftp://far/x", (KEY,), cache=tmp_path / "cache", say=lambda _: None)
