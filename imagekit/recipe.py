"""Recipe: what package.toml says; metadata that is read without running anything.

Whatever can be judged without fetching or building is judged here, and unknown keys are told with the known ones: a
word that is misspelt is a mistake, never a default.
"""

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from imagekit import label
from imagekit.arch import ARCHES
from imagekit.errors import Problem, unknown
from imagekit.image import Budget, Directory, File, Symlink, Text, check_files, path_of
from imagekit.package import Origin

FILE = "package.toml"
MAX_TEXT = 1 << 20  # bytes
HINT = "docs/own-packages.md tells what a package.toml may hold"
VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,99}\Z", re.ASCII)
SOURCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+~-]{0,199}\Z", re.ASCII)
FIXED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "OUT", "USER", "LOGNAME", "SOURCE_DATE_EPOCH", "PWD")
Content = File | Text | Symlink | Directory


class Source(NamedTuple):
    """What a package is made from: one file, or a folder beside package.toml."""

    place: str  # a URL, or a path relative to package.toml
    sha256: str  # of a file's bytes, or a folder's tree; "" for what lies beside and may change
    name: str  # that steps and files know it by

    @property
    def is_url(self) -> bool:
        """Whether it is fetched."""
        return "://" in self.place


class Limits(NamedTuple):
    """What build steps may take, all of them together."""

    seconds: int = 600
    memory: int = 1 << 30  # bytes: of all processes, and of what is written to /build and /tmp
    processes: int = 256
    output: int = 256 << 20  # bytes of $OUT


class Steps(NamedTuple):
    """How a package is built."""

    image: str  # the definition of the build image, relative to package.toml
    steps: tuple[tuple[str, ...], ...]
    env: Mapping[str, str]
    limits: Limits


@dataclass(frozen=True)
class Recipe:
    """A package.toml, read and judged."""

    folder: Path
    name: str
    version: str
    licence: str
    architectures: tuple[str, ...]  # imagekit's names, or "all" alone
    origin: Origin
    notes: tuple[str, ...]
    setuid: tuple[str, ...]
    sources: tuple[Source, ...]
    files: Mapping[str, Content]
    fetched: Mapping[str, str]  # of the files, those that are a source: path -> its name
    build: Steps | None


def read(path: Path) -> Recipe:
    """The recipe in a package.toml, or in the folder that holds one; raises Problem that names what is wrong in it."""
    file = path / FILE if path.is_dir() else path
    try:
        with open(file, "rb") as opened:
            data = opened.read(MAX_TEXT + 1)
        if len(data) > MAX_TEXT:
            raise Problem(f"{file} is larger than {MAX_TEXT} bytes")
        table = tomllib.loads(data.decode())
    except OSError as error:
        raise Problem(f"cannot read {file}: {error.strerror}", HINT) from error
    except (ValueError, RecursionError) as error:
        raise Problem(f"{file} is no TOML: {error}", HINT) from error
    try:
        return _recipe(table, file.parent)
    except Problem as problem:
        raise type(problem)(f"{file}: {problem.message}", problem.hint or HINT) from problem


def _recipe(table: Mapping[str, Any], folder: Path) -> Recipe:
    _known(table, KEYS, "")
    for name in ("name", "version", "licence", "architecture"):
        if name not in table:
            raise Problem(f"it has no {name}", f'{name} = "{EXAMPLES[name]}"')
    if ("files" in table) == ("build" in table):
        raise Problem("it must have either [files] to lay out or [build] steps", "one of the two, not both")
    sources = tuple(_source(one) for one in _tables(table.get("source", []), "[[source]]"))
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise Problem(f"two sources have one name: {', '.join(names)}", 'name = "..." gives one of them another')
    files, fetched = _files(_table(table.get("files", {}), "files"), names)
    origin = _strings(_table(table.get("origin", {}), "origin"), ("source", "version"), "origin")
    name, version, licence = (_text(table[word], word) for word in ("name", "version", "licence"))
    made = Recipe(
        folder, name, version, licence, _architectures(table["architecture"]),
        Origin(origin.get("source", name), origin.get("version", version)),
        _lines(table.get("notes", []), "notes"), _paths(table.get("setuid", [])), sources, files, fetched,
        _build(_table(table["build"], "build")) if "build" in table else None,
    )  # fmt: skip
    _check(made)
    return made


def _check(made: Recipe) -> None:
    for field in ("name", "version", "licence", "origin", "notes", "setuid"):
        if not label.FIELDS[field][1](getattr(made, field)) or (field == "licence" and not made.licence):
            hint = f'for example {field} = "{EXAMPLES[field]}"' if field in EXAMPLES else ""
            raise Problem(f"{field}: {str(getattr(made, field))!r} is none", hint)
    check_files(made.files)


def _known(table: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in table:
        if key not in known:
            problem = unknown("key", key, known)
            raise Problem(f"{where}{problem.message}", problem.hint)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise Problem(f"{where}: {value!r} is no table", f"write [{where}]")
    return value


def _tables(value: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list):
        raise Problem(f"{where}: {value!r} is no list of tables", f"write {where}")
    return [_table(one, where) for one in value]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise Problem(f"{where}: {value!r} is no text", "in quotes, without zero bytes")
    return value


def _strings(table: Mapping[str, Any], known: Sequence[str], where: str) -> dict[str, str]:
    _known(table, known, f"{where}: ")
    return {key: _text(value, f"{where}: {key}") for key, value in table.items()}


def _lines(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Problem(f"{where}: {value!r} is no list", f'{where} = ["..."]')
    return tuple(_text(one, where) for one in value)


def _paths(value: Any) -> tuple[str, ...]:
    return tuple(sorted(path_of(path) for path in _lines(value, "setuid")))


def _architectures(value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else _lines(value, "architecture")
    for name in names:
        if name not in (*ARCHES, label.ANY):
            raise unknown("architecture", name, (*ARCHES, label.ANY))
    if not names or len(set(names)) < len(names) or (label.ANY in names and len(names) > 1):
        raise Problem(f"architecture: {value!r} is none", '"all", or some of the others, each once')
    return names


def _source(table: Mapping[str, Any]) -> Source:
    found = _strings(table, ("url", "path", "sha256", "name"), "source")
    if ("url" in found) == ("path" in found):
        raise Problem("a source has either a url or a path", 'path = "src", or url = "https://..." and its sha256')
    place, digest = found.get("url") or found.get("path", ""), found.get("sha256", "")
    if "url" in found and not re.match(r"https?://[^/\s]+/\S+\Z", place):
        raise Problem(f"source: {place!r} is no address", "https:// or http://")
    if "url" in found and re.search(r"[?#@]", place):
        raise Problem(f"source: {place!r} has a query, a fragment or credentials", "a package is no place for them")
    if "path" in found and not _is_beside(place):
        raise Problem(f"source: {place!r} is not beside package.toml", "name it relative to its folder")
    if not label.SHA256.match(digest) and (digest or "url" in found):
        raise Problem(f"source {place}: {digest!r} is no sha256", "64 lower-case hexadecimal digits")
    name = found.get("name", place.rstrip("/").rpartition("/")[2])
    if not SOURCE_NAME.match(name):
        raise Problem(f"source {place}: {name!r} is no name", 'name = "..." gives it one')
    return Source(place, digest, name)


def _is_beside(path: str) -> bool:
    return bool(path) and not path.startswith("/") and ".." not in path.split("/") and "://" not in path


# --- files to lay out -----------------------------------------------------------------------------------------------


def _files(table: Mapping[str, Any], sources: Sequence[str]) -> tuple[dict[str, Content], dict[str, str]]:
    files: dict[str, Content] = {}
    fetched: dict[str, str] = {}
    for path, value in table.items():
        about = _table({"file": value} if isinstance(value, str) else value, f"files: {path}")
        _known(about, (*KINDS, "mode", "owner", "group"), f"files: {path}: ")
        kinds = [kind for kind in KINDS if kind in about]
        if len(kinds) != 1:
            raise Problem(f"files: {path} has {' and '.join(kinds) or 'nothing'}", f"one of: {', '.join(KINDS)}")
        what = about[kinds[0]]
        if kinds[0] == "fetched":
            fetched[path] = _text(what, f"files: {path}")
            if what not in sources:
                problem = unknown("source", what, sources)
                raise Problem(f"files: {path}: {problem.message}", problem.hint)
        files[path] = KINDS[kinds[0]](f"files: {path}", what, about)
    return files, fetched


def _file(where: str, what: Any, about: Mapping[str, Any]) -> File:
    mode = _mode(where, about["mode"]) if "mode" in about else None
    return File(_text(what, where), mode, **_owners(where, about))


def _written(where: str, what: Any, about: Mapping[str, Any]) -> Text:
    return Text(_text(what, where), _mode(where, about.get("mode", "0644")), **_owners(where, about))


def _link(where: str, what: Any, about: Mapping[str, Any]) -> Symlink:
    if len(about) > 1:
        raise Problem(f"{where}: a symlink has neither mode nor owner", 'symlink = "target"')
    return Symlink(_text(what, where))


def _directory(where: str, what: Any, about: Mapping[str, Any]) -> Directory:
    if what is not True:
        raise Problem(f"{where}: directory = {what!r}", "directory = true")
    return Directory(_mode(where, about.get("mode", "0755")), **_owners(where, about))


def _mode(where: str, value: Any) -> int:
    if not isinstance(value, str) or not re.fullmatch(r"[0-7]{3,4}", value):
        raise Problem(f"{where}: mode = {value!r}", 'octal digits in quotes: mode = "0755"')
    return int(value, 8)


def _owners(where: str, about: Mapping[str, Any]) -> dict[str, int]:
    found = {name: about[name] for name in ("owner", "group") if name in about}
    for name, value in found.items():
        if type(value) is not int or not 0 <= value < label.MAX_ID:
            raise Problem(f"{where}: {name} = {value!r}", f"a number: only an image has names; {name} = 900")
    return found


KINDS: Mapping[str, Callable[[str, Any, Mapping[str, Any]], Content]] = {
    "file": _file,
    "fetched": _file,
    "text": _written,
    "symlink": _link,
    "directory": _directory,
}


# --- steps ----------------------------------------------------------------------------------------------------------


def _build(table: Mapping[str, Any]) -> Steps:
    _known(table, ("image", "steps", "env", "limits"), "build: ")
    image = _text(table.get("image", ""), "build: image")
    if not _is_beside(image) or not image.endswith(".py"):
        raise Problem(f"build: image = {image!r} is no definition beside package.toml", 'image = "toolchain.py"')
    steps = table.get("steps", [])
    if not isinstance(steps, list) or not steps:
        raise Problem("build: there are no steps", 'steps = [["make"], ["make", "install"]]')
    found = tuple(_lines(step, "steps: a step") for step in steps)
    if not all(step and step[0] for step in found):
        raise Problem("build: a step has no program", 'steps = [["make"], ["make", "install"]]')
    return Steps(image, found, _variables(table.get("env", {})), _limits(table.get("limits", {})))


def _variables(value: Any) -> dict[str, str]:
    found = {name: _text(text, f"env: {name}") for name, text in _table(value, "build.env").items()}
    for name in found:
        if not VARIABLE.match(name) or name in FIXED:
            raise Problem(f"env: {name!r} cannot be set", f"upper-case letters; fixed: {', '.join(FIXED)}")
    return found


def _limits(value: Any) -> Limits:
    table = _table(value, "build.limits")
    _known(table, Limits._fields, "limits: ")
    found = {name: _bytes(name, of) if name in ("memory", "output") else of for name, of in table.items()}
    for name, of in found.items():
        if type(of) is not int or not 0 < of <= MOST[name]:
            raise Problem(f"limits: {name} = {table[name]!r}", f"between 1 and {MOST[name]}")
    return Limits(**found)


def _bytes(name: str, value: Any) -> int:
    try:
        return Budget(size=value).size_bytes or 0
    except Problem as problem:
        raise Problem(f"limits: {name} = {value!r} is no size", '"512 MiB", or bytes') from problem


KEYS = ("name", "version", "licence", "architecture", "origin", "notes", "setuid", "source", "files", "build")
MOST: Mapping[str, int] = {"seconds": 86_400, "memory": 1 << 40, "processes": 10_000, "output": label.MAX_SIZE}
EXAMPLES = {"name": "hello", "version": "1.0", "licence": "MIT", "architecture": "all"}
