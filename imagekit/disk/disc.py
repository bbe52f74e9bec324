"""Disc: the ISO that a machine starts from, as a disc or copied to a stick.

    sector 0       GRUB's boot sector, where a BIOS is to start it from a stick, and a table of partitions
    efi.img        a FAT volume with a UKI: El Torito's entry for UEFI, and a partition of a stick
    grub.img       GRUB's core: El Torito's entry for a BIOS
    grub.cfg, kernel, initrd          what GRUB starts

The root is the initrd: nothing on the disc is read once the kernel runs.
"""

from collections.abc import Mapping

from imagekit.arch import ARCHES
from imagekit.artifact import Job
from imagekit.disk import fat, grub, ids, initrd, iso, mbr, uki
from imagekit.disk.sparse import SECTOR, Piece, Sparse, laid, one_after_the_other
from imagekit.tree import Tree

EFI, CORE = "efi.img", "grub.img"
FILLED = 0xDA  # a partition that is no file system: what EFI's leaves of the stick
ALIGNMENT = 1 << 20
LOADED = 4  # sectors of the core that a BIOS loads; they load the rest


def disk(tree: Tree, *, job: Job, firmware: tuple[str, ...]) -> Sparse:
    """The ISO of a bootable tree, which each of `firmware` ("bios", "uefi") can start from a disc and from a stick.

    Raises Problem when the tree lacks what its boot takes.
    """
    initrd.check(tree, format="iso", arch=job.arch)
    contents = _contents(tree, job, firmware)
    boots = [iso.Boot("bios", CORE, LOADED)] * ("bios" in firmware) + [iso.Boot("uefi", EFI)] * ("uefi" in firmware)
    sizes = {name: content.size for name, content in contents.items()}
    planned = iso.plan(sizes, label=_label(job), boots=boots)
    size = -(-planned.size // ALIGNMENT) * ALIGNMENT
    if CORE in contents:
        contents = {**contents, CORE: _placed_core(contents[CORE], planned.places[CORE])}
    files = [
        piece._replace(offset=planned.places[name] + piece.offset)
        for name, content in contents.items()
        for piece in content.pieces
    ]
    return laid(size, (*planned.pieces, *files, _first_sector(tree, planned.places, sizes, size)))


def _contents(tree: Tree, job: Job, firmware: tuple[str, ...]) -> Mapping[str, Sparse]:
    arguments, parts = uki.arguments(tree, job=job), initrd.laid(initrd.root(tree), store=job.store)
    found: dict[str, Sparse] = {}
    if "uefi" in firmware:
        name = f"EFI/BOOT/BOOT{ARCHES[job.arch].efi}.EFI"
        program = uki.contents(tree, parts, arguments=arguments, of=uki.programs(tree, arch=job.arch))
        found[EFI] = fat.volume({name: list(program)}, label="BOOT", serial=ids.number(tree.digest, "boot volume"))
    if "bios" in firmware:
        found[CORE] = _of(grub.disc_core(tree, job=job))
        found[grub.SCRIPT] = _of(grub.script(arguments))
        found[grub.KERNEL] = one_after_the_other([grub.kernel(tree)])
        found[grub.INITRD] = one_after_the_other(parts)
    return found


def _of(content: bytes) -> Sparse:
    return laid(len(content), [Piece(0, content)])


def _label(job: Job) -> str:
    """The image's name, as a volume's label is written."""
    return "".join(letter if letter.isalnum() and letter.isascii() else "_" for letter in job.name.upper())[:32]


def _placed_core(core: Sparse, at: int) -> Sparse:
    """The core that knows where it lies, on a disc and on a stick."""
    data = grub.on_disk(core.read(0, core.size), lba=at // SECTOR)
    return _of(iso.with_boot_info(data, at=at))


def _first_sector(tree: Tree, places: Mapping[str, int], sizes: Mapping[str, int], size: int) -> Piece:
    """What makes a stick of it: partitions that do not overlap (UEFI 2.10, 5.2.1), one active for old BIOSes."""
    code = grub.disc_boot_code(tree, lba=places[CORE] // SECTOR) if CORE in places else b""
    rest = iso.FIRST * iso.BLOCK
    partitions = []
    if EFI in places:
        rest = places[EFI] + sizes[EFI]
        partitions.append(mbr.Partition(1, mbr.EFI, places[EFI], sizes[EFI]))
    partitions.append(mbr.Partition(2, FILLED, rest, size - rest, active=CORE in places))
    return mbr.table(partitions, serial=ids.number(tree.digest, "disk"), boot_code=code)
