"""Raspberry Pis in QEMU: what they take of a card, what they refuse, and what QEMU is told; one table, no boots."""

import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from test_card import KERNEL, job, tree

from imagekit import matrix, plugs
from imagekit.artifact import Artifact, Opened
from imagekit.disk import card, fdt, mbr, raspi
from imagekit.disk.fdt import Fdt, Node
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.guest import Rig
from imagekit.rig import Disk, Wire
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.targets import _raspi
from imagekit.targets._qemu_command import Command, cmdline
from imagekit.tree import Tree, file

MIB = 1 << 20


def device(name: str, compatible: str, **properties: bytes) -> Node:
    return Node(name, {"compatible": fdt.text(compatible), **properties}, ())


DEVICES = Node("", {}, (
    Node("soc", {}, (
        device("usb@7e980000", "brcm,bcm2835-usb", dr_mode=fdt.text("peripheral")),
        device("hdmi@7ef00700", "brcm,bcm2711-hdmi0"),
        device("serial@7e215040", "brcm,bcm2835-aux-uart", clocks=b"\0\0\0\x0d\0\0\0\0"),
        device("serial@7e201000", "arm,pl011"),
        Node("mmc@7e300000", {"compatible": fdt.text("brcm,bcm2835-sdhci"), "non-removable": b"",
                                               "mmc-pwrseq": b"\0\0\0\x01"}, (Node("wifi@1", {}, ()),)),
    )),
    device("clk-108M", "fixed-clock", phandle=b"\0\0\0\x17"),
))  # fmt: skip
DTB = fdt.write(Fdt(DEVICES))


@pytest.fixture(scope="module")
def store() -> Store:
    return open_store()


def whole(store: Store, board: str) -> Sparse:
    """A card whose device tree is one."""
    name = {"raspi3b": "bcm2837-rpi-3-b.dtb", "raspi4b": "bcm2711-rpi-4-b.dtb"}[board]
    made = tree().override(Tree({f"/boot/raspi/{name}": file(DTB)}))
    return card.card(made, job=job(store), board=raspi.BOARDS[board])


@pytest.fixture
def opened(tmp_path: Path):
    """A function that opens a disk as the artifact of a format."""
    with ExitStack() as held:

        def make(disk: Sparse, *, arch: str = "aarch64", role: str = "disk") -> Opened:
            path = tmp_path / f"pi_{len(list(tmp_path.iterdir()))}.img"
            path.write_bytes(b"".join(disk.chunks()))
            handle = os.open(path, os.O_RDONLY)
            held.callback(os.close, handle)
            part = {"role": role, "file": path.name, "size": disk.size, "sha256": "0" * 64}
            manifest = {"name": "pi", "arch": arch, "format": "rpi3", "kind": "disk", "parts": [part]}
            return Opened(Artifact(tmp_path / "manifest", b"", manifest), {role: handle})

        yield make


def loaded(opened: Opened, rig: Rig, tmp_path: Path) -> tuple[dict[str, bytes], str, list[str]]:
    with ExitStack() as held:
        load = _raspi.load(opened, rig=rig, folder=tmp_path, held=held)
        contents = {name: os.pread(handle, 1 << 22, 0) for name, handle in load.kernel.items()}
        (drive,) = load.drives
        assert drive.size == 8 * MIB
        return contents, load.cmdline.decode(), list(drive.arguments)


@pytest.mark.parametrize("board", ["raspi3b", "raspi4b"])
def test_what_is_on_the_card_is_what_is_started(board: str, opened, store: Store, tmp_path: Path) -> None:
    made = opened(whole(store, board))
    contents, arguments, drive = loaded(made, Rig(firmware=board, channel=False), tmp_path)
    assert contents["kernel"] == KERNEL
    assert arguments == "quiet panic=-1 console=tty1 console=ttyS1,115200"
    assert (contents["device_tree"] == DTB) == (board == "raspi3b")
    assert any(word.startswith("if=sd,") and "driver=qcow2" in word for word in drive)
    assert not any("virtio" in word for word in drive)


def test_the_agent_takes_the_second_uart(opened, store: Store, tmp_path: Path) -> None:
    rig = Rig(firmware="raspi3b")
    made = opened(whole(store, "raspi3b"))
    _, arguments, _ = loaded(made, rig, tmp_path)
    board = _raspi.board(made, rig)
    line = cmdline(arguments.encode(), board, nonce="n")
    assert "console=ttyS1" not in line
    assert line.startswith("quiet panic=-1 console=tty1 console=ttyAMA0,115200 ")
    assert "imagekit.channel=ttyS1" in line


def test_untouched_means_that_nothing_is_added(opened, store: Store) -> None:
    board = _raspi.board(opened(whole(store, "raspi3b")), Rig(firmware="raspi3b", channel=False))
    assert cmdline(b"quiet console=ttyS1,115200\n", board) == "quiet console=ttyS1,115200"
    assert board.first_line == ("-serial", "null", "-serial", "chardev:console")


@pytest.mark.parametrize(
    ("board", "words"),
    [
        ("raspi3b", "-machine raspi3b -cpu cortex-a53 -accel tcg,thread=single,tb-size=64"),
        ("raspi3b", "-smp 4 -m 1024"),
        ("raspi4b", "-machine raspi4b -cpu cortex-a72 -accel tcg,thread=single,tb-size=64"),
        ("raspi4b", "-smp 4 -m 2048"),
        ("raspi4b", "-append x -dtb /d"),
        ("raspi3b", "-device usb-net,netdev=net,mac=50:54:00:12:34:56"),
    ],
)
def test_what_qemu_is_told(board: str, words: str) -> None:
    machine = _raspi.PIS[board].machine
    made = Command(machine, "/k", "/i", "x", machine.memory, "tcg", "", device_tree="/d")
    assert f" {words} " in f" {' '.join(made.arguments)} "


def test_the_address_is_one_of_a_maker() -> None:
    """Else Linux calls the card usb0, and images ask for eth0."""
    first = int(_raspi.CARD.partition("mac=")[2][:2], 16)
    assert not first & 2


@pytest.mark.parametrize(
    ("path", "properties"),
    [
        ("soc/usb@7e980000", {"dr_mode": fdt.text("host")}),
        ("soc/hdmi@7ef00700", {"status": fdt.text("disabled")}),
        ("soc/serial@7e215040", {"clocks": b"\0\0\0\x17"}),
        ("soc/mmc@7e300000", {"broken-cd": b""}),
    ],
)
def test_a_pi_4_as_qemu_has_it(path: str, properties: dict[str, bytes]) -> None:
    root = fdt.read(_raspi.as_qemu_has_it(DTB)).root
    before, after = DEVICES.at(path), root.at(path)
    assert before is not None
    assert after is not None
    kept = {name: value for name, value in before.properties.items() if name not in ("mmc-pwrseq", "non-removable")}
    assert after.properties == {**kept, **properties}
    assert after.nodes == ()
    assert root.at("soc/serial@7e201000") == DEVICES.at("soc/serial@7e201000")


def test_a_device_tree_without_that_clock() -> None:
    bare = DEVICES._replace(nodes=DEVICES.nodes[:1])
    root = fdt.read(_raspi.as_qemu_has_it(fdt.write(Fdt(bare)))).root
    assert root.at("soc/serial@7e215040") == bare.at("soc/serial@7e215040")


def test_boot_partitions(store: Store) -> None:
    good = whole(store, "raspi3b")
    (boot,) = mbr.read(good)
    assert "config.txt" in _raspi.boot_partition(good, raspi.BOARDS["raspi3b"])
    linux = mbr.table([boot._replace(type=0x83)], serial=1)
    rows = {
        "first sector does not end with 55 AA": laid(good.size, good.pieces[1:]),
        "no partition of the type of a FAT, such as 0x0c": laid(good.size, (linux, *good.pieces[1:])),
        "no FAT volume": laid(good.size, good.pieces[:1]),
        "ends beyond the disk": laid(boot.start, good.pieces[:1]),
        "no partition table": laid(512, [Piece(0, bytes(512))]),
    }
    for words, disk in rows.items():
        with pytest.raises(Problem, match=f"a Raspberry Pi 3 B does not start from this card: .*{words}"):
            _raspi.boot_partition(disk, raspi.BOARDS["raspi3b"])


def test_a_card_for_the_other_board(opened, store: Store, tmp_path: Path) -> None:
    with pytest.raises(Problem, match=r"Raspberry Pi 4 B does not start from this card: 'start4\.elf' is missing"):
        loaded(opened(whole(store, "raspi3b")), Rig(firmware="raspi4b"), tmp_path)
    with pytest.raises(Problem, match=r"Raspberry Pi 3 B does not start from this card: 'bootcode\.bin' is missing"):
        loaded(opened(whole(store, "raspi4b")), Rig(firmware="raspi3b"), tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"disks": (Disk("more", "1 MiB"),)}, "disks: QEMU's Raspberry Pi 3 B has no place for it"),
        ({"wires": (Wire("02:00:00:00:00:01", lambda: None),)}, "private networks"),
        ({"display": True}, "a display"),
        ({"media": "usb"}, "another medium"),
        ({"accelerator": "kvm"}, "KVM was asked for"),
    ],
)
def test_what_cannot_be_plugged_in(change: dict[str, object], words: str, opened, store: Store) -> None:
    with pytest.raises(Problem, match=words):
        _raspi.board(opened(whole(store, "raspi3b")), replace(Rig(firmware="raspi3b"), **change))  # type: ignore[arg-type]


def test_what_is_no_card(opened) -> None:
    disk = laid(512, [Piece(0, bytes(512))])
    for made in (opened(disk, arch="x86_64"), opened(disk, role="root")):
        with pytest.raises(Problem, match="is no card for a Raspberry Pi 3 B"):
            _raspi.board(made, Rig(firmware="raspi3b"))


@pytest.mark.parametrize(
    ("size", "card_size"), [(1, 1), (48 * MIB, 64 * MIB), (64 * MIB, 64 * MIB), (64 * MIB + 1, 128 * MIB)]
)
def test_the_size_of_a_card(size: int, card_size: int) -> None:
    assert _raspi.card_size(size) == card_size


@pytest.mark.parametrize("name", ["raspi3b", "raspi4b"])
def test_a_pi_starts_its_own_format_and_no_other(name: str) -> None:
    own = {"raspi3b": "rpi3", "raspi4b": "rpi4"}[name]
    assert [f for f in plugs.own("formats") if matrix.fits(name, "aarch64", f)] == [own]
    assert [t for t in plugs.own("targets") if matrix.fits(t, "aarch64", own)] == [name]
