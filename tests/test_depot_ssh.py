"""A depot behind ssh: what ssh runs over there is run for real; what it says, and how it ends, is not believed."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openssh_rig
import pytest
from depot_rig import IMAGE_KEY, KEYS, ONLINE, Reader, made, noise

from imagekit import download, host, site
from imagekit.artifact import Artifact
from imagekit.depot import index, publishing, trust
from imagekit.errors import Problem, RigProblem
from imagekit.site import Missing, Site
from imagekit.sites import ssh
from imagekit.stores.directory import open_store

SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift 2
{before}
sh -c "$*" {after}
"""


class Far:
    """Another machine: an ssh that runs what it is told in a shell of this one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.place = folder, folder / "far away" / "depot"
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self.says()

    def says(self, before: str = "", after: str = "") -> None:
        """What it does before and after."""
        program = self.folder / "bin" / "ssh"
        program.write_text(SSH.format(before=before, after=after))
        program.chmod(0o755)

    @property
    def site(self) -> Site:
        return site.at(f"ssh://me@far{self.place}")

    def create(self) -> bytes:
        root = index.create(self.site, KEYS, thresholds={"root": 2}, days={})
        trust.adopt(self.site, root, home=self.folder / "keeper")
        return root

    def publish(self, artifact: Artifact) -> publishing.Moved:
        how: dict[str, Any] = {"home": self.folder / "keeper", "store": open_store(self.folder / "keeper-store")}
        return publishing.publish([artifact], self.site, key=IMAGE_KEY, keys=ONLINE, **how)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    if not shutil.which("flock"):
        pytest.skip("flock is not on this machine")
    return Far(tmp_path, monkeypatch)


def test_what_was_published_by_ssh_is_pulled(far: Far, tmp_path: Path) -> None:
    root = far.create()
    assert far.publish(made(tmp_path / "1")).blobs
    changed = {"kernel": noise(1, 300_000) + noise(7, 50_000), "initrd": b"initrd " * 40_000}
    moved = far.publish(made(tmp_path / "2", version="2", parts=changed))
    assert moved.size < 200_000  # the rest was there
    for number, place in enumerate((far.site, site.at(str(far.place)))):  # and it is a depot as any other
        reader = Reader(place, tmp_path / f"reader{number}").trusts(root)
        assert reader.pull(version="2").artifact.verified(IMAGE_KEY)
    assert [path.name for path in (far.place / ".drafts").iterdir()] == ["publishing.lock"]


def test_a_reader_there_is_told_what_is_missing(far: Far, tmp_path: Path) -> None:
    with pytest.raises(Missing):
        far.site.read("metadata/timestamp.json", 100)
    assert far.site.lacks({"blobs/aa/x": 1}) == ["blobs/aa/x"]
    root = far.create()
    with pytest.raises(Problem, match="is a depot already"):
        index.create(far.site, KEYS, thresholds={}, days={})
    far.publish(made(tmp_path / "1"))
    for blob in (far.place / "blobs").rglob("??????*"):
        blob.unlink()
    with pytest.raises(Missing):
        Reader(far.site, tmp_path / "reader").trusts(root).pull()


def test_publishers_here_and_there_take_turns(far: Far) -> None:
    import fcntl

    with far.site.lock():
        handle = os.open(far.place / ".drafts" / "publishing.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(handle, fcntl.LOCK_EX)  # it ends with the block
    os.close(handle)


def test_a_host_that_never_locks_is_waited_for_so_long(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "WAIT", 0.5)
    far.says(before="sleep 20")
    with pytest.raises(RigProblem, match="cannot be locked"), far.site.lock():
        pass


def test_files_are_whole_and_in_order_or_not_there(far: Far) -> None:
    """The connection ends in the middle: nothing of it has a name, and nothing lies about."""
    far.site.write([("metadata/a", b"old")])
    far.says(before='exec 3<&0; head -c 2000 | sh -c "$*"; exit 255')
    with pytest.raises(RigProblem, match="ended with 255"):
        far.site.write([("metadata/a", b"new" * 999), ("metadata/b", b"b")])
    assert (far.place / "metadata" / "a").read_bytes() == b"old"
    assert [path.name for path in far.place.rglob("*") if path.is_file()] == ["a"]


MISDEEDS = {
    "unreachable": ("echo 'Host key verification failed.' >&2; exit 255", "", "Host key verification failed"),
    "endless": ("exec cat /dev/zero", "", "printed more than|larger than"),
    "slow": ("sleep 20", "", "too slow"),
    "garbled": ("", "| tr '0-9' '1-90'", "not what its keys signed|malformed|is not|cannot be read|signed"),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_host_that_misbehaves_is_told_soon(
    far: Far, tmp_path: Path, misdeed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = far.create()
    far.publish(made(tmp_path / "1"))
    before, after, words = MISDEEDS[misdeed]
    reader = Reader(far.site, tmp_path / "reader").trusts(root)
    if misdeed == "slow":
        monkeypatch.setattr(download, "PATIENCE", download.Patience(start=0.5, slowest=1e9))
    far.says(before, after)
    with pytest.raises(Problem, match=words):
        reader.pull()
    assert not reader.out.exists() or not list(reader.out.iterdir())


@pytest.mark.parametrize(
    "place",
    [
        "ssh://-oProxyCommand=x/depot",
        "ssh://-x@host/depot",
        "ssh://me:word@host/depot",
        "ssh://host",
        "ssh://host/",
        "ssh://ho$(id)st/depot",
        "ssh://host:x/depot",
        "ssh://host/a%0ab",
        "ssh://host/depot?x",
        "ssh:///depot",
    ],
)
def test_what_is_no_place(place: str) -> None:
    with pytest.raises(Problem):
        site.at(place)


def test_a_path_is_one_word_over_there(far: Far) -> None:
    """Blanks, quotes and what a shell would run."""
    far.place = far.folder / "a b'; touch hacked; '$(touch hacked)"
    far.create()
    assert (far.place / "metadata" / "timestamp.json").is_file()
    assert not list(far.folder.rglob("hacked"))


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return openssh_rig.program(tmp_path_factory.mktemp("sshd") / "tree")


@pytest.fixture
def openssh(sshd: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with openssh_rig.running(sshd, tmp_path, monkeypatch) as keys:
        yield keys


def test_by_openssh(openssh: Path, tmp_path: Path) -> None:
    """The real programs: a depot is made, published to, pulled from; a host with another key is told nothing."""
    place = site.at(f"ssh://far{tmp_path}/depot")
    root = index.create(place, KEYS, thresholds={"root": 2}, days={})
    trust.adopt(place, root, home=tmp_path / "keeper")
    artifact = made(tmp_path / "made")
    how: dict[str, Any] = {"home": tmp_path / "keeper", "store": open_store(tmp_path / "keeper-store")}
    assert publishing.publish([artifact], place, key=IMAGE_KEY, keys=ONLINE, **how).blobs
    assert Reader(place, tmp_path / "reader").trusts(root).pull().artifact.digest == artifact.digest
    host.run(["ssh", "-O", "exit", "far"])  # or the connection that is there would do
    known = openssh / "known"
    known.write_text(known.read_text().replace((openssh / "host.pub").read_text(), (openssh / "user.pub").read_text()))
    with pytest.raises(RigProblem, match="Host key verification failed"):
        Reader(place, tmp_path / "reader").pull()
