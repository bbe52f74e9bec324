"""Hardened: what an image that says how it is protected must not have, and what its protection takes.

All of it is told before anything is written: a format that would leave the protection out without a word, a way in
that was left open for whoever stands at the machine, a policy that opens for everybody, or never again.
"""

import re
from collections.abc import Sequence
from functools import cache

from imagekit import early, plugs, repertoire, shells
from imagekit.arch import ARCHES
from imagekit.channel import AGENT
from imagekit.errors import Defect, Problem
from imagekit.image import Image, argv
from imagekit.layout import Layout
from imagekit.protection import SIGNED_PCR, Seal
from imagekit.tree import Tree

DRIVERS_PCR, BOOT_PROGRAMS_PCR, TABLE_PCR, POLICY_PCR = 2, 4, 5, 7  # "TCG PC Client Platform Firmware Profile", table 1
ARGUMENTS_PCR = (
    12  # systemd's stub: arguments of the kernel that came from elsewhere, which it takes without Secure Boot
)
OF_THE_IMAGE = (BOOT_PROGRAMS_PCR, 9, SIGNED_PCR, ARGUMENTS_PCR)  # PCRs that are others as soon as the image is another
PASSWORDS = ("/etc/passwd", "/etc/shadow")  # shadow(5), passwd(5): the second field of a line
ELSEWHERE = "x"  # of /etc/passwd: the other file has it
OWN_PARTITION = re.compile(r"boot|bios|changes|root(-[ab](-verity)?)?")  # names that are taken

ARGUMENTS: dict[str, str] = {  # the kernel's: a pattern of the word -> what it lets in
    r"r?d?init=.*": "starts another program first",
    r"initrd=.*": "has an initrd loaded that nobody signed",
    r"root=.*": "names a root that nobody checks",
    r"imagekit\.(?!health=).*": "is said by imagekit alone",
    r"single|[sS1]": "is a shell in place of the services",
    r"emergency|rescue": "is a shell in place of the services",
    r"systemd\.debug_shell(?:=.*)?": "is a shell on a console",
    r"systemd\.unit=(?:rescue|emergency).*": "is a shell in place of the services",
    r"rd\.(?:break|shell|debug)(?:=.*)?|rdshell|rdbreak(?:=.*)?": "is a shell in the initrd",
    r"break(?:=.*)?": "is a shell in the initrd",
    r"(?:early|e)?kgdb\w*(?:=.*)?|kdb(?:=.*)?": "is the kernel's debugger",
    r"sysrq_always_enabled(?:=.*)?|sysrq=.*": "lets whoever has a keyboard command the kernel",
    r"sysctl[./]kernel[./]sysrq=.*": "lets whoever has a keyboard command the kernel",
    r"module\.sig_enforce=(?:0|n|off)": "takes modules that nobody signed",
}  # fmt: skip


def check(image: Image) -> None:
    """Raise a Problem that names the image for what cannot be right of its protection; nothing is fetched for it."""
    if not image.disk.guards:
        return
    try:
        for judge in (_check_kernel, _check_arguments, _check_commands, _check_policy, _check_formats):
            judge(image)
    except Problem as problem:
        raise type(problem)(f"image {image.name!r}: {problem.message}", problem.hint) from problem


def check_tree(tree: Tree, layout: Layout) -> None:
    """Raise a Problem for a way into a protected image that lies in its files: a password, the test channel."""
    if not layout.guards:
        return
    for path in PASSWORDS:
        _check_passwords(path, tree.read(path) if path in tree else b"")
    agents = _agents()
    for path, entry in tree.items():
        if path == AGENT or (entry.kind == "file" and entry.sha256 in agents):
            raise Problem(f"a protected image has no test channel, and {path} is its agent", "leave the file out")


def _check_passwords(path: str, data: bytes) -> None:
    for line in filter(None, data.decode("utf-8", "replace").splitlines()):
        name, _, rest = line.partition(":")
        if not rest.startswith(("*", "!")) and (path, rest.partition(":")[0]) != (PASSWORDS[0], ELSEWHERE):
            raise Problem(
                f"a protected image has no passwords, and {path} has one for {name!a}",
                f"write '*' in its place, or leave {path} to imagekit",
            )


@cache
def _agents() -> frozenset[str]:
    """What the agent of test boots is known by, under whatever name it lies."""
    found = set()
    for arch in ARCHES:
        try:
            found.add(early.program("agent", arch).sha256)
        except Defect:
            continue  # not shipped for it
    return frozenset(found)


# --- formats and kernel -----------------------------------------------------------------------------------------------


def _check_formats(image: Image) -> None:
    fields = image.disk.guards
    known = {name: repertoire.format(name).protects for name in image.formats}
    for name, protects in known.items():
        if lacking := [field for field in fields if field not in protects]:
            raise Problem(
                f"format {name} cannot honour {_written(image.disk, lacking[0])}: {_why(name)}",
                f"{_able(fields)} can; an image of its own may have the other formats",
            )


def _written(layout: Layout, field: str) -> str:
    return f"slots={layout.slots}" if field == "slots" else f"{field}={type(getattr(layout, field)).__name__}(...)"


def _why(name: str) -> str:
    """What stands against it, in words."""
    format = repertoire.format(name)
    if format.kind == "root":
        return "it is no machine's, which starts whatever kernel it likes"
    if "bios" in format.firmware:
        return "a BIOS checks nothing that it starts, and has no EFI system partition"
    if "uefi" in format.firmware:
        return "it has no partition for that"
    return "no UEFI checks and measures what is started of it, for it has no EFI system partition"


def _able(fields: Sequence[str]) -> str:
    able = [name for name in plugs.own("formats") if set(fields) <= set(repertoire.format(name).protects)]
    return ", ".join(sorted(able)) or "no format"


def _check_kernel(image: Image) -> None:
    if not image.kernel:
        raise Problem(
            f"{_written(image.disk, image.disk.guards[0])} needs a kernel that honours it",
            'kernel="debian:linux-image-cloud"',
        )


# --- ways in ----------------------------------------------------------------------------------------------------------


def _check_arguments(image: Image) -> None:
    kernel = f" {image.cmdline} ".partition(" -- ")
    for word in (*kernel[0].split(), *kernel[2].split()):
        name, equals, value = word.replace('"', "").partition("=")
        for pattern, why in ARGUMENTS.items():
            if re.fullmatch(pattern, f"{name.replace('-', '_')}{equals}{value}"):  # as the kernel compares names
                raise Problem(f"cmdline: a protected image is not started with {word!a}: it {why}", "leave it out")


def _check_commands(image: Image) -> None:
    found = [("service", item.name, item.command) for item in image.services]
    found += [("onboot", item.name, item.command) for item in image.onboot]
    found += [("onshutdown", item.name, item.command) for item in image.onshutdown]
    for kind, name, command in found:
        if shell := next(shells.started(argv(command)), None):
            raise Problem(
                f"{kind} {name!r}: a protected image has no shell for whoever comes by, and this starts {shell!a}",
                "leave it out; an image for debugging is another one",
            )


# --- policies ---------------------------------------------------------------------------------------------------------


def _check_policy(image: Image) -> None:
    if seal := image.disk.seal:
        for judge in (_check_stable, _check_bound, _check_mount, _check_name):
            judge(seal, image.disk)


def _check_stable(seal: Seal, layout: Layout) -> None:
    """A policy that holds when the disk is made, and never again."""
    if TABLE_PCR in seal.pcrs:
        raise Problem(
            f"disk: Seal(pcrs={seal.pcrs}) could never open: firmware measures the table of partitions into PCR "
            f"{TABLE_PCR}, and that is another one when the first boot has grown {seal.disk!r} with the disk",
            f"leave {TABLE_PCR} out",
        )
    others = [pcr for pcr in seal.pcrs if pcr in OF_THE_IMAGE and (seal.policy, pcr) != ("signed", SIGNED_PCR)]
    if layout.slots > 1 and others:
        raise Problem(
            f"disk: no update could ever open Seal(pcrs={seal.pcrs}, policy={seal.policy!r}): PCR {others[0]} is not "
            "what it was with every other image",
            f"slots=1, or policy='signed' and pcrs=({POLICY_PCR}, {SIGNED_PCR})",
        )


def _check_bound(seal: Seal, layout: Layout) -> None:
    """A policy that opens for others: nothing in it tells this image from what somebody else starts."""
    by_owner = layout.secure_boot and {POLICY_PCR, SIGNED_PCR} <= set(seal.pcrs)
    by_digest = {DRIVERS_PCR, BOOT_PROGRAMS_PCR, ARGUMENTS_PCR} <= set(
        seal.pcrs
    )  # a driver may change what comes later
    if not by_owner and not by_digest:
        raise Problem(
            f"disk: Seal(pcrs={seal.pcrs}) would open for whoever starts a program of their own, or this with other "
            f"arguments: all that it measures into PCR {SIGNED_PCR} can be measured again",
            f"secure_boot=SecureBoot() and PCRs {POLICY_PCR} and {SIGNED_PCR}: the firmware tells who signed what it "
            f"started; or PCRs {DRIVERS_PCR}, {BOOT_PROGRAMS_PCR} and {ARGUMENTS_PCR}: what that was, drivers "
            "before it among that, and what it was told",
        )


def _check_mount(seal: Seal, layout: Layout) -> None:
    _ = layout
    taken = (*early.MOUNTED, "/boot", "/etc", "/usr", "/bin", "/sbin", "/lib")
    inside = [path for path in taken if f"{seal.mount}/".startswith(f"{path}/")]
    if not seal.mount.startswith("/") or seal.mount == "/" or ".." in seal.mount.split("/") or inside:
        below = f": {inside[0]} is the system's own" if inside else ""
        raise Problem(f"disk: Seal(mount={seal.mount!r}) is no place for a disk{below}", 'as in mount="/data"')
    if re.search(r"[\s\\]|//|/$", seal.mount) or not seal.mount.isprintable():
        raise Problem(f"disk: Seal(mount={seal.mount!r}) is no plain path", 'as in mount="/data"')


def _check_name(seal: Seal, layout: Layout) -> None:
    _ = layout
    if OWN_PARTITION.fullmatch(seal.disk):
        raise Problem(f"disk: Seal(disk={seal.disk!r}): another partition has this name", 'as in disk="data"')
