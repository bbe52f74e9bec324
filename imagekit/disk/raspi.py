"""Raspberry Pi: what its own firmware finds on a card, and what it starts of that; pure, from the files' bytes.

Source: raspberrypi.com, "config.txt" and "Raspberry Pi boot flow". The ROM of a Pi 3 reads bootcode.bin, that of a Pi 4
has it in flash memory; either reads start*.elf with its fixup*.dat, which reads config.txt and starts the kernel.
"""

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from imagekit.errors import Problem

CONFIG, LINE, MAX_TEXT, MAX_INCLUDES = "config.txt", 98, 1 << 20, 16
FAT_TYPES = (0x01, 0x04, 0x06, 0x0B, 0x0C, 0x0E)  # of partitions that the ROM looks into
MODELS = (
    *("pi0", "pi0w", "pi02", "pi1", "pi2", "pi3", "pi3+", "pi4", "pi400", "pi5", "pi500"),
    *("cm0", "cm1", "cm3", "cm3+", "cm4", "cm4s", "cm5", "none"),
)
KNOWN_KERNELS = {"kernel8.img": "1", "kernel7.img": "0", "kernel7l.img": "0", "kernel.img": "0"}
GZIP, ARM64 = b"\x1f\x8b\x08", b"ARM\x64"  # the latter at offset 56 (Documentation/arch/arm64/booting.rst)


class File(Protocol):
    """A file of the boot partition."""

    @property
    def size(self) -> int:
        """Bytes."""

    def read(self) -> bytes:
        """All of it."""


class Board(NamedTuple):
    """What differs between models."""

    name: str
    chip: str  # with which the names of its device trees begin, upstream's and the foundation's
    foundation: str
    model: str  # its device tree, less the chip
    filters: tuple[str, ...]  # sections of config.txt that count for it
    rom: tuple[str, ...]  # files that its ROM reads
    start: str  # and what comes next, as in start4.elf
    is_64bit: str  # what arm_64bit is unless it is set


class Boot(NamedTuple):
    """What a Pi starts; the files are paths on the boot partition."""

    kernel: str
    initrds: tuple[str, ...]  # one after the other in memory
    device_tree: str
    cmdline: str
    overlays: tuple[str, ...]  # names of those that are to be applied
    start: str
    fixup: str


BOARDS = {
    "raspi3b": Board(
        "Raspberry Pi 3 B", "bcm2837", "bcm2710", "rpi-3-b", ("pi3", "board-type=0x8"), ("bootcode.bin",), "start", "0"
    ),
    "raspi4b": Board(
        "Raspberry Pi 4 B", "bcm2711", "bcm2711", "rpi-4-b", ("pi4", "board-type=0x11"), (), "start4", "1"
    ),
}


def boot(files: Mapping[str, File], board: Board) -> Boot:
    """What the board starts from these files; raises a Problem that names what it would not find."""
    card = _Card(files, board)
    try:
        return card.boot()
    except Problem as problem:
        raise Problem(f"a {board.name} does not start from this card: {problem.message}", problem.hint) from problem


def check_kernel(data: bytes, name: str) -> None:
    """Raise Problem unless this is a kernel that the firmware starts: arm64's Image, plain or by gzip."""
    head = _unpacked_head(data) if data.startswith(GZIP) else data[:64]
    if head[56:60] != ARM64:
        raise Problem(f"{name} is no kernel for aarch64", "arch/arm64/boot/Image, or the same by gzip")


def settings(files: Mapping[str, File], board: Board) -> tuple[dict[str, str], tuple[str, ...]]:
    """(what config.txt sets, the overlays that it wants) as far as it is about this board."""
    found, overlays = dict[str, str](), list[str]()
    chosen = dict[str, bool]()  # kind of filter -> whether the last one of it fits
    for line in _lines({name.upper(): file for name, file in files.items()}):
        if section := re.fullmatch(r"\[(.*)\]", line):
            _filter(section[1], board, chosen)
        elif not all(chosen.values()):
            continue
        elif initramfs := re.match(r"initramfs\s+(\S+)", line):
            found["ramfsfile"] = initramfs[1]
        elif "=" in line:
            name, _, value = (word.strip() for word in line.partition("="))
            if name == "dtoverlay":
                overlays += [value.partition(",")[0]] if value else []
            found[name] = value
    return found, tuple(overlays)


class _Card:
    """A boot partition as one board sees it: names in any case, settings by its sections of config.txt."""

    def __init__(self, files: Mapping[str, File], board: Board) -> None:
        self.names = {name.upper(): name for name in files}
        self.files, self.board = files, board

    def boot(self) -> Boot:
        """What is started."""
        for name in self.board.rom:
            self.find(name, "the ROM's first program")
        self.set, overlays = settings(self.files, self.board)
        start, fixup = self.programs()
        start, fixup = self.find(start, "the firmware"), self.find(fixup, "which belongs to the firmware")
        self.check_64bit()
        prefix, kernel, tree = self.prefixed()
        kernel = self.find(kernel, "the kernel")
        tree = self.find(tree, "the device tree")
        initrds = tuple(self.find(f"{prefix}{name}", "the initramfs") for name in self.initramfs(kernel))
        return Boot(kernel, initrds, tree, self.cmdline(prefix), overlays, start, fixup)

    def find(self, name: str, what: str) -> str:
        """A file's name as it is written on the card."""
        if name.upper() not in self.names:
            near = [own for own in self.names.values() if own.rpartition(".")[2] == name.rpartition(".")[2]]
            hint = f"there are {', '.join(sorted(near)[:8])}" if near else "it has none such"
            raise Problem(f"{name!a} is missing, {what}", hint)
        return self.names[name.upper()]

    def has(self, name: str) -> bool:
        """Whether there is such a file."""
        return name.upper() in self.names

    def programs(self) -> tuple[str, str]:
        """start*.elf and fixup*.dat: the plain ones, those with a camera's codecs, for debugging, or cut down."""
        gpu = self.set.get("gpu_mem", "")
        kind = next(
            (
                ending
                for ending, wanted in (
                    ("x", self.set.get("start_x") == "1"),
                    ("db", self.set.get("start_debug") == "1"),
                    ("cd", gpu.isascii() and gpu.isdigit() and int(gpu) <= 16),
                )
                if wanted
            ),
            "",
        )
        ending = f"_{kind}" if kind and self.board.start == "start" else kind
        fixup = self.board.start.replace("start", "fixup")
        return (
            self.set.get("start_file", f"{self.board.start}{ending}.elf"),
            self.set.get("fixup_file", f"{fixup}{ending}.dat"),
        )

    def check_64bit(self) -> None:
        """Raise Problem where the kernel would be started as one of 32 bits."""
        by_name = KNOWN_KERNELS.get(self.set.get("kernel", ""), self.board.is_64bit)
        if self.set.get("arm_64bit", by_name) != "1":
            raise Problem("config.txt has it start a kernel of 32 bits", "arm_64bit=1 in config.txt")

    def prefixed(self) -> tuple[str, str, str]:
        """os_prefix with kernel and device tree below it; it does not count where the two are not there."""
        is_upstream = self.set.get("upstream_kernel") == "1"
        kernel = self.set.get("kernel", "kernel8.img")
        for prefix in dict.fromkeys((self.set.get("os_prefix", "upstream/" if is_upstream else ""), "")):
            trees = self.device_trees(prefix, is_upstream=is_upstream)
            tree = next((name for name in trees if self.has(name)), "")
            if tree and self.has(prefix + kernel):
                return prefix, prefix + kernel, tree
        return "", kernel, next((name for name in trees if self.has(name)), trees[0])

    def device_trees(self, prefix: str, *, is_upstream: bool) -> list[str]:
        """The names that are tried."""
        if "device_tree" in self.set:
            if not self.set["device_tree"]:
                raise Problem("config.txt turns the device tree off", "a kernel for aarch64 needs it")
            return [prefix + self.set["device_tree"]]
        chips = (self.board.foundation, self.board.chip)
        ordered = reversed(chips) if is_upstream else chips
        return [f"{prefix}{chip}-{self.board.model}.dtb" for chip in dict.fromkeys(ordered)]

    def initramfs(self, kernel: str) -> list[str]:
        """What is put behind the kernel."""
        if self.set.get("auto_initramfs") == "1" and "ramfsfile" not in self.set:
            name = kernel.rpartition("/")[2].replace("kernel", "initramfs").removesuffix(".img")
            return [name] if self.has(name) and name != kernel else []
        return [name for name in self.set.get("ramfsfile", "").split(",") if name]

    def cmdline(self, prefix: str) -> str:
        """The first line of cmdline.txt: nothing else is read; "" without such a file."""
        name = prefix + self.set.get("cmdline", "cmdline.txt")
        text = _text(self.files[self.names[name.upper()]], name) if self.has(name) else ""
        return text.partition("\n")[0].strip()


def _lines(files: Mapping[str, File]) -> Iterator[str]:
    """Lines of config.txt and of what it includes, less what is beyond their 98th character."""
    budget = MAX_INCLUDES
    stack = [iter(_text(files[CONFIG.upper()], CONFIG).splitlines() if CONFIG.upper() in files else ())]
    while stack:
        line = next(stack[-1], None)
        if line is None:
            stack.pop()
            continue
        line = line[:LINE].strip()
        included = re.match(r"include\s+(\S+)", line)
        if included and included[1].upper() in files:
            budget -= 1
            if not budget:
                raise Problem("config.txt includes files again and again", f"{MAX_INCLUDES - 1} are read")
            stack.append(iter(_text(files[included[1].upper()], included[1]).splitlines()))
        elif line and not line.startswith("#"):
            yield line


def _filter(section: str, board: Board, chosen: dict[str, bool]) -> None:
    """Take a section's head: one of its kind replaces the last one, those of different kinds must all fit."""
    if section == "all":
        chosen.clear()
        return
    kind = "model" if section in MODELS else re.split(r"[=:]", section)[0]
    chosen["serial" if kind.startswith("0x") else kind] = section in board.filters


def _text(file: File, name: str) -> str:
    if file.size > MAX_TEXT:
        raise Problem(f"{name!a} has {file.size} bytes, which are none of a text")
    return file.read().decode("utf-8", "surrogateescape").replace("\0", "")


def _unpacked_head(data: bytes) -> bytes:
    import zlib

    try:
        return zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(data[: 1 << 16], 64)
    except zlib.error:
        return b""
