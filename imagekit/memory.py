"""Memory: how many MiB a machine needs until an image has booted, from the sizes of its kernel and its initrd.

While a kernel unpacks its initrd it holds it twice, packed and unpacked. A root that stays in the initrd lies in a
tmpfs, which takes at most half of what was free when it was mounted: before the packed initrd was given back, and
before what was set aside for devices came back. So twice the unpacked files must be free beside the packed ones. A
root on a disk needs none of this, whatever its size. UEFI holds a UKI several times over while it starts it.

The figures were found by booting with less and less memory: docs/disks.md has them. What services take once they run is
not among them.
"""

import struct
from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any, NamedTuple

from imagekit import early
from imagekit.artifact import Format, Job
from imagekit.disk import initrd
from imagekit.errors import Problem
from imagekit.tree import Tree

MIB = 1 << 20
PAGE = 4096
NOTE = "initrd-sizes"
GROWTH = 1.03  # the kernel keeps 64 bytes for each page of 4096, and some more
REMAINS = 8  # MiB of UEFI that a kernel leaves where they are


class Machine(NamedTuple):
    """What kernel and firmware of an architecture take beside files, in MiB or as a share of the kernel's size."""

    field: tuple[str, int]  # where a kernel tells its size when it runs: format and offset
    resident: float  # share that it keeps
    working: float  # what early boot and a first service need
    lowest: float  # where the kernel is unpacked to, whole
    reserved: tuple[float, float]  # set aside for devices, in machines of at least so much
    uefi: tuple[float, float]  # the firmware's own, and how many times it holds a UKI


MACHINES = {
    # init_size of Documentation/arch/x86/boot.rst; it is unpacked at 16 MiB
    "x86_64": Machine(("<I", 0x260), 0.86, 28, 16, (0, 0), (102, 2.85)),
    # image_size of Documentation/arch/arm64/booting.rst; CMA takes 64 MiB, but not of a small machine
    "aarch64": Machine(("<Q", 16), 1.2, 17, 0, (64, 115), (41, 3.6)),
}


class Sizes(NamedTuple):
    """What a boot holds in memory, in MiB."""

    kernel: float  # as a file
    image: float  # as it runs
    packed: float  # the initrd
    unpacked: float


def needed(tree: Tree, *, job: Job, format: Format) -> dict[str, int]:
    """MiB by what starts a machine: "direct", and the firmware that the format is for. Empty where nothing boots."""
    if initrd.KERNEL not in tree or format.kind == "root":
        return {}
    is_apart = format.has_root_on_disk(job.layout)
    sizes = _sizes(tree, early.initrd(tree) if is_apart else initrd.root(tree), job=job)
    direct = _direct(sizes, MACHINES[job.arch], is_apart=is_apart)
    found = {"direct": direct, **dict.fromkeys(format.firmware, direct)}
    if "uefi" in found:
        own, times = MACHINES[job.arch].uefi
        found["uefi"] = ceil(max(direct + REMAINS, own + times * (sizes.kernel + sizes.packed)))
    return found


def check(manifest: Mapping[str, Any], *, firmware: str, memory: int) -> None:
    """Raise a Problem when a machine of `memory` MiB has too little to boot an artifact by this firmware."""
    name, format = manifest.get("name"), manifest.get("format")
    known = manifest.get("memory")
    need = known.get(firmware, known.get("direct")) if isinstance(known, Mapping) else None
    if not isinstance(need, int) or memory >= need:
        return
    by = "" if firmware == "direct" else f" by {firmware}"
    raise Problem(
        f"image {name!r} needs {need} MiB to boot as {format}{by}, and the machine has {memory}",
        f'give it more (--memory {need}, Rig(memory={need})), or keep the root on the disk: Layout(root="squashfs")',
    )


def _direct(sizes: Sizes, machine: Machine, *, is_apart: bool) -> int:
    """Without firmware, which has gone when the kernel unpacks its initrd."""
    resident = machine.resident * sizes.image
    running = resident + sizes.packed + sizes.unpacked + machine.working
    unpacking = machine.lowest + sizes.image + sizes.packed + 1
    tmpfs = 0 if is_apart else GROWTH * (resident + sizes.packed + 2 * sizes.unpacked)
    reserved, least = machine.reserved
    if tmpfs >= least:
        tmpfs += GROWTH * reserved
    return ceil(max(running, unpacking, tmpfs))


def _sizes(tree: Tree, of_initrd: Tree, *, job: Job) -> Sizes:
    kernel = tree[initrd.KERNEL]
    head = kernel.content[:PAGE] if isinstance(kernel.content, bytes) else kernel.content._replace(size=PAGE).read()
    form, offset = MACHINES[job.arch].field
    told = struct.unpack_from(form, head, offset)[0] if len(head) >= offset + 8 else 0
    image = told if kernel.size <= told < 1 << 30 else kernel.size  # a toy tells nothing
    packed = initrd.size(of_initrd, store=job.store)
    return Sizes(*(size / MIB for size in (kernel.size, image, packed, sum(_pages(of_initrd)))))


def _pages(tree: Tree) -> Iterator[int]:
    return (-(-entry.size // PAGE) * PAGE for entry in tree.values() if entry.kind == "file")
