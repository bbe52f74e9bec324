"""depot, publish, ls, pull and serve as they are typed: from an empty folder to a verified image, and keys anew."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from depot_rig import made

from imagekit import cli

TEST_KEY = Path(__file__).parents[1] / "fixtures" / "keys" / "test.key"


@pytest.fixture
def ik(tmp_path, monkeypatch, capsys):
    """Type a command: (exit status, what was printed, what was complained of)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEKIT_KEY", str(TEST_KEY))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))

    def typed(words):
        code = cli.main(words.split())
        told = capsys.readouterr()
        return code, told.out, told.err

    return typed


@pytest.fixture
def artifact(tmp_path):
    from imagekit import key

    return made(tmp_path / "made", signer=key.read(TEST_KEY)).path


def test_from_an_empty_folder_to_a_pulled_image(ik, artifact, monkeypatch, tmp_path):
    code, out, _ = ik("depot init depot --roots 3 --threshold 2")
    assert code == 0
    fingerprint = re.search("sha256:[0-9a-f]{64}", out).group()
    assert ik(f"publish {artifact} depot --keys depot-keys")[0] == 0
    assert ik("ls depot")[1] == "web:1 x86_64 kernel_initrd  567.1 KiB\n"
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "another"))
    code, _, err = ik("pull web --from depot")
    assert (code, "--root FILE, or --root sha256:DIGEST" in err) == (1, True)
    code, out, _ = ik(f"pull web:1 --from depot --root {fingerprint} -o pulled")
    assert code == 0
    assert (tmp_path / "pulled" / "web_1_x86_64.kernel").read_bytes() == artifact.with_name(
        "web_1_x86_64.kernel"
    ).read_bytes()


@pytest.mark.parametrize("stolen", ["", " --stolen"])
def test_keys_are_rotated_and_the_index_renewed(ik, artifact, stolen):
    ik("depot init depot --roots 2 --threshold 2")
    before = ik("depot keys depot")[1].splitlines()
    code, out, _ = ik(f"depot rotate depot --role snapshot --role timestamp{stolen}")
    assert (code, "snapshot, timestamp" in out) == (0, True)
    after = ik("depot keys depot")[1].splitlines()
    assert [old.rpartition(" ")[2] == new.rpartition(" ")[2] for old, new in zip(before, after, strict=True)] == [
        True, True, False, False]  # fmt: skip
    assert ik(f"publish {artifact} depot --keys depot-keys")[0] == 0
    assert "signed anew: targets, snapshot, timestamp" in ik("depot refresh depot")[1]
    assert ik("pull web --from depot -o pulled")[0] == 0


def test_a_depot_is_made_once_and_no_keys_with_it(ik, tmp_path):
    ik("depot init depot")
    keys = sorted((tmp_path / "depot-keys").iterdir())
    code, _, err = ik("depot init depot")
    assert (code, "is a depot already" in err) == (1, True)
    assert sorted((tmp_path / "depot-keys").iterdir()) == keys
    assert all(path.stat().st_mode & 0o077 == 0 for path in keys if path.suffix == ".key")


def test_a_folder_is_served_until_it_is_interrupted(ik, artifact):
    ik("depot init depot")
    ik(f"publish {artifact} depot --keys depot-keys")
    words = [sys.executable, "-m", "imagekit.cli", "serve", "depot", "--port", "0"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ})
    try:
        address = process.stdout.readline().strip()
        code, _, err = ik(f"pull web --from {address} --root depot-keys/root.json -o pulled")
        assert code == 0, err
        process.send_signal(2)
        assert process.wait(300) == 130
    finally:
        process.kill()
        process.communicate()
