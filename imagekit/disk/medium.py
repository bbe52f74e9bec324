"""Medium: the disk that a machine starts from, as partitions of a Sparse.

    BIOS boot        GRUB's core                                      where a BIOS is to start it
    boot (FAT)       EFI/BOOT/BOOT*.EFI, a UKI                        where UEFI is
                     kernel, initrd, grub.cfg                         where a BIOS is
    root             squashfs, erofs or ext4, never written to        where the layout has it on the disk
    changes          ext4, the last one, grows with the disk          where the layout keeps them there
    root-a, ...      a root that is checked, a sealed disk            where the layout protects them (disk/guarded)

GPT (UEFI 2.10, section 5.3); partition types of the Discoverable Partitions Specification. Everything begins at a
multiple of 1 MiB, ids derive from the tree's digest.
"""

from imagekit.arch import ARCHES
from imagekit.artifact import Job
from imagekit.disk import fat, gpt, grub, ids, initrd, rooted, uki
from imagekit.disk.discoverable import BIOS_BOOT, ESP, XBOOTLDR
from imagekit.disk.plan import Part, Plan
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.tree import Tree

ALIGNMENT = 1 << 20
KERNEL, CMDLINE = "/boot/kernel", "/boot/cmdline"


def disk(
    tree: Tree,
    *,
    job: Job,
    firmware: tuple[str, ...],
    multiple: int = ALIGNMENT,
    least: int = 0,
    plan: Plan | None = None,
) -> Sparse:
    """The disk of a bootable tree, which each of `firmware` ("bios", "uefi") can start.

    Its size is that of the layout or of the content, at least `least`, and a whole number of `multiple` bytes. Raises
    Problem when the tree lacks what its boot takes, or the layout's sizes are too small for it.

    plan: what lies on it in place of what is found here.
    """
    check(tree, firmware=firmware)
    bios = _bios(tree, job) if "bios" in firmware else ()
    parts = [*bios, _boot(tree, job, firmware, plan), *(plan.parts if plan else rooted.parts(tree, job=job))]
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


def boot_files(tree: Tree, *, job: Job, arguments: str, firmware: tuple[str, ...]) -> dict[str, fat.Content]:
    """What lies on the partition that the firmware reads, or that GRUB does."""
    programs = uki.programs(tree, arch=job.arch) if "uefi" in firmware else None
    parts = initrd.laid(rooted.initrd(tree, job=job), store=job.store)
    files: dict[str, fat.Content] = {}
    if programs:
        program = uki.contents(tree, parts, arguments=arguments, of=programs)
        files[f"EFI/BOOT/BOOT{ARCHES[job.arch].efi}.EFI"] = list(program)
    if "bios" in firmware:
        files |= {"kernel": [grub.kernel(tree)], "initrd": parts, "grub.cfg": grub.script(arguments)}
    return files


def check(tree: Tree, *, firmware: tuple[str, ...]) -> None:
    """Raise a Problem when the tree cannot be started by this firmware."""
    if KERNEL not in tree or CMDLINE not in tree:
        raise Problem("a disk needs a kernel", 'give the image kernel="debian:linux-image-cloud"')
    if "uefi" in firmware:
        uki.check(tree)
    if "bios" in firmware:
        grub.check(tree)


def _boot(tree: Tree, job: Job, firmware: tuple[str, ...], plan: Plan | None) -> Part:
    if plan:
        files, size = plan.files, max(job.layout.boot_bytes, plan.boot_size)
    else:
        arguments = uki.arguments(tree, job=job, **rooted.where(tree, job=job))
        files, size = boot_files(tree, job=job, arguments=arguments, firmware=firmware), job.layout.boot_bytes
    serial = ids.number(tree.digest, "boot volume")
    start = (2 if "bios" in firmware else 1) * ALIGNMENT // 512
    kind = ESP if "uefi" in firmware else XBOOTLDR
    return Part("boot", kind, fat.volume(files, size=size, label="BOOT", serial=serial, start=start))


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
            guid=rooted.partition_id(tree, part.name),
            start=start,
            size=_aligned(part.content.size, ALIGNMENT) if not part.grows else size - start - gpt.TAIL,
            attributes=part.attributes,
        )
        for start, part in placed
    ]
    code = grub.boot_code(tree, lba=ALIGNMENT // 512) if has_bios else b""
    table = gpt.table(size, partitions, guid=ids.guid(tree.digest, "disk"), boot_code=code)
    content = [piece._replace(offset=start + piece.offset) for start, part in placed for piece in part.content.pieces]
    return laid(size, (*table, *content))


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
