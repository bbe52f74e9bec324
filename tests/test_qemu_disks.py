"""Disks of a machine: private overlays over files that are never written; the format alone, and real guests."""

import os
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import pytest
from test_qemu_boot import boot, image

from imagekit import host, toolbox
from imagekit.disk import qcow2
from imagekit.errors import Problem
from imagekit.rig import Disk
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_disks

MIB = 1 << 20


@pytest.mark.parametrize("size", [512, 64 * MIB, (1 << 29) + 512, 3 << 40, 1 << 44])
def test_qemu_img_finds_nothing_wrong_with_an_empty_overlay(tmp_path: Path, size: int) -> None:
    path = tmp_path / "disk"
    path.write_bytes(qcow2.empty(size))
    tools = toolbox.tools("qemu-img", mode=os.environ.get("IMAGEKIT_TOOLS", "auto"), store=open_store())
    assert f"virtual size: {'512 B' if size == 512 else ''}" in host.run(tools.argv("qemu-img", "info", path)).text
    assert f'"virtual-size": {size}' in host.run(tools.argv("qemu-img", "info", "--output=json", path)).text
    assert "No errors were found" in host.run(tools.argv("qemu-img", "check", path)).text
    assert qcow2.header(path.read_bytes()[:512]) == qcow2.Header(size, True)


def test_what_no_qcow2_file_is() -> None:
    assert qcow2.header(bytes(512)) is None
    with pytest.raises(Problem, match="has lost the others"):
        qcow2.header(qcow2.MAGIC)
    for size in (0, -1, (1 << 44) + 1):
        with pytest.raises(Problem, match="cannot be made"):
            qcow2.empty(size)


def _overlay(path: Path) -> None:
    whole = bytearray(qcow2.empty(MIB))
    whole[8:20] = (104).to_bytes(8, "big") + (4).to_bytes(4, "big")
    path.write_bytes(whole)


BAD = [
    (Disk("a b", "1 MiB"), "'a b' is no name for a disk"),
    (Disk("x" * 21, "1 MiB"), "is no name for a disk"),
    (Disk("a"), "needs a size or a source"),
    (Disk("a", "1 MiB", Path("/x")), "needs a size or a source"),
    (Disk("a", "1 parsec"), "'1 parsec' is no size"),
    (Disk("a", 1000), "1000 is no size"),
    (Disk("a", 0), "0 is no size"),
    (Disk("a", "99 TiB"), "is no size"),
    (Disk("a", source=Path("missing")), "cannot read .*missing: No such file"),
    (Disk("a", source=Path()), "is no file"),
    (Disk("a", source=Path("odd")), "odd has 1000 bytes, which are no whole sectors"),
    (Disk("a", source=Path("empty")), "empty has 0 bytes"),
    (Disk("a", source=Path("overlay")), "is itself an overlay"),
]


@pytest.mark.parametrize(("disk", "words"), BAD)
def test_a_disk_that_cannot_be(disk: Disk, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("odd").write_bytes(bytes(1000))
    Path("empty").write_bytes(b"")
    _overlay(Path("overlay"))
    with ExitStack() as held, pytest.raises(Problem, match=words):
        _qemu_disks.attach((disk,), tmp_path, held)


def test_two_disks_need_two_names(tmp_path: Path) -> None:
    with ExitStack() as held, pytest.raises(Problem, match="or two have it"):
        _qemu_disks.attach((Disk("a", "1 MiB"), Disk("a", "2 MiB")), tmp_path, held)


def _write(device: str, words: str, *, place: int = 0) -> list[str]:
    return ["/bin/sh", "-c", f"printf '%-512s' '{words}' | dd of=/dev/{device} seek={place} conv=fsync"]


@pytest.mark.parametrize(("arch", "fresh"), [("x86_64", True), ("aarch64", True), ("aarch64", False)])
def test_disks_outlive_power_cuts_and_reboots_and_leave_their_sources_alone(
    arch: str, fresh: bool, tmp_path: Path
) -> None:
    raw, cow = tmp_path / "raw", tmp_path / "cow"
    raw.write_bytes(b"from a raw file".ljust(MIB))
    tools = toolbox.tools("qemu-img", mode=os.environ.get("IMAGEKIT_TOOLS", "auto"), store=open_store())
    host.run(tools.argv("qemu-img", "convert", "-O", "qcow2", raw, cow))
    before = [sha256(path.read_bytes()).digest() for path in (raw, cow)]
    disks = (Disk("blank", "8 GiB"), Disk("raw", source=raw), Disk("cow", source=cow))
    made = image(modules=("virtio_blk",))
    for round_ in range(2):
        with boot(made, arch, disks=disks, fresh=fresh) as guest:
            assert guest.facts["boots"] == (["restored"] if fresh else ["booted"])
            names = guest.run(["/bin/sh", "-c", "cd /sys/block; for d in vd?; do cat $d/serial; echo; done"]).text
            assert names.split() == ["blank", "raw", "cow"]
            assert int(guest.run("cat /sys/block/vda/size").text) == (8 << 30) // 512
            for device in ("vdb", "vdc"):
                assert guest.run(f"head -c 15 /dev/{device}").text == "from a raw file"
            if round_ == 1:  # nothing of the machine before
                assert guest.run(f"dd if=/dev/vda bs=512 skip={7 << 20} count=1").stdout == bytes(512)
                break
            guest.run(_write("vda", "kept", place=7 << 20)).check()
            guest.run(_write("vdb", "changed")).check()
            guest.power.cut()
            guest.power.on()
            guest.wait_ready()
            assert guest.run(f"dd if=/dev/vda bs=512 skip={7 << 20} count=1").text.strip() == "kept"
            guest.run("/usr/sbin/reboot")
            guest.wait_ready()
            assert guest.run("head -c 7 /dev/vdb").text == "changed"
            assert guest.facts["boots"][1:] == ["power on", "reboot"]
    assert [sha256(path.read_bytes()).digest() for path in (raw, cow)] == before
    assert not list((Path(open_store().location) / "disks").iterdir())


def test_an_image_without_the_driver_is_told_what_it_lacks() -> None:
    with pytest.raises(Problem, match="sees none of its disks") as caught:
        boot(image(modules=()), "aarch64", disks=(Disk("a", "1 MiB"),))
    assert "virtio_blk" in caught.value.hint
