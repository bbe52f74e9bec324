"""The disk that a machine starts from: which partitions it has, how large it is, and what cannot be."""

from dataclasses import replace
from uuid import UUID

import pytest
from test_formats import BOOTABLE, job_of
from toy_program import program

from imagekit.artifact import Job
from imagekit.disk import discoverable, fat, fatfiles, gpt, loader, medium, pe
from imagekit.disk.sparse import Sparse, laid
from imagekit.errors import Problem
from imagekit.layout import Layout
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

MIB = 1 << 20


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return job_of(open_store(tmp_path_factory.mktemp("cache")))


def disk_of(job: Job, firmware=("uefi",), tree=BOOTABLE, **layout) -> Sparse:
    return medium.disk(tree, job=replace(job, layout=Layout(**layout)), firmware=firmware)


def test_each_firmware_has_what_it_starts(job):
    both = gpt.read(disk_of(job, ("bios", "uefi")))
    assert [part.name for part in both] == ["bios", "boot"]
    assert [part.type for part in both] == [discoverable.BIOS_BOOT, discoverable.ESP]
    assert [part.type for part in gpt.read(disk_of(job, ("uefi",)))] == [discoverable.ESP]
    assert [part.type for part in gpt.read(disk_of(job, ("bios",)))] == [discoverable.BIOS_BOOT, discoverable.XBOOTLDR]


@pytest.mark.parametrize("firmware", [("uefi",), ("bios",)])
def test_what_firmware_starts_is_found_again(firmware, job):
    found = loader.find(disk_of(job, firmware), arch="x86_64")
    assert found.kernel == BOOTABLE.read("/boot/kernel")
    assert found.arguments == b"quiet console=tty0 console=ttyS0 no_timer_check"


@pytest.mark.parametrize("root", ["squashfs", "erofs", "ext4"])
def test_a_root_on_the_disk_is_named_by_its_partition(root, job):
    disk = disk_of(job, root=root, changes="disk")
    parts = {part.name: part for part in gpt.read(disk)}
    arguments = loader.find(disk, arch="x86_64").arguments.decode()
    assert f"root=PARTUUID={parts['root'].guid} rootfstype={root}" in arguments
    assert f"imagekit.changes=PARTUUID={parts['changes'].guid}" in arguments
    assert parts["root"].attributes == discoverable.READ_ONLY
    assert list(parts)[-1] == "changes", "which grows, so that nothing may follow it"
    assert parts["changes"].start + parts["changes"].size == disk.size - gpt.TAIL


def test_everything_begins_at_a_mebibyte(job):
    disk = disk_of(job, ("bios", "uefi"), root="squashfs", changes="disk")
    assert {part.start % MIB for part in gpt.read(disk)} == {0}
    assert disk.size % MIB == 0


def test_ids_are_derived_from_the_tree_and_differ_from_each_other(job):
    disks = [disk_of(job, root="squashfs", changes="disk") for _ in (1, 2)]
    other = disk_of(job, tree=BOOTABLE.override(Tree({"/etc/motd": file(b"other")})), root="squashfs", changes="disk")
    ids = [[gpt.disk_guid(disk), *(part.guid for part in gpt.read(disk))] for disk in (*disks, other)]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 8
    assert all(isinstance(one, UUID) and one.version == 8 for one in ids[0])


@pytest.mark.parametrize(("size", "multiple"), [("64 MiB", MIB), (100 * MIB, MIB), ("1 GiB", 1 << 30)])
def test_a_layout_has_its_size(size, multiple, job):
    made = medium.disk(
        BOOTABLE, job=replace(job, layout=Layout(size=size, boot_size="40 MiB")), firmware=("uefi",), multiple=multiple
    )
    assert made.size == Layout(size=size).size_bytes
    assert gpt.read(made)[0].size == 40 * MIB


BAD = (
    ({"size": "1 MiB"}, "size='1 MiB' gives 1048576"),
    ({"boot_size": "10 KiB"}, "FAT volume"),
    ({"boot_size": "100 KiB"}, "the files take a FAT volume of"),
    ({"size": 64 * MIB + 512}, "no multiple of 1048576 bytes"),
)


@pytest.mark.parametrize(("layout", "words"), BAD)
def test_a_size_that_cannot_be_is_told(layout, words, job):
    tree = BOOTABLE.override(Tree({"/boot/kernel": file(program(text=bytes(range(256)) * 999))}))
    with pytest.raises(Problem, match=words):
        disk_of(job, tree=tree, **layout)


@pytest.mark.parametrize(
    ("gone", "firmware", "words"),
    [
        ("/boot/kernel", ("uefi",), "needs a kernel"),
        ("/boot/stub", ("uefi",), "systemd-boot-efi"),
        ("/boot/grub", ("bios",), "grub-pc-bin"),
        ("/boot/grub/fat.mod", ("bios",), "fat.mod is not in the tree"),
    ],
)
def test_what_a_boot_lacks_is_told(gone, firmware, words, job):
    with pytest.raises(Problem, match=words):
        disk_of(job, firmware, tree=BOOTABLE.without([gone]))


@pytest.mark.parametrize("path", ["/boot/kernel", "/boot/stub"])
def test_a_program_of_another_machine_is_told(path, job):
    tree = BOOTABLE.override(Tree({path: file(program("aarch64"))}))
    with pytest.raises(Problem, match=f"{path} is for aarch64"):
        disk_of(job, tree=tree)


BAD_LAYOUTS = (
    ({"root": "btrfs"}, "unknown disk root 'btrfs'"),
    ({"root": "squashfs", "changes": "cloud"}, "unknown disk changes 'cloud'"),
    ({"changes": "disk"}, 'changes="disk" needs a root on the disk'),
    ({"size": "large"}, "'large' is no size"),
    ({"size": "-1 GiB"}, "is no size"),
)


@pytest.mark.parametrize(("layout", "words"), BAD_LAYOUTS)
def test_a_layout_that_cannot_be_is_told_at_once(layout, words):
    with pytest.raises(Problem, match=words):
        Layout(**layout)


def test_a_disk_that_nothing_starts_says_what_is_missing(job):
    disk = disk_of(job, ("bios",))
    empty = Sparse(disk.size, tuple(piece for piece in disk.pieces if piece.offset < MIB or piece.offset > 30 * MIB))
    for bad, words in ((Sparse(MIB, ()), "no partition table"), (empty, "no firmware would start this disk")):
        with pytest.raises(Problem, match=words):
            loader.find(bad, arch="x86_64")
    with pytest.raises(Problem, match=r"neither EFI/BOOT/BOOTAA64\.EFI"):
        loader.find(disk_of(job, ("uefi",)), arch="aarch64")


def test_the_boot_partition_holds_nothing_else(job):
    disk = disk_of(job, ("bios", "uefi"))
    boot = gpt.read(disk)[1]
    assert set(fatfiles.read(disk.part(boot.start, boot.size))) == {
        "EFI/BOOT/BOOTX64.EFI", "kernel", "initrd", "grub.cfg"
    }  # fmt: skip


def test_a_bootloader_of_another_machine_starts_nothing():
    uki = pe.uki(program(), {".cmdline": b"quiet", ".initrd": b"i", ".linux": program()})
    esp = fat.volume({"EFI/BOOT/BOOTAA64.EFI": uki, "EFI/BOOT/BOOTX64.EFI": uki}, serial=1)
    table = gpt.table(8 * MIB, [gpt.Partition("boot", discoverable.ESP, UUID(int=2), MIB, esp.size)], guid=UUID(int=1))
    disk = laid(8 * MIB, [*table, *(piece._replace(offset=piece.offset + MIB) for piece in esp.pieces)])
    assert loader.find(disk, arch="x86_64").arguments == b"quiet"
    with pytest.raises(Problem, match=r"boot: EFI/BOOT/BOOTAA64\.EFI is for x86_64"):
        loader.find(disk, arch="aarch64")
