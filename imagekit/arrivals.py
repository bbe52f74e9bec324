"""Images on their way here: from addresses, and tars that nobody signed (docker export, tar czf)."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from imagekit import inuse, roots
from imagekit import unpack as unpacking
from imagekit.disk import inflate, newtree
from imagekit.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Sequence

    from imagekit.key import Key

PIECE = 1 << 20
_Place = TypeVar("_Place")
MAGIC = slice(257, 262)  # of a tar


def name_of(image: str) -> str:
    """What an image is called, however it was named."""
    return image.rstrip("/").rpartition("/")[2]


def here(image: str, keys: "Sequence[Key] | None") -> Path:
    """Where the image behind an address lies now: verified, or in a file without a name that ends with this process."""
    from imagekit import progress, remote  # which load what speaks TLS

    cache = roots.location()
    if reason := roots.usable(cache):
        raise Problem(f"an image cannot be fetched: {reason}", "name a folder of yours in IMAGEKIT_CACHE")
    os.makedirs(cache, mode=0o700, exist_ok=True)  # noqa: PTH103
    inuse.enter(Path(cache))
    columns = os.get_terminal_size(2).columns if sys.stderr.isatty() else 0
    lines = progress.Lines(lambda text: print(text, end="", file=sys.stderr, flush=True), columns=columns)
    try:
        if keys is not None:
            return remote.fetch(image, keys, cache=Path(cache), say=lines.say)
        return Path(f"/proc/self/fd/{remote.unverified(image, cache=Path(cache), say=lines.say)}")
    finally:
        lines.clear()


def dropping(use: Callable[[_Place], None], copy: Path) -> Callable[[_Place], None]:
    """The same use of a fetched copy, which is fetched again the next time if it turns out not to be as it was."""

    def used(place: _Place) -> None:
        try:
            use(place)
        except Problem as problem:
            copy.unlink(missing_ok=True)
            raise Problem(problem.message, "its copy was removed: run it again, and it is fetched again") from problem

    return used


def is_plain(path: Path) -> bool:
    """Whether a file is a tar or a tar.gz."""
    with open(path, "rb") as file:
        head = file.read(MAGIC.stop)
    return head.startswith(inflate.GZIP) or head[MAGIC] == b"ustar"


def unpack_plain(path: Path, into: str) -> dict[str, int]:
    """Unpack a tar or tar.gz of a stranger; what of it was left out."""
    pieces = inflate.ahead(inflate.plain(_pieces(path)))
    return unpacking.unpack(pieces, into, policy=newtree.FOREIGN, durable=False).left_out


def _pieces(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(PIECE):
            yield piece
