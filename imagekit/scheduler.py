"""How tests are shared out among workers: a machine boots once, on one of them.

A unit of work is one definition on one architecture. xdist's own ways do not fit: `load` boots every machine on every
worker, `loadscope` and `loadfile` keep the architectures of a file on one, and groups are lost (pytest-xdist #1386).
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

from xdist.scheduler.loadscope import LoadScopeScheduling  # type: ignore[import-untyped] # xdist has no types

from imagekit.arch import ARCHES
from imagekit.definition import looks_like_one


class MachineScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """One unit per definition and architecture; every test of other files is a unit of its own."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, rest = nodeid.partition("::")
        if not _is_definition(Path(self.config.rootpath) / file):
            return nodeid
        words = re.findall(r"\w+", rest.partition("[")[2])
        return f"{file}@{next((word for word in words if word in ARCHES), '')}"


def is_worth_it(config: Any) -> bool:
    """Whether any definition is among what is tested; other projects keep xdist's own way."""
    places = [config.invocation_params.dir / arg.partition("::")[0] for arg in config.args]
    return any(map(_holds_definition, places))


def _holds_definition(place: Path) -> bool:
    if place.is_file():
        return _is_definition(place)
    return any(map(_is_definition, (*place.glob("*.py"), *place.glob("*/*.py"))))


_is_definition = cache(looks_like_one)
