"""A definition: the Python file that says what an image is and, as test functions, what it must do."""

import ast
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from zlib import crc32

from imagekit.errors import Defect, Problem

if TYPE_CHECKING:
    from imagekit.image import Image  # at run time when one is loaded: every run of pytest asks `looks_like_one`

LOOKS_LIKE_ONE = re.compile(rb"^(image\s*(:[^=\n]*)?=(?!=)|def image\()", re.MULTILINE)


def looks_like_one(path: Path) -> bool:
    """Whether a file defines an image, without importing it: it may be anybody's Python file."""
    try:
        source = path.read_bytes()
    except OSError:
        return False
    if b"imagekit" not in source or not LOOKS_LIKE_ONE.search(source):
        return False
    try:
        return any("image" in _names(node) for node in ast.parse(source).body)
    except (SyntaxError, ValueError):
        return True  # whoever loads it will say what is wrong


def _names(node: Any) -> list[str]:
    """What a statement defines that may be an image: `image = ...`, `image: Image = ...`, a fixture `image`."""
    if hasattr(node, "decorator_list"):
        return [node.name] if any("fixture" in ast.dump(decorator) for decorator in node.decorator_list) else []
    targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
    return [getattr(target, "id", "") for target in targets]


def load(path: Path) -> "Image":
    """The `image` of a definition; every mistake in it is one Problem with file and line."""
    from imagekit.image import Image

    image = _without_pytest(path)
    if not isinstance(image, Image):
        image = getattr(load_module(path), "image", None)
    if not isinstance(image, Image):
        raise Problem(f"{path} defines no image", "a definition has `image = Image(name=..., ...)` at its top level")
    return image


class _Anything(ModuleType):
    """Stands for pytest and whatever is asked of it; as a decorator it changes nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __call__(self, *given: Any, **options: Any) -> Any:
        return given[0] if len(given) == 1 and callable(given[0]) and not options else self


def _without_pytest(path: Path) -> Any:
    """The `image` of a definition whose tests are not asked for: pytest costs more than all the rest of a warm build.

    None where that does not do; it is then read with pytest, which says what is wrong if it is the definition.
    """
    if "pytest" in sys.modules:
        return None
    sys.modules["pytest"] = _Anything("pytest")
    try:
        return getattr(load_module(path), "image", None)
    except (Problem, SystemExit):
        return None
    finally:
        del sys.modules["pytest"]


def load_module(path: Path, *, loader: Any = None) -> ModuleType:
    """A definition as a module; its folder is not put on sys.path, where images/http.py would hide Python's own http.

    `loader` (an importlib.abc.Loader) may compile it in its own way, as pytest does to explain assertions.
    """
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    class Anew(SourceFileLoader):
        """Compiles what is there: bytecode that was kept counts as right if its source has its size and its second."""

        def get_code(self, fullname: str) -> Any:
            _ = fullname
            return self.source_to_code(self.get_data(self.path), self.path)

    _check_source(path)
    name = f"definition_{path.stem}_{crc32(str(path.absolute()).encode()):08x}"  # two folders may each have a web.py
    spec = spec_from_file_location(name, path, loader=loader or Anew(name, str(path)))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception) and not isinstance(error, Defect):
            raise _told(error, path) from error
        raise
    return module


def _check_source(path: Path) -> None:
    try:
        refuse_repeated_keys(path.read_text(encoding="utf-8"), path)
    except SyntaxError as error:
        raise Problem(f"{path}:{error.lineno}: {error.msg}", f"the line reads: {(error.text or '').strip()}") from error
    except (OSError, ValueError) as error:  # not there, not UTF-8, or with a null byte
        raise Problem(f"cannot read the definition {path}: {error}") from error


def refuse_repeated_keys(source: str, path: Path) -> None:
    """Raise Problem for a dict display that has one constant key twice: Python would keep the last without a word."""
    for node in ast.walk(ast.parse(source, filename=str(path))):
        if isinstance(node, ast.Dict):
            seen: set[object] = set()
            for key in node.keys:
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    if key.value in seen:
                        raise Problem(f"{path}:{key.lineno}: {key.value!r} is given twice", "keep one of the two")
                    seen.add(key.value)


def _told(error: Exception, path: Path) -> Problem:
    where = f"{path}:{_line_of(error, path)}"
    if isinstance(error, Problem):
        return type(error)(f"{where}: {error.message}", error.hint)
    return Problem(f"{where}: {type(error).__name__}: {error}")


def _line_of(error: BaseException, path: Path) -> int:
    line, trace = 0, error.__traceback__
    while trace:
        if trace.tb_frame.f_code.co_filename in (str(path), str(path.absolute())):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line
