"""Workshop: the closed room that build steps run in; a script, started as a process of its own.

    python -I -S workshop.py ROOT SPEC INPUT    a folder, and descriptors of JSON and of a tar

A user, mount, process, network, IPC and host-name namespace: the build image as /, read-only; the input unpacked in
/tmp/build, which with /tmp is memory of a limited size; no network, no devices but the harmless, a /proc of its own.
Steps run as the only user there is, without a capability or a way to one. When the last has ended, all that still runs
is killed, and $OUT is written to stdout as a tar. Root on the host becomes nobody before a step runs.

Exit status: 0 done, STEP a step failed, LIMIT one of the limits, FAILED this room could not be made.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH115, PTH120, PTH208, PTH211 - as in namespace.py

import io
import json
import os
import resource
import socket
import stat
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # whoever starts this by -I has no other way to it
    sys.path.insert(0, str(Path(__file__).parents[1]))
from imagekit import namespace

if __name__ == "__main__":
    del sys.path[0]

STEP, LIMIT, FAILED = 100, 101, namespace.FAILED
NOBODY = 65534
SHOWN = "/tmp/root"
BUILD, OUT = "/tmp/build", "/tmp/out"  # in a /tmp of our own
ENV = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": BUILD, "OUT": OUT, "PWD": BUILD, "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8", "TZ": "UTC", "USER": "root", "LOGNAME": "root", "SOURCE_DATE_EPOCH": "0",
}  # fmt: skip
DEVICES = ("null", "zero", "full", "random", "urandom")
LINKS = {"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
INODES = 500_000
LOOK = 0.05  # seconds between two looks at what the processes use
CLONE_NEWNET, CLONE_NEWIPC, CLONE_NEWUTS = 0x40000000, 0x08000000, 0x04000000
PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 4, 24, 38
MODES = 0o755
PAGE = resource.getpagesize()


def main(words: list[str]) -> int:
    """Make the room, run the steps, write what they made."""
    root, spec, given = words[0], int(words[1]), int(words[2])
    with open(spec, "rb") as file:
        asked: dict[str, Any] = json.load(file)
    try:
        _enter(root, asked)
    except OSError as error:
        namespace.say(f"the room of the build: {error.strerror or error}")
        return FAILED
    try:
        with open(given, "rb") as tar:
            _unpack(tar)
    except OSError as error:
        namespace.say(f"the sources do not fit into limits.memory, {asked['memory']} bytes: {error.strerror}")
        return LIMIT
    for number, step in enumerate(asked["steps"], 1):
        code, why = _step(step, asked)
        if code:
            namespace.say(f"step {number} ({ascii(' '.join(step))[:200]}) {why}")
            return code
    _end_all()
    try:
        _write(sys.stdout.buffer)
    except (OSError, ValueError) as error:
        namespace.say(f"{error}")
        return STEP
    return 0


# --- the room -------------------------------------------------------------------------------------------------------


def _enter(root: str, asked: dict[str, Any]) -> None:
    parent, is_root = os.getppid(), os.getuid() == 0
    spaces = namespace.CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    if is_root:  # only root may look into root's cache, and nobody can take away what root made read-only
        namespace.unshare()
        _show(root)
        _become_nobody()
    namespace.unshare(spaces, inside=0)
    if not is_root:
        _show(root)
    namespace.die_with(parent)
    namespace.contain()
    socket.sethostname("build")
    namespace.bind(SHOWN, SHOWN)  # once more: what came with the namespace is locked in place, and cannot become /
    os.chdir(SHOWN)
    _furnish(asked)
    namespace.pivot()
    os.umask(0o022)


def _become_nobody() -> None:
    """Give up being root; who is root of a container that knows no other user stays it, and is nobody outside."""
    if not _has_user(NOBODY):
        return
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    _prctl(PR_SET_DUMPABLE, 1)  # whose /proc/self is root's otherwise, and with it uid_map


def _has_user(number: int) -> bool:
    with open("/proc/self/uid_map", "rb") as file:
        ranges = [tuple(map(int, line.split())) for line in file]
    return any(first <= number < first + count for first, _, count in ranges)


def _show(root: str) -> None:
    """The build image at a place that everybody can reach, read-only; the host's /tmp is covered here alone."""
    folder = os.open(root, os.O_PATH | os.O_DIRECTORY)
    flags = namespace.MS_NOSUID | namespace.MS_NODEV
    namespace.mount("tmpfs", os.path.dirname(SHOWN), "tmpfs", flags=flags, options="size=64k,mode=755")
    os.mkdir(SHOWN)
    namespace.bind(f"/proc/self/fd/{folder}", SHOWN, read_only=True)
    os.close(folder)


def _furnish(asked: dict[str, Any]) -> None:
    """On the build image, where we stand, what a program needs of a system."""
    tight = namespace.MS_NOSUID | namespace.MS_NODEV
    devices = {name: os.open(f"/dev/{name}", os.O_PATH) for name in DEVICES}
    for name in ("proc", "dev", "run", "tmp"):
        if not stat.S_ISDIR(os.lstat(name).st_mode):  # a link would mount over something else
            raise OSError(0, f"/{name} of the build image is no folder")
    namespace.mount("proc", "proc", "proc", flags=tight | namespace.MS_NOEXEC)
    namespace.mount("tmpfs", "run", "tmpfs", flags=tight, options="size=16m,mode=755,nr_inodes=1000")
    namespace.mount("tmpfs", "dev", "tmpfs", flags=namespace.MS_NOSUID, options="size=64k,mode=755,nr_inodes=64")
    for name, handle in devices.items():
        os.close(os.open(f"dev/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        namespace.bind(f"/proc/self/fd/{handle}", f"dev/{name}")
        os.close(handle)
    for name, target in LINKS.items():
        os.symlink(target, f"dev/{name}")
    room = f"size={asked['memory']},mode=1777,nr_inodes={INODES}"
    namespace.mount("tmpfs", "tmp", "tmpfs", flags=tight, options=room)
    for name in (BUILD, OUT):
        os.mkdir(name[1:], 0o755)
    out = f"size={asked['output']},mode=755,nr_inodes={INODES}"
    namespace.mount("tmpfs", OUT[1:], "tmpfs", flags=tight, options=out)


def _unpack(file: io.BufferedReader) -> None:
    """The input, which imagekit wrote itself a moment ago: folders, files and links by relative names."""
    with tarfile.open(fileobj=file, mode="r|") as tar:
        for member in tar:
            path = f"{BUILD}/{member.name}"
            if member.isdir():
                os.makedirs(path, exist_ok=True)
            elif member.issym():
                os.symlink(member.linkname, path)
            else:
                source = tar.extractfile(member)
                assert source is not None
                with open(path, "xb") as target:
                    while piece := source.read(1 << 20):
                        target.write(piece)
                os.chmod(path, member.mode & MODES)


# --- a step ---------------------------------------------------------------------------------------------------------


def _step(argv: list[str], asked: dict[str, Any]) -> tuple[int, str]:
    """(0, "") when it ended well, else the exit status of ours and what happened."""
    child = os.fork()
    if not child:
        try:
            _confine(asked)
            os._exit(namespace.become(argv, {**ENV, **asked["env"]}))
        except BaseException as error:
            namespace.say(f"cannot run {argv[0]}: {error}")
            os._exit(FAILED)
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return (
                (0, "") if code == 0 else (STEP, f"ended with {code}" if code > 0 else f"was ended by signal {-code}")
            )
        if ended:
            continue  # an orphan of the step
        if (used := sum(_used())) > asked["memory"]:
            _end_all()
            return LIMIT, f"took more than the {asked['memory']} bytes of limits.memory ({used})"
        time.sleep(LOOK)


def _confine(asked: dict[str, Any]) -> None:
    """Become what a step may be: limited, without a capability, with its output on stderr."""
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    os.closerange(3, 4096)
    os.chdir(BUILD)
    for name, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, asked["processes"]),
        (resource.RLIMIT_AS, asked["memory"]),
        (resource.RLIMIT_FSIZE, max(asked["memory"], asked["output"])),
        (resource.RLIMIT_NOFILE, 4096),
    ):
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))
    for capability in range(64):
        if namespace.prctl(PR_CAPBSET_DROP, capability):
            break  # the kernel knows no more of them
    _prctl(PR_SET_NO_NEW_PRIVS, 1)


def _prctl(option: int, value: int) -> None:
    if namespace.prctl(option, value):
        raise OSError(0, f"prctl {option} failed")


def _used() -> Iterator[int]:
    """Bytes of memory of every process but us, as the kernel counts what is resident."""
    for name in os.listdir("/proc"):
        if name.isdecimal() and name != "1":
            try:
                with open(f"/proc/{name}/statm", "rb") as file:
                    _, resident, shared, *_ = map(int, file.read().split())
            except (OSError, ValueError):
                continue  # it ended
            yield (resident - shared) * PAGE


def _end_all() -> None:
    """Kill whatever is left, and wait until it is gone: nobody writes to $OUT from here on."""
    try:
        os.kill(-1, namespace.SIGKILL)
        while True:
            os.waitpid(-1, 0)
    except (ProcessLookupError, ChildProcessError):
        return


# --- what they made -------------------------------------------------------------------------------------------------


def _write(out: Any) -> None:
    """$OUT as a tar, sorted, of root and without times; raises ValueError for what no package can hold."""
    first: dict[tuple[int, int], str] = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in _found(OUT):
            state, name = os.lstat(path), path[len(OUT) + 1 :]
            entry = tarfile.TarInfo(name)
            entry.mode = stat.S_IMODE(state.st_mode)
            if entry.mode & 0o7000 and not stat.S_ISDIR(state.st_mode):
                raise ValueError(f"$OUT/{name} is setuid or setgid, which a package made by steps cannot hold")
            if stat.S_ISREG(state.st_mode) and (old := first.setdefault((state.st_dev, state.st_ino), name)) != name:
                entry.type, entry.linkname = tarfile.LNKTYPE, old
                tar.addfile(entry)
            elif stat.S_ISREG(state.st_mode):
                entry.size = state.st_size
                with open(path, "rb") as file:
                    tar.addfile(entry, file)
            elif stat.S_ISDIR(state.st_mode):
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            elif stat.S_ISLNK(state.st_mode):
                entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
                tar.addfile(entry)
            else:
                raise ValueError(f"$OUT/{name} is neither file, folder nor link")


def _found(folder: str) -> Iterator[str]:
    for name in sorted(os.listdir(folder)):
        path = f"{folder}/{name}"
        yield path
        if stat.S_ISDIR(os.lstat(path).st_mode):
            yield from _found(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
