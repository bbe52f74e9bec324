"""What a root is given for one run: folders of the host, a folder that keeps what is written, a user.

All host paths are opened in the new namespace (the kernel mounts nothing out of another) and before its first mount,
which may hide them; places in the root are walked to name by name and never through a symlink, since the root may be a
stranger's.
"""

# ruff: noqa: PTH208, PTH100, PTH103, PTH110 - as in namespace.py: pathlib costs as much as the rest of a start

import os
import stat

from imagekit import namespace

MS_RDONLY, MS_BIND, MS_REC, MS_REMOUNT = 1, 1 << 12, 1 << 14, 32
CLONE_NEWUSER = namespace.CLONE_NEWUSER
MOUNT_SETATTR, AT_EMPTY_PATH, AT_RECURSIVE = 442, 0x1000, 0x8000  # since Linux 5.12; one number for all machines
MOUNT_ATTR_RDONLY = 1
SCORE = "/proc/self/oom_score_adj"
OOM_EXEMPT = b"-1000"  # what Nomad gives itself, and thereby all that it starts; none of them could ever be ended
MOST_ACCOUNTS = 1 << 20  # bytes of an image's passwd or group that are read
HIGH = (*range(1000, 1010), *range(200, 210), *range(50, 60))  # numbers that programs leave alone
PATH_ONLY = os.O_PATH | os.O_CLOEXEC | os.O_NOFOLLOW

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Volume = tuple[str, str, bool]  # what is shown; where in the root; whether it is read-only there
    Opened = tuple[int, str, bool]
    Account = tuple[int, int, list[int], str]  # user, group, other groups, home


def volume(words: str) -> "Volume":
    """SOURCE:PLACE[:ro], taken apart; raises OSError that says what is wrong with it."""
    source, _, rest = words.partition(":")
    place, _, mode = rest.partition(":")
    if not source or not place.startswith("/") or mode not in ("", "ro", "rw"):
        raise OSError(0, f"-v {words}: a volume is SOURCE:PLACE or SOURCE:PLACE:ro, with a PLACE that begins with /")
    if ".." in place.split("/") or not place.strip("/"):
        raise OSError(0, f"-v {words}: {place} is no place in the image")
    if not os.path.exists(source):
        raise OSError(0, f"-v {words}: there is no {source}")
    return os.path.abspath(source), place.strip("/"), mode == "ro"


def opened(volumes: "Iterable[Volume]") -> "list[Opened]":
    """The volumes by descriptors of what is shown."""
    return [(os.open(source, os.O_PATH | os.O_CLOEXEC), place, mode) for source, place, mode in volumes]


def place(volumes: "Iterable[Opened]") -> None:
    """Show folders and files of the host in the root where we stand; what is missing there is made."""
    for source, name, is_read_only in volumes:
        is_folder = stat.S_ISDIR(os.fstat(source).st_mode)
        parent, last = _parent(name)
        target = _target(parent, last, name, is_folder=is_folder)
        namespace.mount(f"/proc/self/fd/{source}", f"/proc/self/fd/{target}", flags=MS_BIND | MS_REC)
        if is_read_only:
            shown = os.open(last, PATH_ONLY, dir_fd=parent)  # what is mounted there now
            _close_to_writing(shown)
            os.close(shown)
        for handle in (source, target, parent):
            os.close(handle)


def keep(folder: str) -> str:
    """A folder that is to keep what is written, made and locked against a second run as long as this one lives."""
    os.makedirs(folder, exist_ok=True)
    flags = os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # the program will hold it, too
    handle = os.open(f"{folder}/lock", flags, 0o600)
    try:
        namespace.lock(handle, namespace.LOCK_EX | namespace.LOCK_NB)
    except BlockingIOError:
        raise OSError(0, f"--persist {folder}: another run uses it now") from None
    stay_open(handle)
    return os.path.abspath(folder)


def stay_open(handle: int) -> int:
    """The same open file under a high number that the program inherits: its own descriptors begin where they would.

    Never of a folder: a program could walk from that up into the machine's own files.
    """
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        raise OSError(0, "a folder is not handed to a program")
    for number in HIGH:
        try:
            os.fstat(number)  # the caller's own
        except OSError:
            high = _duplicate(handle, number)
            if high >= 0:
                os.close(handle)
                return high
    os.set_inheritable(handle, True)
    return handle


def _duplicate(handle: int, number: int) -> int:
    try:
        return os.dup2(handle, number)
    except OSError:  # above the limit of this process
        return -1


def close_own() -> None:
    """Close what execve would close: until then a path through /proc/self/fd of a folder would lead out of the root."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and not os.get_inheritable(int(name)):
                os.close(int(name))
        except OSError:  # that of the listing itself
            continue


def end_exemption() -> None:
    """Let the kernel end this process when memory runs out, like any other, where a scheduler had said never to."""
    try:
        with open(SCORE, "r+b", buffering=0) as file:
            if file.read(16).strip() == OOM_EXEMPT:
                file.write(b"0")
    except OSError:
        return  # there is no /proc to tell


# --- users ------------------------------------------------------------------------------------------------------------


def become(words: str, *, mapped: bool) -> "Account":
    """Go on as a user of the root that was entered, given as NAME, UID, NAME:GROUP or UID:GID.

    In a user namespace there is one id alone, and a second such namespace gives it the number.
    """
    user, group, others, home = account(words)
    if mapped:
        namespace.again_as(user, group)
    else:
        os.setgroups(others or [group])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)
    return user, group, others, home


def account(words: str) -> "Account":
    """Numbers and home of a user, by /etc/passwd and /etc/group of the root."""
    name, _, group = words.partition(":")
    row = next((row for row in _rows("/etc/passwd", 7) if name in (row[0], row[2])), None)
    if row is None and not name.isdigit():
        raise OSError(0, f"--user {words}: the image has no user {name}")
    user, own, home = (int(row[2]), int(row[3]), row[5]) if row else (int(name), int(name), "/")
    groups = list(_rows("/etc/group", 4))
    if group:
        named = next((int(found[2]) for found in groups if found[0] == group), None)
        if named is None and not group.isdigit():
            raise OSError(0, f"--user {words}: the image has no group {group}")
        own = int(group) if named is None else named
    others = [int(found[2]) for found in groups if row and row[0] in found[3].split(",")]
    if max(user, own, *others) >= (1 << 32) - 1:
        raise OSError(0, f"--user {words}: no such number")
    return user, own, [own, *others], home


def _rows(path: str, columns: int) -> "Iterator[list[str]]":
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may be anything in a stranger's image
    except OSError:
        return
    try:
        is_file = stat.S_ISREG(os.fstat(handle).st_mode)
        text = os.read(handle, MOST_ACCOUNTS) if is_file else b""
    finally:
        os.close(handle)
    for line in text.decode("utf-8", "surrogateescape").split("\n"):
        row = line.split(":")
        if len(row) == columns and row[2].isdigit() and (columns != 7 or row[3].isdigit()):
            yield row


# --- places in a root -------------------------------------------------------------------------------------------------


def _parent(name: str) -> tuple[int, str]:
    """The folder above a place, opened, and the place's own name."""
    *above, last = [part for part in name.split("/") if part not in ("", ".")]
    handle = os.open(".", PATH_ONLY | os.O_DIRECTORY)
    for part in above:
        inner = _folder(handle, part, name)
        os.close(handle)
        handle = inner
    return handle, last


def _folder(parent: int, part: str, name: str) -> int:
    try:
        try:
            return os.open(part, PATH_ONLY | os.O_DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=parent)
            return os.open(part, PATH_ONLY | os.O_DIRECTORY, dir_fd=parent)
    except NotADirectoryError:
        raise OSError(0, f"/{name} of this root leads through {part}, which is no folder: refused") from None
    except OSError as error:
        raise OSError(error.errno, f"cannot make /{name} in this root: {os.strerror(error.errno or 0)}") from None


def _target(parent: int, last: str, name: str, *, is_folder: bool) -> int:
    """Where something is to be shown: a folder for a folder, a file for all else, never a symlink."""
    if is_folder:
        return _folder(parent, last, name)
    try:
        target = os.open(last, PATH_ONLY, dir_fd=parent)
    except FileNotFoundError:
        os.close(os.open(last, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=parent))
        target = os.open(last, PATH_ONLY, dir_fd=parent)
    if stat.S_IFMT(os.fstat(target).st_mode) in (stat.S_IFLNK, stat.S_IFDIR):
        raise OSError(0, f"/{name} of this root is no file: refused as a mount point for one")
    return target


def _close_to_writing(shown: int) -> None:
    """Make a mount and those below it read-only; before Linux 5.12 the uppermost alone."""
    attributes = b"".join(value.to_bytes(8, "little") for value in (MOUNT_ATTR_RDONLY, 0, 0, 0))
    flags = AT_EMPTY_PATH | AT_RECURSIVE
    if namespace.syscall(MOUNT_SETATTR, shown, b"", flags, attributes, len(attributes)) == 0:
        return
    held = os.fstatvfs(shown).f_flag & (namespace.MS_NOSUID | namespace.MS_NODEV | namespace.MS_NOEXEC)
    namespace.mount(None, f"/proc/self/fd/{shown}", flags=MS_BIND | MS_REMOUNT | MS_RDONLY | held)
