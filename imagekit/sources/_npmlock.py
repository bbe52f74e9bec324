"""package-lock.json, versions 2 and 3: which packages npm would lay out where, on one architecture, without dev ones.

What npm's own lock is read by (package-lock-json(5)): its "packages" alone.
Optional packages of another system are left out with what only they need, as npm does (arborist, optional-set.js).
"""

import base64
import binascii
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from imagekit import strict
from imagekit.errors import Problem

MAX_BYTES = 32 << 20
MAX_PACKAGES = 20_000
MAX_DEPTH = 32  # packages in one another; npm's own trees seldom have more than five
VERSIONS = (2, 3)
CPUS = {"x86_64": "x64", "aarch64": "arm64"}  # as process.arch of Node names them
_NAME = r"(?:@[a-z0-9~_-][a-z0-9._~-]*/)?[A-Za-z0-9~_-][A-Za-z0-9._~-]*"
NAME = re.compile(_NAME + r"\Z")
PLACE = re.compile(rf"node_modules/{_NAME}(?:/node_modules/{_NAME})*\Z")
VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+(?:[+-][0-9A-Za-z.+-]+)?\Z")
BIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._@+-]*\Z")
TARGET = re.compile(r"[A-Za-z0-9._@+~/-]+\Z")
AGAIN = "`npm install --package-lock-only --lockfile-version 3` writes it again"


class Module(NamedTuple):
    """A package at its place below node_modules."""

    place: str  # "node_modules/send/node_modules/ms"
    name: str  # as a registry knows it
    version: str
    resolved: str  # the address it was found at; "" where npm was told to leave that out
    sha512: str  # hexadecimal; "" of one that lies in another's tarball
    licence: str
    bins: Mapping[str, str]  # command -> file of the package
    has_script: bool  # that would run at its installation
    is_optional: bool
    needs: tuple[str, ...]  # names of what it cannot do without
    likes: tuple[str, ...]  # names of what it takes if it is there
    is_of_here: bool  # whether it is made for the system and architecture


class Project(NamedTuple):
    """What a lock says of one architecture."""

    name: str
    version: str
    modules: tuple[Module, ...]  # those to lay out, by place


def read(data: bytes, arch: str) -> Project:
    """What a lock asks for on an architecture; raises Problem for what cannot be pinned."""
    packages = _packages(data)
    root = packages.get("", {})
    modules = {
        place: _module(place, entry, CPUS[arch])
        for place, entry in packages.items()
        if "node_modules/" in place and not entry.get("dev")
    }
    name, version = (_text(root.get(key), key) or default for key, default in (("name", "app"), ("version", "0.0.0")))
    if not NAME.match(name) or not VERSION.match(version):
        raise Problem(f"it is of {name!r} {version!r}, which npm would not take either")
    chosen = _reached(modules, [*_names(root, "dependencies"), *_names(root, "optionalDependencies")])
    return Project(name, version, tuple(modules[place] for place in sorted(chosen)))


def addresses(data: bytes) -> dict[tuple[str, str], str]:
    """Where a lock found each package, by name and version."""
    found = {}
    for place, entry in _packages(data).items():
        name = _text(entry.get("name"), place) or place.rpartition("node_modules/")[2]
        found[name, _text(entry.get("version"), place)] = _text(entry.get("resolved"), place)
    return found


def _packages(data: bytes) -> Mapping[str, Mapping[str, Any]]:
    found = strict.parse(data, what="the lock", limit=MAX_BYTES)
    if found.get("lockfileVersion") not in VERSIONS:
        raise Problem(f"its lockfileVersion is {found.get('lockfileVersion')!r}, not 2 or 3", AGAIN)
    packages = found.get("packages")
    if not isinstance(packages, dict) or not all(isinstance(entry, dict) for entry in packages.values()):
        raise Problem("it has no packages", AGAIN)
    if len(packages) > MAX_PACKAGES:
        raise Problem(f"it has more than {MAX_PACKAGES} packages")
    return packages


def links(modules: Iterable[Module]) -> Iterator[tuple[str, str, str]]:
    """(place, command, file) of each command; "" for the command of the second of two that would share a link."""
    taken = set()
    for module in sorted(modules, key=lambda m: (m.place.count("node_modules/"), m.place)):
        folder = module.place.rpartition("node_modules/")[0]
        for command, file in sorted(module.bins.items()):
            yield module.place, "" if (folder, command) in taken else command, file
            taken.add((folder, command))


def holder(place: str) -> str:
    """The place of the package that another one lies in: whose tarball brings it, if it is bundled."""
    return place.rpartition("/node_modules/")[0]


def _module(place: str, entry: Mapping[str, Any], cpu: str) -> Module:
    if not PLACE.match(place) or place.count("node_modules/") > MAX_DEPTH:
        raise Problem(f"it lays something out at {ascii(place)[:200]}, which is no place below node_modules")
    if entry.get("link"):
        raise Problem(
            f"{place} is a link to the folder {_text(entry.get('resolved'), place)!r}",
            "lay that folder out with directory:",
        )
    name = _text(entry.get("name"), place) or place.rpartition("node_modules/")[2]
    version = _text(entry.get("version"), place)
    if not NAME.match(name) or not VERSION.match(version):
        raise Problem(f"{place} is {ascii(name)[:80]} {ascii(version)[:80]}, which is no name and version of npm's")
    peers, about = _names(entry, "peerDependencies"), entry.get("peerDependenciesMeta")
    optional = {*_names(entry, "optionalDependencies"), *(about if isinstance(about, dict) else ())}
    licence = entry.get("license")
    return Module(
        place, name, version, _text(entry.get("resolved"), place),
        "" if entry.get("inBundle") else _sha512(place, entry),
        licence if isinstance(licence, str) and licence.isprintable() and len(licence) < 200 else "",
        _bins(place, entry.get("bin")), bool(entry.get("hasInstallScript")),
        bool(entry.get("optional") or entry.get("devOptional")),
        tuple(n for n in (*_names(entry, "dependencies"), *peers) if n not in optional), tuple(sorted(optional)),
        _fits("linux", entry.get("os")) and _fits(cpu, entry.get("cpu")) and _fits("glibc", entry.get("libc")),
    )  # fmt: skip


def _sha512(place: str, entry: Mapping[str, Any]) -> str:
    """The strongest digest of an entry (W3C, Subresource Integrity, 3.3), which must be sha512."""
    resolved = _text(entry.get("resolved"), place)
    if resolved and not resolved.startswith(("https://", "http://")):
        raise Problem(f"{place} comes from {resolved!r}, not from a registry", "name a version in package.json")
    for word in _text(entry.get("integrity"), place).split():
        algorithm, _, value = word.partition("?")[0].partition("-")
        try:
            digest = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            digest = b""
        if algorithm == "sha512" and len(digest) == 64:
            return digest.hex()
    raise Problem(f"{place} has no sha512 in its integrity", f"nothing else holds what a registry serves; {AGAIN}")


def _bins(place: str, bins: Any) -> dict[str, str]:
    """Commands and their files, as npm makes them safe (npm-normalize-package-bin)."""
    found = {}
    for written, file in (bins if isinstance(bins, dict) else {}).items():
        command, target = posixpath.basename(written), posixpath.normpath(f"/{_text(file, place)}")[1:]
        if not BIN.match(command) or not TARGET.match(target):
            raise Problem(f"{place} has the command {ascii(written)[:80]} in {ascii(file)[:80]}")
        found[command] = target
    return found


def _fits(here: str, wanted: Any) -> bool:
    """Whether a list of systems takes this one (npm-install-checks, checkList)."""
    words = [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []
    if not words or words == ["any"]:
        return True
    refused = [word[1:] for word in words if isinstance(word, str) and word.startswith("!")]
    return here not in refused and (here in words or len(refused) == len(words))


def _reached(modules: Mapping[str, Module], names: list[str]) -> set[str]:
    """The places that are needed, from the root on; none that is of another system, or needs such a one."""
    needs = {place: [_found(place, name, modules) for name in of.needs] for place, of in modules.items()}
    gone = _all_that_need({place for place, module in modules.items() if not module.is_of_here}, needs)
    for place in sorted(gone):
        if not modules[place].is_optional:
            raise Problem(f"{place} is needed, and it or what it needs is not made for this architecture")
    waiting = [_found("", name, modules) for name in names]
    reached: set[str] = set()
    while waiting:
        place = waiting.pop()
        if place and place not in reached and place not in gone:
            reached.add(place)
            waiting += [*needs[place], *(_found(place, name, modules) for name in modules[place].likes)]
    return reached


def _all_that_need(gone: set[str], needs: Mapping[str, list[str]]) -> set[str]:
    """These places, and those that need one of them, or one that does."""
    needed_by: dict[str, list[str]] = {}
    for place, needed in needs.items():
        for one in needed:
            needed_by.setdefault(one, []).append(place)
    waiting = [*gone]
    while waiting:
        more = {*needed_by.get(waiting.pop(), ())} - gone
        gone |= more
        waiting += more
    return gone


def _found(place: str, name: str, modules: Mapping[str, Module]) -> str:
    """Where Node would find a package from another one's place; "" for nowhere."""
    while place:
        if f"{place}/node_modules/{name}" in modules:
            return f"{place}/node_modules/{name}"
        place = holder(place)
    return f"node_modules/{name}" if f"node_modules/{name}" in modules else ""


def _names(entry: Mapping[str, Any], key: str) -> list[str]:
    found = entry.get(key, {})
    return sorted(found) if isinstance(found, dict) else []


def _text(value: Any, where: str) -> str:
    """A text, "" for none."""
    if not isinstance(value, str | None) or (value and not value.isprintable()):
        raise Problem(f"{where} has {ascii(value)[:80]} where a text belongs")
    return value or ""
