"""Proofs: signed statements that lie beside an artifact and travel with it: which file they are, and of which artifact.

web_1_x86_64.raw_efi.manifest.json has its proofs in web_1_x86_64.raw_efi.KIND.json, each a DSSE envelope (statement.py)
whose subjects are the manifest, which names every byte, and each file that it names.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from imagekit import host, statement
from imagekit.artifact import MANIFEST_SUFFIX, Artifact
from imagekit.errors import Problem, RigProblem
from imagekit.key import Key
from imagekit.statement import Statement


def path(made: Artifact, kind: str, *, folder: Path | None = None) -> Path:
    """Where the proof of a kind lies: beside the artifact, or under the same name in another folder."""
    name = f"{made.path.name.removesuffix(MANIFEST_SUFFIX)}.{kind}.json"
    return (folder or made.path.parent) / name


def found(made: Artifact, kind: str) -> list[Path]:
    """The proofs of a kind that several may have written: KIND-ANYBODY.json, in the order of their names."""
    first = path(made, kind).name.removesuffix(".json")
    names = (one for one in made.path.parent.iterdir() if one.name.startswith(f"{first}-"))
    return sorted(one for one in names if one.suffix == ".json")


def write(
    made: Artifact, where: Path, *, predicate_type: str, predicate: Mapping[str, Any], key: Key
) -> Path:  # fmt: skip
    """Sign a statement of an artifact and write it to a file."""
    subjects = {made.path.name: made.digest, **{file.file: file.sha256 for file in made.files}}
    envelope = statement.sign(subjects, predicate_type=predicate_type, predicate=predicate, key=key)
    try:
        where.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RigProblem(f"cannot write to {where.parent}: {error.strerror}", "name another folder") from error
    with host.draft(where) as file:
        file.write(envelope)
    return where


def read(made: Artifact, where: Path, *, keys: Iterable[Key], predicate_type: str) -> Statement:
    """The statement in a file, of this artifact and signed by one of the keys; raises Problem for any other."""
    try:
        with open(where, "rb") as file:
            envelope = file.read(statement.MAX_ENVELOPE + 1)
    except OSError as error:
        raise Problem(f"cannot read {where}: {error.strerror}") from error
    try:
        return statement.verify(envelope, keys, subject=made.digest, predicate_type=predicate_type)
    except Problem as problem:
        raise Problem(f"{where.name}: {problem.message}", problem.hint) from problem


def names(predicate: Mapping[str, Any], field: str) -> list[str]:
    """A list of texts in a predicate, which may be missing; raises Problem for anything else."""
    value = predicate.get(field, [])
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise Problem(f"the statement's {field} is no list of names")
    return value
