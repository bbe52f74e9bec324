"""A folder with the definition of a toy image, for tests of the plugin: made-up builds, toy machines, real pytest."""

from pathlib import Path

import pytest

from imagekit.stores.directory import cache_location

CACHE = str(cache_location())  # as it is before pytester has another HOME
HERE = Path(__file__).parent.parent
OUTSIDE = HERE / "fixtures/outside"
CONFTEST = """
import outside_build, pytest

patch = pytest.MonkeyPatch()

def pytest_configure(): outside_build.install(patch)

def pytest_unconfigure(): patch.undo()
"""
TOY = """
from imagekit import Budget, Image

image = Image("toy", formats=("paper", "sketch"), arches=("x86_64", "aarch64"), budget=Budget(size="1 KiB", boot="2 s"))
"""
TESTS = """
def test_value(image): assert image.name == "toy"
def test_guest(guest): assert guest.run("echo hello").text == "echo hello"
def test_again(guest, arch): assert (guest.arch, guest.boot.seconds) == (arch, 1.5)
def test_sandbox(sandbox): assert sandbox.target == "pretend"
def test_artifact(artifact, key): assert artifact.verified(key)
def test_tree(tree): assert "/etc/motd" in tree
"""
EVERYTHING = [
    "test_value",
    "test_tree[x86_64]",
    "test_artifact[x86_64-paper]",
    "test_guest[x86_64-paper-toy_x86_64]",
    "test_again[x86_64-paper-toy_x86_64]",
    "test_artifact[x86_64-sketch]",
    "test_sandbox[x86_64-sketch-pretend]",
    "test_tree[aarch64]",
    "test_artifact[aarch64-paper]",
    "test_guest[aarch64-paper-toy_aarch64]",
    "test_again[aarch64-paper-toy_aarch64]",
    "test_artifact[aarch64-sketch]",
]


def write(pytester: pytest.Pytester, name: str, text: str) -> None:
    (pytester.path / name).write_text(text)


def log(pytester: pytest.Pytester) -> list[str]:
    path = pytester.path / "log"
    return path.read_text().splitlines() if path.exists() else []


def collected(pytester: pytest.Pytester, *options: str) -> list[str]:
    result = pytester.runpytest_inprocess("--collect-only", "-q", "images", *options)
    return [line.partition("::")[2] for line in result.outlines if "::" in line]
