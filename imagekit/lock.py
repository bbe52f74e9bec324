"""Lock: what an image is made of, exactly; a text file beside the definition, written only by `imagekit lock`.

A lock is read by people in reviews and by every build, so it is lines of words: one package a line, grouped by
architecture, the last line a digest of all above it. It names paths relative to a mirror, never a mirror: the same
lock works behind every one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from imagekit.errors import Problem
from imagekit.package import URL, Archive, Pin

HEADER = (
    "# Written by `imagekit lock`; do not edit. "
    "A package a line: role source name version architecture size sha256 archive path"
)
WRITE_IT = "write it with `imagekit lock {definition}`"


@dataclass(frozen=True)
class Lock:
    """The pins of an image for each of its architectures."""

    request: str  # digest of what the definition asked for; a lock is behind when this differs
    archives: tuple[Archive, ...]
    pins: Mapping[str, tuple[Pin, ...]]  # architecture -> pins

    @property
    def digest(self) -> str:
        """sha256 of the text, less its last line."""
        return sha256(self._body().encode()).hexdigest()

    def text(self) -> str:
        """The lock as it is written to its file."""
        return f"{self._body()}digest {self.digest}\n"

    def _body(self) -> str:
        lines = [HEADER, "imagekit-lock 1", f"request {self.request}"]
        lines += ["archive " + " ".join(archive) for archive in self.archives]
        for arch in sorted(self.pins):
            lines.append(f"[{arch}]")
            lines += [" ".join(map(str, pin)) for pin in sorted(self.pins[arch])]
        return "\n".join(lines) + "\n"


def beside(definition: Path) -> Path:
    """Where the lock of a definition lies: images/web.py -> images/web.lock."""
    return definition.with_suffix(".lock")


def read(path: Path) -> Lock:
    """The lock at `path`; raises Problem when it is missing, malformed or was edited by hand."""
    hint = WRITE_IT.format(definition=path.with_suffix(".py"))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Problem(f"{path} is missing: the image has never been locked", hint) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Problem(f"cannot read {path}: {error}", hint) from error
    body, _, last = text.rstrip("\n").rpartition("\n")
    if last != f"digest {sha256((body + chr(10)).encode()).hexdigest()}":
        raise Problem(f"{path} was edited or cut: its last line is not the digest of what is above it", hint)
    try:
        return _parse(body.splitlines())
    except (ValueError, IndexError, TypeError) as error:
        raise Problem(f"{path} is not a lock that this imagekit reads: {error}", hint) from error


def _parse(lines: list[str]) -> Lock:
    if lines[1] != "imagekit-lock 1":
        raise ValueError(f"it says {lines[1]!r}")
    request, archives = lines[2].split()[1], []
    pins: dict[str, tuple[Pin, ...]] = {}
    arch = ""
    for line in lines[3:]:
        if line.startswith("archive "):
            archives.append(Archive(*line.split(" ")[1:]))
        elif line.startswith("["):
            arch = line.strip("[]")
            if arch in pins:
                raise ValueError(f"{arch} is given twice")
            pins[arch] = ()
        elif not arch:
            raise ValueError("a package stands before any architecture")
        else:
            pins[arch] += (_pin(line),)
    return Lock(request, tuple(archives), pins)


def _pin(line: str) -> Pin:
    role, source, name, version, architecture, size, digest, archive, path = line.split(" ")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError(f"{name}: {digest!r} is not a sha256")
    if not size.isdecimal():
        raise ValueError(f"{name}: {size} is no size")
    place = path.partition("#")[0]
    if archive == URL:
        if not place.startswith(("https://", "http://")):
            raise ValueError(f"{name}: {path!r} is no address")
    elif place.startswith("/") or ".." in place.split("/") or "://" in place:
        raise ValueError(f"{name}: {path!r} is not a path below a mirror")
    return Pin(role, source, name, version, architecture, int(size), digest, archive, path)
