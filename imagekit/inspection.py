"""Inspection: what lies in an artifact, in an image file that may be anybody's, and in a tree, as lines and as JSON."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG, filemode
from typing import Any

from imagekit import artifact, signing
from imagekit.artifact import MANIFEST_SUFFIX, SIGNATURE_SUFFIX, Artifact
from imagekit.disk import containers, outline
from imagekit.disk.cpio import TYPES
from imagekit.disk.parts import Part, printable, size
from imagekit.disk.sparse import of_file
from imagekit.errors import Problem, RigProblem
from imagekit.key import Key
from imagekit.tree import Tree

HOLD_A_DISK = ("qcow2", "VHD", "VHDX", "VMDK")
MAY_HOLD_ONE = ("gzip", "tar")  # an archive for GCP, an OVA
MOST_UNPACKED = 8 << 30  # bytes in a temporary file


def show(path: Path, *, key: Callable[[], Key], as_json: bool, put: Callable[[str], Any]) -> bool:
    """Tell what an artifact's manifest says, or what lies in a file, and whether that is whole.

    Raises Problem when it cannot be read at all.
    """
    if path.name.endswith((MANIFEST_SUFFIX, MANIFEST_SUFFIX + SIGNATURE_SUFFIX)):
        _manifest(artifact.load(path), as_json=as_json, put=put)
        return True
    found = inside(path)
    signature = signed(path, key)
    if as_json:
        import json

        put(json.dumps({"signature": signature, **found.json()}, indent=1))
        return found.is_whole
    for line in found.lines():
        put(line)
    put(f"signature: {printable(signature)}")
    return found.is_whole


def _manifest(made: Artifact, *, as_json: bool, put: Callable[[str], Any]) -> None:
    """Tell what a manifest says; nobody has looked at its signature, so it may say anything."""
    if as_json:
        import json

        put(json.dumps(made.manifest, indent=1))
        return
    try:
        lines = list(described(made))
    except (LookupError, TypeError, ValueError) as error:
        raise Problem(f"{made.path} is no manifest of an image: {type(error).__name__}: {error}") from error
    for line in lines:
        put(printable(line))


def inside(path: Path) -> Part:
    """What lies in a file, and in the disk that it holds when it is one for virtual machines."""
    found = outline.outline(of_file(os.fspath(path), _size_of(path)), path.name)
    if found.facts["kind"] not in (*HOLD_A_DISK, *MAY_HOLD_ONE):
        return found
    try:
        with containers.opened(path, most=MOST_UNPACKED) as (name, disk):
            inner = outline.outline(disk, "disk")
    except RigProblem:
        raise
    except Problem as problem:
        damage = {"damaged": problem.message.removeprefix(f"{path}: ")} if found.facts["kind"] in HOLD_A_DISK else {}
        return replace(found, facts={**found.facts, **damage})
    return replace(found, facts={**found.facts, "holds": name}, parts=(inner, *found.parts))


def signed(path: Path, key: Callable[[], Key]) -> str:
    """In words whether a file is a signed image, or part of an artifact, that the key signed."""
    if signing.is_signed(path):
        return _signed_image(path, key)
    try:
        made = artifact.load(path)
    except Problem as problem:
        return f"none: {problem.message}"
    try:
        own = key()
        made.verify(own)
    except Problem as problem:
        return f"not accepted: {problem.message}"
    return f"good, by {own.id}: {made.name} {made.manifest['version']} {made.arch} {made.format}"


def _signed_image(path: Path, key: Callable[[], Key]) -> str:
    try:
        own = key()
        said = signing.verified(path, [own]).said
    except Problem as problem:
        return f"not accepted: {problem.message}"
    program = " ".join(os.fsdecode(word) for word in said.arguments) or "no program"
    return f"good, by {own.id}: {said.name} {said.version} {said.architecture} {said.payload}, runs {program}"


def described(made: Artifact) -> Iterator[str]:
    """What a manifest says."""
    facts = made.manifest
    yield f"{made.name} {facts['version']} {made.arch} {made.format}: {size(made.size)} (signature not checked here)"
    for part in made.parts:
        yield f"  {part.role:8} {size(part.size):>12}  {part.sha256}  {part.file}"
    for name in ("tree", "definition", "lock"):
        yield f"  {name:8} {'':12}  {facts[name]}"
    for package in facts["packages"]:
        version = f"{package['version']} {package['architecture']}"
        yield f"  package  {size(package['size']):>12}  {package['name']} {version}"


def listed(tree: Tree) -> Iterator[str]:
    """Every path of a tree, then its sizes."""
    for path in tree.paths:
        entry = tree[path]
        target = f" -> {entry.target}" if entry.target else ""
        mode = filemode(TYPES[entry.kind] | entry.mode)
        yield f"{mode} {entry.uid:5} {entry.gid:5} {entry.size:10}  {printable(path + target)}  [{entry.owner}]"
    yield from sizes(tree)


def sizes(tree: Tree) -> Iterator[str]:
    """What each owner brings."""
    for owner, taken in tree.sizes().items():
        yield f"  {size(taken):>12}  {owner}"


def _size_of(path: Path) -> int:
    try:
        found = path.stat()
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    if not S_ISREG(found.st_mode):
        raise Problem(f"{path} is no file", "name an image file, a manifest or a definition")
    return found.st_size
