"""Files that have no package's form, laid out below a folder of the image and kept as a package.

Whatever they are read from, they belong to root, and nobody else may change them; a file is never setuid.
"""

from collections.abc import Mapping
from typing import NamedTuple

from imagekit import kept
from imagekit.errors import Problem
from imagekit.image import path_of
from imagekit.package import Package, Pin
from imagekit.sources import _beside
from imagekit.sources._deb import MERGED
from imagekit.store import Store
from imagekit.tree import Entry, Tree

NOTE = "placed-package"
FORM = "1"  # raise it when a conversion changes: old notes are then not found
MODES = 0o755  # what is kept of a mode


class Laid(NamedTuple):
    """Rows by path below the package's own root, and the object with their bytes."""

    rows: Mapping[str, kept.Row]
    blob: str
    notes: tuple[str, ...] = ()


def load(pin: Pin, store: Store) -> Package | None:
    """The package of a pin as it was once laid out, or None if it must be (again)."""
    columns = kept.load(NOTE, _beside.key(FORM, pin), store)
    return kept.package(columns, store) if columns else None


def keep(laid: Laid, pin: Pin, store: Store, *, licence: str = "", owner: str = "") -> Package:
    """The package of a pin, kept in the store: its rows below the pin's prefix."""
    rows = below(laid.rows, _beside.prefix(_beside.split(pin)[1]))
    columns: kept.Columns = {"object": laid.blob, "notes": list(laid.notes), "digest": "", "licence": licence}
    columns["owner"] = owner or pin.name
    columns |= {"name": pin.name, "version": pin.version, "architecture": pin.architecture}
    columns |= {"source": pin.name, "source_version": pin.version} | kept.columns(kept.finish(rows))
    columns["digest"] = kept.package(columns, store).tree.digest
    kept.remember(NOTE, _beside.key(FORM, pin), columns, store)
    return kept.package(columns, store)


def below(rows: Mapping[str, kept.Row], prefix: str) -> dict[str, kept.Row]:
    """The rows below a folder of the image, whose /bin and /lib are links into /usr."""
    found: dict[str, kept.Row] = {}
    for path, row in rows.items():
        new = path_of(prefix + path)
        if new in MERGED and row[0] == "symlink" and not (prefix + path).startswith("/usr/"):
            continue  # whoever lays out the root makes it
        moved = (*row[:6], path_of(prefix + row[6]), row[7]) if row[0] == "hardlink" else row
        if found.setdefault(new, moved)[:7] != moved[:7]:
            raise Problem(f"it holds {new} twice, and the two differ")
    kept.check_parents(found)
    return found


def digest(rows: Mapping[str, kept.Row]) -> str:
    """The digest of the rows as a tree, wherever it will be laid."""
    return Tree({path: Entry(*row[:7]) for path, row in rows.items()}).digest


def row(kind: str, mode: int, *, size: int = 0, sha256: str = "", target: str = "", offset: int = 0) -> kept.Row:
    """A row of root's; of the mode is kept what lets nobody else write."""
    return (kind, 0o777 if kind == "symlink" else mode & MODES, 0, 0, size, sha256, target, offset)
