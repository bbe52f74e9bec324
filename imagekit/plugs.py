"""A folder of kinds: the file's name is the name, a constant is the contract.

Adding an output format, a source, a machine or a store is adding one file; nothing registers it. Kinds outside this
tree come through an entry point group of the folder's name (`imagekit.formats`, ...), loaded only when asked for.
"""

import sys
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from imagekit.errors import Defect, unknown

CONSTANTS = {"sources": "SOURCE", "stores": "STORE", "formats": "FORMAT", "targets": "TARGET", "sites": "SITE",
             "verbs": "VERB", "advisories": "FEED", "units": "UNIT"}  # fmt: skip


def names(kind: str) -> tuple[str, ...]:
    """The names of every plug of a kind, sorted; files that begin with `_` are shared code, not plugs."""
    return tuple(sorted({**_foreign(kind), **own(kind)}))


def load(kind: str, name: str) -> Any:
    """The constant of one plug. An unknown name is a Problem that lists the known ones."""
    module = _imported(kind, name)
    constant = CONSTANTS[kind]
    if not hasattr(module, constant):
        raise Defect(f"{module.__name__} has no {constant}", f"a file in {kind}/ ends with {constant} = ...")
    return getattr(module, constant)


def summary(kind: str, name: str) -> str:
    """The first line of a plug's docstring: its help text."""
    return (_imported(kind, name).__doc__ or "").strip().partition("\n")[0]


def _imported(kind: str, name: str) -> ModuleType:
    module = _module(kind, name)
    try:
        return import_module(module)
    except (ImportError, SyntaxError) as error:
        raise Defect(f"the {kind.removesuffix('s')} {name!r} does not load: {module}: {error}") from error


def _module(kind: str, name: str) -> str:
    module = own(kind).get(name) or _foreign(kind).get(name)
    if module is None:
        raise unknown(kind.removesuffix("s"), name, names(kind))
    return module


@cache
def own(kind: str) -> dict[str, str]:
    """The plugs of this tree alone: name -> module."""
    here = Path(__file__).parent / kind
    return {p.stem: f"imagekit.{kind}.{p.stem}" for p in here.glob("*.py") if not p.stem.startswith("_")}


@cache
def _foreign(kind: str) -> dict[str, str]:
    if not any(f"[imagekit.{kind}]".encode() in text for text in _entry_point_files()):
        return {}  # importlib.metadata costs more than a warm build, and few machines have any
    from importlib.metadata import entry_points

    return {point.name: point.value for point in entry_points(group=f"imagekit.{kind}")}


def _entry_point_files() -> tuple[bytes, ...]:
    """Every installed entry_points.txt, unparsed (PyPA, "Entry points specification")."""
    found = (file for place in sys.path for file in Path(place).glob("*-info/entry_points.txt"))
    return tuple(file.read_bytes() for file in found)
