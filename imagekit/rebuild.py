"""Rebuild: build an artifact again from its definition and lock, and say under signature whether it is the same.

What is trusted is whoever signs such a statement, not whoever made the artifact: two of three keys that say "the same"
have each built it, from packages that they fetched themselves.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import imagekit
from imagekit import bootkeys, borrowed, build, definition, proofs, twice
from imagekit import lock as locks
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.store import Store

PREDICATE = "urn:imagekit:rebuild:1"  # what it says: docs/proofs.md
KIND = "rebuilt"
MOST = 256  # statements that are looked at


class Rebuilt(NamedTuple):
    """What building it again gave."""

    same: bool
    lines: tuple[str, ...]  # for people
    path: Path  # of the statement


def rebuild(
    made: Artifact, path: Path, *, key: Key, store: Store, say: Callable[[str], None], folder: Path | None = None,
    tools: str | None = None, by: Key | None = None,
) -> Rebuilt:  # fmt: skip
    """Build a verified artifact again from the definition at `path`, and sign what came of it.

    folder: where to write the statement; else beside the artifact. by: who signed the artifact; else `key`. Raises
    Problem when the definition, its lock or this imagekit is another one than the artifact was built by: nothing could
    be said then.
    """
    check_fit(made, path)
    place, layout = f"proof-{made.name}-{made.arch}-{made.format}", definition.load(path).disk
    keys = borrowed.keys(bootkeys.chosen(), layout, made) if layout.is_signed else nullcontext()
    with keys as lent, twice.built(path, arches=[made.arch], formats=[made.format], store=store, place=place, say=say,
                                   tools=tools, key_text=borrowed.key_text(by or key, [made]),
                                   boot_keys=lent) as again:  # fmt: skip
        [other] = again.artifacts
        differences = twice.differences(made, other)
        same = made.text == other.text
        parts = {part.role: part.sha256 for part in other.parts}
    built_by = {name: made.manifest[name] for name in ("imagekit", "definition", "lock")}
    said = {"same": same, "differences": differences, "parts": parts, "varied": again.varied, **built_by}
    where = proofs.path(made, f"{KIND}-{key.id}", folder=folder)
    proofs.write(made, where, predicate_type=PREDICATE, predicate=said, key=key)
    lines = differences or [f"{made.name} {made.arch} {made.format}: built again, the same"]
    told = ("its own signatures were taken, as far as they fit: the private boot keys are not here",) if lent else ()
    return Rebuilt(same, (*lines, *told, f"otherwise in the second build: {again.varied}"), where)


def check_fit(made: Artifact, path: Path) -> None:
    """Raise Problem unless an artifact was built from this definition and its lock, by this version of imagekit."""
    image = definition.load(path)
    lock = locks.beside(path)
    own = {
        "imagekit": (imagekit.__version__, "imagekit", "install that version"),
        "name": (image.name, f"image of {path}", "name its own definition with --definition"),
        "definition": (
            build.definition_digest(image, path.parent),
            f"definition {path}",
            "check out the revision it is of",
        ),
        "lock": (build.read_lock(path).digest, f"lock {lock}", "check out the revision it is of"),
    }
    for field, (found, what, hint) in own.items():
        if made.manifest.get(field) != found:
            raise Problem(f"{made.path.name} was built from another {what}: its manifest says "
                          f"{made.manifest.get(field)!a}, and here is {found!r}", hint)  # fmt: skip


def check(made: Artifact, keys: Sequence[Key], *, require: int) -> list[str]:
    """What those who built an artifact again say of it; raises Problem when fewer than `require` keys say "the same".

    One trusted key that says "not the same" is enough to refuse. A statement that none of the keys signed, or of
    another artifact, counts neither way; it is told.
    """
    trusted = len({key.public for key in keys})
    if not 0 < require <= trusted:
        raise Problem(f"{require} rebuilds are required, and {trusted} keys are trusted", "name keys with --key")
    lines: list[str] = []
    agreed: set[bytes] = set()
    against: list[str] = []
    for where in proofs.found(made, KIND)[:MOST]:
        try:
            found = proofs.read(made, where, keys=keys, predicate_type=PREDICATE)
            differences = proofs.names(found.predicate, "differences")
        except Problem as problem:
            lines.append(f"not counted: {problem.message}")
            continue
        by = ", ".join(key.id for key in found.keys)
        if found.predicate.get("same") is True and not differences:
            agreed |= {key.public for key in found.keys}
            lines.append(f"built again, the same, says {by}")
        else:
            against.append(f"says {by}: {ascii((differences or ['no difference is named'])[0])[:300]}")
    told = "; ".join(lines) or f"no *.{KIND}-*.json lies beside it"
    if against:
        raise Problem(f"{made.path.name} was built again and is not the same, {against[0]}", told)
    if len(agreed) < require:
        counts = f"by {len(agreed)} of the trusted keys, and {require} are required"
        raise Problem(f"{made.path.name} was built again, the same, {counts}", told)
    return lines
