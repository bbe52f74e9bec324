"""Options: command line, variable, project, default, in this order."""

import pytest

from imagekit import options
from imagekit.errors import Problem


@pytest.fixture(autouse=True)
def _fresh(monkeypatch):
    monkeypatch.delenv("IMAGEKIT_TOOLS", raising=False)
    options.project.cache_clear()


def test_precedence(tmp_path, monkeypatch):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    assert options.origin("tools", folder=below, default="auto") == ("auto", "default")
    (tmp_path / "pyproject.toml").write_text('[tool.imagekit]\ntools = "tree"\n')
    options.project.cache_clear()
    assert options.origin("tools", folder=below) == ("tree", str(tmp_path / "pyproject.toml"))
    monkeypatch.setenv("IMAGEKIT_TOOLS", "host")
    assert options.origin("tools", folder=below) == ("host", "IMAGEKIT_TOOLS")
    assert options.origin("tools", "auto", folder=below) == ("auto", "option")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tool.imagekit]\ntoolz = 1\n", "unknown setting 'toolz'"),
        ("[tool.imagekit\n", "cannot read"),
    ],
)
def test_a_bad_project_file_is_a_problem(tmp_path, text, words):
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(Problem, match=words):
        options.lookup("tools", folder=tmp_path)
