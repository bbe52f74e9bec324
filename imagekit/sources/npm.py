"""The packages of a package-lock.json: "npm:package-lock.json prefix=/opt/app" lays them out in node_modules there.

As `npm ci --omit=dev --ignore-scripts` would on the image's architecture: each tarball is held by its sha512, optional
packages of other systems are left out, commands are links in node_modules/.bin. No script is run; a package that has
one is named when it is locked. Neither npm nor Node is needed for it.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha512
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from imagekit import kept
from imagekit.errors import Problem
from imagekit.package import BESIDE, INDEX, URL, Gone, Package, Pin, Progress, Request, Resolved, Source
from imagekit.sources import _beside, _foreign, _npmlock, _packed, _placed, _registry
from imagekit.sources._npmlock import Module
from imagekit.store import Store

if TYPE_CHECKING:
    from imagekit.download import Line

SCRIPT = "script: its install script was not run"
KNOWN = "npm-integrity"  # notes: which sha256 an object of this sha512 has
MAX_TARBALL = 256 << 20
Addresses = Mapping[tuple[str, str], str]  # name and version -> where the lock found it


class Placed(NamedTuple):
    """A package at its place in the image."""

    place: str  # "/opt/app/node_modules/express"
    module: Module
    commands: Sequence[str]  # COMMAND:PATH of each command that its tarball brings; ":PATH" where another has the link


def resolve(requests: Sequence[Request], store: Store) -> list[Resolved]:
    """A pin for each lock, and one for each package that they ask for, wherever it will lie."""
    found = []
    for request in requests:
        pins: list[Pin] = []
        same: dict[tuple[str, str, str], list[Placed]] = {}
        for asked in _beside.wanted(request, "npm", ("prefix",)):
            with _beside.told("npm", asked.place):
                pins.append(_lock(asked, request, store, same))
        pins += [_pin(of, store) for of in same.values()]
        said = [f"npm: {m.name} {m.version} has an install script, which is not run"
                for m in (of[0].module for of in same.values()) if m.has_script]  # fmt: skip
        found.append(Resolved(_each_once(pins), (), tuple(said)))
    return found


def packages(pins: Sequence[Pin], store: Store, progress: Progress, *, folder: Path) -> list[Package]:
    """The packages of these pins, fetched and laid out once."""
    found = {pin: _placed.load(pin, store) for pin in pins}
    lacking = {pin.sha256: pin for pin in pins if pin.archive != BESIDE and not found[pin]}
    _fetch([pin for pin in lacking.values() if not _has(pin, store)], pins, folder, store=store, progress=progress)
    return _beside.each(pins, progress, lambda pin: found[pin] or _made(pin, folder, store))


def _lock(asked: _beside.Wanted, request: Request, store: Store, same: dict[tuple[str, str, str], list[Placed]]) -> Pin:
    """The pin of a package-lock.json, whose packages are fetched and join `same`."""
    prefix = _beside.prefix(asked.options)
    if not prefix or {",", ":"} & {*prefix}:
        raise Problem("it needs prefix=...", 'where node_modules will lie: "npm:package-lock.json prefix=/opt/app"')
    digest = store.write(_beside.pieces(request.folder, asked.place))
    data = store.read(digest)
    project = _npmlock.read(data, request.arch)
    modules = [module for module in project.modules if module.sha512]
    for module in modules:
        if not _registry.is_registrys(module.name, module.resolved):
            with kept.told(module.place):
                _beside.check_address(module.resolved)
    _obtain(modules, _beside.path(request.folder, asked.place).parent, store)
    commands = _commands(project.modules, prefix)
    for module in modules:
        laid = Placed(f"{prefix}/{module.place}", module, commands.get(module.place, ()))
        same.setdefault((module.name, module.version, module.sha512), []).append(laid)
    path = _beside.path_with(asked.place, {"prefix": prefix})
    return Pin("package", "npm", project.name, project.version, "all", len(data), digest, BESIDE, path)


def _pin(of: Sequence[Placed], store: Store) -> Pin:
    """The pin of a package at one or more places; raises Problem for a tarball that is not plain and whole."""
    first = of[0].module
    digest = _known(first.sha512, store)
    is_url = not _registry.is_registrys(first.name, first.resolved)
    place = first.resolved if is_url else _registry.path_of(first.name, first.version, first.resolved)
    options = {
        "at": ",".join(laid.place for laid in of),
        "bin": ",".join(command for laid in of for command in laid.commands),
        "licence": first.licence,
        "script": "1" * first.has_script,
    }
    path = _beside.path_with(place, {name: value for name, value in options.items() if value})
    size, archive = store.path(digest).stat().st_size, URL if is_url else INDEX
    pin = Pin("package", "npm", first.name, first.version, "all", size, digest, archive, path)
    with kept.told(f"npm: {first.name} {first.version}"):
        _placed.load(pin, store) or _made(pin, Path(), store)
    return pin


def _commands(modules: Sequence[Module], prefix: str) -> dict[str, list[str]]:
    """The commands of a lock by the place whose tarball brings them."""
    bundled = {module.place for module in modules if not module.sha512}
    found: dict[str, list[str]] = {}
    for place, command, file in _npmlock.links(modules):
        holder = place
        while holder in bundled:
            holder = _npmlock.holder(holder)
        found.setdefault(holder, []).append(f"{command}:{prefix}/{place}/{file}")
    return found


def _each_once(pins: Sequence[Pin]) -> tuple[Pin, ...]:
    """The pins; raises Problem for two of one name and version, which nothing later could tell apart."""
    seen: dict[tuple[str, str], Pin] = {}
    for pin in pins:
        if seen.setdefault((pin.name, pin.version), pin) is not pin:
            raise Problem(f"npm: {pin.name} {pin.version} comes twice: two locks have that name, or disagree",
                          "give the projects names of their own, or take the package from one place")  # fmt: skip
    return tuple(pins)


# --- tarballs -------------------------------------------------------------------------------------------------------


def _obtain(modules: Iterable[Module], folder: Path, store: Store) -> None:
    """Bring the tarballs of these modules into the store, and remember which is which."""
    from imagekit import download

    lacking = [module for module in {m.sha512: m for m in modules}.values() if not _known(module.sha512, store)]

    def take(line: "Line", module: Module) -> str:
        with kept.told(f"{module.name} {module.version}"), _gone():
            return download.take(
                line, _url(module.name, module.version, module.resolved, folder), MAX_TARBALL, algorithm="sha512",
                digest=module.sha512, store=store,
            )  # fmt: skip

    for module, digest in zip(lacking, download.each(take, lacking), strict=True):
        store.remember(KNOWN, module.sha512, digest.encode())


def _has(pin: Pin, store: Store) -> bool:
    """Whether the store has the bytes of a pin whole."""
    try:
        return bool(store.read(pin.sha256))
    except KeyError:
        return False


def _known(digest: str, store: Store) -> str:
    """The sha256 of an object with this sha512, if the store has it; "" otherwise."""
    note = (store.recall(KNOWN, digest) or b"").decode("ascii", "replace")
    try:
        return note if note and sha512(store.read(note)).hexdigest() == digest else ""
    except KeyError:
        return ""


def _url(name: str, version: str, resolved: str, folder: Path) -> str:
    if not _registry.is_registrys(name, resolved):
        return resolved
    return f"{_registry.address(name, resolved, folder)}/{_registry.path_of(name, version, resolved)}"


def _fetch(lacking: Sequence[Pin], pins: Sequence[Pin], folder: Path, *, store: Store, progress: Progress) -> None:
    """Bring what the store lacks of some pins into it."""
    if not lacking:
        return
    from imagekit import download

    beside, addresses = _beside_lock(pins, folder, store)
    size, done = sum(pin.size for pin in lacking), 0

    def take(line: "Line", pin: Pin) -> None:
        nonlocal done
        place, name = _beside.split(pin)[0], pin.name
        resolved = place if pin.archive == URL else addresses.get((name, pin.version), "")
        url = place if pin.archive == URL else f"{_registry.address(name, resolved, beside)}/{place}"
        with kept.told(f"npm: {name} {pin.version}"), _gone():
            download.take(line, url, pin.size, algorithm="sha256", digest=pin.sha256, store=store)
        with turns:
            done += pin.size
            progress(name, done, size)

    turns = Lock()
    download.each(take, lacking)


def _beside_lock(pins: Sequence[Pin], folder: Path, store: Store) -> tuple[Path, Addresses]:
    """The folder of the package-lock.json, and where it found each package."""
    locks = [pin for pin in pins if pin.archive == BESIDE]
    found: dict[tuple[str, str], str] = {}
    for pin in locks:
        found |= _npmlock.addresses(_beside.data(pin, folder, store))
    return (_beside.path(folder, _beside.split(locks[0])[0]).parent if locks else folder), found


@contextmanager
def _gone() -> Iterator[None]:
    """What a registry lacks, as any source says it."""
    from imagekit import download

    try:
        yield
    except download.Missing as missing:
        hint = "the registry that is asked may be another one than the lock was made with: see npm_config_registry"
        raise Gone(f"the registry has no such package: {missing.message}", hint) from missing


# --- what becomes of them -------------------------------------------------------------------------------------------


def _made(pin: Pin, folder: Path, store: Store) -> Package:
    data, notes = _beside.data(pin, folder, store), [SCRIPT] * ("script" in _beside.split(pin)[1])
    found: dict[str, kept.Row] = {}
    if pin.archive == BESIDE:  # tools that look into an image ask for the lock
        found[f"/{posixpath.basename(_beside.split(pin)[0])}"] = _placed.row(
            "file", 0o644, size=pin.size, sha256=pin.sha256
        )
        return _placed.keep(_placed.Laid(found, pin.sha256), pin, store)
    rows: dict[str, kept.Row] = {}
    style = _foreign.Style(strip=1, is_npms=True)
    blob = store.write(_foreign.contents(_packed.unpacked(data), rows, notes, style=style))
    options = _beside.split(pin)[1]
    for place in options.get("at", "").split(","):
        prefix, _, rest = place.partition("/node_modules/")
        if not _beside.prefix({"prefix": prefix}) or not _npmlock.PLACE.match(f"node_modules/{rest}"):
            raise Problem(f"the lock lays it out at {place!r}", "write it again with `imagekit lock`")
        found |= {f"{place}{path}": row for path, row in rows.items()}
    laid = _linked(_as_npm(found), options.get("bin", ""))
    licence = options.get("licence", "")
    return _placed.keep(
        _placed.Laid(laid, blob, tuple(notes)), pin, store, licence=licence, owner=f"{pin.name}@{pin.version}"
    )


def _as_npm(rows: Mapping[str, kept.Row]) -> dict[str, kept.Row]:
    """The rows with the modes and names that npm gives them (pacote, fetcher.js): all may read, no .gitignore."""
    found = {}
    for path, row in rows.items():
        if path.endswith("/.gitignore") and row[0] == "file":
            path = path.removesuffix(".gitignore") + ".npmignore"
            if path in rows:
                continue
        found[path] = (row[0], row[1] | (0o755 if row[0] == "dir" else 0o644), *row[2:])
    return found


def _linked(rows: dict[str, kept.Row], commands: str) -> dict[str, kept.Row]:
    """The rows with a link in .bin for each command that is there, and its file for everybody to run."""
    for word in filter(None, commands.split(",")):
        command, _, file = word.partition(":")
        row = rows.get(file)
        if row is None or row[0] != "file":
            continue  # npm links nothing to it either
        rows[file] = (row[0], 0o755, *row[2:])
        folder, _, target = file.rpartition("node_modules/")
        if command:
            rows[f"{folder}node_modules/.bin/{command}"] = _placed.row("symlink", 0, target=f"../{target}")
    return rows


SOURCE = Source(resolve=resolve, packages=packages, check=_beside.check_files, inputs=_beside.files)
