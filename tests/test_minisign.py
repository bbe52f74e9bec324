"""The real minisign reads what we sign, and we read what it signs."""

import subprocess
from pathlib import Path

import pytest

from imagekit import key, toolbox
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

MESSAGE = b"a manifest\n" * 1000


@pytest.fixture(scope="module")
def minisign():
    tools = toolbox.tools("minisign", store=open_store())

    def run(*words: str | Path) -> subprocess.CompletedProcess[bytes]:
        command = tools.argv("minisign", *words)
        return subprocess.run(command, env=tools.env, input=b"", capture_output=True, check=False)

    return run


@pytest.fixture
def signed(tmp_path):
    """A key on disk, a message, and our signature over it."""
    made = key.new()
    key.save(made, tmp_path / "own.key")
    (tmp_path / "message").write_bytes(MESSAGE)
    (tmp_path / "message.minisig").write_text(made.sign(MESSAGE, comment="imagekit web 1"))
    return tmp_path


def test_minisign_verifies_our_signature(minisign, signed):
    done = minisign("-V", "-p", signed / "own.pub", "-m", signed / "message")
    assert done.returncode == 0, done.stderr
    assert b"imagekit web 1" in done.stdout


@pytest.mark.parametrize("name", ["message", "message.minisig"])
def test_minisign_refuses_what_was_changed(minisign, signed, name):
    text = (signed / name).read_bytes()
    (signed / name).write_bytes(text.replace(b"manifest", b"manifold").replace(b"web 1", b"web 2"))
    assert minisign("-V", "-p", signed / "own.pub", "-m", signed / "message").returncode != 0


def test_minisign_refuses_another_key(minisign, signed):
    other = key.new()
    (signed / "other.pub").write_text(other.public_text())
    assert minisign("-V", "-p", signed / "other.pub", "-m", signed / "message").returncode != 0


def test_we_verify_what_minisign_signs_with_our_key(minisign, signed):
    (signed / "message.minisig").unlink()
    done = minisign("-S", "-l", "-s", signed / "own.key", "-m", signed / "message", "-t", "by minisign")
    assert done.returncode == 0, done.stderr
    public = key.read(signed / "own.pub")
    signature = (signed / "message.minisig").read_text()
    assert public.verify(MESSAGE, signature) == "by minisign"
    with pytest.raises(Problem, match="does not fit"):
        public.verify(MESSAGE + b"x", signature)


def test_we_read_a_key_that_minisign_made(minisign, tmp_path):
    done = minisign("-G", "-W", "-p", tmp_path / "its.pub", "-s", tmp_path / "its.key")
    assert done.returncode == 0, done.stderr
    secret, public = key.read(tmp_path / "its.key"), key.read(tmp_path / "its.pub")
    assert (secret.id, secret.public) == (public.id, public.public)
