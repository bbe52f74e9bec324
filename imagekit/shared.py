"""Objects of a cache that others fill: taken by their digest, never written to, and never trusted.

Who uses them copies while hashing, and uses only the copy. Its notes are not looked at: they would have to be believed.
"""

import errno
import os
import stat
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from imagekit import host, options

OPTION = "shared-cache"
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MOST = 1 << 30  # bytes of an object: what is read is in memory
START, SLOWEST = 5.0, 1 << 20  # seconds for an object and bytes in each more: it may lie on anybody's file system
STRIKES = 3  # bad objects after which no more are asked for: each costs time
CHUNK = 1 << 20


class Refused(Exception):
    """Why an object is not used."""


@dataclass(frozen=True)
class Shared:
    """A cache of others."""

    folder: Path
    faults: list[str] = field(default_factory=list)

    def chunks(self, digest: str) -> Generator[bytes]:
        """The bytes that lie under a digest, whatever they are. Raises Refused, or KeyError where there are none."""
        if len(self.faults) >= STRIKES:
            raise KeyError(digest)
        with ExitStack() as own:
            try:
                handle = self._open(digest, own)
                yield from _read(handle)
            except OSError as error:
                if error.errno == errno.ENOENT:
                    raise KeyError(digest) from None
                raise Refused(f"cannot be read: {error.strerror}") from error

    def refuse(self, digest: str, why: str) -> None:
        """Say what was wrong with an object; no more is asked for when it was one of several."""
        self.faults.append(digest)
        end = "; nothing more is taken from there" if len(self.faults) == STRIKES else ""
        _tell(f"the shared cache {self.folder}: objects/{digest[:2]}/{digest} {why}: it is not used{end}")

    def _open(self, digest: str, own: ExitStack) -> int:
        """A file that is one: looked at before it is opened, as opening a device or a pipe may have effects."""
        handle = os.open(self.folder, FOLDER & ~os.O_NOFOLLOW)
        own.callback(os.close, handle)
        for name in ("objects", digest[:2]):
            handle = os.open(name, FOLDER, dir_fd=handle)
            own.callback(os.close, handle)
        place = os.open(digest, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
        own.callback(os.close, place)
        found = os.fstat(place)
        if not stat.S_ISREG(found.st_mode):
            raise Refused("is no file")
        if found.st_size > MOST:
            raise Refused(f"has {found.st_size} bytes, more than any object that is read")
        file = os.open(f"/proc/self/fd/{place}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        own.callback(os.close, file)
        return file


def find(own: Path) -> Shared | None:
    """The shared cache that was named, if one was: not our own."""
    given = options.lookup(OPTION)
    if not given:
        return None
    folder = Path(str(given)).expanduser().absolute()
    with suppress(OSError):
        if folder.samefile(own):
            return None
    found = Shared(folder)
    try:
        os.close(os.open(folder / "objects", FOLDER))
    except OSError as error:
        _tell(f"the shared cache {folder} is not used: objects: {error.strerror}")
        return None
    return found


def _read(handle: int) -> Iterator[bytes]:
    """To the end of the file, which somebody may be moving away."""
    began, size = time.monotonic(), 0
    while chunk := os.read(handle, CHUNK):
        size += len(chunk)
        if size > MOST:
            raise Refused("grows while it is read")
        if time.monotonic() > began + START + size / SLOWEST:
            raise Refused("takes too long to be read")
        yield chunk


def _tell(line: str) -> None:
    import sys

    print(f"imagekit: {host.printable(line.encode('utf-8', 'surrogateescape'))}", file=sys.stderr, flush=True)
