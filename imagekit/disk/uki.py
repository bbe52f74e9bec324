"""UKI: kernel, initrd and arguments of a tree as one program that UEFI starts by itself.

Source: the UAPI Group's "Unified Kernel Image" specification. See disk/pe for the bytes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from imagekit.artifact import Job
from imagekit.disk import cmdline, pcrsign, pe
from imagekit.disk.sparse import glance, laid_file
from imagekit.errors import Problem
from imagekit.store import Stored, size_of
from imagekit.tree import Tree

KERNEL, CMDLINE, STUB = "/boot/kernel", "/boot/cmdline", "/boot/stub"
OS_RELEASE = "/usr/lib/os-release"
# The last one becomes /dev/console. Virtual machines on busy hosts fail the kernel's count of timer interrupts, and it
# panics: cloud images are started without it.
CONSOLES = {"x86_64": "console=tty0 console=ttyS0 no_timer_check", "aarch64": "console=tty0 console=ttyAMA0"}


class Programs(NamedTuple):
    """What a UKI is made from, both programs for UEFI."""

    stub: bytes
    kernel: bytes | Stored


def programs(tree: Tree, *, arch: str) -> Programs:
    """Stub and kernel of a tree. Raises Problem when they are not there, or for other machines."""
    check(tree)
    _check_machine(tree, STUB, arch)
    _check_machine(tree, KERNEL, arch)
    return Programs(tree.read(STUB), laid_file(tree, KERNEL))


def contents(
    tree: Tree,
    parts: Sequence[bytes | Stored],
    *,
    arguments: str,
    of: Programs,
    approval: pcrsign.Approval | None = None,
) -> Iterator[bytes | Stored]:
    """The program piece by piece; parts: of the initrd; approval: who signs what will be measured of it."""
    sections: dict[str, Sequence[bytes | Stored]] = {
        ".osrel": [tree.read(OS_RELEASE) if OS_RELEASE in tree else b""],
        ".cmdline": [arguments.encode("utf-8", "surrogateescape")],
        ".uname": [release(tree).encode("utf-8", "surrogateescape")],
        ".initrd": parts,
        ".linux": [of.kernel],
    }
    kept = {name: data for name, data in sections.items() if any(data)}
    if approval:
        own = {name: [data] for name, data in pe.sections(of.stub, what=STUB).items()}  # some stubs measure .sbat, too
        kept |= pcrsign.sections({**own, **kept}, of=of.stub, approval=approval)
    return pe.contents(of.stub, kept)


def check(tree: Tree) -> None:
    """Raise a Problem when the tree lacks what UEFI starts; for which machine that is, is seen when it is written."""
    if KERNEL not in tree or CMDLINE not in tree:
        raise Problem("a UKI needs a kernel", 'give the image kernel="debian:linux-image-cloud"')
    if STUB not in tree:
        raise Problem(
            "UEFI needs the stub of systemd-boot-efi, which the lock does not have", "`imagekit lock` adds it"
        )


def _check_machine(tree: Tree, path: str, arch: str) -> None:
    content = laid_file(tree, path)
    found = pe.machine(glance(content, 0, pe.HEAD), what=path, size=size_of(content))
    if found != arch:
        raise Problem(f"{path} is for {found}, and the image for {arch}", "write the lock again: `imagekit lock`")


def arguments(tree: Tree, *, job: Job, root: str = "", changes: str = "", words: Sequence[str] = ()) -> str:
    """The kernel's arguments: the image's own, consoles unless it names some, where the root lies, and these words."""
    consoles = "" if cmdline.names_console(tree) else CONSOLES[job.arch]
    found = f"root={root} rootfstype={job.layout.root}" if root else ""
    kept = f"imagekit.changes={changes}" if changes else ""
    return cmdline.arguments(tree, filter(None, (consoles, found, kept, *words)))


def release(tree: Tree) -> str:
    """The kernel's release, as its folder of modules is named; "" where there is not exactly one."""
    names = {path.split("/")[4] for path in tree if path.startswith("/usr/lib/modules/")}
    return names.pop() if len(names) == 1 else ""
