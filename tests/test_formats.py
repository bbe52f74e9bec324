"""Every format: the same bytes from the same tree, only changed parts compressed again, read by other programs."""

import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from test_disk import TREE, cpio_members
from test_grub import FILES as GRUB
from test_grub import Pretender
from toy_program import kernel, program

from imagekit import early, plugs, toolbox
from imagekit.artifact import Job
from imagekit.disk import cmdline, pe
from imagekit.errors import Problem
from imagekit.formats import tar
from imagekit.key import from_seed
from imagekit.layout import Layout
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

KERNEL = kernel(text=b"kernel" * 999)
EARLY = {early.BOOT: file(b"boot", mode=0o755), early.MODULES: file(b"")}
BOOT = {"/boot/kernel": file(KERNEL), "/boot/cmdline": file(b"quiet\n"), "/boot/stub": file(program())}
BOOT |= {f"/boot/grub/{name}": file(data) for name, data in GRUB.items()}
BOARDS = ("bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat", "bcm2837-rpi-3-b.dtb",
          "bcm2711-rpi-4-b.dtb", "LICENCE.broadcom")  # fmt: skip
PI = Tree({"/boot/kernel": file(bytes(56) + b"ARM\x64"), **{f"/boot/raspi/{name}": file(b"x") for name in BOARDS}})
BOOTABLE = TREE.override(Tree({**BOOT, **EARLY})).complete()


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def tools(*names):
    """The real ones, but for the one that wants GRUB's real modules: images/formats.py has those."""
    return Pretender() if names == ("grub-mkimage",) else toolbox.tools(*names, mode="tree", store=open_store())


def job_of(store, arch="x86_64"):
    return Job("toy", "1", arch, store, tools=tools)


def fitting(plug, tree=BOOTABLE):
    """The tree for the first architecture that a format exists for."""
    return tree if plug.arches[0] == "x86_64" else tree.override(PI).complete()


def job_for(format, store):
    """Of the first architecture that the format exists for."""
    layout = Layout(slots=2 if format == "update" else 1)
    return replace(job_of(store, plugs.load("formats", format).arches[0]), key=from_seed(bytes(32)), layout=layout)


def write(tree, store, format):
    """Of the first architecture that the format exists for."""
    plug = plugs.load("formats", format)
    return plug.write(fitting(plug, tree), job=job_for(format, store))


def written(tree, store, format):
    return {role: store.read(part.sha256) for role, part in write(tree, store, format).items()}


@pytest.mark.parametrize("format", plugs.own("formats"))
def test_the_same_tree_gives_the_same_bytes_in_any_order_and_store(format, store, tmp_path):
    other = open_store(tmp_path / "other")
    backwards = Tree(list(BOOTABLE.items())[::-1])
    assert written(BOOTABLE, store, format) == written(backwards, other, format)
    assert written(BOOTABLE, store, format) == written(BOOTABLE, store, format), "from what the store keeps"


@pytest.mark.parametrize("format", plugs.own("formats"))
def test_what_is_said_of_a_part_is_true(format, store):
    parts = write(BOOTABLE, store, format)
    assert parts.keys() == plugs.load("formats", format).suffixes.keys()
    for part in parts.values():
        assert len(store.read(part.sha256)) == part.size


@pytest.mark.parametrize("format", plugs.own("formats"))
def test_a_change_costs_one_part(format, store):
    written(BOOTABLE, store, format)
    notes = Path(store.location) / "notes" / "segments"
    before = set(notes.iterdir())
    written(BOOTABLE.override(Tree({"/etc/motd": file(b"new", owner="motd")})), store, format)
    assert len(set(notes.iterdir()) - before) <= 1  # none, where the root is no part of the initrd


def test_an_initrd_is_archives_one_after_the_other_parents_first(store):
    whole = written(BOOTABLE, store, "kernel_initrd")
    assert (whole["kernel"], whole["cmdline"]) == (KERNEL, b"quiet\n")
    assert len(whole["initrd"]) % 4 == 0
    found, rest = {}, whole["initrd"]
    while rest:
        reader = zstandard.ZstdDecompressor().decompressobj()
        for path in cpio_members(reader.decompress(rest)):
            assert path.count("/") == 1 or path.rpartition("/")[0] in found, f"{path} before its folder"
            found[path] = True
        rest = reader.unused_data.lstrip(b"\0")
    assert found.keys() == {path for path in BOOTABLE if not path.startswith("/boot/")}


def test_a_uki_holds_what_kernel_initrd_writes(store):
    apart = written(BOOTABLE, store, "kernel_initrd")
    found = pe.sections(written(BOOTABLE, store, "uki")["uki"])
    assert (found[".linux"], found[".initrd"]) == (apart["kernel"], apart["initrd"])
    assert found[".cmdline"] == b"quiet console=tty0 console=ttyS0 no_timer_check"
    assert found.keys() == {".text", ".linux", ".initrd", ".cmdline"}, "no release and no modules in this tree"
    about = {"/usr/lib/os-release": file(b"ID=toy\n"), "/usr/lib/modules/6.1.0-1/x.ko": file(b"")}
    found = pe.sections(written(BOOTABLE.override(Tree(about)), store, "uki")["uki"])
    assert (found[".osrel"], found[".uname"]) == (b"ID=toy\n", b"6.1.0-1")


OTHERS_BOOT = (
    ({"/boot/stub": file(program("aarch64"))}, "/boot/stub is for aarch64, and the image for x86_64"),
    ({"/boot/kernel": file(program("aarch64"))}, "/boot/kernel is for aarch64, and the image for x86_64"),
    ({"/boot/kernel": file(b"\x1f\x8b" + bytes(99))}, r"/boot/kernel is no program for UEFI.*compressed"),
    ({"/boot/stub": file(b"MZ")}, "/boot/stub is no program for UEFI"),
)


@pytest.mark.parametrize(("boot", "words"), OTHERS_BOOT)
def test_a_uki_of_another_machine_is_refused(boot, words, store):
    with pytest.raises(Problem, match=words):
        written(BOOTABLE.override(Tree(boot)), store, "uki")


def test_without_a_stub_there_is_no_uki(store):
    with pytest.raises(Problem, match="needs the stub of systemd-boot-efi"):
        written(BOOTABLE.without(["/boot/stub"]), store, "uki")


@pytest.mark.parametrize("kind", ["squashfs", "erofs", "ext4"])
def test_a_kernel_with_its_root_apart_is_told_where_it_is(kind, store):
    whole = written(BOOTABLE, store, f"kernel_{kind}")
    assert whole["cmdline"] == f"quiet root=/dev/vda rootfstype={kind}".encode()
    found = cpio_members(zstandard.ZstdDecompressor().decompressobj().decompress(whole["initrd"]))
    assert "/etc" in found
    assert "/etc/passwd" not in found
    assert whole["root"] != written(BOOTABLE.without(["/etc/passwd"]), store, f"kernel_{kind}")["root"]


ARGUMENTS = (
    (b"quiet\n", "quiet A=B"),
    (b"quiet -- single\n", "quiet A=B -- single"),
    (b"-- single", "A=B -- single"),
    (b"", "A=B"),
    (b"quiet --", "quiet A=B --"),
    (b"a  b\tc--d\n", "a b c--d A=B"),
)


@pytest.mark.parametrize(("own", "together"), ARGUMENTS)
def test_arguments_stand_before_those_of_init(own, together):
    assert cmdline.arguments(Tree({"/boot/cmdline": file(own)}), ["A=B"]) == together


def test_a_tar_of_kernel_and_initrd_has_the_bytes_of_kernel_initrd(store):
    apart = written(BOOTABLE, store, "kernel_initrd")
    packed = written(BOOTABLE, store, "tar_kernel_initrd")["archive"]
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive}
    assert found == {"kernel": apart["kernel"], "initrd.img": apart["initrd"], "cmdline": apart["cmdline"]}


def test_a_tar_is_one_gzip_member_that_streams(store):
    packed = written(BOOTABLE, store, "tar")["root"]
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as stream:
        assert {"/" + member.name for member in stream} == set(BOOTABLE)
    listed = subprocess.run(["tar", "--list", "--gzip"], input=packed, capture_output=True, check=True)
    assert len(listed.stdout.splitlines()) == len(BOOTABLE)
    assert not listed.stderr


@pytest.mark.parametrize("format", [name for name in plugs.own("formats") if plugs.load("formats", name).bootable])
def test_without_a_kernel_there_is_no(format, store):
    with pytest.raises(Problem, match=r"needs? a kernel"):
        written(TREE, store, format)


def test_a_tar_needs_no_kernel(store):
    assert tar.write(TREE, job=Job("toy", "1", "x86_64", store))["root"].size > 0
