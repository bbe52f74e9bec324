"""The packages of a suite: its Packages file boiled down to lines, one a package, and kept in the store.

A line holds what resolving needs, between tabs; it becomes a Candidate only when somebody asks for its name, because
of the sixty thousand packages of a suite an image wants dozens.
"""

import lzma
import re
from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import NamedTuple

from imagekit.errors import RigProblem
from imagekit.sources import _version
from imagekit.store import Store

NOTE = "debian-index"
FORM = "1"  # raise it when the lines change
MAX_TEXT = 1 << 30
FIELDS = (
    *("Package", "Version", "Architecture", "Size", "SHA256", "Filename", "Pre-Depends", "Depends", "Provides"),
    *("Conflicts", "Breaks", "Essential", "Priority"),
)
_PLACES = {field: place for place, field in enumerate(FIELDS)}
_PROVIDES = _PLACES["Provides"]
_FOLD = re.compile(r"\n[ \t]+")
_ONE = re.compile(
    r"([a-z0-9][a-z0-9+.-]*)(?::[a-z0-9-]+)?\s*(?:\(\s*(<<|<=|=|>=|>>|<|>)\s*([0-9A-Za-z.+:~-]+)\s*\))?\s*(?:\[[^\]]*\])?\Z"
)
_SANE = {
    "Version": re.compile(r"[0-9A-Za-z][0-9A-Za-z.+:~-]*\Z"),
    "Size": re.compile(r"[1-9][0-9]{0,11}\Z"),
    "SHA256": re.compile(r"[0-9a-f]{64}\Z"),
    "Filename": re.compile(r"(?!/)(?!(?:.*/)?\.\.?(?:/|\Z))[!-~]+\Z"),
}


class Relation(NamedTuple):
    """One alternative of a dependency: a name, perhaps with a bound on its version."""

    name: str
    operator: str  # "" for none
    version: str

    def __str__(self) -> str:
        return f"{self.name} ({self.operator} {self.version})" if self.operator else self.name


class Candidate(NamedTuple):
    """A package that could be taken."""

    name: str
    version: str
    architecture: str
    size: int
    sha256: str
    path: str
    depends: str  # Pre-Depends first
    provides: str
    conflicts: str  # and Breaks: for a set that is chosen at once the two are the same
    is_essential: bool
    priority: str
    archive: str  # the name of the archive that holds it


class Index(NamedTuple):
    """The packages of one suite and architecture, by name, and who provides what."""

    archive: str
    lines: dict[str, tuple[str, ...]]
    providers: dict[str, tuple[str, ...]]  # virtual name -> names of packages

    def candidates(self, name: str) -> Iterator[Candidate]:
        """Every version of a package that the suite has."""
        for line in self.lines.get(name, ()):
            yield _candidate(line, self.archive)


def load(digest: str, archive: str, store: Store) -> Index | None:
    """The index of the Packages.xz with this sha256, if it was ever made."""
    note = store.recall(NOTE, f"{digest}-{FORM}")
    try:
        import zstandard

        packed = store.read((note or b"").decode("ascii", "replace"))
        return _index(zstandard.ZstdDecompressor().decompress(packed).decode(), archive)
    except KeyError:
        return None


def make(packed: bytes, archive: str, store: Store) -> Index:
    """The index in these verified bytes of a Packages.xz, kept in the store."""
    import zstandard

    text = _unpacked(packed).decode("utf-8", "replace")
    condensed = "\n".join(_lines(text))
    kept = store.write([zstandard.ZstdCompressor(level=1).compress(condensed.encode())])
    store.remember(NOTE, f"{sha256(packed).hexdigest()}-{FORM}", kept.encode())
    return _index(condensed, archive)


def relations(text: str) -> tuple[tuple[Relation, ...], ...]:
    """A relationship field: every group must be met, by any one of its alternatives (deb-control(5))."""
    return tuple(tuple(map(_relation, group.split("|"))) for group in text.split(",") if group.strip())


def _relation(text: str) -> Relation:
    match = _ONE.match(text.strip())
    if not match:
        raise RigProblem(
            f"the package index has the relation {text.strip()[:100]!a}", "the mirror's metadata is broken"
        )
    return Relation(match[1], match[2] or "", match[3] or "")


def _unpacked(packed: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=256 << 20)
    try:
        text = unpacker.decompress(packed, MAX_TEXT)
    except lzma.LZMAError as error:
        raise RigProblem(f"the package index does not unpack: {error}", "the mirror's metadata is broken") from error
    if not unpacker.eof:
        raise RigProblem("the package index is cut, or too large", "the mirror's metadata is broken")
    return text


def _lines(text: str) -> Iterator[str]:
    """A line for each stanza of a Packages file."""
    for stanza in text.split("\n\n"):
        row = [""] * len(FIELDS)
        if "\n " in stanza or "\t" in stanza:
            stanza = _FOLD.sub(" ", stanza).replace("\t", " ")
        for line in stanza.split("\n"):
            field, _, value = line.partition(": ")
            if field in _PLACES:
                row[_PLACES[field]] = value
        if row[0]:
            yield "\t".join(row)


def _index(condensed: str, archive: str) -> Index:
    lines: dict[str, tuple[str, ...]] = {}
    providers: dict[str, list[str]] = {}
    for line in condensed.split("\n"):
        if line:
            name = line[: line.index("\t")]
            lines[name] = (*lines[name], line) if name in lines else (line,)
            if provides := line.split("\t", _PROVIDES + 1)[_PROVIDES]:
                for provided in provides.split(","):
                    providers.setdefault(provided.partition("(")[0].strip().partition(":")[0], []).append(name)
    return Index(archive, lines, {name: tuple(names) for name, names in providers.items()})


def _candidate(line: str, archive: str) -> Candidate:
    row = dict(zip(FIELDS, line.split("\t"), strict=True))
    for field, pattern in _SANE.items():
        if not pattern.match(row[field]):
            raise RigProblem(
                f"the package index gives {row['Package']!a} the {field} {row[field][:100]!a}",
                "the mirror's metadata is broken",
            )
    _version.key(row["Version"])
    return Candidate(
        name=row["Package"],
        version=row["Version"],
        architecture=row["Architecture"],
        size=int(row["Size"]),
        sha256=row["SHA256"],
        path=row["Filename"],
        depends=_joined(row["Pre-Depends"], row["Depends"]),
        provides=row["Provides"],
        conflicts=_joined(row["Conflicts"], row["Breaks"]),
        is_essential=row["Essential"] == "yes",
        priority=row["Priority"],
        archive=archive,
    )


def _joined(*fields: Iterable[str]) -> str:
    return ", ".join(filter(None, map(str, fields)))
