"""Memory that a boot needs: what was measured, what it is computed from, and who is told when there is less."""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagekit import early, memory
from imagekit.artifact import Format, Job
from imagekit.errors import Problem
from imagekit.image import Image
from imagekit.layout import Layout
from imagekit.memory import MACHINES, MIB, Sizes
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

KERNELS = {"x86_64": (14186432, 53968896), "aarch64": (27303872, 27983872)}  # Debian 12's: as a file, as it runs
IN_MEMORY = Format(lambda *_: {}, {"kernel": "", "initrd": ""}, "kernel", firmware=("uefi",))
DISK = Format(lambda *_: {}, {"disk": ""}, "disk", firmware=("bios", "uefi"))
DISC = Format(lambda *_: {}, {"disk": ""}, "disk", in_memory=True)
APART = Format(lambda *_: {}, {"kernel": "", "root": ""}, "kernel")
TAR = Format(lambda *_: {}, {"root": ""}, "root")

# The least -m, in steps of 4, with which `shell` was ready in QEMU: with nothing more, with its root as squashfs on a
# disk, with 40 and 160 files of 1 MiB that do not compress, with 100 of zeros, with 20,000 of one byte.
MEASURED = [
    ("x86_64", 3084288, 5767168, False, 79),
    ("x86_64", 446120, 1400832, True, 71),
    ("x86_64", 45033204, 47710208, False, 181),
    ("x86_64", 3092392, 110624768, False, 264),
    ("x86_64", 170880264, 173539328, False, 551),
    ("x86_64", 3194088, 87687168, False, 220),
    ("aarch64", 2915108, 5242880, False, 55),
    ("aarch64", 413584, 1101824, True, 51),
    ("aarch64", 44864024, 47185920, False, 232),
    ("aarch64", 2923212, 110100480, False, 315),
    ("aarch64", 170711084, 173015040, False, 598),
    ("aarch64", 3024908, 87162880, False, 271),
]


@pytest.mark.parametrize(("arch", "packed", "unpacked", "is_apart", "least"), MEASURED)
def test_a_boot_needs_what_was_measured(arch: str, packed: int, unpacked: int, is_apart: bool, least: int) -> None:
    sizes = Sizes(*(size / MIB for size in (*KERNELS[arch], packed, unpacked)))
    assert least <= memory._direct(sizes, MACHINES[arch], is_apart=is_apart) <= least * 1.06


def tree(arch: str, **files: bytes) -> Tree:
    """Early boot, and a kernel that tells another size than its file has."""
    form, offset = MACHINES[arch].field
    kernel = bytearray(MIB)
    struct.pack_into(form, kernel, offset, 40 * MIB)
    more = {f"/{name}": file(data) for name, data in files.items()}
    made = early.tree(Image(name="t"), arch, modules=())
    return (made | Tree({"/boot/kernel": file(bytes(kernel)), "/boot/cmdline": file(b""), **more})).complete()


@pytest.fixture
def needed(tmp_path: Path) -> Callable[..., dict[str, int]]:
    def need(made: Tree, format: Format = IN_MEMORY, *, root: str = "initrd", arch: str = "x86_64") -> dict[str, int]:
        job = Job("t", "1", arch, open_store(tmp_path), Layout(root=root))
        return memory.needed(made, job=job, format=format)

    return need


def test_a_root_on_a_disk_needs_the_same_whatever_its_size(needed: Callable[..., dict[str, int]]) -> None:
    small, large = tree("x86_64"), tree("x86_64", blob=bytes(100 * MIB))
    assert needed(small, DISK, root="squashfs") == needed(large, DISK, root="squashfs")
    assert needed(small, APART) == needed(large, APART)
    for format in (IN_MEMORY, DISC):
        assert needed(large, format, root="squashfs")["direct"] - needed(small, format)["direct"] > 100
    assert set(needed(large, DISK)) == {"direct", "bios", "uefi"}


@pytest.mark.parametrize("arch", MACHINES)
def test_the_kernel_tells_what_it_takes(needed: Callable[..., dict[str, int]], arch: str) -> None:
    told = tree(arch)
    untold = told.override(Tree({"/boot/kernel": file(bytes(MIB))}))
    hostile = told.override(Tree({"/boot/kernel": file(b"\xff" * MIB)}))
    assert needed(told, arch=arch)["direct"] > needed(untold, arch=arch)["direct"] + 30
    assert needed(hostile, arch=arch) == needed(untold, arch=arch)
    assert needed(told.override(Tree({"/boot/kernel": file(b"short")})), arch=arch)["direct"] > 0


def test_uefi_needs_more(needed: Callable[..., dict[str, int]]) -> None:
    found = needed(tree("x86_64"))
    assert found["uefi"] > found["direct"]


def test_what_is_not_booted_needs_none(needed: Callable[..., dict[str, int]]) -> None:
    assert needed(tree("x86_64"), TAR) == needed(Tree({"/a": file(b"")})) == {}


MANIFEST = {"name": "web", "format": "raw_efi", "memory": {"direct": 80, "uefi": 150}}


@pytest.mark.parametrize(
    ("firmware", "has", "words"),
    [
        ("direct", 79, "image 'web' needs 80 MiB to boot as raw_efi, and the machine has 79"),
        ("uefi", 149, "needs 150 MiB to boot as raw_efi by uefi, and the machine has 149"),
        ("raspi3b", 79, "needs 80 MiB to boot as raw_efi by raspi3b"),
    ],
)
def test_too_little_is_a_problem_with_two_ways_out(firmware: str, has: int, words: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        memory.check(MANIFEST, firmware=firmware, memory=has)
    assert "Rig(memory=" in caught.value.hint
    assert 'Layout(root="squashfs")' in caught.value.hint
    memory.check(MANIFEST, firmware=firmware, memory=has + 1)


@pytest.mark.parametrize("told", [None, {}, 80, {"direct": "80"}, ["direct"]])
def test_a_manifest_that_tells_nothing_is_no_problem(told: Any) -> None:
    memory.check({**MANIFEST, "memory": told}, firmware="direct", memory=1)
