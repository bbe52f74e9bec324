"""Cards for the Raspberry Pi: what lies where, that the tools of others read them, and what is missing is named."""

import subprocess
from pathlib import Path

import pytest

from imagekit import toolbox
from imagekit.artifact import Job
from imagekit.disk import card, mbr, raspi
from imagekit.disk.raspi import BOARDS
from imagekit.errors import Problem
from imagekit.layout import Layout
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file, symlink

MIB = 1 << 20
KERNEL = bytes(56) + b"ARM\x64" + bytes(5000)
TREES = ("bcm2837-rpi-3-b.dtb", "bcm2837-rpi-3-b-plus.dtb", "bcm2711-rpi-4-b.dtb")
PROGRAMS = ("bootcode.bin", *(f"{name}{end}" for end in ("", "_cd", "4", "4cd") for name in ("start", "fixup")))
FIRMWARE = [
    f"{name}.elf" if name.startswith("start") else f"{name}.dat" if "fixup" in name else name for name in PROGRAMS
]
MODULE = "/usr/lib/modules/6.1/kernel/mmc.ko"


def tree(*without: str, **more: str) -> Tree:
    """A bootable tree as small as it can be, with what a Pi needs."""
    boot = {f"/boot/raspi/{name}": name.encode() * 99 for name in (*FIRMWARE, *TREES, "LICENCE.broadcom")}
    files = {
        "/boot/kernel": KERNEL,
        "/boot/cmdline": b"quiet panic=-1\n",
        "/usr/lib/imagekit/boot": b"boot",
        "/etc/imagekit/modules": f"{MODULE}\n".encode(),
        MODULE: b"module",
        **boot,
        **{path: text.encode() for path, text in more.items()},
    }
    kept = {path: file(data) for path, data in files.items() if not path.endswith(without or ("\0",))}
    return Tree({**kept, "/init": symlink("/usr/lib/imagekit/boot")}).complete()


@pytest.fixture(scope="module")
def store() -> Store:
    return open_store()


def job(store: Store, layout: Layout = Layout(), arch: str = "aarch64") -> Job:
    def tools(*names: str) -> toolbox.Tools:
        return toolbox.tools(*names, mode="tree", store=store)

    return Job("pi", "1", arch, store, layout, tools=tools)


def names(store: Store, of: Tree, board: str = "raspi3b") -> set[str]:
    return set(card.boot_files(of, job=job(store), board=BOARDS[board]))


COMMON = {"config.txt", "cmdline.txt", "kernel8.img", "initramfs8", "LICENCE.broadcom"}


@pytest.mark.parametrize(
    ("board", "own"),
    [
        ("raspi3b", {"bootcode.bin", "start.elf", "fixup.dat", "bcm2837-rpi-3-b.dtb", "bcm2837-rpi-3-b-plus.dtb"}),
        ("raspi4b", {"start4.elf", "fixup4.dat", "bcm2711-rpi-4-b.dtb"}),
    ],
)
def test_what_lies_on_the_boot_partition(store: Store, board: str, own: set[str]) -> None:
    assert names(store, tree(), board) == COMMON | own


def test_a_definition_has_the_last_word(store: Store) -> None:
    more = {"/boot/raspi/config.txt": "gpu_mem=16\n[pi3]\ndtoverlay=mine,x=1\n", "/boot/raspi/overlays/mine.dtbo": "o"}
    made = card.boot_files(tree(**more), job=job(store), board=BOARDS["raspi3b"])
    assert {"start_cd.elf", "fixup_cd.dat", "overlays/mine.dtbo"} <= made.keys()
    assert "start.elf" not in made
    assert made["config.txt"].endswith(b"\n[all]\n" + more["/boot/raspi/config.txt"].encode())


def test_the_firmware_finds_what_is_written(store: Store) -> None:
    made = card.boot_files(tree(), job=job(store), board=BOARDS["raspi3b"])
    found = raspi.boot({name: card.Given(data) for name, data in made.items()}, BOARDS["raspi3b"])
    assert made[found.kernel] == KERNEL
    assert found.initrds == ("initramfs8",)
    assert found.cmdline == "quiet panic=-1 console=tty1 console=ttyS1,115200"
    assert found.device_tree == "bcm2837-rpi-3-b.dtb"


LAYOUTS = {
    "initrd": (Layout(), [(1, 0x0C)], 8 * MIB),
    "squashfs": (Layout(root="squashfs"), [(1, 0x0C), (2, 0x83)], 12 * MIB),
    "changes": (Layout(root="ext4", changes="disk", size="64 MiB"), [(1, 0x0C), (2, 0x83), (3, 0x83)], 64 * MIB),
    "room": (Layout(size="100 MiB", boot_size="64 MiB"), [(1, 0x0C)], 100 * MIB),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_cards(store: Store, name: str, tmp_path: Path) -> None:
    layout, partitions, size = LAYOUTS[name]
    made = card.card(tree(), job=job(store, layout), board=BOARDS["raspi3b"])
    found = mbr.read(made)
    assert [(one.number, one.type) for one in found] == partitions
    assert made.size == size
    assert all(one.start % (4 * MIB) == 0 for one in found)
    if layout.changes == "disk":
        assert found[-1].start + found[-1].size == made.size  # it is what grows
    boot = tmp_path / "boot"
    boot.write_bytes(made.read(found[0].start, found[0].size))
    tools = toolbox.tools("fsck.fat", mode="tree", store=store)
    done = subprocess.run(tools.argv("fsck.fat", "-n", boot), capture_output=True, env=tools.env, check=False)
    assert done.returncode == 0, done.stdout
    again = card.card(tree(), job=job(store, layout), board=BOARDS["raspi3b"])
    assert list(again.chunks()) == list(made.chunks())


def test_partitions_are_named_by_the_disks_signature(store: Store) -> None:
    layout = Layout(root="squashfs", changes="disk")
    made = card.card(tree(), job=job(store, layout), board=BOARDS["raspi4b"])
    files = card.boot_files(tree(), job=job(store, layout), board=BOARDS["raspi4b"])
    serial = f"{mbr.serial(made):08x}"
    assert files["cmdline.txt"].decode().split()[-3:] == [
        f"root=PARTUUID={serial}-02", "rootfstype=squashfs", f"imagekit.changes=PARTUUID={serial}-03",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("of", "words", "hint"),
    [
        (tree("/boot/kernel"), "needs a kernel", "linux-image"),
        (tree(".elf", ".dat", ".bin"), "needs its firmware, which is not free", "debian:raspi-firmware"),
        (tree(".dtb"), "no device tree for the Raspberry Pi 3 B", "cloud kernel does not"),
        (tree("rpi-3-b.dtb"), "'bcm2837-rpi-3-b.dtb' is missing, the device tree", "bcm2837-rpi-3-b-plus.dtb"),
        (tree("bootcode.bin"), "'bootcode.bin' is missing", ""),
        (tree("start.elf"), "'start.elf' is missing, the firmware", ""),
        (tree("fixup.dat"), "'fixup.dat' is missing", ""),
        (tree(**{"/boot/kernel": "MZ and more"}), "no kernel for aarch64", "Image"),
        (tree(**{"/boot/raspi/config.txt": "dtoverlay=vc4-kms-v3d"}), "wants the overlay 'vc4-kms-v3d'", "dtbo"),
        (tree(**{"/boot/raspi/config.txt": "kernel=mine.img"}), "'mine.img' is missing, the kernel", ""),
    ],
)
def test_what_is_missing_is_named(store: Store, of: Tree, words: str, hint: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        card.card(of, job=job(store), board=BOARDS["raspi3b"])
    assert hint in caught.value.hint


def test_what_cannot_be(store: Store) -> None:
    with pytest.raises(Problem, match="is an aarch64, not an x86_64"):
        card.card(tree(), job=job(store, arch="x86_64"), board=BOARDS["raspi3b"])
    with pytest.raises(Problem, match=r"size='4 MiB' gives 4194304 bytes, and the content takes 8388608"):
        card.card(tree(), job=job(store, Layout(size="4 MiB")), board=BOARDS["raspi3b"])
    with pytest.raises(Problem, match="take a FAT volume of"):
        card.card(tree(), job=job(store, Layout(boot_size="16 KiB")), board=BOARDS["raspi3b"])
