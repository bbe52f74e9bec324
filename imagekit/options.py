"""One rule for every option: command line, IMAGEKIT_NAME, [tool.imagekit] of the project, then the default."""

import os
from functools import cache
from pathlib import Path
from typing import Any

from imagekit.errors import Problem, unknown

KNOWN = (
    "arch",
    "format",
    "target",
    "tools",
    "key",
    "mirror",
    "keyring",
    "image-report",
    "accel",
    "update-baseline",
    "timeout-scale",
    "on-failure",
    "failures",
    "compare",
    "full",
    "cache-size",
    "shared-cache",
    "depot",
    "boot-keys",
)


def lookup(name: str, given: Any = None, *, folder: Path | None = None, default: Any = None) -> Any:
    """The value of an option, and nothing about where it came from; see `origin` for that."""
    return origin(name, given, folder=folder, default=default)[0]


def origin(name: str, given: Any = None, *, folder: Path | None = None, default: Any = None) -> tuple[Any, str]:
    """(value, where it was given): "option", the variable's name, the pyproject.toml's path, or "default"."""
    if given not in (None, [], ()):
        return given, "option"
    variable = f"IMAGEKIT_{name.upper().replace('-', '_')}"
    if os.environ.get(variable):
        return os.environ[variable], variable
    path, table = project(folder or Path.cwd())
    if name in table:
        return table[name], str(path)
    return default, "default"


@cache
def project(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The nearest pyproject.toml with a [tool.imagekit] at or above a folder, and that table."""
    for place in (folder.absolute(), *folder.absolute().parents):
        path = place / "pyproject.toml"
        table = _table(path)
        if table is not None:
            for name in table:
                if name not in KNOWN:
                    problem = unknown("setting", name, KNOWN)
                    raise Problem(f"{path}: [tool.imagekit]: {problem.message}", problem.hint)
            return path, table
    return None, {}


def _table(path: Path) -> dict[str, Any] | None:
    try:
        text = path.read_text(encoding="utf-8")
        if "[tool.imagekit" not in text:
            return None
        import tomllib  # most projects have no such table, and a warm build has no time for it

        table = tomllib.loads(text)["tool"]["imagekit"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        raise Problem(f"cannot read {path}: {error}") from error
    if not isinstance(table, dict):
        raise Problem(f"{path}: tool.imagekit is {table!r}, not a table")
    return table
