"""Convert: the disk of one container in another, byte by byte what a build would have written for the same disk."""

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imagekit import host
from imagekit.disk import containers
from imagekit.disk.sparse import is_zeros
from imagekit.errors import Problem, unknown

HOLE = 1 << 16  # bytes of zeros from which on they are left out of a file


class Converted(NamedTuple):
    """What was read, and what was written."""

    source: str  # kind of container
    kind: str
    disk: int  # bytes of the disk that was read
    size: int  # bytes of the file that was written
    sha256: str


def convert(source: Path, final: Path, *, kind: str = "", say: Callable[[str], None]) -> Converted:
    """Write the disk that lies in the file `source` to `final`, in a container of this kind, or of the name's.

    The source is known by its content. `final` takes its name when it is complete.
    """
    kind = kind or kind_of_name(final.name)
    if kind not in containers.KINDS:
        raise unknown("format of disks", kind, sorted(containers.KINDS))
    folder = final.absolute().parent
    with containers.opened(source, folder=folder) as (found, disk), host.draft(final) as file:
        total = sha256()
        for chunk in _told(containers.KINDS[kind].write(disk, folder), f"{final.name}: {kind}", say):
            total.update(chunk)
            _put(file, chunk)
        file.truncate()
        return Converted(found, kind, disk.size, file.tell(), total.hexdigest())


def kind_of_name(name: str) -> str:
    """The kind of container whose suffix the name of a file has."""
    found = [(suffix, kind) for kind, one in containers.KINDS.items() for suffix in one.suffixes]
    fitting = [(len(suffix), kind) for suffix, kind in found if name.endswith(suffix)]
    if not fitting:
        raise Problem(f"{name}: no format of disks has files of such a name", f"--format: {containers.NAMES}")
    return max(fitting)[1]


def _told(chunks: Iterable[bytes], what: str, say: Callable[[str], None]) -> Iterator[bytes]:
    """The same chunks, with a progress line for each 256 MiB."""
    done = 0
    for chunk in chunks:
        yield chunk
        if done >> 28 != done + len(chunk) >> 28:
            say(f"{what}: {done + len(chunk) >> 20} MiB")
        done += len(chunk)


def _put(file: BinaryIO, chunk: bytes) -> None:
    if len(chunk) >= HOLE and is_zeros(chunk):
        file.seek(len(chunk), 1)
    else:
        file.write(chunk)
