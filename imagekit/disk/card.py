"""Card: the SD card of a Raspberry Pi, as partitions of a Sparse.

    1  boot      FAT: firmware, config.txt, cmdline.txt, kernel, initramfs, device trees, overlays
    2  root      squashfs, erofs or ext4, never written to             where the layout has it on the card
    3  changes   ext4, the last one, grows with the card               where the layout keeps them there

A Pi's ROM reads an MBR, in which the boot partition is of type 0x0C. Everything begins at a multiple of 4 MiB, the
block in which cards erase; ids derive from the tree's digest.
"""

from collections.abc import Mapping
from typing import NamedTuple

from imagekit import early
from imagekit.artifact import Job
from imagekit.disk import cmdline, fat, ids, initrd, mbr, raspi, roots
from imagekit.disk.raspi import Board
from imagekit.disk.sparse import Piece, Sparse, laid
from imagekit.errors import Problem
from imagekit.tree import Tree

ALIGNMENT = 4 << 20
CHANGES = 16 << 20  # bytes of the partition of changes as it is shipped
ASSETS = "/boot/raspi/"
OWN_CONFIG, OVERLAYS = f"{ASSETS}config.txt", "overlays/"
KERNEL_FILE, INITRD_FILE, LICENCE = "kernel8.img", "initramfs8", "LICENCE.broadcom"
# The pins of the header are the second UART of a Pi, on which the last console= puts /dev/console; tty1 is a monitor.
CONSOLES = ("console=tty1", "console=ttyS1,115200")
CONFIG = f"""# Written by imagekit. What a definition has in {OWN_CONFIG} follows at the end.
arm_64bit=1
enable_uart=1
upstream_kernel=1
kernel={KERNEL_FILE}
initramfs {INITRD_FILE} followkernel
"""  # upstream_kernel: device trees go by the names that they have in Linux
MODULES = (  # of the generic kernel, for both boards: what neither finds without an udev
    *("sdhci_iproc", "bcm2835", "mmc_block"),  # cards
    *("phy_generic", "dwc2", "usbhid"),  # USB of the Pi 3, and its phy, without which it is waited for
    *("smsc95xx", "lan78xx", "cdc_ether", "rndis_host"),  # network by USB
    *("genet", "broadcom", "bcm_phy_lib", "mdio_bcm_unimac"),  # network of the Pi 4
    *("bcm2835_wdt", "bcm2835_rng", "iproc_rng200"),  # power-off and reboot; random numbers
)
OPT_IN = 'write firmware=("debian:raspi-firmware",) in the definition, by which you accept its licence; then lock it'


class Given(NamedTuple):
    """A file of the boot partition that is in memory."""

    data: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    def read(self) -> bytes:
        """All of it."""
        return self.data


def card(tree: Tree, *, job: Job, board: Board) -> Sparse:
    """The card of a bootable tree for one board.

    Raises Problem when the tree lacks what the board's firmware looks for, or the layout's sizes are too small.
    """
    _check(tree, job, board)
    contents = [_boot(tree, job, board), *_roots(tree, job)]
    starts, end = [], ALIGNMENT
    for content in contents:
        starts.append(end)
        end += _aligned(content.size)
    size = _size(job, end)
    kinds = (mbr.FAT_LBA, mbr.LINUX, mbr.LINUX)
    sizes = [_aligned(content.size) for content in contents]
    if job.layout.changes == "disk":
        sizes[-1] = size - starts[-1]
    rows = enumerate(zip(kinds, starts, sizes, strict=False), start=1)
    table = mbr.table([mbr.Partition(number, *row) for number, row in rows], serial=_serial(tree))
    placed = zip(starts, contents, strict=True)
    return laid(size, (table, *(p._replace(offset=at + p.offset) for at, of in placed for p in of.pieces)))


def boot_files(tree: Tree, *, job: Job, board: Board) -> dict[str, bytes]:
    """What lies on the partition that the firmware reads; raises Problem where the firmware would miss something."""
    assets = {path.removeprefix(ASSETS): path for path in tree if path.startswith(ASSETS)}
    kept = [name for name in assets if _is_for(name, board) and tree[assets[name]].kind == "file"]
    parts = initrd.parts(_tree_of_initrd(tree, job), store=job.store)
    own = tree.read(OWN_CONFIG) if OWN_CONFIG in tree else b""
    files = {
        **{name: tree.read(assets[name]) for name in kept},
        "config.txt": CONFIG.encode() + (b"\n[all]\n" + own if own else b""),
        "cmdline.txt": f"{_arguments(tree, job)}\n".encode("utf-8", "surrogateescape"),
        KERNEL_FILE: tree.read(initrd.KERNEL),
        INITRD_FILE: b"".join(parts),
    }
    return _chosen(files, board)


def _chosen(files: Mapping[str, bytes], board: Board) -> dict[str, bytes]:
    """The files less the variants of the firmware that this config.txt does not choose: they are large."""
    found = raspi.boot({name: Given(data) for name, data in files.items()}, board)
    raspi.check_kernel(files[found.kernel], found.kernel)
    for name in found.overlays:
        if f"{OVERLAYS}{name}.dtbo" not in files:
            raise Problem(
                f"config.txt wants the overlay {name!a}, and there is none",
                f"put it into the image as {ASSETS}{OVERLAYS}{name}.dtbo",
            )
    wanted = (found.start, found.fixup)
    return {name: data for name, data in files.items() if name in wanted or not name.startswith(("start", "fixup"))}


def _is_for(name: str, board: Board) -> bool:
    """Whether a file of /boot/raspi is of use to this board; its siblings' device trees are: a card fits them too."""
    if name.endswith(".dtb"):
        return name.startswith((board.chip, board.foundation))
    plain = name in (*board.rom, LICENCE) or name.startswith(OVERLAYS)
    return plain or name.startswith((board.start, board.start.replace("start", "fixup")))


def _check(tree: Tree, job: Job, board: Board) -> None:
    if initrd.KERNEL not in tree or initrd.CMDLINE not in tree:
        raise Problem(f"a card for the {board.name} needs a kernel", 'give the image kernel="debian:linux-image"')
    if job.arch != "aarch64":
        raise Problem(f"a {board.name} is an aarch64, not an {job.arch}")
    if not any(path.endswith(".elf") for path in tree if path.startswith(ASSETS)):
        raise Problem(f"a card for the {board.name} needs its firmware, which is not free", OPT_IN)
    if not any(path.endswith(".dtb") and _is_for(path.removeprefix(ASSETS), board) for path in tree):
        raise Problem(
            f"the kernel brings no device tree for the {board.name}",
            'kernel="debian:linux-image" is the generic one, which does; the cloud kernel does not',
        )


def _arguments(tree: Tree, job: Job) -> str:
    words = [] if cmdline.names_console(tree) else [*CONSOLES]
    if job.layout.root != "initrd":
        words += [f"root=PARTUUID={_serial(tree):08x}-02", f"rootfstype={job.layout.root}"]
    if job.layout.changes == "disk":
        words.append(f"imagekit.changes=PARTUUID={_serial(tree):08x}-03")
    return cmdline.arguments(tree, words)


def _serial(tree: Tree) -> int:
    """The disk's signature, by which Linux names its partitions."""
    return ids.number(tree.digest, "disk")


def _tree_of_initrd(tree: Tree, job: Job) -> Tree:
    return initrd.root(tree) if job.layout.root == "initrd" else early.initrd(tree)


def _boot(tree: Tree, job: Job, board: Board) -> Sparse:
    files = boot_files(tree, job=job, board=board)
    serial = ids.number(tree.digest, "boot volume")
    return fat.volume(files, size=job.layout.boot_bytes, label="BOOT", serial=serial, start=ALIGNMENT // 512)


def _roots(tree: Tree, job: Job) -> list[Sparse]:
    layout, seed = job.layout, tree.digest
    if layout.root == "initrd":
        return []
    written = [roots.write(initrd.root(tree), kind=layout.root, seed=seed, job=job)]
    written += [roots.changes(CHANGES, seed=seed, job=job)] if layout.changes == "disk" else []
    return [laid(-(-part.size // 512) * 512, [Piece(0, part)]) for part in written]


def _size(job: Job, content: int) -> int:
    wanted = job.layout.size_bytes or content
    if wanted < content or wanted % 512:
        raise Problem(
            f"disk: size={job.layout.size!r} gives {wanted} bytes, and the content takes {content}",
            'whole sectors of 512 bytes; size="" makes it fit',
        )
    return wanted


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
