"""Imports point down (docs/house.md, "The import rule"), lazy ones in functions included; file and line are named."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
RULE = (HOME / "docs/house.md").read_text().partition("## The import rule")[2].splitlines()
FLOORS = [  # a module imports only from lines above its own; a folder stands for every file in it
    [name for line in RULE if line.startswith(f"    {number} ") for name in line.split()[1:]] for number in range(10)
]
PLUGS = ("sources", "stores", "formats", "targets", "sites", "advisories")
PACKAGE_ITSELF = 4  # imagekit/__init__.py looks up names of errors and image: it stands just below floor 3
WRAPPED = {  # each heavy dependency is known to these files alone
    "cryptography": ("ecdsa", "rsa"),
    "pytest": ("plugin", "bench", "collection", "aftercare", "outcomes", "testimony"),
    "_pytest": (),
    "xdist": ("scheduler",),
    "qemu": ("targets/_qemu*",),
    "isal": ("disk/inflate",),
    "nacl": ("ed25519",),
    "packaging": ("order", "sources/_*", "sources/wheel"),
    "paramiko": ("ssh",),
    "pycdlib": ("disk/iso",),
    "pysequoia": ("sources/_*",),
    "resolvelib": ("sources/_closure",),
    "securesystemslib": ("depot/roles",),
    "testinfra": ("testinfra",),
    "tuf": ("depot/index", "depot/trust"),
    "zstandard": ("sources/_*", "formats/*", "disk/*", "depot/chunks"),
}
PARTS = {  # what a module was split into: nobody else may import them, and each knows those before it
    "plugin": ("bench", "fixtures", "scheduler", "collection", "aftercare", "outcomes", "testimony"),
}
DEFINITIONS_MAY = ("imagekit", "imagekit.checks", "pytest")


def modules() -> list[Path]:
    return sorted(path for path in (HOME / "imagekit").rglob("*.py") if "inside" not in path.parts)


def floor_of(module: str) -> int | None:
    """The floor of "tree", "disk/gzip", ...; None for a file that has none."""
    if module in ("__init__", ""):
        return PACKAGE_ITSELF
    for name in (module, module.partition("/")[0] + "/"):
        for number, floor in enumerate(FLOORS):
            if name in floor:
                return number
    return None


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every (line, absolute name) that is imported: at the top, in functions, for types only, or by import_module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, _from(node, alias.name)) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
            "import_module",
            "__import__",
        ):
            yield from ((node.lineno, a.value) for a in node.args[:1] if isinstance(a, ast.Constant))


def _from(node: ast.ImportFrom, name: str) -> str:
    return "." * node.level + ".".join(filter(None, (node.module, name)))


def home_module(name: str) -> str | None:
    """The file of imagekit that a dotted name comes from ("disk/gzip", or "__init__"); None for another package's."""
    first, *rest = name.split(".")
    if first != "imagekit":
        return None
    for parts in (rest, rest[:-1]):
        path = HOME / "imagekit" / "/".join(parts)
        if parts and (path.with_suffix(".py").is_file() or path.is_dir()):
            return "/".join(parts)
    return "__init__"


def faults(module: str, source: str) -> list[str]:
    """What a module's imports do that the rule forbids, as `line: words`."""
    found = []
    for line, name in imports(ast.parse(source)):
        fault = _fault_of_own(module, name) if name.startswith("imagekit") else _fault_of_foreign(module, name)
        if fault:
            found.append(f"{line}: {fault}")
    return found


def _fault_of_own(module: str, name: str) -> str:
    target = home_module(name)
    if target is None or name == "imagekit.__version__" or (name == "imagekit" and module == "build"):
        return ""  # the version is a constant; build reads it and the package's own bytes
    folder, _, file = target.partition("/")
    if module.startswith(f"{folder}/") and file.startswith("_"):
        return ""  # a folder's files share its private ones
    if folder in PLUGS and module.partition("/")[0] in PLUGS:
        return f"a plug imports the plug {name}"
    if any(target in parts for parts in PARTS.values()):
        return "" if target in _parts_known_to(module) else f"{name} is a part of another module"
    own, other = floor_of(module), floor_of(target)
    if own is None or other is None:
        return f"{name}: {module if own is None else target} has no floor"
    return "" if other < own else f"imports {name} (floor {other}) from floor {own}"


def _parts_known_to(module: str) -> tuple[str, ...]:
    for whole, parts in PARTS.items():
        if module in (whole, *parts):
            return parts if module == whole else parts[: parts.index(module)]
    return ()


def _fault_of_foreign(module: str, name: str) -> str:
    top = name.partition(".")[0]
    if name.startswith("."):
        return f"{name} is a relative import"
    if top in sys.stdlib_module_names:
        return ""
    if top not in WRAPPED:
        return f"{name} is no dependency of the project"
    allowed = any(Path(module).match(pattern) for pattern in WRAPPED[top])
    return "" if allowed else f"{name} is imported outside of {', '.join(WRAPPED[top]) or 'nothing'}"


def name_of(path: Path) -> str:
    return path.relative_to(HOME / "imagekit").with_suffix("").as_posix()


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    found = faults(name_of(path), path.read_text())
    assert not found, "\n".join(f"{path.relative_to(HOME)}:{fault}" for fault in found)


def test_every_module_has_a_floor_and_every_floor_its_modules() -> None:
    homeless = [name for name in map(name_of, modules()) if floor_of(name) is None]
    assert not homeless, f"give it a floor in docs/house.md: {homeless}"
    names = [name for floor in FLOORS for name in floor]
    assert len(names) == len(set(names))
    gone = [name for name in names if not any((HOME / "imagekit" / f"{name}{end}").exists() for end in ("", ".py"))]
    assert not gone, f"docs/house.md gives a floor to what is not there: {gone}"
    assert len(FLOORS) == 10


def test_definitions_import_imagekit_checks_and_pytest_only() -> None:
    found = []
    for path in sorted((HOME / "images").glob("*.py")):
        for line, name in imports(ast.parse(path.read_text())):
            if name.partition(".")[0] not in sys.stdlib_module_names and not name.startswith(DEFINITIONS_MAY):
                found.append(f"{path.relative_to(HOME)}:{line}: {name}")
            if (home_module(name) or "__init__").partition("/")[0] not in ("__init__", "checks"):
                found.append(f"{path.relative_to(HOME)}:{line}: {name}")
    assert not found, "\n".join(found)


BAD = (
    ("tree", "from imagekit.image import Image", "1: imports imagekit.image.Image (floor 3) from floor 1"),
    ("tree", "def f():\n    from imagekit.image import Image", "2: imports imagekit.image.Image"),
    ("tree", "if TYPE_CHECKING:\n    from imagekit import artifact", "2: imports imagekit.artifact"),
    ("tree", "import_module('imagekit.build')", "1: imports imagekit.build"),
    ("tree", "from imagekit.key import Key", "1: imports imagekit.key.Key (floor 1) from floor 1"),
    ("tree", "from imagekit import Problem", "1: imports imagekit.Problem (floor 4) from floor 1"),
    ("tree", "from . import errors", "1: .errors is a relative import"),
    ("tree", "from .errors import Problem", "is a relative import"),
    ("errors", "import imagekit.tree", "1: imports imagekit.tree (floor 1) from floor 0"),
    ("cli", "import imagekit.plugin", "1: imports imagekit.plugin (floor 9) from floor 9"),
    ("formats/tar", "from imagekit.formats import kernel_initrd", "1: a plug imports the plug"),
    ("formats/tar", "from imagekit.stores.directory import open_store", "1: a plug imports the plug"),
    ("targets/namespace", "from imagekit.formats.tar import FORMAT", "1: a plug imports the plug"),
    ("disk/tar", "from imagekit.disk import gzip", "1: imports imagekit.disk.gzip (floor 2) from floor 2"),
    ("report", "import pytest", "1: pytest is imported outside of plugin"),
    ("plugin", "from xdist.scheduler import x", "is imported outside of scheduler"),
    ("plugin", "from _pytest.config import Config", "is imported outside of nothing"),
    ("targets/qemu_x86_64", "from qemu.qmp import QMPClient", "is imported outside of targets/_qemu*"),
    ("artifact", "from nacl.signing import VerifyKey", "is imported outside of ed25519"),
    ("cli", "import requests", "1: requests is no dependency of the project"),
    ("cli", "from imagekit import fixtures", "1: imagekit.fixtures is a part of another module"),
    ("fixtures", "from imagekit import collection", "1: imagekit.collection is a part of another module"),
    ("new_noun", "from imagekit.tree import Tree", "new_noun has no floor"),
)
GOOD = (
    ("tree", "import json\nfrom imagekit.errors import Problem"),
    ("formats/tar", "from imagekit.disk import gzip\nfrom imagekit.tree import Tree"),
    ("formats/kernel_initrd", "import zstandard"),
    ("sources/debian", "from imagekit.sources import _deb"),
    ("sources/debian", "from imagekit.sources._deb import read"),
    ("checks/standard", "from imagekit.checks import size"),
    ("cli", "from imagekit import __version__, build"),
    ("collection", "import pytest\nfrom imagekit.bench import Bench"),
    ("plugin", "import pytest\nfrom imagekit.scheduler import MachineScheduling"),
    ("targets/_qemu", "from qemu.qmp import QMPClient"),
    ("ed25519", "def f():\n    from nacl.signing import VerifyKey"),
)


@pytest.mark.parametrize(("module", "source", "words"), BAD)
def test_a_breach_is_named_with_its_line(module: str, source: str, words: str) -> None:
    assert words in "\n".join(faults(module, source))


@pytest.mark.parametrize(("module", "source"), GOOD)
def test_what_is_allowed_is_no_breach(module: str, source: str) -> None:
    assert faults(module, source) == []
