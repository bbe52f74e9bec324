"""Every format: the same bytes from the same tree, only changed parts compressed again, read by other programs."""

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from test_disk import TREE, cpio_members

from imagekit import plugs
from imagekit.artifact import Job
from imagekit.errors import Problem
from imagekit.formats import kernel_initrd, tar
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

BOOTABLE = TREE.override(Tree({"/boot/kernel": file(b"MZ" * 999), "/boot/cmdline": file(b"quiet\n")})).complete()


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def written(tree, store, format):
    parts = plugs.load("formats", format).write(tree, job=Job("toy", "1", "x86_64", store))
    return {role: store.read(part.sha256) for role, part in parts.items()}


@pytest.mark.parametrize("format", plugs.own("formats"))
def test_the_same_tree_gives_the_same_bytes_in_any_order_and_store(format, store, tmp_path):
    other = open_store(tmp_path / "other")
    backwards = Tree(list(BOOTABLE.items())[::-1])
    assert written(BOOTABLE, store, format) == written(backwards, other, format)
    assert written(BOOTABLE, store, format) == written(BOOTABLE, store, format), "from what the store keeps"


@pytest.mark.parametrize("format", plugs.own("formats"))
def test_what_is_said_of_a_part_is_true(format, store):
    plug = plugs.load("formats", format)
    parts = plug.write(BOOTABLE, job=Job("toy", "1", "x86_64", store))
    assert parts.keys() == plug.suffixes.keys()
    for part in parts.values():
        assert len(store.read(part.sha256)) == part.size


@pytest.mark.parametrize("format", plugs.own("formats"))
def test_a_change_costs_one_part(format, store):
    written(BOOTABLE, store, format)
    notes = Path(store.location) / "notes" / "segments"
    before = set(notes.iterdir())
    written(BOOTABLE.override(Tree({"/etc/motd": file(b"new", owner="motd")})), store, format)
    assert len(set(notes.iterdir()) - before) == 1


def test_an_initrd_is_archives_one_after_the_other_parents_first(store):
    whole = written(BOOTABLE, store, "kernel_initrd")
    assert (whole["kernel"], whole["cmdline"]) == (b"MZ" * 999, b"quiet\n")
    assert len(whole["initrd"]) % 4 == 0
    found, rest = {}, whole["initrd"]
    while rest:
        reader = zstandard.ZstdDecompressor().decompressobj()
        for path in cpio_members(reader.decompress(rest)):
            assert path.count("/") == 1 or path.rpartition("/")[0] in found, f"{path} before its folder"
            found[path] = True
        rest = reader.unused_data.lstrip(b"\0")
    assert found.keys() == set(BOOTABLE) - {"/boot/kernel", "/boot/cmdline"}


def test_a_tar_is_one_gzip_member_that_streams(store):
    packed = written(BOOTABLE, store, "tar")["root"]
    with tarfile.open(fileobj=io.BytesIO(packed), mode="r|gz") as stream:
        assert {"/" + member.name for member in stream} == set(BOOTABLE)
    listed = subprocess.run(["tar", "--list", "--gzip"], input=packed, capture_output=True, check=True)
    assert len(listed.stdout.splitlines()) == len(BOOTABLE)
    assert not listed.stderr


def test_without_a_kernel_there_is_no_kernel_initrd(store):
    with pytest.raises(Problem, match="needs a kernel"):
        kernel_initrd.write(TREE, job=Job("toy", "1", "x86_64", store))
    assert tar.write(TREE, job=Job("toy", "1", "x86_64", store))["root"].size > 0
