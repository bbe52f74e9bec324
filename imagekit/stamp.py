"""Nothing changed? A note of the files that a command read and wrote, asked before anything else is imported.

A stamp holds the identity of each file as stat(2) gives it (size, times, inode), as git's index and ninja do. The
content decides again whenever an identity differs. Kept in os and json alone: this is the whole of a no-op build.
"""

import json
import os
from collections.abc import Iterable, Sequence

TICK_NS = 20_000_000  # a file changed this shortly before it was read may change again within its time stamp's grain


def cache_location() -> str:
    """IMAGEKIT_CACHE, else imagekit/ in the XDG cache folder (XDG Base Directory Specification 0.8)."""
    own = os.environ.get("IMAGEKIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")  # noqa: PTH111, PTH118
    return os.path.abspath(own or f"{base}/imagekit")  # noqa: PTH100 - pathlib would double the time of a no-op


def unchanged(command: Sequence[str]) -> list[str] | None:
    """What the command said when it was last run here, if no file that it read or wrote has changed since."""
    try:
        with open(_path(command), "rb") as file:
            stamp = json.load(file)
        for name, identity in stamp["files"]:
            if _identity(name) != identity:
                return None
        return [str(line) for line in stamp["said"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def record(
    command: Sequence[str], *, read: Iterable[str], wrote: Iterable[str], said: Sequence[str], started_ns: int
) -> None:
    """Remember a command that succeeded; not when a file that it read changed while it ran, or just before."""
    inputs = [(name, _identity(name)) for name in sorted(set(read))]
    outputs = [(name, _identity(name)) for name in sorted(set(wrote))]
    if any(identity is None or identity[1] > started_ns - TICK_NS for _, identity in inputs):
        return
    path = _path(command)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    draft = f"{path}.{os.getpid()}"
    with open(draft, "w") as file:
        json.dump({"files": inputs + outputs, "said": list(said)}, file)
    os.replace(draft, path)  # noqa: PTH105


def _path(command: Sequence[str]) -> str:
    """One stamp per folder, command and environment: whatever the environment may decide belongs to the name."""
    from hashlib import sha256

    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith(("IMAGEKIT_", "XDG_")))
    name = sha256(repr((os.getcwd(), list(command), settings)).encode()).hexdigest()  # noqa: PTH109
    return f"{cache_location()}/stamps/{name}"


def _identity(name: str) -> list[int] | None:
    """[size, modification time, change time, inode]; None for a file that is not there."""
    try:
        found = os.stat(name)  # noqa: PTH116
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
