"""What no format, or only some, can take: each writes it, or says in one message what is wrong and leaves nothing.

What one writer cannot hold is tested beside it; here all formats are given the same.
"""

import os
from dataclasses import replace
from hashlib import sha256

import pytest
from test_formats import BOOTABLE, fitting, job_for, job_of, write
from toy_program import kernel, program

from imagekit import inspection, matrix, plugs
from imagekit.artifact import Layout
from imagekit.errors import Problem, RigProblem
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file, symlink

MIB, GIB, TIB = 1 << 20, 1 << 30, 1 << 40
NAMES = {  # of the root: Linux takes any bytes but zeros and slashes, and tells case
    "/etc/\udcff": file(b"1"),
    "/etc/link": symlink("\udcff/x"),
    "/etc/new\nline": file(b"2"),
    "/etc/Case": file(b"3"),
    "/etc/case": file(b"4"),
    "/etc/aux.txt": file(b"5"),
    "/etc/a?b ": file(b"6"),
}
FORMATS = plugs.own("formats")


@pytest.mark.parametrize("format", FORMATS)
def test_a_root_has_the_names_of_linux_in_every_format(format, tmp_path):
    assert write(BOOTABLE.override(Tree(NAMES)).complete(), open_store(tmp_path), format)


def test_names_of_any_bytes_are_listed():
    for line in inspection.listed(BOOTABLE.override(Tree(NAMES)).complete()):
        assert line.encode("utf-8").decode().isprintable()


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_told_by_every_format_and_nothing_half_done_is_left(format, small):
    tree = BOOTABLE.override(Tree({"/etc/noise": file(os.urandom(8 * MIB))})).complete()
    with pytest.raises(RigProblem) as told:
        write(tree, open_store(small / "cache"), format)
    assert "make room" in told.value.hint
    assert str(small) in f"{told.value.message} {told.value.hint}"
    kept = [path.relative_to(small / "cache") for path in small.rglob("*") if path.is_file()]
    assert {path.parts[0] for path in kept} <= {"objects", "notes", "locks", "in-use"}
    for path in small.glob("cache/objects/*/*"):
        assert sha256(path.read_bytes()).hexdigest() == path.name


STARTED = [name for name in FORMATS if plugs.load("formats", name).kind != "root"]


@pytest.mark.parametrize("format", STARTED)
def test_a_kernel_of_another_architecture_is_told_by_every_format_that_has_one(format, tmp_path):
    plug = plugs.load("formats", format)
    other = program("aarch64") if plug.arches[0] == "x86_64" else kernel()
    tree = fitting(plug).override(Tree({"/boot/kernel": file(other)})).complete()
    words = r"/boot/kernel is for aarch64, and the image for x86_64|no kernel (that a BIOS can start|for aarch64)"
    with pytest.raises(Problem, match=words):
        plug.write(tree, job=job_for(format, open_store(tmp_path)))


SIZES = [  # format, size of the disk, words
    ("gcp", 1500 * MIB, "no multiple of 1073741824 bytes"),
    ("gcp", 3 * TIB, "cannot be a disk for GCP"),
    ("azure", GIB + 512, "no multiple of 1048576 bytes"),
    ("vhd", 3 * TIB, "cannot be a vhd"),
    ("raw_efi", MIB, "size=.* gives 1048576"),
    ("qcow2_bios", GIB + 1, "no multiple of 1048576 bytes"),
    ("rpi3", MIB, "size=.* gives 1048576"),
]


@pytest.mark.parametrize(("format", "size", "words"), SIZES)
def test_a_size_that_a_format_cannot_have_is_told(format, size, words, tmp_path):
    plug = plugs.load("formats", format)
    job = replace(job_of(open_store(tmp_path), plug.arches[0]), layout=Layout(size=size))
    with pytest.raises(Problem, match=words):
        plug.write(fitting(plug), job=job)


def test_what_no_machine_starts_is_told_with_what_they_do():
    with pytest.raises(Problem, match="no machine starts tar of x86_64") as told:
        matrix.machine("x86_64", "tar")
    assert {"raw_efi", "kernel_initrd"} <= set(told.value.hint.removeprefix("of x86_64, machines start: ").split(", "))
