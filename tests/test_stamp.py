"""A no-op build rests on stamps: they must never say "unchanged" of something that changed."""

import os
import time

import pytest

from imagekit import stamp

COMMAND = ["build", "images/web.py"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for name in ("definition", "out"):
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, (1, 1))
    return tmp_path


def record(files, **changes):
    now = {"read": [str(files / "definition")], "wrote": [str(files / "out")], "said": ["web"],
           "started_ns": time.time_ns()} | changes  # fmt: skip
    stamp.record(COMMAND, **now)


def test_says_what_was_said_while_nothing_changes(files):
    assert stamp.unchanged(COMMAND) is None
    record(files)
    assert stamp.unchanged(COMMAND) == ["web"]
    assert stamp.unchanged([*COMMAND, "-o", "x"]) is None


@pytest.mark.parametrize("name", ["definition", "out"])
@pytest.mark.parametrize("change", ["write", "same size and times", "replace", "remove"])
def test_notices(files, name, change):
    record(files)
    path = files / name
    if change == "write":
        path.write_text("longer than before")
    elif change == "same size and times":
        path.write_text(name.upper())
        os.utime(path, (1, 1))
    elif change == "replace":
        (files / "new").write_text(name)
        os.utime(files / "new", (1, 1))
        (files / "new").replace(path)
    else:
        path.unlink()
    assert stamp.unchanged(COMMAND) is None


def test_notices_another_folder_and_environment(files, monkeypatch):
    record(files)
    monkeypatch.setenv("IMAGEKIT_MIRROR", "elsewhere")
    assert stamp.unchanged(COMMAND) is None
    monkeypatch.delenv("IMAGEKIT_MIRROR")
    assert stamp.unchanged(COMMAND) == ["web"]
    (files / "sub").mkdir()
    monkeypatch.chdir(files / "sub")
    assert stamp.unchanged(COMMAND) is None


def test_does_not_trust_a_file_that_changed_while_it_was_read(files):
    os.utime(files / "definition")  # now
    record(files)
    assert stamp.unchanged(COMMAND) is None


def test_a_torn_stamp_says_nothing(files):
    record(files)
    (path,) = (files / "cache" / "stamps").iterdir()
    whole = path.read_text()
    for end in range(len(whole)):
        path.write_text(whole[:end])
        assert stamp.unchanged(COMMAND) is None
