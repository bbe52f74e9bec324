"""Baseline: how long an image took to boot when somebody last agreed with it; NAME.baseline.json beside the definition.

A JSON object with a row for each place, "x86_64 kernel_initrd qemu_x86_64"; reviewed in git like a lock.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from imagekit import host
from imagekit.boot import Boot, parse
from imagekit.errors import Problem

MAX_BYTES = 4 << 20
AGAIN = "record it anew with --update-baseline"


@dataclass(frozen=True)
class Recorded:
    """What is on record for one place."""

    place: str  # architecture, format and target
    path: Path
    boot: Boot | None  # None: nothing is

    def unusable(self, now: Boot) -> str:
        """Why a boot cannot be judged by the record, in words; "" when it can."""
        if self.boot is None:
            return f"{self.path.name} has nothing on {self.place}: record it with --update-baseline"
        why = now.incomparable(self.boot)
        return f"{self.path.name} was recorded with another machine ({why}): {AGAIN}" if why else ""

    def slower(self, now: Boot) -> float:
        """By which share of the recorded time a boot is slower beyond its tolerance; 0 when it is not."""
        assert self.boot is not None
        share = now.seconds / self.boot.seconds - 1
        return share if share > max(now.tolerance, self.boot.tolerance) else 0.0


def path_of(definition: Path) -> Path:
    """Where the boots of a definition are on record."""
    return definition.with_suffix(".baseline.json")


def read(path: Path) -> dict[str, Boot]:
    """Every boot on record; none where there is no file. Raises Problem for a file that is no baseline."""
    try:
        with open(path, "rb") as file:
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        found: Any = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it is a {type(found).__name__}, not an object")
        return {place: parse(row) for place, row in found.items()}
    except (ValueError, RecursionError, Problem) as error:
        raise Problem(f"{path} is no baseline: {error}", f"remove it and {AGAIN}") from error


def recorded(definition: Path, place: str) -> Recorded:
    """What is on record for a place of a definition."""
    path = path_of(definition)
    return Recorded(place, path, read(path).get(place))


def record(definition: Path, place: str, boot: Boot, *, locks: Path) -> Recorded:
    """Put a boot on record; rows of other places stay. Raises RigProblem when the file cannot be written.

    `locks` is a folder for lock files: other workers record other places at the same time.
    """
    path = path_of(definition)
    with host.once(locks, f"baseline-{sha256(str(path.absolute()).encode()).hexdigest()[:16]}"):
        rows: Mapping[str, Boot] = {**read(path), place: boot}
        lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(rows[name].plain())}" for name in sorted(rows))
        with host.draft(path) as file:
            file.write(f"{{\n{lines}\n}}\n".encode())
    return Recorded(place, path, boot)
