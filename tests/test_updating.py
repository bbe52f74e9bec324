"""`imagekit update`: the format, a disk whose machine is off, and a machine behind ssh."""

import os
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from random import Random

import openssh_rig
import pytest
from slots_rig import KEY, OTHER, PROGRAM, Release, files, holds, newer, settings, ship, ukis
from test_formats import job_of
from test_guarded import ALL, KEYS, TREE

from imagekit import early, key, plugs, updating
from imagekit.artifact import Job
from imagekit.cli import main
from imagekit.disk import gpt
from imagekit.disk.sparse import of_file
from imagekit.errors import Defect, Problem
from imagekit.image import Image
from imagekit.layout import Layout
from imagekit.protection import Seal
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

WHOLE = TREE.override(Tree({"/usr/noise": file(Random(7).randbytes(99_999))}))  # more than one block has hashes
SMALL = Release(blocks=300, uki_size=70_001)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    store = open_store(tmp_path_factory.mktemp("cache"))
    return replace(job_of(store), boot_keys=KEYS, key=KEY, layout=Layout(root="squashfs", slots=2, **ALL))


def written(format: str, job: Job, to: Path) -> Path:
    """What a format writes, as a file."""
    (of,) = plugs.load("formats", format).write(WHOLE, job=job).values()
    to.write_bytes(job.store.path(of.sha256).read_bytes())
    return to


# --- the format -----------------------------------------------------------------------------------------------------


def test_an_update_makes_of_a_disk_what_the_new_image_is_shipped_as(tmp_path: Path, job: Job) -> None:
    newest = replace(job, version="1.1")
    disk, shipped = (written("raw_efi", one, tmp_path / one.version) for one in (job, newest))
    update = written("update", newest, tmp_path / "update")
    said = updating.verified(update, [KEY])
    assert (said.name, said.version, said.arch, said.generation) == ("toy", "1.1", "x86_64", 3)
    assert updating.on_disk(update, disk, said=said, keys=[KEY]).startswith(f"toy 1.1 is on {disk} in slot b")
    assert contents(disk, "root-b", said.root) == contents(shipped, "root-a", said.root)
    assert contents(disk, "root-b-verity", said.hashes) == contents(shipped, "root-a-verity", said.hashes)
    before, now = files(shipped), files(disk)
    assert now["EFI/Linux/toy_1.1+3.efi"] == before["EFI/Linux/toy_1.1.efi"]
    assert now.keys() - before.keys() == {"EFI/Linux/toy_1.1+3.efi", "EFI/Linux/toy_1.efi"}


def contents(disk: Path, name: str, size: int) -> bytes:
    """How a partition begins."""
    whole = of_file(str(disk), disk.stat().st_size)
    (found,) = [part for part in gpt.read(whole) if part.name == name]
    return whole.read(found.start, size)


def test_an_update_needs_a_second_slot_and_a_key(job: Job) -> None:
    write = plugs.load("formats", "update").write
    with pytest.raises(Problem, match="an update needs a second slot"):
        write(TREE, job=replace(job, layout=Layout(root="squashfs", **ALL)))
    with pytest.raises(Defect, match="nobody brought a key"):
        write(TREE, job=replace(job, key=None))
    with pytest.raises(Problem, match="cannot be ordered by systemd-boot"):
        write(TREE, job=replace(job, version="1+2"))


def test_an_image_is_told_who_it_is_and_whom_it_trusts() -> None:
    image = Image(
        name="toy", version="1.1", kernel="debian:k", disk=Layout(root="initrd", seal=Seal(generation=7), slots=2)
    )
    made = early.updates(image, "aarch64", keys=[key.from_seed(b"s" * 32)])
    assert made.read("/etc/imagekit/slots") == b"name toy\nversion 1.1\narchitecture aarch64\ngeneration 7\n"
    assert made.read("/etc/imagekit/update.pub").decode() == key.from_seed(b"s" * 32).public_text()
    assert made["/usr/sbin/imagekit-update"].target == early.UPDATES


# --- a disk ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    return ship(tmp_path / "web.img", SMALL, esp=1)


@pytest.fixture
def update(tmp_path: Path) -> Path:
    (tmp_path / "web_2.update").write_bytes(newer(SMALL).update())
    return tmp_path / "web_2.update"


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, Path]:
    made = {"own": KEY, "other": OTHER}
    for name, one in made.items():
        (tmp_path / f"{name}.pub").write_text(one.public_text())
    return {name: tmp_path / f"{name}.pub" for name in made}


def test_a_disk_is_updated(
    shipped: Path, update: Path, keys: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["update", str(update), "--disk", str(shipped), "--key", str(keys["own"])]) == 0
    assert capsys.readouterr().out == f"web 2 is on {shipped} in slot b; the next start tries it\n"
    assert ukis(shipped) == ["web_2+3.efi", "web_1.efi"]
    assert holds(shipped, "b", newer(SMALL))
    assert main(["update", str(update), "--disk", str(shipped), "--key", str(keys["own"])]) == 1
    assert "2 has not proven itself yet" in capsys.readouterr().err


REFUSED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "altered": (
        lambda _, update: update.write_bytes(update.read_bytes()[:-1] + b"x"),
        "is not the one that was sig",
    ),
    "cut": (
        lambda _, update: update.write_bytes(update.read_bytes()[:-1]),
        "is not the one that was signed, or is n",
    ),
    "none": (lambda _, update: update.write_bytes(b"something"), "it is no update"),
    "not there": (lambda _, update: update.unlink(), "cannot read"),
    "older": (
        lambda _, update: update.write_bytes(newer(SMALL, version="0.9").update()),
        "is not newer than what r",
    ),
    "of another": (
        lambda _, update: update.write_bytes(newer(SMALL, name="x").update()),
        "has no image 'x' in two sl",
    ),
    "signed by another": (lambda _, update: update.write_bytes(newer(SMALL).update(OTHER)), "which is not trusted"),
    "a folder": (lambda disk, _: (disk.unlink(), disk.mkdir()), "cannot write to"),
    "a device": (lambda disk, _: (disk.unlink(), disk.symlink_to("/dev/null")), "is no disk"),
    "no disk": (lambda disk, _: disk.write_bytes(b"QFI\xfb" * 999), "`imagekit convert` makes a raw disk"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_is_told_and_changes_nothing(
    shipped: Path, update: Path, keys: dict[str, Path], what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alter, words = REFUSED[what]
    alter(shipped, update)
    before = shipped.read_bytes() if shipped.is_file() else b""
    assert main(["update", str(update), "--disk", str(shipped), "--key", str(keys["own"])]) == 1
    assert words in capsys.readouterr().err
    assert (shipped.read_bytes() if shipped.is_file() else b"") == before


def test_an_update_goes_to_one_place(update: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for where in ([], ["far", "--disk", "x"]):
        assert main(["update", str(update), *where]) == 1
        assert "goes either to a machine or to a disk" in capsys.readouterr().err


# --- a machine ------------------------------------------------------------------------------------------------------


def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> Path:
    """An ssh that notes what it was asked, and does this in place of the other machine."""
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n{command}\n')
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return tmp_path / "asked"


def test_a_machine_takes_an_update_by_ssh(
    shipped: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = settings(tmp_path / "s", SMALL)
    asked = far(tmp_path, monkeypatch, f"exec {PROGRAM} imagekit-update - {shipped} {folder} {folder}/cmdline")
    said: list[str] = []
    told = updating.by_ssh(update, "root@10.0.0.7:2222", say=said.append)
    assert told == f"root@10.0.0.7: web 2 is on {shipped} in slot b; the next start tries it"
    assert ukis(shipped) == ["web_2+3.efi", "web_1.efi"]
    words = asked.read_text().splitlines()
    assert words[-5:] == ["-p", "2222", "--", "root@10.0.0.7", "exec /usr/sbin/imagekit-update -"]
    assert "BatchMode=yes" in words
    assert all(line.startswith("root@10.0.0.7: web_2.update: ") and line.endswith("%") for line in said)


FAR = {
    "refuses": ("echo imagekit-update: the update is not newer >&2; exit 1", "far: the update is not newer"),
    "has none": ("exit 127", "far has no imagekit-update"),
    "is not let in": ("echo far: Permission denied >&2; exit 255", "ssh says: far: Permission denied"),
    "says nothing": ("exit 3", "far: imagekit-update ended with 3"),
    "says too much": ("exec cat /dev/zero", "more than"),
    "commands the terminal": ("printf '\\033[2J' >&2; exit 1", r"\x1b[2J"),
}


@pytest.mark.parametrize("what", FAR)
def test_what_a_machine_does_not_do_is_told(
    what: str, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command, words = FAR[what]
    far(tmp_path, monkeypatch, command)
    with pytest.raises(Problem) as caught:
        updating.by_ssh(update, "far", say=lambda _: None)
    assert words in caught.value.message


@pytest.mark.parametrize(
    "to", ["", "-oProxyCommand=x", "a b", "root@", "far:x", "far/path", "a:b@far", "far;ls", "f\nr"]
)
def test_what_is_no_machine_is_not_asked(
    to: str, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = far(tmp_path, monkeypatch, "exit 0")
    with pytest.raises(Problem):
        updating.by_ssh(update, to, say=lambda _: None)
    assert not asked.exists()


def test_openssh_gives_the_update_to_a_program_of_the_other_machine(
    update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(updating, "OVER_THERE", "exec sha256sum -")
    sshd = openssh_rig.program(tmp_path / "sshd")
    with openssh_rig.running(sshd, tmp_path, monkeypatch):
        digest = sha256(update.read_bytes()).hexdigest()
        assert updating.by_ssh(update, "far", say=lambda _: None) == f"far: {digest}  -"
        monkeypatch.setattr(updating, "OVER_THERE", "exec /nowhere/imagekit-update -")
        with pytest.raises(Problem, match="far has no imagekit-update"):
            updating.by_ssh(update, "far", say=lambda _: None)
