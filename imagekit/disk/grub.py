"""GRUB for a BIOS, from the modules that the image's suite has, without grub-install.

    boot sector, 440 bytes    boot.img, or boot_hybrid.img for an ISO on a stick: loads the first sector of the core
    core                      diskboot.img, which loads the rest: GRUB's kernel and modules

The core runs /grub.cfg from the disk that it was started from: three commands, no menu, no time-out. It is the same for
all images of one suite. grub-mkimage only puts modules together: 2.06 and 2.12 make the same bytes of the same modules.

Sources: GRUB 2.06, include/grub/i386/pc/boot.h (offsets), grub-core/boot/i386/pc/*.S, util/setup.c (what is patched).
"""

import re
import shlex
import struct
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from imagekit import host
from imagekit.artifact import Job
from imagekit.disk.sparse import glance, laid_file
from imagekit.errors import Problem, RigProblem
from imagekit.store import Stored
from imagekit.tree import Tree

PLACE = "/boot/grub"
SECTOR = 512
BOOT_CODE = 440  # bytes before the disk's signature and the table of partitions
KERNEL_SECTOR = 0x5C  # in boot.img: u64, the sector of the core
DRIVE_CHECK = 0x66  # in boot.img: a jump, for floppy disks; nothing in its place for BIOSes that pass no drive number
HYBRID_SECTOR = 0x1B0  # in boot_hybrid.img: u64, the sector of the core
BLOCKLIST = 0x1F4  # in diskboot.img: u64 sector, u16 sectors and u16 segment of the rest of the core
SEGMENT = 0x820  # where the rest of the core is loaded
DISC_BOOT = 2048  # bytes of cdboot.img, which stands before diskboot.img in a core for discs
IMAGES = ("kernel.img", "lzma_decompress.img", "diskboot.img", "cdboot.img", "moddep.lst")
# linux16 enters the kernel as a BIOS's boot loaders do, in real mode: measured, an emulated machine shows the kernel's
# first line 1.3 s after power-on, and 3.7 s with linux, which enters it in protected mode.
DISK, DISC = (
    ("biosdisk", "part_gpt", "part_msdos", "fat", "normal", "linux16"),
    ("biosdisk", "iso9660", "normal", "linux16"),
)
KERNEL, INITRD, SCRIPT = "kernel", "initrd", "grub.cfg"
MAX_ARGUMENTS = 2047 - len(f"BOOT_IMAGE=/{KERNEL} ")  # Linux on x86 takes 2047 bytes (COMMAND_LINE_SIZE)
# GRUB hands on a word that has spaces in double quotes around all of it, which says the same to Linux, and puts a
# backslash before the quotes and backslashes in it, which does not (grub-core/lib/cmdline.c).
WORD = re.compile(r'(?<!\S)(?:[^\s"]+=)?"[^"\n]*"(?!\S)|(?<!\S)[^\s"]+(?!\S)')
NOTE = "grub"


def boot_code(tree: Tree, *, lba: int) -> bytes:
    """The first 440 bytes of a disk, whose core begins at sector `lba`."""
    code = bytearray(_read(tree, "boot.img")[:BOOT_CODE].ljust(BOOT_CODE, b"\0"))
    struct.pack_into("<Q", code, KERNEL_SECTOR, lba)
    struct.pack_into("2s", code, DRIVE_CHECK, b"\x90\x90")
    return bytes(code)


def core(tree: Tree, *, job: Job, lba: int, partition: str = "gpt2") -> bytes:
    """The core for a disk, to be laid at sector `lba`: it does what /grub.cfg of that FAT partition says."""
    made = bytearray(_made(tree, job, "i386-pc", f"(,{partition})/", DISK))
    made += bytes(-len(made) % SECTOR)
    struct.pack_into("<QHH", made, BLOCKLIST, lba + 1, len(made) // SECTOR - 1, SEGMENT)
    return bytes(made)


def disc_boot_code(tree: Tree, *, lba: int) -> bytes:
    """The first 440 bytes of an ISO that starts as a disk, too; its core begins at sector `lba` of 512 bytes."""
    code = bytearray(_read(tree, "boot_hybrid.img")[:BOOT_CODE].ljust(BOOT_CODE, b"\0"))
    struct.pack_into("<Q", code, HYBRID_SECTOR, lba + DISC_BOOT // SECTOR)
    return bytes(code)


def disc_core(tree: Tree, *, job: Job) -> bytes:
    """The core for a disc, as El Torito starts it: it does what /grub.cfg of the ISO says."""
    return _made(tree, job, "i386-pc-eltorito", "/", DISC)


def on_disk(core: bytes, *, lba: int) -> bytes:
    """A core for discs that can be started from a disk as well, where it begins at sector `lba` of 512 bytes."""
    patched = bytearray(core)
    struct.pack_into("<Q", patched, DISC_BOOT + BLOCKLIST, lba + DISC_BOOT // SECTOR + 1)
    return bytes(patched)


def script(arguments: str) -> bytes:
    """What grub.cfg says to start "kernel" with "initrd", which lie beside it.

    Raises Problem for arguments that GRUB would not hand over as they are.
    """
    size = len(arguments.encode("utf-8", "surrogateescape"))
    if size > MAX_ARGUMENTS:
        raise Problem(f"the kernel's arguments have {size} bytes; from GRUB it takes {MAX_ARGUMENTS}")
    words = WORD.findall(arguments)
    if re.sub(r"\s", "", arguments) != re.sub(r"\s", "", "".join(words)) or re.search(r"['\\]", arguments):
        raise Problem(
            f"GRUB cannot hand on the quotes or backslashes in the kernel's arguments: {arguments}",
            'it can what reads name="two words"',
        )
    linux = ("linux16", f"/{KERNEL}", *(shlex.quote(word.replace('"', "")) for word in words))
    return "\n".join((" ".join(linux), f"initrd16 /{INITRD}", "boot", "")).encode("utf-8", "surrogateescape")


def arguments(script: bytes) -> str:
    """The kernel's arguments that a grub.cfg of ours says; raises Problem for another one."""
    first, _, rest = script.decode("utf-8", "surrogateescape").partition("\n")
    try:
        command, kernel, *words = shlex.split(first)
    except ValueError:
        command = kernel = ""
    if (command, kernel, rest) != ("linux16", f"/{KERNEL}", f"initrd16 /{INITRD}\nboot\n"):
        raise Problem(f"its {SCRIPT} is none that imagekit wrote")
    return " ".join(re.sub(r"(?s)([^ =]*=)?(.* .*)", r'\1"\2"', word) for word in words)


def kernel(tree: Tree) -> bytes | Stored:
    """The tree's kernel; raises Problem when it is none that a BIOS can start (Linux/x86 Boot Protocol, "HdrS")."""
    found = laid_file(tree, f"/boot/{KERNEL}")
    if glance(found, 0x202, 4) != b"HdrS":
        raise Problem(
            "/boot/kernel is no kernel that a BIOS can start", "is it for x86_64? `imagekit lock` again, if not"
        )
    return found


def check(tree: Tree) -> None:
    """Raise a Problem when the tree has not what a BIOS starts."""
    if not any(path.startswith(f"{PLACE}/") for path in tree):
        raise Problem(
            "a BIOS needs GRUB's modules (grub-pc-bin), which the lock does not have", "`imagekit lock` adds them"
        )


def _made(tree: Tree, job: Job, form: str, prefix: str, modules: Sequence[str]) -> bytes:
    """What grub-mkimage makes of these, from the store where it has been made before."""
    check(tree)
    files = {name: _read(tree, name) for name in (*IMAGES, *(f"{module}.mod" for module in _closure(tree, modules)))}
    tools = job.tools("grub-mkimage")
    bytes_of_files = sorted((name, sha256(data).hexdigest()) for name, data in files.items())
    inputs = (tools.version("grub-mkimage"), form, prefix, *modules, bytes_of_files)
    key = sha256(repr(inputs).encode("utf-8", "surrogateescape")).hexdigest()
    known = job.store.recall(NOTE, key)
    try:
        return job.store.read((known or b"").decode())
    except KeyError:
        made = _mkimage(tools, files, form=form, prefix=prefix, modules=modules)
    job.store.remember(NOTE, key, job.store.write([made]).encode())
    return made


def _mkimage(tools: Any, files: Mapping[str, bytes], *, form: str, prefix: str, modules: Sequence[str]) -> bytes:
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="imagekit-grub-") as folder:
        place = Path(folder)
        try:
            for name, data in files.items():
                (place / name).write_bytes(data)
        except OSError as error:
            raise RigProblem(f"cannot write to {folder}: {error.strerror}", "make room, or set TMPDIR") from error
        words = ("--directory", place, "--format", form, "--prefix", prefix)
        argv = tools.argv("grub-mkimage", *words, "--output", place / "core", *modules)
        host.run(argv, env=tools.env, timeout=120)
        return (place / "core").read_bytes()


def _closure(tree: Tree, modules: Iterable[str]) -> list[str]:
    """The modules and what they depend on, sorted."""
    lines = (line.partition(":") for line in _read(tree, "moddep.lst").decode("ascii", "replace").splitlines())
    needs = {name.strip(): words.split() for name, _, words in lines}
    found: set[str] = set()
    ahead = list(modules)
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            ahead += needs.get(name, ())
    return sorted(found)


def _read(tree: Tree, name: str) -> bytes:
    path = f"{PLACE}/{name}"
    if path not in tree:
        raise Problem(f"GRUB's {name} is not in the tree: {path}", "write the lock again: `imagekit lock`")
    return tree.read(path)
