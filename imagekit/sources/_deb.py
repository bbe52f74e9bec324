"""A .deb's bytes as a plain Package: unpacked once into the store, its install scripts read for notes, never run.

The bytes of all files lie in one object of the store, one after another; a note keyed by the .deb's digest holds the
tree (imagekit/kept.py).
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

from imagekit import kept
from imagekit.errors import Problem
from imagekit.image import path_of
from imagekit.package import Package
from imagekit.sources import _copyright, _packed, _tar
from imagekit.store import Store
from imagekit.tree import Slice

NOTE = "debian-package"
FORM = "4"  # raise it when a conversion changes: old notes are then not found
MAX_CONTROL = 8 << 20
COMPRESSED = ("", ".xz", ".gz", ".zst")  # as deb(5) has it
MERGED = ("/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32")
SCRIPTS = ("preinst", "postinst", "triggers")
DEEDS = {  # what a script does that an image must declare: the word of the note, and how the script writes it
    "alternative": r"update-alternatives\s+(?:--quiet\s+)?--install\b.*",
    "user": r"(?:adduser|useradd|systemd-sysusers)\s.*",
    "group": r"(?:addgroup|groupadd)\s.*",
    "mode": r"(?:dpkg-statoverride\s+(?:.*\s)?--add|chmod|chown|setcap)\s.*",
    "unit": r"deb-systemd-helper\s+(?:.*\s)?enable\s.*",
    "trigger": r"(?:activate|activate-noawait|activate-await)\s.*|ldconfig\b.*|dpkg-trigger\s.*",
    "refresh": r"(?:update-ca-certificates|depmod|update-initramfs|fc-cache|update-mime-database)\b.*",
}
_DEED = r"(?m)^[ \t]*(?:if\s+|!\s+|then\s+)*({})"  # compiled when a script is read: a warm build reads none
_SHELL_TAIL = re.compile(r"\s*(?:\d?>|\|\||&&|;|\|).*")


def load(digest: str, store: Store) -> Package | None:
    """The package of the .deb with this sha256 as it was once converted, or None if it must be (again)."""
    columns = kept.load(NOTE, f"{digest}-{FORM}", store)
    return kept.package(columns, store) if columns else None


def convert(data: bytes, digest: str, store: Store) -> Package:
    """The package in these bytes of a .deb, kept in the store; raises Problem for one that is not plain and whole."""
    parts = dict(_ar_members(data))
    if not parts.get("debian-binary", b"").startswith(b"2."):
        raise Problem("it is no Debian package of format 2")
    control = _control(*_only(parts, "control.tar"))
    rows: dict[str, kept.Row] = {}
    blob = store.write(_files(*_only(parts, "data.tar"), rows))
    columns: kept.Columns = {"object": blob, "notes": _deeds(control), "digest": "", "licence": ""}
    columns |= _fields(control.get("control", "")) | kept.columns(kept.finish(rows))
    columns["licence"] = _licence(rows.get(f"/usr/share/doc/{columns['name']}/copyright"), store.path(blob))
    package = kept.package(columns, store)
    columns["digest"] = package.tree.digest
    kept.remember(NOTE, f"{digest}-{FORM}", columns, store)
    return replace(package, digest=columns["digest"])


def depends(data: bytes) -> str:
    """What the package in these bytes says that it cannot do without, "" for nothing; read, not resolved."""
    text = re.sub(r"\n[ \t]", " ", _control(*_only(dict(_ar_members(data)), "control.tar")).get("control", ""))
    found = (line.partition(":") for line in text.splitlines())
    needed = [value.strip() for name, _, value in found if name in ("Pre-Depends", "Depends") and value.strip()]
    return " ".join(", ".join(needed).split())


def _licence(row: kept.Row | None, blob: Path) -> str:
    """What the copyright file states; "" where there is none, or it lies in another package."""
    if row is None or row[0] != "file":
        return ""
    return _copyright.licence(Slice(str(blob), row[7], min(row[4], _copyright.MOST)).read())


def _ar_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Every member of an ar archive (ar(5), the common format); names are unique, or it is no .deb."""
    if data[:8] != b"!<arch>\n":
        raise Problem("it is no ar archive")
    at, seen = 8, set()
    while at < len(data):
        header = data[at : at + 60]
        name, size = header[:16].decode("latin-1").rstrip().removesuffix("/"), header[48:58].rstrip()
        if len(header) < 60 or header[58:] != b"`\n" or not size.isdigit() or name in seen:
            raise Problem(f"its ar header at byte {at} is malformed")
        end = at + 60 + int(size)
        if end > len(data):
            raise Problem(f"its member {name!r} is cut short")
        seen.add(name)
        yield name, data[at + 60 : end]
        at = end + end % 2


def _only(parts: dict[str, bytes], stem: str) -> tuple[str, bytes]:
    found = [name for name in parts if name == stem or name.startswith(stem + ".")]
    if len(found) != 1:
        raise Problem(f"it has {len(found)} members {stem}, not one")
    return found[0], parts[found[0]]


def _unpacked(name: str, packed: bytes) -> Iterator[bytes]:
    """The bytes in a compressed member, piece by piece; raises Problem for a cut or broken one."""
    suffix = name[name.index(".tar") + 4 :]
    if suffix not in COMPRESSED:
        raise Problem(f"its member {name!r} is compressed in a way that is not read", f"known: {', '.join(COMPRESSED)}")
    return _packed.KINDS[suffix](packed)


def _control(name: str, packed: bytes) -> dict[str, str]:
    """The texts of the control archive by name."""
    stream = _tar.Stream(_unpacked(name, packed))
    texts: dict[str, str] = {}
    for member in _tar.members(stream):
        if member.kind == "file":
            if member.size > MAX_CONTROL:
                raise Problem(f"its control file {member.name!r} has {member.size} bytes")
            texts[member.name] = b"".join(_tar.file_bytes(stream, member.size)).decode("utf-8", "replace")
    return texts


def _fields(control: str) -> dict[str, str]:
    """What a control file says of name, version, architecture and source (deb-control(5))."""
    pairs = (line.partition(":") for line in control.splitlines() if line[:1] not in (" ", "\t", "#", ""))
    fields = {name: value.strip() for name, _, value in pairs}
    for name in ("Package", "Version", "Architecture"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+.:~-]*", fields.get(name, "")):
            raise Problem(f"its control file has the {name} {fields.get(name)!r}")
    about = {name.lower(): fields[name] for name in ("Version", "Architecture")}
    source, _, version = fields.get("Source", fields["Package"]).partition(" ")  # "nginx (1.22.1-9)" where it differs
    version = version.strip("() ") or fields["Version"]
    for name, value in (("source", source), ("source's version", version)):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9+.:~-]*", value):
            raise Problem(f"its control file has the {name} {value!r}")
    return {"name": fields["Package"], "source": source, "source_version": version, **about}


def _files(name: str, packed: bytes, rows: dict[str, kept.Row]) -> Iterator[memoryview]:
    """The bytes of every file, one after another, while `rows` fills with where each lies."""
    stream = _tar.Stream(_unpacked(name, packed))
    offset = 0
    for member in _tar.members(stream):
        digest = sha256()
        if member.kind == "file":
            for piece in _tar.file_bytes(stream, member.size):
                digest.update(piece)
                yield piece
        _add(member, digest.hexdigest() if member.kind == "file" else "", offset, rows)
        offset += member.size
    kept.check_parents(rows)  # here, so that the store drops the draft of a package that is refused


def _add(member: _tar.Member, digest: str, offset: int, rows: dict[str, kept.Row]) -> None:
    path = path_of(member.name)
    if path == "/":
        return
    if path in MERGED and member.kind == "symlink" and not member.name.startswith("usr/"):
        return  # base-files brings /bin -> usr/bin; whoever lays out the root makes it
    target = path_of(member.target) if member.kind == "hardlink" else member.target
    if member.kind == "hardlink" and rows.get(target, ("",))[0] not in ("file", "hardlink"):
        raise Problem(f"the hard link {path} names {target}, which is no file before it")
    row = (member.kind, member.mode, member.uid, member.gid, member.size, digest, target, offset)
    old = rows.setdefault(path, row)
    if old is not row:
        rows[path] = _one_of(path, old, row)


def _one_of(path: str, old: kept.Row, new: kept.Row) -> kept.Row:
    """What stays where /bin/x and /usr/bin/x became one: equal things, or the file that a symlink beside it names."""
    if old[:7] == new[:7]:
        return old
    for link, other in ((old, new), (new, old)):
        if link[0] == "symlink" and other[0] != "dir" and path_of(link[6]) == path:
            return other
    raise Problem(f"it holds {path} twice, and the two differ")


def _deeds(control: dict[str, str]) -> list[str]:
    """What the scripts would have done, as words; found, not understood: a person declares what the image needs."""
    text = "\n".join(control.get(script, "") for script in SCRIPTS).replace("\\\n", " ")
    found: dict[str, None] = {}
    for word, deed in DEEDS.items():
        for match in re.finditer(_DEED.format(deed), text):
            command = " ".join(_SHELL_TAIL.sub("", match[1]).split())
            found[f"{word}: {command[:200]}"] = None
    return list(found)
