"""Roots in the cache: unpacked once per digest and boot, locked while somebody lives in them, made again when touched.

    CACHE/roots/DIGEST-2-BOOT/root    the tree; or `image`, an EROFS file system that is mounted as it is
    CACHE/roots/DIGEST-2-BOOT/note    what every entry looked like when it was made: see `summary`
    CACHE/roots/DIGEST-2-BOOT/lock    held shared by all that run in it, also as another program: nobody removes it then

BOOT are 8 digits of the kernel's boot id: a power cut may tear files that were never written out. The lock is a file,
because a program inherits its descriptor: by one of a folder it could walk up and out, into the machine's own files.
"""

# ruff: noqa: PTH102, PTH103, PTH104, PTH116, PTH120, PTH208 - pathlib costs as much as the rest of a start

import os

from imagekit import namespace, stamp

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp")
FORM = "2"  # raise it when what is unpacked changes
FOLDER = "roots"
DRAFT, LOCK = ".draft", "lock"
HOUR = 3600.0
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
WHOLE = 0xFFFF_FFFF_FFFF_FFFF


class Held:
    """A root of the cache that stays as it is while the descriptor is open."""

    __slots__ = ("handle", "has_image", "image", "root")

    def __init__(self, folder: str, handle: int, *, has_image: bool) -> None:
        self.handle, self.has_image = handle, has_image
        self.root, self.image = f"{folder}/root", f"{folder}/image"

    def outlive(self) -> None:
        """Keep it also after this process became another program, and as long as what that starts."""
        from imagekit import fitting

        fitting.stay_open(self.handle)


def usable(location: str) -> str:
    """Why a cache may not be used; empty when it may. Another's could be changed by him while we run in it.

    Where there is none yet, it is to be made in a folder of ours, or of root: not in another's home (`sudo -E`).
    """
    place, owners = location, {os.geteuid()}
    while True:
        try:
            found = os.stat(place)
            break
        except FileNotFoundError:
            place, owners = os.path.dirname(place), {os.geteuid(), 0}
        except OSError as error:
            return f"{location}: {error.strerror}"
    if found.st_uid not in owners:
        return f"{place} belongs to user {found.st_uid}"
    return f"{location} can be written to by others" if place == location and found.st_mode & 0o022 else ""


def hold(location: str, digest: str) -> Held | None:
    """The root of a digest, locked, if it is there and nobody touched it."""
    folder = f"{location}/{FOLDER}/{name_of(digest)}"
    try:
        handle = os.open(f"{folder}/{LOCK}", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        namespace.lock(handle, namespace.LOCK_SH | namespace.LOCK_NB)
        seen, has_image = _seen(folder)
        if os.path.samestat(os.lstat(f"{folder}/{LOCK}"), os.fstat(handle)) and _note(folder) == seen:
            _touch(folder)
            return Held(folder, handle, has_image=has_image)
    except OSError:  # it is being removed
        pass
    os.close(handle)
    return None


def make(location: str, digest: str, fill: "Callable[[str], None]", *, say: "Callable[[str], None]") -> Held:
    """The root of a digest, locked; `fill(folder)` makes `root` or `image` in a folder when there is none as it was.

    Raises OSError when the cache cannot be written to, and what `fill` raises.
    """
    from pathlib import Path

    from imagekit import host

    base = f"{location}/{FOLDER}"
    for made in (location, base, f"{location}/locks"):
        os.makedirs(made, mode=0o700, exist_ok=True)
    with host.once(Path(location, "locks"), f"root-{digest}", say=say):
        held = hold(location, digest)
        if held is None:
            _make(base, digest, fill)
            held = hold(location, digest)
    if held is None:
        raise OSError(0, f"{base} does not keep what is written to it")
    return held


def sweep(base: str, digest: str = "") -> None:
    """Remove what killed processes left, and a touched root of this digest or one of an earlier boot; none in use."""
    for name in os.listdir(base):
        if not (name.endswith(DRAFT) or (digest and name.startswith(f"{digest}-{FORM}-"))):
            continue
        place = f"{base}/{name}"
        handles = [handle for handle in map(_opened, (place, f"{place}/{LOCK}")) if handle >= 0]
        try:
            for handle in handles:
                namespace.lock(handle, namespace.LOCK_EX | namespace.LOCK_NB)
            _remove(base, name)
        except OSError:  # in use: out of the way, and removed by who sweeps when it is not
            if not name.endswith(DRAFT):
                os.rename(place, f"{place}.{os.urandom(4).hex()}{DRAFT}")
        finally:
            for handle in handles:
                os.close(handle)


def _remove(base: str, name: str) -> None:
    """A root, whatever its folders allow; none is no error."""
    from imagekit import unpack

    within = os.open(base, FLAGS)
    try:
        unpack.remove(name, within)
    except OSError:  # it has its name by now; or another removes it
        return
    finally:
        os.close(within)


def _opened(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return -1


def unpack(handle: int, root: "Path") -> None:
    """The root in a file that a format wrote, as a folder with the places that a machine's own folders are shown at."""
    from imagekit.disk import folder, rootfs

    folder.write(rootfs.members(handle), root)
    add_mount_points(root)


def add_mount_points(root: "Path") -> None:
    """Make the places that a root lacks: where it cannot be written to, nobody else can."""
    for name in MOUNT_POINTS:
        try:
            (root / name).mkdir()
        except FileExistsError:  # as a symlink too: namespace.stage refuses to mount through one
            continue


def summary(folder: str) -> str:
    """How many entries lie in a folder, and a sum over inode, size, times and mode of each.

    Whoever writes to one, or changes anything about it, moves its ctime, which nobody can set back.
    """
    count = inodes = sizes = changed = moved = modes = 0
    waiting = [folder]
    while waiting:
        above = waiting.pop()
        handle = os.open(above, FLAGS)  # a look-up from it is shorter than from the root
        try:
            with os.scandir(handle) as found:
                for entry in found:
                    state = entry.stat(follow_symlinks=False)
                    count += 1
                    inodes += state.st_ino
                    sizes += state.st_size
                    changed += state.st_mtime_ns
                    moved += state.st_ctime_ns
                    modes += state.st_mode
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{above}/{entry.name}")
        finally:
            os.close(handle)
    return f"{count} {inodes + 3 * sizes + 5 * changed + 7 * moved + 11 * modes & WHOLE:016x}\n"


def name_of(digest: str) -> str:
    """The name of a digest's folder since this machine was started."""
    with open("/proc/sys/kernel/random/boot_id", "rb", buffering=0) as file:
        return f"{digest}-{FORM}-{file.read(8).decode()}"


def location() -> str:
    """Where the cache of this user lies."""
    return stamp.cache_location()


def _touch(folder: str) -> None:
    """Note once an hour that it is used, for those who remove what nobody uses."""
    import time

    if abs(time.time() - os.lstat(folder).st_ctime) > HOUR:
        from imagekit import store

        store.touch(folder)


def _seen(folder: str) -> tuple[str, bool]:
    """What a root looks like now, and whether it is an image."""
    try:
        state = os.lstat(f"{folder}/image")
        total = state.st_ino + 3 * state.st_size + 5 * state.st_mtime_ns + 7 * state.st_ctime_ns + 11 * state.st_mode
        return f"1 {total & WHOLE:016x}\n", True
    except FileNotFoundError:
        return summary(f"{folder}/root"), False


def _note(folder: str) -> str:
    with open(f"{folder}/note", "rb", buffering=0) as file:
        return file.read(100).decode("ascii", "replace")


def _make(base: str, digest: str, fill: "Callable[[str], None]") -> None:
    name = name_of(digest)
    draft = f"{name}.{os.getpid()}{DRAFT}"
    handles: list[int] = []
    try:
        _begin(base, digest, draft, handles)
        fill(f"{base}/{draft}")
        with open(f"{base}/{draft}/note", "x") as file:
            file.write(_seen(f"{base}/{draft}")[0])
        os.rename(f"{base}/{draft}", f"{base}/{name}")
    finally:
        for handle in handles:
            os.close(handle)
        if handles:  # it is ours
            _remove(base, draft)


def _begin(base: str, digest: str, draft: str, handles: list[int]) -> None:
    """Sweep, and make a locked draft, while nobody else does: who sweeps takes one without a lock for abandoned."""
    turn = os.open(base, FLAGS)
    try:
        namespace.lock(turn, namespace.LOCK_EX)
        sweep(base, digest)
        os.mkdir(f"{base}/{draft}", 0o700)
        handles.append(os.open(f"{base}/{draft}", FLAGS))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handles.append(os.open(f"{base}/{draft}/{LOCK}", flags, 0o600))
        for handle in handles:
            namespace.lock(handle, namespace.LOCK_EX)
    finally:
        os.close(turn)
