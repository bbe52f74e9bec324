"""Early boot and supervision, as the part of a Tree that imagekit brings: rendered from the Image, run by inside/.

In the guest:

    /init                            mounts, loads modules, configures the network, becomes runit
    /etc/runit/1, 2, 3               runit's stages: onboot, services, services down and onshutdown
    /etc/imagekit/modules            paths of kernel modules in load order
    /etc/imagekit/initrd             only in an initrd whose root lies on a disk: /init finds that first (`initrd`)
    /etc/imagekit/network            "dhcp IFACE", "static IFACE ADDRESS/PREFIX GATEWAY" or "none"
    /etc/imagekit/onboot/NN-NAME     the steps; onshutdown/ likewise
    /etc/imagekit/services/NAME/     run, finish, and supervise, which leads to /run: the root may be read-only
    /etc/imagekit/table              a line per service: NAME, milliseconds to stop, what it comes after, condition
    /etc/imagekit/ready/NAME         the command of a command: condition
    /usr/lib/imagekit/boot           all of this is done by it, also /usr/sbin/poweroff, reboot, halt (inside/boot.c)
    /usr/lib/imagekit/slots          of an image in two slots, also /usr/sbin/imagekit-update (inside/slots/); it reads
                                     /etc/imagekit/slots (lines name, version, architecture, generation) and update.pub,
                                     keys of which one must have signed an update (docs/updates.md)
    /usr/lib/imagekit/attest         of a protected image, also /usr/sbin/imagekit-attest (inside/attestor.c)

An initrd whose root lies on a disk has /init, kernel modules and nothing else (`initrd`). It reads of the kernel's
arguments, the last of each counting:

    root=PARTUUID=ID, root=/dev/NAME ID is a GUID of a GPT, or SERIAL-NN of an MBR
    rootwait=SECONDS                 how long it is waited for; 30 without it
    rootfstype=TYPE[,TYPE]           the types to try; squashfs, erofs and ext4 without it
    imagekit.changes=PARTUUID=ID     an ext4 that keeps what is written; a tmpfs without it

What happens is noted in /run/imagekit/events, a line each, and printed on the console behind "imagekit: ":

    SECONDS.NNNNNNNNN WORDS          CLOCK_MONOTONIC of the guest, and one of:
    early                            /proc, /sys, /dev, /run and /tmp are mounted
    counter VALUE HZ                 the processor's counter at that time, in a boot that is measured (HZ 0: not told)
    modules                          the kernel modules are loaded
    verity NAME HASH                 this partition is the root that the signed command line means (inside/sealed/)
    verity REASON                    there is none; the machine does what panic= says
    pcr NUMBER HEX                   what the TPM has measured when the initrd runs
    DISK new, DISK unsealed          the TPM has kept, or gave, the key of a sealed disk
    DISK open                        it is mounted
    DISK sealed: REASON              it stays shut; the machine does what panic= says
    root DEVICE TYPE                 a root that lies on a disk is mounted, read-only, below an overlay
    grown BYTES                      the file system of its changes was enlarged with the disk; it has BYTES now
    changes lost WHAT: REASON        they cannot be used, and lie where they were; a tmpfs is in their place
    network up                       the interface has its address
    onboot start|done NAME, onboot failed NAME CODE
    service start|ready NAME, service exit NAME CODE, service failed NAME REASON...
    service open NAME                its port accepts; the first request of its http: condition is on its way
    ready                            every service is; once
    slot trying NAME_VERSION: TRIES  a new image that lies in two slots has not proven itself; tries that it has left
    slot kept NAME_VERSION           it has, and is started from now on
    slot failed NAME_VERSION: REASON it has not: the machine starts again
    shutdown
    onshutdown start|done NAME, onshutdown failed NAME CODE

CODE is the exit status, 128 + signal where a signal ended it, 124 where a step was killed on its time-out. A service
has failed when it cannot be run, died twice before it was ready, or ended and is not started again though it was not
ready or its CODE is not 0. A step of onboot that fails stops the boot and powers the machine off.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from imagekit.channel import AGENT
from imagekit.errors import Defect, Problem
from imagekit.image import Image, Service, Static, Step, argv
from imagekit.key import Key
from imagekit.layout import Layout
from imagekit.tree import Entry, Tree, directory, file, symlink

INIT_PACKAGES = ("busybox-static", "libc6", "runit")  # of Debian, taken alone: `keep` says what of them

OWNER = "imagekit"
SHELL = "/usr/bin/busybox"
BOOT = "/usr/lib/imagekit/boot"
ATTEST = "/usr/lib/imagekit/attest"
UPDATES = "/usr/lib/imagekit/slots"
NAMES = (
    "/init",
    *(f"/etc/runit/{name}" for name in ("1", "2", "3", "ctrlaltdel")),
    *(f"/usr/sbin/{name}" for name in ("halt", "poweroff", "reboot")),
)
SETTINGS = "/etc/imagekit"
NETWORK = f"{SETTINGS}/network"
MODULES = f"{SETTINGS}/modules"
TABLE = f"{SETTINGS}/table"
SEALED = "/usr/lib/imagekit/sealed"  # is /init where a root is checked or a disk opened (disk/guarded)
SEAL, DATA = f"{SETTINGS}/seal", f"{SETTINGS}/data.ext4"
SLOTS, UPDATE_KEYS = f"{SETTINGS}/slots", f"{SETTINGS}/update.pub"
INITRD = f"{SETTINGS}/initrd"  # tells /init that it has to find the root first
MOUNTED = ("/proc", "/sys", "/dev", "/run", "/tmp", "/root")
KEPT = re.compile(
    r"/usr/bin/(busybox|runsv|runsvdir|sv|chpst)\Z"
    r"|/usr/sbin/runit\Z"
    r"|/usr/(lib|lib64|lib/[^/]+-linux-gnu)/(ld-linux-[^/]+\.so\.[0-9]+|libc\.so\.6)\Z"  # what runit's programs need
    r"|/usr/share/doc/(busybox-static|libc6|runit)/copyright\Z"  # their licences want to travel with them
)
APPLETS = {  # what an interactive shell needs, of those that Debian's busybox-static has
    "/usr/bin": (
        "[ awk base64 basename cat chgrp chmod chown clear cmp cp cut date dd df diff dirname dmesg du echo egrep env "
        "expr false fgrep find free grep gunzip gzip head hexdump hostname id kill killall less ln ls md5sum mkdir "
        "mkfifo mktemp more mount mv nc netstat nproc nslookup od pidof ping printf ps pwd readlink realpath reset rm "
        "rmdir sed seq setsid sh sha256sum sleep sort stat strings stty sync tail tar tee telnet test time timeout top "
        "touch tr true tty umount uname uniq unlink uptime usleep vi watch wc wget which whoami xargs xxd yes zcat"
    ),
    "/usr/sbin": (
        "arp chroot fdisk getty ifconfig insmod ip losetup lsmod mknod pivot_root rmmod route sulogin switch_root "
        "sysctl udhcpc"  # no modprobe: the kernel would call it again and again while it boots, to no end
    ),
}

ROOT_MODULES = {"initrd": (), "squashfs": ("squashfs", "overlay"), "erofs": ("erofs", "overlay"),
                "ext4": ("ext4", "overlay")}  # fmt: skip
CHANGES_MODULES = {"tmpfs": (), "disk": ("ext4",)}
GUARD_MODULES = {  # what protects -> what it cannot do without
    "verity": ("dm_mod", "dm_verity"),
    "seal": ("dm_mod", "dm_crypt", "xts", "ext4"),
}
CIPHERS = {  # what these call, as far as a kernel has it as a module: portable, and in the processor's instructions
    "verity": ("sha256_generic", "sha256_ssse3", "sha2_ce"),
    "seal": ("aes_generic", "aesni_intel", "aes_ce_blk", "efivarfs"),  # the last tells whether Secure Boot is on
}
TPMS = ("tpm_crb", "tpm_tis")

LONGEST, MOST_WORDS, LARGEST_SCRIPT, MOST_SERVICES = 1024, 512, 131072, 256  # what inside/boot.h has room for

_INSIDE = Path(__file__).with_name("inside")


def keep(path: str) -> bool:
    """Whether early boot needs this path of INIT_PACKAGES: programs, the C library and its loader, licences."""
    return KEPT.match(path) is not None


def tree(image: Image, arch: str, *, modules: Sequence[str]) -> Tree:
    """What imagekit adds to a bootable image; modules: their paths in load order."""
    entries = {
        BOOT: program("boot", arch),
        MODULES: _text("".join(f"{path}\n" for path in modules)),
        f"{SETTINGS}/services": directory(owner=OWNER),
        **{path: symlink(BOOT, owner=OWNER) for path in NAMES},
        **_network(image),
        **_steps("onboot", image.onboot),
        **_steps("onshutdown", image.onshutdown),
        **_services(image.services),
        **(_attestation(arch) if image.disk.guards else {}),
        **_guards(image.disk, arch),
    }
    return Tree(entries)


def initrd(whole: Tree) -> Tree:
    """Of a bootable tree what its initrd needs when the root lies on a disk: the boot program and kernel modules."""
    listed, first = whole.read(MODULES).decode().splitlines(), SEALED if SEALED in whole else BOOT
    kept = (first, MODULES, *listed, *(path for path in (UPDATES, SLOTS) if path in whole))
    if lost := [path for path in kept if path not in whole]:
        raise Problem(f"{lost[0]} is not in the tree, without which no root on a disk is found")
    folders = {path: directory(owner=OWNER) for path in MOUNTED}
    return Tree(
        {**{path: whole[path] for path in kept}, **folders, INITRD: _text(""), "/init": symlink(first, owner=OWNER)}
    ).complete()


def root_modules(layout: Layout) -> Mapping[str, Sequence[str]]:
    """The kernel modules without which a root on a disk cannot be mounted, by what in the layout wants them."""
    return {
        f"disk root={layout.root!r}": ROOT_MODULES[layout.root],
        f"disk changes={layout.changes!r}": CHANGES_MODULES[layout.changes],
    }


class Start(NamedTuple):
    """A service as early boot finds it in a tree: what a container of the image may run in its place."""

    name: str
    user: str
    env: tuple[str, ...]  # NAME=VALUE
    argv: tuple[str, ...]
    ready: str  # its condition, or "-"


def starts(whole: Tree) -> list[Start]:
    """The services of a tree, in the order of their table; none where no early boot is."""
    table = whole.read(TABLE).decode().splitlines() if TABLE in whole else []
    return [_start(whole, *row.split(" ", 3)) for row in table]


def _start(whole: Tree, name: str, stop: str, after: str, ready: str) -> Start:
    _ = stop, after
    lines = whole.read(f"{SETTINGS}/services/{name}/run").decode("utf-8", "surrogateescape").split("\n")[:-1]
    words = [re.sub(r"\\\\|\\n", lambda found: {"\\\\": "\\", "\\n": "\n"}[found[0]], line) for line in lines]
    how, argv = words[: words.index("--")], words[words.index("--") + 1 :]
    env = (word.removeprefix("env=") for word in how if word.startswith("env="))
    user = next(word.removeprefix("user=") for word in how if word.startswith("user="))
    return Start(name, user, tuple(env), tuple(argv), ready)


def applets(taken: Tree) -> Tree:
    """Symlinks to busybox for the usual commands, but for those that a package brings, in whichever folder."""
    links = {}
    for folder, names in APPLETS.items():
        for name in names.split():
            if not any(f"{where}/{name}" in taken for where in ("/usr/bin", "/usr/sbin")):
                links[f"{folder}/{name}"] = symlink(
                    "busybox" if folder == "/usr/bin" else "../bin/busybox", owner=OWNER
                )
    return Tree(links)


def agent(arch: str) -> Tree:
    """What an extra initrd holds that starts the guest agent; see channel.py."""
    return Tree({AGENT.rpartition("/")[0]: directory(owner=OWNER), AGENT: program("agent", arch)})


def program(name: str, arch: str) -> Entry:
    """A static program of inside/, as it is shipped for an architecture."""
    try:
        return file((_INSIDE / "bin" / f"{name}.{arch}").read_bytes(), mode=0o755, owner=OWNER)
    except OSError as error:
        raise Defect(
            f"{error.filename} cannot be read: {error.strerror}", "imagekit/inside/build.sh makes it"
        ) from error


def _attestation(arch: str) -> Mapping[str, Entry]:
    """What a protected image proves by that it is what was built."""
    return {ATTEST: program("attest", arch), "/usr/sbin/imagekit-attest": symlink(ATTEST, owner=OWNER)}


def updates(image: Image, arch: str, *, keys: Sequence[Key]) -> Tree:
    """What an image in two slots is updated by, and the keys that may sign an update where it names none itself."""
    generation = image.disk.seal.generation if image.disk.seal else 0
    about = f"name {image.name}\nversion {image.version}\narchitecture {arch}\ngeneration {generation}\n"
    return Tree(
        {
            SLOTS: _text(about),
            UPDATE_KEYS: _text("".join(Key(key.number, key.public).public_text() for key in keys)),
            UPDATES: program("slots", arch),
            "/usr/sbin/imagekit-update": symlink(UPDATES, owner=OWNER),
        }
    )


def _network(image: Image) -> Mapping[str, Entry]:
    network = image.network
    if isinstance(network, Static):
        words = f"static {network.interface} {network.address} {network.gateway}".rstrip()
        servers = "".join(f"nameserver {server}\n" for server in network.dns)
        return {NETWORK: _text(f"{words}\n"), "/etc/resolv.conf": _text(servers)}
    if network == "none":
        return {NETWORK: _text("none\n")}
    return {
        NETWORK: _text("dhcp eth0\n"),
        "/etc/resolv.conf": symlink("/run/imagekit/resolv.conf", owner=OWNER),
        "/usr/lib/imagekit/dhcp": symlink("boot", owner=OWNER),
    }


def _guards(layout: Layout, arch: str) -> Mapping[str, Entry]:
    """What opens disks that are protected; where no other root is looked for, it comes before the boot program."""
    if not (layout.verity or layout.seal):
        return {}
    first = {"/init": symlink(SEALED, owner=OWNER)} if layout.root == "initrd" else {}
    return {SEALED: program("sealed", arch), **first}


def _steps(kind: str, steps: Sequence[Step]) -> Mapping[str, Entry]:
    entries = {f"{SETTINGS}/{kind}": directory(owner=OWNER)}
    for number, step in enumerate(steps):
        words = ("step", kind, step.name, f"timeout={step.timeout:g}", *_variables(step.env), "--", *argv(step.command))
        entries[f"{SETTINGS}/{kind}/{number:02d}-{step.name}"] = _orders(words)
    return entries


def _services(services: Sequence[Service]) -> Mapping[str, Entry]:
    if len(services) > MOST_SERVICES:
        raise Problem(f"services: {len(services)} are more than the {MOST_SERVICES} that early boot has room for")
    entries: dict[str, Entry] = {TABLE: _text("".join(map(_row, services)))}
    for service in services:
        after = (f"after={name}" for name in service.after)
        how = (f"user={service.user}", *after, *_variables(service.env))
        folder = f"{SETTINGS}/services/{service.name}"
        entries |= {
            folder: directory(owner=OWNER),
            f"{folder}/run": _orders(("start", service.name, *how, "--", *argv(service.command))),
            f"{folder}/finish": _orders(("end", service.name, service.restart)),
            f"{folder}/supervise": symlink(f"/run/imagekit/supervise/{service.name}", owner=OWNER),
        }
        if service.ready.startswith("command:"):
            words = shlex.split(service.ready.removeprefix("command:"))
            entries[f"{SETTINGS}/ready/{service.name}"] = _script(f"#!/bin/sh\nexec {shlex.join(words)}\n")
    return entries


def _row(service: Service) -> str:
    kind, colon, rest = service.ready.partition(":")
    condition = "command:" if kind == "command" else kind + colon + rest
    after = ",".join(service.after)
    row = f"{service.name} {round(service.stop_timeout * 1000)} {after or '-'} {condition or '-'}\n"
    if len(row.encode()) >= LONGEST:
        raise Problem(f"services: {service.name}: name, after and ready are together longer than {LONGEST} bytes")
    return row


def _orders(words: Sequence[str]) -> Entry:
    """A script of boot's: a word per line."""
    lines = (word.replace("\\", "\\\\").replace("\n", "\\n") for word in words)
    script = _script("".join(f"{line}\n" for line in (f"#!{BOOT}", *lines)))
    if len(words) > MOST_WORDS or script.size >= LARGEST_SCRIPT:
        what = f"{len(words)} words in {script.size} bytes"
        raise Problem(f"{words[1]}: its command and environment have {what}, too many for early boot", "use a script")
    return script


def _variables(env: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(f"env={name}={value}" for name, value in env.items())


def _text(text: str) -> Entry:
    return file(text.encode(), owner=OWNER)


def _script(text: str) -> Entry:
    return file(text.encode(), mode=0o755, owner=OWNER)
