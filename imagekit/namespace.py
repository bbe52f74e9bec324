"""Enter other roots: unshare, mount, pivot_root and execve, by _ctypes; imports nothing of imagekit.

It is the lowest floor because it also runs as a script, by a bare interpreter that knows no package:

    python -I -S namespace.py [--die-with PID] [--usr DIR | --root DIR] [--environment FD] [--builtins FD]
                              -- PROGRAM ARGUMENT...

The program becomes that very process; with --root it is a child, whose end ends everything it started. Everything
that is needed after a mount is loaded before it: below another /usr, Python cannot import. A PROGRAM such as "@read" is
the one behind the descriptor of --builtins.
"""

# ruff: noqa: PTH101, PTH102, PTH103, PTH112, PTH114, PTH115, PTH120 - pathlib costs as much as the rest of this script

import _ctypes
import os
import stat
import sys

CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_MOVE, MS_REC, MS_SLAVE = 1 << 12, 1 << 13, 1 << 14, 1 << 19
MNT_DETACH = 2
LOCK_SH, LOCK_EX, LOCK_NB = 1, 2, 4
PR_SET_PDEATHSIG = 1
SIGKILL = 9
PIVOT_ROOT = {
    "x86_64": 155,
    "aarch64": 41,
    "riscv64": 41,
    "armv7l": 218,
}  # <asm/unistd.h>: C libraries have no wrapper for it
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127  # the codes of env(1), docker and podman for their own failures
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHARED = ("local", "src")  # folders of the host's /usr that stay visible: a checkout or a cache may lie there


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _UnsignedLong(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "L"


class _Call(_ctypes.CFuncPtr):
    """A function of the C library, as ctypes.CDLL makes them; the whole of ctypes takes a third of Python's start."""

    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


class _Libc:
    def __init__(self) -> None:
        self.handle = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # as ctypes.CDLL(None) does

    def __getattr__(self, name: str) -> _Call:
        return _Call(_ctypes.dlsym(self.handle, name))


_libc = _Libc()


def unshare(flags: int = 0, *, inside: int | None = None) -> bool:
    """Make a mount namespace (and those in `flags`) of our own; return whether that took a user namespace.

    Root without CAP_SYS_ADMIN and ordinary users get a user namespace that maps one id: theirs to `inside` (default:
    the same). Mounts keep coming from the host and never go back to it (MS_SLAVE).
    """
    mapped = bool(_libc.unshare(CLONE_NEWNS | flags))
    if mapped:
        uid, gid = os.getuid(), os.getgid()
        _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWNS | flags), "make a user namespace")
        _map((uid if inside is None else inside, uid), (gid if inside is None else inside, gid))
    mount(None, "/", flags=MS_REC | MS_SLAVE)
    return mapped


def again_as(user: int, group: int, *, flags: int = 0) -> None:
    """Give our one id, in a user namespace, other numbers: by a further one of these.

    With CLONE_NEWNS what is read-only stays so: who is root in there may not change mounts of the first.
    """
    outer = os.getuid(), os.getgid()
    _check(_libc.unshare(CLONE_NEWUSER | flags), "make a second user namespace")
    _map((user, outer[0]), (group, outer[1]))


def _map(user: tuple[int, int], group: tuple[int, int]) -> None:
    _write("/proc/self/setgroups", "deny")  # user_namespaces(7): before gid_map
    _write("/proc/self/uid_map", f"{user[0]} {user[1]} 1")
    _write("/proc/self/gid_map", f"{group[0]} {group[1]} 1")


def mount(source: str | None, target: str, kind: str = "", *, flags: int = 0, options: str = "") -> None:
    """mount(2); raises OSError that says what was to be mounted where."""
    result = _libc.mount(_bytes(source), _bytes(target), _bytes(kind), _UnsignedLong(flags), _bytes(options))
    _check(result, f"mount {kind or source or 'flags'} on {target}")


def bind(source: str, target: str, *, read_only: bool = False) -> None:
    """Show a folder, and all that is mounted below it, in a second place."""
    mount(source, target, flags=MS_BIND | MS_REC)
    if read_only:
        kept = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)  # a user namespace may not drop these
        mount(None, target, flags=MS_BIND | MS_REMOUNT | MS_RDONLY | kept)


def over_usr(usr: str) -> None:
    """Put a tools tree's usr over /usr, in a namespace of our own; the host's /usr/local and /usr/src stay."""
    unshare()
    kept = [(name, os.open(f"/usr/{name}", os.O_PATH)) for name in SHARED if os.path.isdir(f"/usr/{name}")]
    bind(usr, "/usr")
    for name, handle in kept:
        if os.path.isdir(f"/usr/{name}"):
            bind(f"/proc/self/fd/{handle}", f"/usr/{name}")
        os.close(handle)


def die_with(parent: int) -> None:
    """Be killed when the thread that started us ends. After every change of credentials: those clear it (prctl(2))."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl PR_SET_PDEATHSIG")
    if os.getppid() != parent:  # it ended before we asked
        raise OSError(0, f"the process {parent} that started this one has ended")


def syscall(number: int, *words: int | bytes) -> int:
    """A system call that the C library has no function for; its result, or -1."""
    return int(_libc.syscall(number, *words))


def lock(handle: int, how: int) -> None:
    """flock(2); raises BlockingIOError when another holds it and LOCK_NB is asked for."""
    if _libc.flock(handle, how):
        number = _ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def prctl(option: int, value: int) -> int:
    """prctl(2) with one argument; 0, or -1 where the kernel refuses or does not know it."""
    return int(_libc.prctl(option, value, 0, 0, 0))


def _check(result: int, what: str) -> None:
    if result:
        number = _ctypes.get_errno()
        raise OSError(number, f"cannot {what}: {os.strerror(number)}")


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else os.fsencode(text)


def _write(path: str, text: str) -> None:
    handle = os.open(path, os.O_WRONLY)
    try:
        os.write(handle, text.encode())
    finally:
        os.close(handle)


# --- another root ---------------------------------------------------------------------------------------------------


def stage(root: str, *, writable: bool = True, kept: int = -1, sys: str = "/sys") -> bool:
    """Mount `root`, made whole, in a namespace of our own, and stand in it; say whether it can be written to.

    It can where the kernel allows an overlay here: what is written goes to a tmpfs and is gone at the end, or to the
    folder behind the descriptor `kept`. Otherwise the folder is shown read-only, with a tmpfs on /tmp and /run.
    """
    writable = writable and _overlay(root, kept)
    if not writable:
        bind(root, root, read_only=True)
        os.chdir(root)
    dress(names=writable, sys=sys)
    return writable


def dress(*, names: bool = True, sys: str = "/sys") -> None:
    """Mount in the root where we stand what belongs to the machine: /proc, /sys and /dev are the host's."""
    bind(sys, _folder("sys"))
    bind("/dev", _folder("dev"))
    _proc(_folder("proc"))
    mount("tmpfs", _folder("run"), "tmpfs", flags=MS_NOSUID | MS_NODEV, options="mode=755")
    mount("tmpfs", _folder("tmp"), "tmpfs", flags=MS_NOSUID | MS_NODEV, options="mode=1777")
    if names:
        _names()


def pivot() -> None:
    """Make the current folder the root; nothing of the old root stays reachable."""
    number = PIVOT_ROOT.get(os.uname().machine)
    if number is not None and _libc.syscall(number, b".", b".") == 0:
        _check(_libc.umount2(b".", MNT_DETACH), "leave the old root")
    else:  # EINVAL where / is the kernel's own first root (an initramfs): pivot_root(2), NOTES
        mount(".", "/", flags=MS_MOVE)
        os.chroot(".")
    os.chdir("/")


def _overlay(root: str, kept: int) -> bool:
    """Stand in an overlay of `root`, where the kernel allows one; its upper layer is in memory, or in `kept`.

    Paths of the layers go through descriptors or are relative: a comma or colon in a name would end an overlay option.
    """
    lower = os.open(root, os.O_PATH | os.O_DIRECTORY)
    mount("tmpfs", root, "tmpfs", options="mode=700")  # the one folder that is sure to exist; covered here alone
    os.chdir(root)
    os.mkdir("root")
    above = "" if kept < 0 else f"/proc/self/fd/{kept}/"
    for name in ("upper", "work"):
        if not os.path.isdir(above + name):
            os.mkdir(above + name)
    os.chmod(above + "upper", 0o755)  # it becomes the mode of /
    layers = f"lowerdir=/proc/self/fd/{lower},upperdir={above}upper,workdir={above}work"
    by_users = (
        layers + ",userxattr"
    )  # in user namespaces (Linux 5.11): else no folder of `root` can be removed or moved
    for options in (by_users, layers) if _maps_ids() else (layers,):
        if _libc.mount(b"overlay", b"root", b"overlay", _UnsignedLong(0), options.encode()) == 0:
            os.close(lower)
            os.chdir("root")
            return True
    os.close(lower)
    os.chdir("/")
    _check(_libc.umount2(_bytes(root), MNT_DETACH), f"uncover {root}")
    return False


def _maps_ids() -> bool:
    """Whether a user namespace is around us: the first one of the machine has every id (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def _folder(name: str) -> str:
    """A mount point in the root where we stand. A symlink there would mount over the host's own folders."""
    try:
        mode = os.lstat(name).st_mode
    except FileNotFoundError:
        _make(name)
        return name
    if not stat.S_ISDIR(mode):
        raise OSError(0, f"/{name} of this root is not a folder: refused as a mount point")
    return name


def _make(name: str) -> None:
    try:
        os.mkdir(name)
    except OSError as error:
        raise OSError(error.errno, f"cannot make /{name} in this root: {error.strerror}") from None


def _proc(target: str) -> None:
    """A /proc of our own process namespace where the kernel allows it, else the host's."""
    try:
        mount("proc", target, "proc", flags=MS_NOSUID | MS_NODEV | MS_NOEXEC)
    except OSError:
        bind("/proc", target)


def _names() -> None:
    """The host's resolv.conf, unless the image has one of its own: the network is the host's as well."""
    path = "etc/resolv.conf"
    try:
        if not stat.S_ISDIR(os.lstat("etc").st_mode):
            return
        if os.path.islink(path):
            path = os.readlink(path)[1:]  # made at boot, as in bootable images: /run is empty here, and ours
            if not path.startswith("run/") or ".." in path.split("/"):
                return
            os.makedirs(os.path.dirname(path), exist_ok=True)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with open("/etc/resolv.conf", "rb") as source:
            os.write(target, source.read(65536))
        os.close(target)
    except OSError:
        return  # it has one, or the host has none


# --- becoming the program -------------------------------------------------------------------------------------------


def become(argv: list[str], env: dict[str, str], builtins: int = -1) -> int:
    """execve(2), searching PATH as execvp(3) does; returns only when it cannot, the code to exit with."""
    if builtins >= 0:
        os.set_inheritable(builtins, False)
        os.execve(builtins, argv, env)
    name, failure = argv[0], NOT_FOUND
    folders = [""] if "/" in name else [] if not name else (env.get("PATH") or PATH).split(":")
    for folder in folders:
        try:
            os.execve(f"{folder}/{name}" if folder else name, argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            failure = NOT_EXECUTABLE
            say(f"cannot execute {name}: {os.strerror(error.errno or 0)}")
            if "/" in name:
                break
    if failure == NOT_FOUND:
        say(f"{name or 'a program without a name'} not found" + ("" if "/" in name else f" in {':'.join(folders)}"))
    return failure


def contain() -> None:
    """Go on as the child of a waiting process, as process 1: when it ends, the kernel ends everything it started."""
    import select

    alive, held = os.pipe()
    child = os.fork()
    if child:
        os.close(alive)
        os._exit(_exit_code(os.waitpid(child, 0)[1]))
    os.close(held)
    _check(_libc.prctl(PR_SET_PDEATHSIG, SIGKILL), "prctl PR_SET_PDEATHSIG")
    if select.select([alive], [], [], 0)[0]:  # its end was closed: the waiting process ended before we asked
        os._exit(FAILED)
    os.close(alive)


def under_init(argv: list[str], env: dict[str, str], builtins: int = -1) -> int:
    """Run a program as process 2 and reap orphans meanwhile; process 1 ignores signals that it has no handler for."""
    program = os.fork()
    if program == 0:
        os._exit(become(argv, env, builtins))
    while True:
        ended, status = os.wait()
        if ended == program:
            return _exit_code(status)


def restore_signals() -> None:
    """Python ignores these from its start on, and a program would go on doing so: signal(7), execve(2)."""
    for number in (13, 25):  # SIGPIPE, SIGXFSZ
        _libc.signal(number, None)


def say(line: str) -> None:
    """One line on stderr, without what a print could import."""
    os.write(2, f"imagekit: {line}\n".encode("utf-8", "surrogateescape"))


def _exit_code(status: int) -> int:
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


# --- the script -----------------------------------------------------------------------------------------------------


def main(words: list[str]) -> int:
    """Do what the options say, in an order that is safe, then become the program."""
    options, argv = _options(words)
    try:
        env = _environment(options.get("--environment"))
        if "--usr" in options:
            over_usr(options["--usr"])
        if "--root" in options:
            mapped = unshare(CLONE_NEWPID, inside=0)
        if "--die-with" in options:
            die_with(int(options["--die-with"]))
        if "--root" in options:
            contain()
            writable = stage(options["--root"], writable=options.get("--writes") != "no")
            pivot()
            restore_signals()
            if mapped and not writable:
                again_as(0, 0, flags=CLONE_NEWNS)
            return under_init(argv, env, int(options.get("--builtins", -1))) if argv else _tell(writable)
    except OSError as error:
        say(str(error.strerror or error))
        return FAILED
    return become(argv, env)


def _tell(writable: bool) -> int:
    """Without a program: the root can be entered, and this is how."""
    os.write(1, b"writable\n" if writable else b"read-only\n")
    return 0


def _options(words: list[str]) -> tuple[dict[str, str], list[str]]:
    end = words.index("--")
    return dict(zip(words[:end:2], words[1:end:2], strict=True)), words[end + 1 :]


def _environment(handle: str | None) -> dict[str, str]:
    """Variables from a descriptor: an LD_PRELOAD for the program is not for this interpreter; ps shows no secret."""
    if handle is None:
        return dict(os.environ)
    with open(int(handle), "rb") as file:
        pairs = (line.partition(b"=") for line in file.read().split(b"\0") if line)
        return {os.fsdecode(name): os.fsdecode(value) for name, _, value in pairs}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
