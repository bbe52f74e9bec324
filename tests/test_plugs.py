"""Every file in a plug folder loads and keeps its contract; a kind from outside needs no change here."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagekit import plugs
from imagekit.advisory import Feed
from imagekit.arch import ARCHES
from imagekit.artifact import Format
from imagekit.errors import Defect, Problem
from imagekit.guest import Target
from imagekit.package import Source
from imagekit.unit import Unit
from imagekit.usage import Verb

CONTRACTS = {"sources": Source, "formats": Format, "targets": Target, "stores": Callable, "sites": Callable,
             "verbs": Verb, "advisories": Feed, "units": Unit}  # fmt: skip
EVERY = [(kind, name) for kind in plugs.CONSTANTS for name in plugs.names(kind)]


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a distribution that brings formats: outside(name="module", ...)."""

    def install(**formats: str) -> None:
        about = tmp_path / "others-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1\n")
        lines = [f"{name} = {module}" for name, module in formats.items()]
        (about / "entry_points.txt").write_text("[imagekit.formats]\n" + "\n".join(lines) + "\n")

    monkeypatch.syspath_prepend(tmp_path)
    plugs._foreign.cache_clear()
    yield install
    plugs._foreign.cache_clear()


@pytest.mark.parametrize("kind", plugs.CONSTANTS)
def test_every_kind_is_a_folder_with_plugs(kind: str) -> None:
    assert plugs.names(kind)
    assert not [name for name in plugs.names(kind) if name.startswith("_")]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_a_plug_keeps_its_contract(kind: str, name: str) -> None:
    assert isinstance(plugs.load(kind, name), CONTRACTS[kind])
    summary = plugs.summary(kind, name)
    assert 10 < len(summary) < 120, "the first docstring line is the help text"
    assert summary.endswith((".", ";", ":")) or summary[-1].isalnum()


@pytest.mark.parametrize("name", plugs.names("formats"))
def test_a_format_can_be_started_by_some_target(name: str) -> None:
    plug = plugs.load("formats", name)
    assert plug.suffixes
    assert all(suffix.startswith(".") for suffix in plug.suffixes.values())
    kinds = {kind for target in plugs.names("targets") for kind in plugs.load("targets", target).kinds}
    assert plug.kind in kinds | {"update"}  # which is for a disk that has been started before


@pytest.mark.parametrize("name", plugs.names("targets"))
def test_a_target_is_for_known_architectures(name: str) -> None:
    plug = plugs.load("targets", name)
    assert plug.arches
    assert set(plug.arches) <= set(ARCHES)
    assert plug.kinds
    assert set(plug.kinds) <= {"root", "disk", "kernel"}


def test_every_architecture_has_a_machine_that_boots() -> None:
    targets = [plugs.load("targets", name) for name in plugs.names("targets")]
    assert {arch for target in targets if target.boots for arch in target.arches} == set(ARCHES)


def test_an_unknown_name_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(Problem, match=r"unknown format 'tra'\n  hint: did you mean 'tar'\? known: .*tar"):
        plugs.load("formats", "tra")
    with pytest.raises(Problem, match=r"unknown target '_qemu'"):
        plugs.load("targets", "_qemu")


def test_a_kind_from_outside_is_found_by_its_entry_point(tmp_path: Path, outside: Callable[..., None]) -> None:
    outside(zip_of_others="others_zip")
    (tmp_path / "others_zip.py").write_text('"""A zip file."""\nFORMAT = "a format"\n')
    assert "zip_of_others" in plugs.names("formats")
    assert plugs.load("formats", "zip_of_others") == "a format"
    assert plugs.summary("formats", "zip_of_others") == "A zip file."


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("without_constant", "FORMATS = 1", "without_constant has no FORMAT"),
        ("without_package", "import no_such_thing", "without_package: No module named 'no_such_thing'"),
        ("without_sense", "def f(:", "without_sense: invalid syntax"),
    ],
)
def test_a_broken_plug_is_named(
    tmp_path: Path, outside: Callable[..., None], module: str, source: str, words: str
) -> None:
    outside(broken=module)
    (tmp_path / f"{module}.py").write_text(source)
    with pytest.raises(Defect, match=words):
        plugs.load("formats", "broken")


def test_a_kind_from_outside_cannot_replace_ours(tmp_path: Path, outside: Callable[..., None]) -> None:
    outside(tar="others_tar")
    (tmp_path / "others_tar.py").write_text("FORMAT = None\n")
    assert isinstance(plugs.load("formats", "tar"), Format)


def test_names_ask_no_module_to_load() -> None:
    import subprocess
    import sys

    code = "import sys; from imagekit import plugs; plugs.names('formats'); print('imagekit.formats' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
