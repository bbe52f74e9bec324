"""Care of a cache: what lies in it, and whether it is still what was put there.

Nothing here is needed for a build to be right, since every object is hashed when it is read into use; this is for those
who want to know before that, and for those who wonder where the disk went.
"""

import errno
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

from imagekit.stores import directory

CHUNK = 1 << 20
FILES = ("objects", "notes", "stamps", "locks", "bad")  # each file in these is a thing; elsewhere each entry is
MANIFEST = ".manifest.json"
NOTE_HEAD = 65  # a note is its sha256, a line end, and its bytes


@dataclass(frozen=True)
class Kind:
    """What a cache has of one kind: a folder of it."""

    name: str
    count: int
    bytes: int  # on the disk; a file that an artifact shares with an object is counted as the object's
    oldest: float  # mtime; 0.0 where there is nothing


@dataclass(frozen=True)
class Fault:
    """Something in a cache that is not as it was put there, and what became of it."""

    path: str  # below the cache
    why: str
    is_aside: bool = False

    def __str__(self) -> str:
        return f"{self.path}: {self.why}" + ("; set aside in bad/" if self.is_aside else "")


def kinds(root: Path) -> list[Kind]:
    """Every kind of thing in a cache, the largest first; bytes that two names share are counted once."""
    seen: set[tuple[int, int]] = set()
    folders = [entry.name for entry in _entries(root) if entry.is_dir(follow_symlinks=False)]
    found = [_kind(root / name, seen) for name in sorted(folders, key=lambda name: (name != "objects", name))]
    return sorted(found, key=lambda kind: (-kind.bytes, kind.name))


def images(root: Path) -> list[Kind]:
    """The artifacts of each image that a cache has, the largest first; what two of one image share counts once."""
    folders: dict[str, list[Path]] = {}
    for entry in _entries(root / "artifacts"):
        if entry.is_dir(follow_symlinks=False) and not entry.name.startswith("."):
            folders.setdefault(_image(Path(entry.path)), []).append(Path(entry.path))
    found = []
    for name, places in folders.items():
        seen: set[tuple[int, int]] = set()
        size = sum(_used(state, seen) for place in places for _, state in _files(place))
        found.append(Kind(name, len(places), size, min(map(_mtime, places))))
    return sorted(found, key=lambda kind: (-kind.bytes, kind.name))


def verify(root: Path, *, say: Callable[[str], None] = lambda _: None) -> tuple[int, list[Fault]]:
    """How many objects and notes were hashed, and everything that is wrong; bad objects and notes are set aside."""
    objects, notes = list(_files(root / "objects")), list(_files(root / "notes"))
    work = [(path, state, _object_fault) for path, state in objects] + [(p, s, _note_fault) for p, s in notes]
    say(f"hashing {len(objects)} objects and {len(notes)} notes")

    def look(row: tuple[Path, os.stat_result, Callable[[Path], str]]) -> Fault | None:
        path, state, fault = row
        try:
            why = fault(path) if stat.S_ISREG(state.st_mode) else f"is a {_type(state)}, not a file"
        except FileNotFoundError:
            return None  # another process replaced it or set it aside meanwhile
        except OSError as error:
            return Fault(_below(path, root), f"cannot be read: {error.strerror}")
        if not why:
            return None
        directory.set_aside(path, root)
        return Fault(_below(path, root), why, is_aside=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing lets go of Python's lock
        faults = [fault for fault in pool.map(look, work) if fault]
    return len(work), faults + list(_strangers(root))


def _object_fault(path: Path) -> str:
    found = _digest(path)
    return "" if found == path.name else f"its bytes hash to {found}"


def _note_fault(path: Path) -> str:
    with _opened(path) as file:
        head = file.read(NOTE_HEAD)
        total = sha256()
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return "" if head == total.hexdigest().encode() + b"\n" else "it is torn: its bytes are not those of its first line"


def _digest(path: Path) -> str:
    total = sha256()
    with _opened(path) as file:
        while chunk := file.read(CHUNK):
            total.update(chunk)
    return total.hexdigest()


def _opened(path: Path) -> BinaryIO:
    """The file that was looked at before; not what may have taken its name since, which may have no end."""
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.ESTALE, "it is another file than a moment ago", str(path))
    return file


def _strangers(root: Path) -> Iterator[Fault]:
    """What others own or can write to, of the places that a build reads."""
    for folder in ("objects", "notes", "artifacts", "templates", "stamps"):
        for path, state in ((root / folder, None), *_files(root / folder, folders=True)):
            with suppress(FileNotFoundError):
                state = state or path.lstat()
                if state.st_uid != os.getuid():
                    yield Fault(_below(path, root), f"belongs to user {state.st_uid}, not to you")
                elif state.st_mode & 0o022 and not stat.S_ISLNK(state.st_mode):
                    yield Fault(_below(path, root), f"others can write to it (mode {stat.S_IMODE(state.st_mode):04o})")


def _kind(folder: Path, seen: set[tuple[int, int]]) -> Kind:
    size, files, oldest = 0, 0, 0.0
    for _, state in _files(folder):
        size, files = size + _used(state, seen), files + 1
        oldest = min(oldest or state.st_mtime, state.st_mtime)
    return Kind(folder.name, files if folder.name in FILES else len(list(_entries(folder))), size, oldest)


def _image(artifact: Path) -> str:
    """By its manifest's name, NAME_VERSION_ARCH.FORMAT; the manifest itself may be anybody's by now."""
    names = [entry.name for entry in _entries(artifact) if entry.name.endswith(MANIFEST)]
    return names[0].partition("_")[0] if names else "(no manifest)"


def _files(folder: Path, *, folders: bool = False) -> Iterator[tuple[Path, os.stat_result]]:
    """Everything in a folder and below it that is no folder, or also those; links are not followed."""
    for entry in _entries(folder):
        with suppress(FileNotFoundError):
            state = entry.stat(follow_symlinks=False)
            if folders or not stat.S_ISDIR(state.st_mode):
                yield Path(entry.path), state
            if stat.S_ISDIR(state.st_mode):
                yield from _files(Path(entry.path), folders=folders)


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # gone meanwhile, or another user's, which _strangers tells of


def _used(state: os.stat_result, seen: set[tuple[int, int]]) -> int:
    inode = (state.st_dev, state.st_ino)
    if inode in seen:
        return 0
    seen.add(inode)
    return state.st_blocks * 512  # stat(2): in units of 512 bytes, whatever the file system's block


def _mtime(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0


def _type(state: os.stat_result) -> str:
    names = {stat.S_IFLNK: "symbolic link", stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(state.st_mode), "device")


def _below(path: Path, root: Path) -> str:
    return str(path.relative_to(root))
