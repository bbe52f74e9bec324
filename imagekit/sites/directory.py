"""A directory of this machine (or of a share that is mounted here)."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

from imagekit import host
from imagekit.errors import RigProblem
from imagekit.site import Beat, Blob, Missing, Site
from imagekit.store import Store

DRAFTS = ".drafts"  # hidden names are served to nobody
LOCK = "publishing"


def open_site(place: str) -> Site:
    """The depot in a directory; it is made when something is written to it."""
    root = Path(place).absolute()
    return Site(
        place=str(root),
        read=partial(_read, root),
        bring=partial(_bring, root),
        lacks=lambda sizes: [path for path, size in sizes.items() if _size(root / path) != size],
        write=partial(_write, root),
        settle=partial(_settle, root),
        lock=partial(_lock, root),
    )


def _read(root: Path, path: str, limit: int) -> bytes:
    """A regular file, and no more of it than may be there; nobody waits for a pipe."""
    try:
        handle = os.open(root / path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise RigProblem(f"{root / path} is no file")
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise Missing(f"{path} is not in {root}") from None
    except OSError as error:
        raise RigProblem(f"cannot read {root / path}: {error.strerror}") from error
    if len(data) > limit:
        raise RigProblem(f"{root / path} is larger than the {limit} bytes that it may have")
    return data


def _bring(root: Path, blobs: Sequence[Blob], store: Store, beat: Beat, until: float) -> None:
    _ = until  # a file system does not drip
    for blob in blobs:
        data = _read(root, blob.path, blob.size)
        if len(data) != blob.size or sha256(data).hexdigest() != blob.digest:
            raise RigProblem(f"{root / blob.path} has {len(data)} bytes that are not those which it is named after")
        store.write([data])
        beat(len(data))


def _size(path: Path) -> int:
    """Of a file; -1 where there is none. A power cut leaves files that are too short, which shall be written again."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _write(root: Path, files: Sequence[tuple[str, bytes]]) -> None:
    try:
        drafts = root / DRAFTS
        drafts.mkdir(parents=True, exist_ok=True)
        for path, data in files:
            _put(drafts / f"{os.getpid()}-{os.urandom(8).hex()}", root / path, data)
    except OSError as error:
        raise RigProblem(f"cannot write to {root}: {error.strerror}", "make room, or publish elsewhere") from error


def _put(draft: Path, final: Path, data: bytes) -> None:
    """One file, under its name when it is whole and its bytes are on their way to the disk."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with host.open_draft(draft) as file:
        try:
            file.write(data)
            file.flush()
            if final.exists():  # or a power cut may leave neither the old nor the new one
                os.fsync(file.fileno())
            draft.replace(final)
        finally:
            draft.unlink(missing_ok=True)


def _settle(root: Path) -> None:
    """Wait until the file system has written all: one wait for thousands of blobs (syncfs(2))."""
    import ctypes

    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(handle):
            raise RigProblem(f"cannot write to {root}: {os.strerror(ctypes.get_errno())}", "the disk may be failing")
    finally:
        os.close(handle)


@contextmanager
def _lock(root: Path) -> Iterator[None]:
    """Alone among publishers; what killed ones left is removed."""
    try:
        (root / DRAFTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RigProblem(f"cannot write to {root}: {error.strerror}", "publish elsewhere") from error
    with host.once(root / DRAFTS, LOCK):
        with suppress(FileNotFoundError):
            for path in (root / DRAFTS).iterdir():
                if not path.name.startswith(LOCK):
                    host.remove_abandoned(path)
        yield


SITE = open_site
