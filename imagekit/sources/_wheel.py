"""A wheel's bytes as a plain Package: every file checked against its RECORD and laid out, nothing of it ever run.

All of it lies below /usr/local, where Debian's Python looks for what is not Debian's. Entry points become scripts of
four lines; the RECORD that is written lists what was laid out, as an installer's would (the wheel's specification at
packaging.python.org, "Binary distribution format" and "Recording installed projects").
"""

import base64
import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from packaging.tags import Tag
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from imagekit import kept
from imagekit.errors import Problem
from imagekit.package import Package
from imagekit.sources import _metadata, _python, _zip
from imagekit.store import Store

NOTE = "wheel-package"
FORM = "1"  # raise it when a conversion changes: old notes are then not found
MAX_TEXT = 8 << 20  # bytes of RECORD, METADATA, WHEEL and entry_points.txt
PREFIX = "/usr/local"
BINARIES = f"{PREFIX}/bin"
ALL = "all"  # the architecture of a wheel that runs on every one
SEALS = ("RECORD", "RECORD.jws", "RECORD.p7s")  # what a RECORD cannot hold the digest of
HASHES = ("sha256", "sha384", "sha512")  # "sha256 or better"
SCRIPT = """#!{interpreter}
import sys

from {module} import {first}

if __name__ == "__main__":
    sys.exit({call}())
"""


class Name(NamedTuple):
    """What the name of a wheel's file says."""

    name: str  # normalised (PEP 503)
    version: Version
    build: tuple[int, str] | tuple[()]
    tags: frozenset[Tag]

    def architecture(self, python: _python.Python) -> str:
        """The architecture that it is for."""
        return ALL if all(tag.platform == "any" for tag in self.tags) else python.arch

    def rank(self, python: _python.Python) -> int | None:
        """How well it fits a Python, 0 is best; None if it does not."""
        known = _python.tags(python)
        return min((known[tag] for tag in self.tags if tag in known), default=None)


class File(NamedTuple):
    """A file of the wheel as it is laid out."""

    path: str
    data: bytes
    mode: int


def name(filename: str) -> Name:
    """What a wheel is by the name of its file; raises Problem for a name that no wheel has."""
    try:
        return Name(*parse_wheel_filename(filename))
    except (InvalidWheelFilename, InvalidVersion) as error:
        raise Problem(f"{ascii(filename)[:100]} is no name of a wheel: {error}") from error


def load(digest: str, python: _python.Python, store: Store) -> Package | None:
    """The package of the wheel with this sha256 as it was once converted, or None if it must be (again)."""
    columns = kept.load(NOTE, _key(digest, python), store)
    return kept.package(columns, store) if columns else None


def convert(data: bytes, filename: str, python: _python.Python, *, digest: str, store: Store) -> Package:
    """The package in these bytes of a wheel, kept in the store; raises Problem for one that is not plain and whole."""
    named = name(filename)
    check_fits(named, filename, python)
    members = {member.name: member for member in _zip.members(data)}
    info = _info(members, named)
    about = _metadata.read(_text(data, members, f"{info}METADATA"))
    if (canonicalize_name(about.name), about.version) != (named.name, named.version):
        raise Problem(f"its METADATA is of {about.name} {about.version}")
    _check_wheel(_text(data, members, f"{info}WHEEL"), named)
    rows: dict[str, kept.Row] = {}
    blob = store.write(_kept(_laid_out(_verified(data, members, info), info, python), rows))
    version = str(named.version)
    columns: kept.Columns = {"object": blob, "notes": [], "digest": "", "licence": about.licence}
    columns |= {"name": named.name, "version": version, "architecture": named.architecture(python)}
    columns |= {"source": named.name, "source_version": version, **kept.columns(kept.finish(rows))}
    columns["digest"] = kept.package(columns, store).tree.digest
    kept.remember(NOTE, _key(digest, python), columns, store)
    return kept.package(columns, store)


def metadata(data: bytes, filename: str) -> _metadata.About:
    """What a wheel says of itself, without unpacking the rest."""
    members = {member.name: member for member in _zip.members(data)}
    return _metadata.read(_text(data, members, f"{_info(members, name(filename))}METADATA"))


def check_fits(named: Name, filename: str, python: _python.Python) -> None:
    """Raise Problem for a wheel of another architecture or Python."""
    if named.rank(python) is None:
        made_for = ", ".join(sorted(map(str, named.tags))[:4])
        raise Problem(
            f"{filename} is for {made_for}",
            f"the image has CPython {python.version} on {python.arch}, over glibc 2.{python.glibc}",
        )


def _key(digest: str, python: _python.Python) -> str:
    return f"{digest}-{python.version}-{python.arch}-{FORM}"


def _info(members: Iterable[str], named: Name) -> str:
    """The one folder of metadata, "fastapi-0.115.0.dist-info/", of the project that the file's name states."""
    folders = {member.partition("/")[0] for member in members if "/" in member}
    found = sorted(folder for folder in folders if folder.endswith(".dist-info"))
    if len(found) != 1:
        raise Problem(f"it has {len(found)} folders *.dist-info, not one")
    project, _, version = found[0].removesuffix(".dist-info").rpartition("-")
    try:
        if (canonicalize_name(project), Version(version)) == (named.name, named.version):
            return f"{found[0]}/"
    except InvalidVersion:
        pass
    raise Problem(f"its folder {found[0]} is not of {named.name} {named.version}")


def _text(data: bytes, members: Mapping[str, _zip.Member], name: str) -> bytes:
    if name not in members:
        raise Problem(f"it has no {name}")
    if members[name].size > MAX_TEXT:
        raise Problem(f"its {name} has {members[name].size} bytes")
    return _zip.read(data, members[name])


def _check_wheel(text: bytes, named: Name) -> None:
    """Raise Problem for a wheel of a later format, or one whose tags are not those of its name."""
    fields = _metadata.headers(text)
    version = (fields.get("wheel-version") or ["none"])[0]
    if version.partition(".")[0] != "1":
        raise Problem(f"it is a wheel of format {ascii(version)[:20]}", "known: 1")
    said = {tag for written in fields.get("tag", []) for tag in _expanded(written)}
    if said != named.tags:
        raise Problem(f"its WHEEL has the tags {', '.join(sorted(map(str, said)))[:200]}, which its name has not")


def _expanded(written: str) -> Iterator[Tag]:
    """The tags of a compressed set, "py2.py3-none-any" (PEP 425)."""
    parts = written.lower().split("-")
    if len(parts) != 3 or len(written) > 500:
        raise Problem(f"its WHEEL has the tag {ascii(written)[:100]}")
    for interpreter in parts[0].split("."):
        for abi in parts[1].split("."):
            yield from (Tag(interpreter, abi, platform) for platform in parts[2].split("."))


def _verified(data: bytes, members: Mapping[str, _zip.Member], info: str) -> Iterator[tuple[_zip.Member, bytes]]:
    """Every file with its bytes, which are those that RECORD names; raises Problem for one more, one less, another."""
    record = _record(_text(data, members, f"{info}RECORD"))
    seals = {info + seal for seal in SEALS}
    missing = sorted(record.keys() - members.keys() - seals)
    if missing:
        raise Problem(f"its RECORD lists {missing[0]!r}, which it lacks")
    for path, member in sorted(members.items()):
        if path in seals:
            continue
        if path not in record:
            raise Problem(f"its RECORD does not list {path!r}")
        content = _zip.read(data, member)
        _check_listed(path, content, *record[path])
        yield member, content


def _record(text: bytes) -> dict[str, tuple[str, str]]:
    """The rows of a RECORD: path -> (hash, size)."""
    found: dict[str, tuple[str, str]] = {}
    try:
        for row in csv.reader(io.StringIO(text.decode(), newline="")):
            if not row:
                continue
            path, digest, size = row
            if path in found:
                raise Problem(f"its RECORD lists {path!r} twice")
            found[path] = digest, size
    except (UnicodeDecodeError, ValueError, csv.Error) as error:
        raise Problem(f"its RECORD is malformed: {error}") from error
    return found


def _check_listed(path: str, content: bytes, listed: str, size: str) -> None:
    kind, _, digest = listed.partition("=")
    if kind not in HASHES:
        raise Problem(f"its RECORD gives {path!r} no hash that counts", f"known: {', '.join(HASHES)}")
    if digest.rstrip("=") != _encoded(hashlib.new(kind, content).digest()):
        raise Problem(f"its {path!r} is not what its RECORD lists: {kind} differs")
    if size and size != str(len(content)):
        raise Problem(f"its {path!r} has {len(content)} bytes, and {ascii(size)[:20]} in its RECORD")


def _encoded(digest: bytes) -> str:
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


def _laid_out(verified: Iterable[tuple[_zip.Member, bytes]], info: str, python: _python.Python) -> Iterator[File]:
    """Every file where it belongs, then the scripts of the entry points, the name of who installed, and RECORD."""
    library = f"{PREFIX}/lib/python{python.version}/dist-packages"
    rows: list[tuple[str, str, str]] = []
    points: list[_metadata.EntryPoint] = []
    for member, content in verified:
        if member.name == f"{info}entry_points.txt":
            points = _metadata.entry_points(content)
        file = _placed(member, content, info, python)
        if file:
            yield _listed(file, library, rows)
    for point in points:
        yield _listed(File(f"{BINARIES}/{point.name}", _script(point, python), 0o755), library, rows)
    yield _listed(File(f"{library}/{info}INSTALLER", b"imagekit\n", 0o644), library, rows)
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows([*sorted(rows), (f"{info}RECORD", "", "")])
    yield File(f"{library}/{info}RECORD", written.getvalue().encode(), 0o644)


def _listed(file: File, library: str, rows: list[tuple[str, str, str]]) -> File:
    """The file, which is added to the rows of the RECORD."""
    inside = file.path.removeprefix(f"{library}/")
    path = inside if inside != file.path else "../../../" + file.path.removeprefix(f"{PREFIX}/")
    rows.append((path, f"sha256={_encoded(hashlib.sha256(file.data).digest())}", str(len(file.data))))
    return file


def _placed(member: _zip.Member, content: bytes, info: str, python: _python.Python) -> File | None:
    """A file of the wheel in the image; None for what installers write themselves."""
    library = f"{PREFIX}/lib/python{python.version}/dist-packages"
    mode = 0o755 if member.is_executable else 0o644
    top, _, rest = member.name.partition("/")
    if not top.endswith(".data") or not rest:
        is_ours = member.name.removeprefix(info) in ("INSTALLER", "REQUESTED", "direct_url.json")
        return None if is_ours else File(f"{library}/{member.name}", content, mode)
    scheme, _, path = rest.partition("/")
    project = info.removesuffix(".dist-info/").rpartition("-")[0]
    folders = {
        "purelib": library,
        "platlib": library,
        "scripts": BINARIES,
        "data": PREFIX,
        "headers": f"{PREFIX}/include/python{python.version}/{project}",
    }
    if f"{top.removesuffix('.data')}.dist-info/" != info or scheme not in folders or not path:
        raise Problem(f"its {member.name!r} lies in no folder of a wheel", f"known: {', '.join(sorted(folders))}")
    if scheme == "scripts":
        return File(f"{BINARIES}/{path}", _with_interpreter(content, python), 0o755)
    return File(f"{folders[scheme]}/{path}", content, mode)


def _interpreter(python: _python.Python) -> str:
    return f"/usr/bin/python{python.version}"  # the one that looks into this folder, whatever python3 is


def _with_interpreter(script: bytes, python: _python.Python) -> bytes:
    """A script whose first line names "python" or "pythonw" begins with the image's own."""
    first, end, rest = script.partition(b"\n")
    return f"#!{_interpreter(python)}".encode() + end + rest if first.startswith(b"#!python") else script


def _script(point: _metadata.EntryPoint, python: _python.Python) -> bytes:
    first = point.attribute.partition(".")[0]
    return SCRIPT.format(
        interpreter=_interpreter(python), module=point.module, first=first, call=point.attribute
    ).encode()


def _kept(files: Iterable[File], rows: dict[str, kept.Row]) -> Iterator[bytes]:
    """The bytes of every file, one after another, while `rows` fills with where each lies."""
    offset = 0
    for file in files:
        if file.path in rows:
            raise Problem(f"it brings {file.path} twice")
        digest = hashlib.sha256(file.data).hexdigest()
        rows[file.path] = ("file", file.mode, 0, 0, len(file.data), digest, "", offset)
        offset += len(file.data)
        yield file.data
    kept.check_parents(rows)  # here, so that the store drops the draft of a package that is refused
