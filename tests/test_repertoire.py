"""What is remembered of formats: just what they say themselves, and a format that is remembered writes like itself."""

from pathlib import Path

import pytest

from imagekit import plugs, repertoire
from imagekit.artifact import Job
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Tree


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repertoire, "_KNOWN", {})


@pytest.mark.usefixtures("nothing_known")
def test_what_is_remembered_is_what_the_formats_say(tmp_path: Path) -> None:
    for _ in range(2):  # by loading them, and by the note
        repertoire.recall(open_store(tmp_path), own="0" * 64)
        assert len(plugs.own("formats")) > 20
        for name in plugs.own("formats"):
            known, loaded = repertoire.format(name), plugs.load("formats", name)
            assert known is not loaded
            assert {fact: getattr(known, fact) for fact in repertoire.FACTS} == {
                fact: getattr(loaded, fact) for fact in repertoire.FACTS
            }


@pytest.mark.usefixtures("nothing_known")
def test_another_imagekit_is_asked_anew_and_a_torn_note_is_none(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    store.remember("formats", "1" * 64, b'{"tar": {}}')
    repertoire.recall(store, own="0" * 64)
    (tmp_path / "notes" / "formats" / ("0" * 64)).write_bytes(b"torn")
    repertoire.recall(store, own="0" * 64)
    assert repertoire.format("tar").suffixes == plugs.load("formats", "tar").suffixes


@pytest.mark.usefixtures("nothing_known")
def test_a_remembered_format_writes_like_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repertoire.recall(open_store(tmp_path), own="0" * 64)
    asked: list[tuple[str, str]] = []
    load = plugs.load
    monkeypatch.setattr(plugs, "load", lambda kind, name: asked.append((kind, name)) or load(kind, name))
    known = repertoire.format("kernel_initrd")
    assert not asked
    with pytest.raises(Problem, match="needs a kernel"):
        known.write(Tree({}), job=Job("x", "1", "x86_64", open_store(tmp_path)))
    assert asked == [("formats", "kernel_initrd")]


@pytest.mark.usefixtures("nothing_known")
def test_an_unknown_format_is_told_with_the_known_ones() -> None:
    with pytest.raises(Problem, match="tarr") as told:
        repertoire.format("tarr")
    assert "raw_efi" in str(told.value)
