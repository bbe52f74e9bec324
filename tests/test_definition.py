"""A definition is read without running more than it says, and every mistake in it is one Problem with its line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from imagekit import definition
from imagekit.errors import Defect, Problem

GOOD = "from imagekit import Image\nimage = Image('web')\n"


def written(folder: Path, source: str | bytes, name: str = "web.py") -> Path:
    path = folder / name
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return path


def test_an_image_is_loaded(tmp_path: Path) -> None:
    assert definition.load(written(tmp_path, GOOD)).name == "web"


def test_a_change_within_the_second_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for name in ("one", "two"):
        path = written(tmp_path, GOOD.replace("web", name))
        os.utime(path, (1_700_000_000, 1_700_000_000))
        assert definition.load(path).name == name


@pytest.mark.parametrize(
    ("source", "line", "words"),
    [
        ("x = 1\n", "", "defines no image\n  hint: a definition has `image = Image"),
        ("image = 'web'\n", "", "defines no image"),
        ("def f(:\n", ":1", "invalid syntax\n  hint: the line reads: def f\\(:"),
        ("x = 1\n  y = 2\n", ":2", "unexpected indent"),
        ("x = (\n", ":1", "was never closed"),
        ("import no_such_thing\n", ":1", "ModuleNotFoundError: No module named 'no_such_thing'"),
        ("from imagekit import Imag\n", ":1", "has no attribute 'Imag'|cannot import name 'Imag'"),
        ("\n\nx = 1 / 0\n", ":3", "ZeroDivisionError: division by zero"),
        ("from imagekit import Image\nimage = Image('web', pakages=())\n", ":2", "unknown field 'pakages'"),
        ("x = {'/a': 1,\n '/b': 2,\n '/a': 3}\n", ":3", "'/a' is given twice"),
        (b"\xff\xfe", "", "cannot read the definition"),
        (b"x = '\0'\n", "", "null byte"),
        ("raise OSError('no')\n", ":1", "OSError: no"),
    ],
)
def test_a_mistake_is_one_problem_with_its_line(tmp_path: Path, source: str | bytes, line: str, words: str) -> None:
    path = written(tmp_path, source)
    with pytest.raises(Problem, match=words) as caught:
        definition.load(path)
    assert f"{path}{line}" in caught.value.message


def test_the_line_is_known_for_a_relative_path_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=r"^web\.py:2: ZeroDivisionError"):
        definition.load(Path("web.py"))


def test_a_missing_definition_is_a_problem(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot read the definition"):
        definition.load(tmp_path / "web.py")


def test_a_defect_keeps_its_traceback(tmp_path: Path) -> None:
    path = written(tmp_path, "from imagekit.errors import Defect\nraise Defect('ours')\n")
    with pytest.raises(Defect, match=r"^ours$"):
        definition.load(path)


def test_same_names_in_two_folders_are_two_modules(tmp_path: Path) -> None:
    modules = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        modules.append(definition.load_module(written(tmp_path / folder, f"x = {folder!r}\n", "http.py")))
    assert [module.x for module in modules] == ["a", "b"]
    assert all(sys.modules[module.__name__] is module for module in modules)
    assert str(tmp_path / "a") not in sys.path


def test_dataclasses_with_postponed_annotations_work(tmp_path: Path) -> None:
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
    assert definition.load_module(written(tmp_path, source)).A(1).x == 1


def test_a_failed_definition_leaves_no_module(tmp_path: Path) -> None:
    before = set(sys.modules)
    with pytest.raises(Problem):
        definition.load(written(tmp_path, "1 / 0\n"))
    assert not {name for name in set(sys.modules) - before if name.startswith("definition_")}


@pytest.mark.parametrize(
    ("source", "looks"),
    [
        (GOOD, True),
        ("from imagekit import Image\nimage: Image = Image('web')\n", True),
        ("import imagekit\nimage=1\n", True),
        ("import imagekit\n@pytest.fixture\ndef image():\n    ...\n", True),
        ("import imagekit\n@fixture(scope='module')\ndef image():\n    ...\n", True),
        ("import imagekit\ndef image():\n    ...\n", False),
        ("import imagekit\nclass image: ...\nimage = 1\n", True),
        ("import imagekit\nimages = ()\n", False),
        ("import imagekit\nimage == 1\n", False),
        ("import imagekit\n    image = 1\n", False),
        ("image = load('cat.png')\n", False),
        ('TEXT = """\nfrom imagekit import Image\nimage = Image(\'web\')\n"""\n', False),
        ("import imagekit\nimage = (\n", True),
        (b"\xff imagekit\nimage = 1\n", True),
    ],
)
def test_definitions_are_told_from_other_files(tmp_path: Path, source: str | bytes, looks: bool) -> None:
    assert definition.looks_like_one(written(tmp_path, source)) is looks


def test_what_cannot_be_read_looks_like_none(tmp_path: Path) -> None:
    assert not definition.looks_like_one(tmp_path)
    assert not definition.looks_like_one(tmp_path / "missing.py")


@pytest.mark.parametrize("source", ["{'a': 1, 'b': 1}", "{**x, 'a': 1}", "{'a': {'a': 1}}", "{1: 1, 1: 2}"])
def test_other_displays_are_fine(source: str) -> None:
    definition.refuse_repeated_keys(source, Path("web.py"))


WITH_TESTS = """
import subprocess
import sys

import pytest
from pytest import fixture, mark
from imagekit import Image
image = Image("web")
pytestmark = pytest.mark.slow
@pytest.fixture
def one(): ...
@fixture(scope="module")
def two(): ...
@mark.parametrize("x", [1, pytest.param(2, id="two")])
@pytest.mark.skipif(False, reason="never")
def test_x(x): ...
"""
ONLY_REAL = (
    "import pytest\nfrom imagekit import Image\nclass Mine(pytest.Item): ...\nimage = Image('web')\n",
    "import pytest\nfrom imagekit import Image\nimage = Image('web' if pytest.__version__ else '')\n",
)


LOAD = """
import sys
from pathlib import Path
from imagekit import definition
print(definition.load(Path(sys.argv[1])).name, "pytest" in sys.modules)
"""


def loaded(path: Path) -> list[str] | str:
    """The name of a definition's image and whether pytest was loaded for it; else what was wrong."""
    done = subprocess.run([sys.executable, "-c", LOAD, str(path)], capture_output=True, text=True, check=False)
    return done.stdout.split() or done.stderr


def test_a_build_reads_tests_without_pytest(tmp_path: Path) -> None:
    assert loaded(written(tmp_path, WITH_TESTS)) == ["web", "False"]


@pytest.mark.parametrize("text", ONLY_REAL)
def test_a_definition_that_needs_pytest_gets_it(text: str, tmp_path: Path) -> None:
    assert loaded(written(tmp_path, text)) == ["web", "True"]


def test_what_is_wrong_is_told_by_the_definition_itself(tmp_path: Path) -> None:
    said = loaded(written(tmp_path, "import pytest\n1 / 0\n"))
    assert "web.py:2: ZeroDivisionError" in said
