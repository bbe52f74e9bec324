"""Roots that lie on a disk, in real guests: found, mounted, changed, and grown with their disk."""

import os
import re
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from test_grow import MIB, PROGRAM
from test_qemu_boot import KEY, SHELL, image

from imagekit import build, key, plugs, toolbox
from imagekit.artifact import Artifact, Job
from imagekit.disk import gpt, ids, roots
from imagekit.disk.sparse import Piece, laid
from imagekit.errors import Problem
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.layout import Layout
from imagekit.rig import Disk
from imagekit.stores.directory import open_store
from imagekit.tree import Slice

GIB = 1 << 30
DATA = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ROOT, CHANGES = (ids.guid("test_root", name) for name in ("root", "changes"))
MODE = os.environ.get("IMAGEKIT_TOOLS", "auto")
SIZE = 16 * MIB  # of the changes as they are shipped


def artifact(arch: str, kind: str) -> Artifact:
    """The example `shell` with its root apart; where it lies is said at each boot."""
    made = image(formats=(f"kernel_{kind}",), disk=Layout(root=kind, changes="disk"), modules=("ext4", "virtio_blk"))
    return build.artifact(made, folder=SHELL.parent, lock=build.read_lock(SHELL), arch=arch, format=f"kernel_{kind}",
                          key=key.read(KEY), store=open_store())  # fmt: skip


def disk(made: Artifact, path: Path, *, size: int) -> Path:
    """A GPT disk of a root and of changes that do not know yet how large it is."""
    store = open_store()
    job = Job("t", "1", made.arch, store, tools=partial(toolbox.tools, mode=MODE, store=store))
    part = next(part for part in made.parts if part.role == "root")
    root, changes = Slice(str(made.path.parent / part.file), 0, part.size), roots.changes(SIZE, seed="t", job=job)
    room = -(-root.size // MIB) * MIB
    parts = (
        gpt.Partition("root", DATA, ROOT, MIB, room, 1 << 60),
        gpt.Partition("changes", DATA, CHANGES, MIB + room, SIZE),
    )
    small = 2 * MIB + room + SIZE
    table = gpt.table(small, parts, guid=UUID(int=7))
    content = (Piece(MIB, root), Piece(MIB + room, changes))
    with open(path, "wb") as file:
        file.truncate(size)
        for piece in laid(small, (*table, *content)).pieces:
            file.seek(piece.offset)
            file.write(piece.read(0, piece.size))
    return path


def boot(made: Artifact, source: Path, *, less: int = 0, copies: int = 1, **arguments: str) -> Guest:
    """With the memory that the manifest says, which must suffice."""
    wanted = {"root": f"PARTUUID={ROOT}", "imagekit.changes": f"PARTUUID={CHANGES}", **arguments}
    cmdline = " ".join(f"{name}={value}" for name, value in wanted.items())
    rig = Rig(
        tools=MODE,
        memory=made.manifest["memory"]["direct"] - less,
        disks=tuple(Disk(f"system{n}", source=source) for n in range(copies)),
        cmdline=cmdline,
    )
    with made.opened(key.read(KEY)) as opened:
        return plugs.load("targets", f"qemu_{made.arch}").start(opened, rig=rig, store=open_store())


def events(guest: Guest) -> Mapping[str, str]:
    """First word -> rest."""
    text = guest.run("cat /run/imagekit/events").check().text
    return {
        words.partition(" ")[0]: words.partition(" ")[2] for words in (s.partition(" ")[2] for s in text.splitlines())
    }


@pytest.mark.parametrize(("arch", "kind"), [("aarch64", "squashfs"), ("x86_64", "erofs")])
def test_changes_grow_with_the_disk_and_outlive_a_power_cut(tmp_path: Path, arch: str, kind: str) -> None:
    made = artifact(arch, kind)
    with boot(made, disk(made, tmp_path / "disk", size=20 * GIB)) as guest:
        told = events(guest)
        assert (told["root"].partition(" ")[2], "changes" in told) == (kind, False)
        assert 19.9 * GIB < int(told["grown"]) < 20 * GIB
        assert [words for _, words in guest.facts["stages"]].count("early") == 1
        assert {"/init", "/etc/hostname"} <= set(guest.run("ls -d /init /etc/hostname").text.split())
        assert guest.run("ls -d /.imagekit /etc/imagekit/initrd").code != 0
        mounts = {line.split()[2]: line.split()[4] for line in guest.run("mount").text.splitlines()}
        assert mounts == mounts | {"/": "overlay", "/run/imagekit/root": kind, "/run/imagekit/changes": "ext4"}
        guest.write("/etc/kept", b"before the cut\n", mode=0o640)
        guest.run("rm /etc/imagekit/table").check()
        guest.run("sync").check()
        guest.power.cut()
        guest.power.on()
        guest.wait_ready()
        assert "grown" not in events(guest)
        assert guest.read("/etc/kept") == b"before the cut\n"
        assert guest.run("ls /etc/imagekit/table").code != 0
        assert 20_000_000 < int(guest.run("df -k /").text.split()[8]) < 21_000_000


def test_changes_that_are_lost_are_told_and_the_machine_comes_up(tmp_path: Path) -> None:
    made = artifact("x86_64", "ext4")
    path = disk(made, tmp_path / "disk", size=64 * MIB)
    start = int(grow(path).split()[1]) * 512  # and a power cut before the kernel heard of it
    with open(path, "r+b") as file:
        file.seek(start + 1024)
        file.write(bytes(1024))
    with boot(made, path, copies=2) as guest:
        assert re.search(rf"vd. has PARTUUID={ROOT} as well: vd.1 is taken", guest.console.text)
        assert events(guest)["changes"] == f"lost PARTUUID={CHANGES}: Invalid argument"
        assert "NOTHING THAT IS WRITTEN NOW WILL BE KEPT" in guest.console.text
        guest.write("/etc/new", b"x")


def grow(path: Path) -> str:
    words = [PROGRAM, "grow", path, str(CHANGES)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout


BAD: list[tuple[str, dict[str, str], str]] = [
    ("missing", {"root": f"PARTUUID={UUID(int=1)}", "rootwait": "2"},
     r"waiting for PARTUUID=0+-0000-0000-0000-0+1(.*\n)*.*there is no root PARTUUID=0+-0000-0000-0000-0+1 "
     r"\(block devices: .*vda \(\d+ kB\)"),
    ("type", {"rootfstype": "ext4,squashfs"}, r"cannot mount the root vd.1 as ext4,squashfs \(block devices: "),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_root_that_is_not_there_is_told(tmp_path: Path, arguments: dict[str, str], words: str) -> None:
    made = artifact("x86_64", "erofs")
    with pytest.raises(GuestProblem, match=words):
        boot(made, disk(made, tmp_path / "disk", size=64 * MIB), **arguments)


def test_a_machine_with_less_memory_than_that_is_not_started(tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"needs \d+ MiB to boot as kernel_erofs, and the machine has \d+"):
        boot(artifact("x86_64", "erofs"), tmp_path / "disk", less=1)
