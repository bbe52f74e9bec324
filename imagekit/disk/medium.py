"""Medium: the disk that a machine starts from, as partitions of a Sparse.

    BIOS boot        GRUB's core                                      where a BIOS is to start it
    boot (FAT)       EFI/BOOT/BOOT*.EFI, a UKI                        where UEFI is
                     kernel, initrd, grub.cfg                         where a BIOS is
    root             squashfs, erofs or ext4, never written to        where the layout has it on the disk
    changes          ext4, the last one, grows with the disk          where the layout keeps them there

GPT (UEFI 2.10, section 5.3); partition types of the Discoverable Partitions Specification. Everything begins at a
multiple of 1 MiB, ids derive from the tree's digest.
"""

from collections.abc import Mapping
from typing import NamedTuple
from uuid import UUID

from imagekit import early
from imagekit.arch import ARCHES
from imagekit.artifact import Job
from imagekit.disk import fat, gpt, grub, ids, initrd, uki
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.tree import Slice, Tree

ALIGNMENT = 1 << 20
CHANGES = 16 << 20  # bytes of the partition of changes as it is shipped
KERNEL, CMDLINE = "/boot/kernel", "/boot/cmdline"
ESP = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b")
XBOOTLDR = UUID("bc13c2ff-59e6-4262-a352-b275fd6f7172")
BIOS_BOOT = UUID("21686148-6449-6e6f-744e-656564454649")
DATA = UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
ROOTS = {
    "x86_64": UUID("4f68bce3-e8cd-4db1-96e7-fbcaf984b709"),
    "aarch64": UUID("b921b045-1df0-41c3-af44-4c6f280d3fae"),
}
READ_ONLY = 1 << 60  # of a root partition (Discoverable Partitions Specification, "Partition Flags")


class Part(NamedTuple):
    """A partition before it has a place."""

    name: str
    type: UUID
    content: Sparse
    attributes: int = 0


def disk(tree: Tree, *, job: Job, firmware: tuple[str, ...], multiple: int = ALIGNMENT, least: int = 0) -> Sparse:
    """The disk of a bootable tree, which each of `firmware` ("bios", "uefi") can start.

    Its size is that of the layout or of the content, at least `least`, and a whole number of `multiple` bytes. Raises
    Problem when the tree lacks what its boot takes, or the layout's sizes are too small for it.
    """
    check(tree, firmware=firmware)
    parts = [*(_bios(tree, job) if "bios" in firmware else ()), _boot(tree, job, firmware), *root(tree, job=job)]
    end, placed = ALIGNMENT, []
    for part in parts:
        placed.append((end, part))
        end += _aligned(part.content.size, ALIGNMENT)
    size = _size(job, end + gpt.TAIL, multiple=multiple, least=least)
    return _laid(tree, size, placed, has_bios="bios" in firmware)


def common(tree: Tree, *, job: Job, multiple: int = ALIGNMENT, least: int = 0) -> Sparse:
    """The disk that all firmware of its architecture can start, for clouds and hypervisors, whose machines vary."""
    firmware = ("bios", "uefi") if job.arch == "x86_64" else ("uefi",)
    return disk(tree, job=job, firmware=firmware, multiple=multiple, least=least)


def root(tree: Tree, *, job: Job) -> list[Part]:
    """The partitions of the root and of its changes, where they lie on the disk."""
    layout, seed = job.layout, tree.digest
    if layout.root == "initrd":
        return []
    from imagekit.disk import roots  # here: most disks have their root in the initrd

    written = roots.write(without_boot(tree), kind=layout.root, seed=seed, job=job)
    found = [Part("root", ROOTS[job.arch], _of(written), READ_ONLY)]
    if layout.changes == "disk":
        found.append(Part("changes", DATA, _of(roots.changes(CHANGES, seed=seed, job=job))))
    return found


def boot_files(tree: Tree, *, job: Job, arguments: str, firmware: tuple[str, ...]) -> dict[str, fat.Content]:
    """What lies on the partition that the firmware reads, or that GRUB does."""
    programs = uki.programs(tree, arch=job.arch) if "uefi" in firmware else None
    parts = initrd.laid(tree_of_initrd(tree, job), store=job.store)
    files: dict[str, fat.Content] = {}
    if programs:
        program = uki.contents(tree, parts, arguments=arguments, of=programs)
        files[f"EFI/BOOT/BOOT{ARCHES[job.arch].efi}.EFI"] = list(program)
    if "bios" in firmware:
        files |= {"kernel": [grub.kernel(tree)], "initrd": parts, "grub.cfg": grub.script(arguments)}
    return files


def tree_of_initrd(tree: Tree, job: Job) -> Tree:
    """The whole tree, or what finds the root on the disk."""
    return without_boot(tree) if job.layout.root == "initrd" else early.initrd(tree)


def without_boot(tree: Tree) -> Tree:
    """The tree without kernel, arguments and what else a boot takes."""
    return tree.without(("/boot",))


def check(tree: Tree, *, firmware: tuple[str, ...]) -> None:
    """Raise a Problem when the tree cannot be started by this firmware."""
    if KERNEL not in tree or CMDLINE not in tree:
        raise Problem("a disk needs a kernel", 'give the image kernel="debian:linux-image-cloud"')
    if "uefi" in firmware:
        uki.check(tree)
    if "bios" in firmware:
        grub.check(tree)


def partition_id(tree: Tree, name: str) -> UUID:
    """The unique id of a partition, by which the kernel's arguments name it."""
    return ids.guid(tree.digest, f"partition {name}")


def _boot(tree: Tree, job: Job, firmware: tuple[str, ...]) -> Part:
    where = _where(tree, job)
    arguments = uki.arguments(tree, job=job, **where)
    files = boot_files(tree, job=job, arguments=arguments, firmware=firmware)
    size, serial = job.layout.boot_bytes, ids.number(tree.digest, "boot volume")
    start = (2 if "bios" in firmware else 1) * ALIGNMENT // 512
    kind = ESP if "uefi" in firmware else XBOOTLDR
    return Part("boot", kind, fat.volume(files, size=size, label="BOOT", serial=serial, start=start))


def _where(tree: Tree, job: Job) -> Mapping[str, str]:
    if job.layout.root == "initrd":
        return {}
    names = ("root", "changes") if job.layout.changes == "disk" else ("root",)
    return {name: f"PARTUUID={partition_id(tree, name)}" for name in names}


def _bios(tree: Tree, job: Job) -> list[Part]:
    core = grub.core(tree, job=job, lba=ALIGNMENT // 512)
    if len(core) > ALIGNMENT:
        raise Problem(f"GRUB's core has {len(core)} bytes, more than the {ALIGNMENT} that are kept for it")
    return [Part("bios", BIOS_BOOT, laid(ALIGNMENT, [Piece(0, core)]))]


def _laid(tree: Tree, size: int, placed: list[tuple[int, Part]], *, has_bios: bool) -> Sparse:
    partitions = [
        gpt.Partition(
            name=part.name,
            type=part.type,
            guid=partition_id(tree, part.name),
            start=start,
            size=_aligned(part.content.size, ALIGNMENT) if part.name != "changes" else size - start - gpt.TAIL,
            attributes=part.attributes,
        )
        for start, part in placed
    ]
    code = grub.boot_code(tree, lba=ALIGNMENT // 512) if has_bios else b""
    table = gpt.table(size, partitions, guid=ids.guid(tree.digest, "disk"), boot_code=code)
    content = [piece._replace(offset=start + piece.offset) for start, part in placed for piece in part.content.pieces]
    return laid(size, (*table, *content))


def _of(written: Slice) -> Sparse:
    return laid(_aligned(written.size, 512), [Piece(0, written)])


def _size(job: Job, content: int, *, multiple: int, least: int) -> int:
    wanted = job.layout.size_bytes
    if wanted and wanted < content:
        raise Problem(
            f"disk: the content takes {content} bytes, and size={job.layout.size!r} gives {wanted}", 'size="" fits it'
        )
    if wanted % multiple:
        raise Problem(
            f"disk: size={job.layout.size!r} is no multiple of {multiple} bytes, which the format wants",
            f"write {_aligned(wanted, multiple)}",
        )
    return _aligned(max(wanted, content, least), multiple)


def _aligned(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
