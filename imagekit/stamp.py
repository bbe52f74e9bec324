"""Nothing changed? A note of the files that a command read and wrote, asked before anything else is imported.

A stamp holds the identity of each file as stat(2) gives it (size, times, inode), as git's index and ninja do; the
content decides again whenever an identity differs. It is plain lines, read with os alone, because reading it is the
whole of a no-op build: json, re and hashlib would double its time, and zlib's CRC take longer than this one sum.
"""

import os

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

PRIME = (1 << 61) - 1  # the remainder of a text, as a number, by it names the text's stamp; the stamp holds the text
TICK_NS = 20_000_000  # a file changed this shortly before it was read may change again within its time stamp's grain


def cache_location() -> str:
    """IMAGEKIT_CACHE, else imagekit/ in the XDG cache folder (XDG Base Directory Specification 0.8)."""
    own = os.environ.get("IMAGEKIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - see above
    return os.path.abspath(own or f"{base}/imagekit")  # noqa: PTH100


def unchanged(command: "Sequence[str]") -> list[str] | None:
    """What the command said when it was last run here, if no file that it read or wrote has changed since."""
    asked = _asked(command)
    try:
        with open(_path(asked), encoding="utf-8", errors="surrogateescape") as file:
            first, *lines = file.read().split("\n")
    except OSError:
        return None
    if first != asked:
        return None
    said = []
    for line in lines:
        kind, _, rest = line.partition(" ")
        if kind == "said":
            said.append(rest)
        elif kind == "file":
            identity, _, name = rest.partition(" ")
            if identity != _identity(name):
                return None
    return said if said and lines[-1] == "end" else None


def record(
    command: "Sequence[str]", *, read: "Iterable[str]", wrote: "Iterable[str]", said: "Sequence[str]", started_ns: int
) -> None:
    """Remember a command that succeeded; not when a file that it read changed while it ran, or just before."""
    inputs = {name: _identity(name) for name in sorted(set(read))}
    if not all(identity and _modified_ns(identity) < started_ns - TICK_NS for identity in inputs.values()):
        return
    files = inputs | {name: _identity(name) for name in sorted(set(wrote))}
    if any("\n" in name for name in files):
        return
    asked = _asked(command)
    body = [f"file {identity} {name}" for name, identity in files.items()] + [f"said {line}" for line in said]
    path = _path(asked)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)  # noqa: PTH103, PTH120
    draft = f"{path}.{os.getpid()}"
    with open(draft, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join([asked, *body, "end"]))
    os.replace(draft, path)  # noqa: PTH105


def _asked(command: "Sequence[str]") -> str:
    """The folder, the command and what the environment may decide, in one line."""
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith(("IMAGEKIT_", "XDG_", "HOME")))
    return repr((os.getcwd(), list(command), settings))  # noqa: PTH109


def _path(asked: str) -> str:
    number = int.from_bytes(asked.encode("utf-8", "surrogateescape"), "big") % PRIME
    return f"{cache_location()}/stamps/{number:016x}"


def _identity(name: str) -> str:
    """Size, modification time, change time and inode; empty for a file that is not there."""
    try:
        found = os.stat(name)  # noqa: PTH116
    except OSError:
        return ""
    return f"{found.st_size},{found.st_mtime_ns},{found.st_ctime_ns},{found.st_ino}"


def _modified_ns(identity: str) -> int:
    return int(identity.split(",")[1])
