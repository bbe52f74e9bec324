"""Style is tested: lint, format, types, docstrings, length, names; and no file tells where it was written."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
FOLDERS = (".ci", "imagekit", "images", "tests", "fixtures", "benchmarks", "docs")
MAX_FILE, MAX_FUNCTION = 400, 50  # lines
MAX_PLUGIN = 250
NEVER = re.compile(  # names that say nothing (an operating system's Service is one)
    r"(Manager|Helper|Util|Utils|Base|Abstract|Handler|Context|Config|Data|Info|Process|Session|Builder|Environment|"
    r"Strategy)(?![a-z])"
)
FOREIGN = re.compile(  # registries and mirrors, and paths of one machine; [x] keeps this line from finding itself
    r"\b(deb|security|snapshot|ftp[\w.]*|archive|ports)\.(debian|ubuntu)\.(org|com)\b|\bpyp[i]\.org\b|"
    r"pythonhoste[d]|npmj[s]\.|\bcrates\.i[o]\b|\bghcr\.i[o]\b|"
    r"(?<![\w.])/wor[k]/|/opt/wheel[s]|/tmp/spe[c]\.|\bshare[d]/(facts|recipes)|\bfacts/\w+\.m[d]|(DESIGN|STYLE)\.m[d]"
)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (HOME / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(HOME).as_posix()


@pytest.mark.parametrize(
    "words",
    ["ruff check .", "ruff format --check .", "mypy --strict imagekit"],
)
def test_tools_find_nothing(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool, *rest = words.split()
    if not os.access(HOME, os.W_OK):  # another user's checkout: their caches go elsewhere
        monkeypatch.setenv("RUFF_CACHE_DIR", str(tmp_path))
        monkeypatch.setenv("MYPY_CACHE_DIR", str(tmp_path))
    if find_spec(tool) is None and not os.environ.get("CI"):
        pytest.skip(f"{tool} is not installed: pip install 'imagekit[dev]'")
    done = subprocess.run([sys.executable, "-m", tool, *rest], cwd=HOME, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]


def public(tree: ast.Module) -> Iterator[tuple[int, str, bool]]:
    """(line, name, has a docstring) of the module and of every public class, function and method of it."""
    yield 1, "the module", ast.get_docstring(tree) is not None
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield node.lineno, node.name, ast.get_docstring(node) is not None
            for inner in node.body if isinstance(node, ast.ClassDef) else ():
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield inner.lineno, f"{node.name}.{inner.name}", ast.get_docstring(inner) is not None


def long_functions(tree: ast.Module) -> Iterator[tuple[int, str, int]]:
    """(line, name, lines) of each function that is too long; one that holds others counts without them."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [
                n for n in ast.walk(node) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) and n is not node
            ]
            lines = _lines(node) - sum(map(_lines, inner))
            if lines > MAX_FUNCTION:
                yield node.lineno, node.name, lines


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


@pytest.mark.parametrize("path", sources("imagekit"), ids=name_of)
def test_public_names_say_what_they_are(path: Path) -> None:
    missing = [f"{name_of(path)}:{line}: {name}" for line, name, has in public(ast.parse(path.read_text())) if not has]
    assert not missing, "no docstring:\n" + "\n".join(missing)


@pytest.mark.parametrize("path", sources("imagekit", "images", "tests", "benchmarks"), ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    limit = MAX_PLUGIN if path == HOME / "imagekit/plugin.py" else MAX_FILE
    assert len(text.splitlines()) < limit, "split it along a noun"
    found = [f"{name_of(path)}:{line}: {name} has {n} lines" for line, name, n in long_functions(ast.parse(text))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("path", sources("imagekit", "images", "benchmarks"), ids=name_of)
def test_names_say_something(path: Path) -> None:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef) and NEVER.search(node.name):
            found.append(f"{name_of(path)}:{node.lineno}: class {node.name}")
        if isinstance(node, ast.FunctionDef) and node.name.startswith("do_"):
            found.append(f"{name_of(path)}:{node.lineno}: {node.name}")
    assert not found, "\n".join(found)
    assert not NEVER.search(path.stem.title())


def test_no_file_names_a_mirror_or_the_machine_it_was_written_on() -> None:
    files = [path for folder in FOLDERS for path in (HOME / folder).rglob("*") if path.is_file()]
    files += [path for path in HOME.iterdir() if path.is_file() and path.name != ".git"]  # a worktree's names its home
    assert len(files) > 20
    found = []
    for path in files:
        if path.suffix in (".pyc", ".so") or b"\0" in (data := path.read_bytes())[:8192]:
            continue
        for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), 1):
            if match := FOREIGN.search(line):
                found.append(f"{name_of(path)}:{number}: {match[0]}")
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("https://deb." + "debian.org/debian", True),
        ("ftp.de." + "debian.org", True),
        ("https://py" + "pi.org/simple", True),
        ("see /wo" + "rk/main", True),
        ("https://www.debian.org/doc/debian-policy", False),
        ("overlay with workdir=work", False),
    ],
)
def test_mirrors_and_paths_are_recognised(text: str, found: bool) -> None:
    assert bool(FOREIGN.search(text)) is found


def test_missing_docstrings_and_long_functions_are_found() -> None:
    tree = ast.parse("def f(): ...\nclass A:\n    'a'\n    def g(self): ...\n    def _h(self): ...\n")
    assert [name for _, name, has in public(tree) if not has] == ["the module", "f", "A.g"]
    long = "def f():\n" + "    pass\n" * MAX_FUNCTION
    assert [found[1:] for found in long_functions(ast.parse(long))] == [("f", MAX_FUNCTION + 1)]
    assert not list(long_functions(ast.parse("def f():\n    def g():\n" + "        pass\n" * 49)))
