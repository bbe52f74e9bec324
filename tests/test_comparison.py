"""Comparisons of revisions: what counts as worse, and what git is asked; real git, made-up boots."""

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toys import TESTS, TOY, write

from imagekit import comparison
from imagekit.artifact import Artifact
from imagekit.boot import Boot
from imagekit.comparison import Comparison, chance
from imagekit.errors import Problem

pytest_plugins = "pytester"


def artifact(size: int, **packages: str) -> Artifact:
    found = [{"name": name, "version": version} for name, version in packages.items()]
    parts = [{"role": "initrd", "file": "x", "size": size, "sha256": "0" * 64}]
    about = {"name": "toy", "arch": "x86_64", "format": "paper", "kind": "kernel", "packages": found, "parts": parts}
    return Artifact(Path("x"), b"", about)


def boot(seconds: float, *, exact: bool = True) -> Boot:
    runs = (seconds,) if exact else (seconds, seconds)
    return Boot(((0.5, "early"), (seconds, "ready")), "instructions", 0.0, runs)


@pytest.mark.parametrize(
    ("size", "boots", "worse"),
    [
        (1000, [(1.0, 1.0)], []),
        (1019, [(1.0, 1.019)], []),
        (1030, [(1.0, 1.0)], ["its size grew by 3.0%"]),
        (900, [(1.0, 1.05)], ["its boot grew by 5.0%"]),
        (1000, [], []),
        (1000, [(1.0, 0.5)], []),
    ],
)
def test_growth_beyond_two_percent_is_worse(size: int, boots: list[Any], worse: list[str]) -> None:
    found = Comparison("v1", artifact(1000), artifact(size), tuple((boot(a), boot(b)) for a, b in boots))
    assert found.worse == worse


def test_inexact_boots_are_judged_by_chance_over_pairs() -> None:
    def of(*differences: float) -> list[str]:
        boots = tuple((boot(1.0, exact=False), boot(1.0 + d, exact=False)) for d in differences)
        return Comparison("v1", artifact(1), artifact(1), boots).worse

    assert of(*[0.05] * 12) == ["its boot grew by 5.0%"]
    assert of(0.6, *[-0.02] * 5, *[0.01] * 6) == []  # one slow boot is no news
    assert chance([1.0] * 12) == 1 / 4096
    assert chance([0.0] * 3) == 1.0


def test_pairs_are_as_many_as_it_takes() -> None:
    assert len(comparison.pairs(lambda: boot(1), lambda: boot(1))) == 1
    turns: list[str] = []

    def one(name: str) -> Boot:
        turns.append(name)
        return boot(1, exact=False)

    assert len(comparison.pairs(lambda: one("a"), lambda: one("b"))) == 12
    assert turns == ["a", "b"] * 12


def test_packages_and_stages_that_changed_are_told() -> None:
    before, after = artifact(1, old="1", same="2", new_version="1"), artifact(1, same="2", new_version="3", added="9")
    found = Comparison("v1", before, after, ((boot(1.0), boot(1.5)),))
    assert found.packages == ["-old 1", "+added 9", "new_version 1 -> 3"]
    assert "  boot  1.000 -> 1.500 s (+50.00%)" in found.table().splitlines()
    assert replace(found, after=before).packages == []


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository whose first revision has images/toy.py as "first", and the folder beside it."""
    images = tmp_path / "images"
    images.mkdir()
    (images / "toy.py").write_text("first\n")
    (images / "toy").mkdir()
    (images / "toy/page").write_text("page\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "one"]):
        git(tmp_path, *words)
    (images / "toy.py").write_text("second\n")
    (images / "new.py").write_text("new\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "two")
    return tmp_path


def git(folder: Path, *words: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main", "-c", "safe.directory=*"]
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_a_revision_is_checked_out_beside_and_nothing_here_changes(repository: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    found = comparison.checkout(repository / "images/toy.py", "one", place)
    assert found.read_text() == "first\n"
    assert (found.parent / "toy/page").read_text() == "page\n"
    assert (repository / "images/toy.py").read_text() == "second\n"


@pytest.mark.parametrize(
    ("file", "revision", "words"),
    [
        ("toy.py", "nowhere", "has no revision 'nowhere'"),
        ("toy.py", "--help", "'--help' is no revision"),
        ("new.py", "one", "images/new.py was not there in one"),
    ],
)
def test_what_cannot_be_compared_says_why(repository: Path, file: str, revision: str, words: str) -> None:
    with pytest.raises(Problem, match=words):
        comparison.checkout(repository / "images" / file, revision, repository / "place")


def test_without_a_repository_there_is_nothing_to_compare_with(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="is not in a repository of git"):
        comparison.checkout(tmp_path / "toy.py", "one", tmp_path / "place")


def test_the_plugin_compares_when_it_is_asked_to(project: pytest.Pytester) -> None:
    star = "from imagekit.checks.standard import test_no_worse_than_before\n"
    write(project, "images/toy.py", TOY + star)
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        git(project.path, *words)
    write(project, "images/toy.py", TOY + star + TESTS)
    result = project.runpytest_inprocess("images", "--arch", "x86_64", "-k", "no_worse", "--compare", "HEAD")
    result.assert_outcomes(passed=1, deselected=13)
    result.stdout.fnmatch_lines(["toy x86_64 paper against HEAD:", "  size  600 -> 600 bytes (+0.00%)"])
    result = project.runpytest_inprocess("images", "--arch", "x86_64", "-k", "no_worse", "--compare", "gone")
    result.assert_outcomes(errors=1, deselected=13)
    result.stdout.fnmatch_lines(["*has no revision 'gone'"])
    project.runpytest_inprocess("images", "-k", "no_worse").assert_outcomes(deselected=14)
