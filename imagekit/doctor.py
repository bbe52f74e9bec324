"""What this machine has, what is missing, and how each line is mended. Nothing is changed and nothing is fetched."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from imagekit import host, options, toolbox
from imagekit import key as keys
from imagekit import mirror as mirrors
from imagekit.arch import host as host_arch
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.targets import _kvm

LEAST, ENOUGH = 500 << 20, 3 << 30  # free bytes of the cache's disk: for one build; for the tools and some images
SYSTEM = Path("/proc/sys")
FORBIDDEN = {  # setting -> (the value that forbids user namespaces, the command that allows them)
    "user/max_user_namespaces": ("0", "sysctl user.max_user_namespaces=15000"),
    "kernel/unprivileged_userns_clone": ("0", "sysctl kernel.unprivileged_userns_clone=1"),
    "kernel/apparmor_restrict_unprivileged_userns": ("1", "sysctl kernel.apparmor_restrict_unprivileged_userns=0"),
}
Say = Callable[[str], None]


class Line(NamedTuple):
    """One finding."""

    name: str
    state: str  # "ok", "warn": something will be slower or is missing, "bad": the next build or boot fails
    found: str
    mend: str = ""


def examine(store: Store, *, say: Say = toolbox.quiet) -> list[Line]:
    """Every finding, in the order in which a first build and boot meet them."""
    lines: list[Line] = []
    for look in (python, virtual_environment, mirror, keyring, cache, namespaces, tools, kvm, key):
        say(f"looking at {look.__name__.replace('_', ' ')}")
        try:
            lines += look(store)
        except Problem as problem:
            lines.append(Line(look.__name__, "bad", problem.message, problem.hint))
    return lines


def python(_: Store) -> Iterator[Line]:
    """The interpreter."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield Line("python", "ok", f"{version}, {sys.executable}")


def virtual_environment(_: Store) -> Iterator[Line]:
    """Whether imagekit lies in an environment of its own, or one could be made."""
    from importlib.util import find_spec

    if sys.prefix != sys.base_prefix:
        yield Line("venv", "ok", sys.prefix)
    elif find_spec("ensurepip"):
        yield Line("venv", "ok", "not in one; ./run makes one")
    else:
        version = "{}.{}".format(*sys.version_info)
        yield Line(
            "venv", "warn", "this Python cannot make one", f"on Debian and Ubuntu: apt install python{version}-venv"
        )


def mirror(_: Store) -> Iterator[Line]:
    """Where packages would come from."""
    try:
        found = mirrors.find()
    except Problem as problem:
        yield Line("mirror", "bad", problem.message, problem.hint)
    else:
        yield Line("mirror", "ok", f"{found.main} ({found.origin})")


def keyring(_: Store) -> Iterator[Line]:
    """The keys that archives are verified with."""
    try:
        path = mirrors.keyring()
        size = path.stat().st_size
    except (Problem, OSError) as error:
        yield Line("keyring", "bad", str(error), "unset IMAGEKIT_KEYRING to use the one that imagekit brings")
    else:
        yield Line("keyring", "ok" if size else "bad", f"{path}, {size} bytes")


def cache(store: Store) -> Iterator[Line]:
    """The cache folder: whether it can be written to, and the room for it."""
    mend = "set IMAGEKIT_CACHE to a folder of yours on a disk with room"
    try:
        with tempfile.TemporaryFile(dir=store.folder("drafts")) as file:
            file.write(bytes(1 << 16))
        status = os.statvfs(store.location)
    except OSError as error:
        yield Line("cache", "bad", f"{store.location}: {error.strerror}", mend)
        return
    free = status.f_bavail * status.f_frsize
    state = "bad" if free < LEAST else "warn" if free < ENOUGH else "ok"
    yield Line("cache", state, f"{store.location}, {free / 1e9:.1f} GB free", "" if state == "ok" else mend)


def namespaces(_: Store) -> Iterator[Line]:
    """Whether mount namespaces can be entered, by entering one."""
    with tempfile.TemporaryDirectory() as root:
        done = host.run([*host.LAUNCHER, "--root", root, "--"], ok=None, timeout=60)
    if done.code:
        said = host.printable(done.stderr).strip().removeprefix("imagekit: ")
        yield Line("namespaces", "warn", f"{said}; tools start through their own loader, images cannot run", _allow())
    elif done.stdout != b"writable\n":
        yield Line("namespaces", "warn", "mounts work, overlays do not: images run read-only", "a kernel from 5.11 on")
    else:
        yield Line("namespaces", "ok", "as root" if os.getuid() == 0 else "by a user namespace")


def _allow() -> str:
    """The command that allows user namespaces here, as root; in a container its engine forbids them."""
    for name, (value, command) in FORBIDDEN.items():
        path = SYSTEM / name
        if path.exists() and path.read_text().strip() == value:
            return f"as root: {command}"
    return "in a container: start it with --privileged, or with the unshare and mount system calls allowed"


def tools(store: Store) -> Iterator[Line]:
    """Each group of tools: this machine's own, those in the cache, or what fetching them takes."""
    for group in toolbox.GROUPS:
        own = [toolbox.on_host(name, store) for name, tool in toolbox.TOOLS.items() if tool.group == group]
        words = ", ".join(what for _, what in own if not what.startswith("no ")) or "none of it"
        if all(found for found, _ in own):
            yield Line(group, "ok", words)
            continue
        try:
            state, found, mend = _tree(group, store)
        except Problem as problem:
            state, found, mend = "bad", problem.message, problem.hint
        yield Line(group, state, f"{found} (this machine has {words})", mend)


def _tree(group: str, store: Store) -> tuple[str, str, str]:
    fetched = toolbox.fetched(group, store)
    if fetched == "newer":
        words = f"a newer tree than the pinned one, whose packages the mirror has dropped; as signed by {toolbox.SUITE}"
        return "warn", words, "a newer imagekit pins what the mirror has now"
    if fetched:
        return "ok", "the pinned tree, in the cache", ""
    return "ok", f"fetched when first needed, {toolbox.size(group) / 1e6:.1f} MB", ""


def kvm(store: Store) -> Iterator[Line]:
    """Whether KVM runs a guest: one is booted, if QEMU is here."""
    slow = "guests are emulated, which is slower and otherwise the same"
    if not _kvm.DEVICE.exists():
        yield Line("kvm", "warn", "there is no /dev/kvm", f"{slow}; on bare metal: load kvm_intel or kvm_amd")
        return
    name = f"qemu-system-{host_arch().qemu}"
    if not (toolbox.on_host(name, store)[0] or toolbox.fetched(toolbox.TOOLS[name].group, store)):
        yield Line("kvm", "warn", "present, not tried: QEMU is not here yet", "the first boot fetches it, and tries")
        return
    works, why = _kvm.probe(store, toolbox.tools(name, store=store))
    denied = "Permission denied" in why
    mend = "join its group: usermod -aG kvm YOU, and log in again" if denied else slow
    yield Line("kvm", "ok" if works else "warn", why, "" if works else mend)


def key(_: Store) -> Iterator[Line]:
    """The user's own signing key."""
    path = Path(options.lookup("key", default=keys.default_path()))
    try:
        found = keys.read(path)
    except Problem as problem:
        yield Line("key", "bad" if path.exists() else "warn", problem.message, problem.hint)
    else:
        yield Line("key", "ok", f"{path}, id {found.id}")
