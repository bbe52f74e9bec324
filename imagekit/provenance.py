"""Provenance: from what, by whom and when an artifact was built: SLSA's predicate, v1, in a signed statement.

https://slsa.dev/spec/v1.0/provenance. It claims Build L1 and no more: whoever builds holds the key and writes what they
like, so it tells of mistakes, not of liars. Times stand here and nowhere else.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from imagekit import proofs, sbom
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.key import Key

PREDICATE = "https://slsa.dev/provenance/v1"
BUILD = "urn:imagekit:build:1"  # what the parameters mean: docs/proofs.md
KIND = "provenance"
ASKED = ("name", "version", "arch", "format", "suite", "definition", "lock")


def predicate(made: Artifact, *, key: Key, started: float | None, finished: float) -> dict[str, Any]:
    """What is said of a build; times are seconds since 1970, and one that is not known is left out."""
    return {
        "buildDefinition": {
            "buildType": BUILD,
            "externalParameters": _asked(made),
            "internalParameters": {"imagekit": made.manifest["imagekit"]},
            "resolvedDependencies": _dependencies(made),
        },
        "runDetails": {
            "builder": {"id": f"urn:imagekit:key:{key.id}", "version": {"imagekit": made.manifest["imagekit"]}},
            "metadata": {**({"startedOn": _time(started)} if started else {}), "finishedOn": _time(finished)},
        },
    }


def write(made: Artifact, *, key: Key, started: float, finished: float) -> Path:
    """Sign the provenance of an artifact and lay it beside it.

    finished: when its manifest was first written. An artifact that was kept from an earlier build was finished before
    this one started, and nobody knows any more when that build started.
    """
    said = predicate(made, key=key, started=started if started <= finished else None, finished=finished)
    return proofs.write(made, proofs.path(made, KIND), predicate_type=PREDICATE, predicate=said, key=key)


def check(made: Artifact, keys: Iterable[Key]) -> str:
    """What the provenance beside an artifact says, in a line; raises Problem when it does not fit its manifest."""
    where = proofs.path(made, KIND)
    found = proofs.read(made, where, keys=keys, predicate_type=PREDICATE)
    build, run = (found.predicate.get(name) for name in ("buildDefinition", "runDetails"))
    if not isinstance(build, dict) or not isinstance(run, dict) or build.get("buildType") != BUILD:
        raise Problem(f"{where.name} does not tell of a build by imagekit")
    for field, expected in (("externalParameters", _asked(made)), ("resolvedDependencies", _dependencies(made))):
        if build.get(field) != expected:
            raise Problem(f"{where.name}: its {field} are not those of the manifest", "build it again --provenance")
    metadata = run.get("metadata")
    when = metadata.get("finishedOn") if isinstance(metadata, dict) else None
    return f"built {when!a} from {len(_dependencies(made))} packages, says {found.keys[0].id}"


def _asked(made: Artifact) -> Mapping[str, str]:
    return {name: made.manifest[name] for name in ASKED if name in made.manifest}


def _dependencies(made: Artifact) -> list[dict[str, Any]]:
    """The pins that went into it, as ResourceDescriptors."""
    rows = sbom.rows(made.manifest).items()
    return [{"uri": uri, "name": row["name"], "digest": {"sha256": row["sha256"]}} for uri, row in rows]


def _time(seconds: float) -> str:
    """RFC 3339, in UTC and whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
