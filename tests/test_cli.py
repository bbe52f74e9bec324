"""The command line: what it says, how it ends, and how little it loads. Building itself: test_build.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagekit import cli, plugs, usage

KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
HEAVY = ("nacl", "pytest", "zstandard", "qemu", "pysequoia", "asyncio", "subprocess", "email")


def run(*words, python=(), **env):
    command = [sys.executable, *python, "-m", "imagekit.cli", *map(str, words)]
    return subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("verb", sorted(plugs.own("verbs")))
def test_every_verb_explains_itself_with_examples(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert f"imagekit {verb}" in told.partition("examples:")[2]


def test_every_example_can_be_typed(monkeypatch):
    monkeypatch.chdir(KEYS.parents[1])
    for verb in (plugs.load("verbs", name) for name in plugs.own("verbs")):
        for example in verb.examples:
            asked = usage.parse(example.split())
            assert asked.verb is verb.run


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ([], 2, "VERB"),
        (["bild"], 2, "invalid choice: 'bild'"),
        (["build", "--arch", "riscv64"], 2, "riscv64"),
        (["build", "--format", "zip"], 2, "unknown format 'zip' (known: "),
        (["build", "/nowhere"], 1, "there is no /nowhere"),
        (["build", KEYS], 1, "no image is defined"),
        (["lock", "/nowhere/web.py"], 1, "there is no /nowhere/web.py"),
        (["verify", "/etc/hostname", "--key", KEYS / "test.pub"], 1, "is no artifact"),
        (["verify", "/nowhere", "--key", KEYS / "test.pub"], 1, "is no artifact"),
        (["verify", "x", "--key", "/nowhere.pub"], 1, "there is no key /nowhere.pub"),
        (["key", "show", "/etc/hostname"], 1, "is not a key"),
        (["boot", "/nowhere.py"], 1, "/nowhere.py"),
        (["run", "/nowhere.manifest.json"], 125, "/nowhere.manifest.json"),
        (["inspect", "/nowhere"], 1, "/nowhere"),
    ],
)
def test_a_mistake_is_one_message(words, code, told, tmp_path):
    done = run(*words, IMAGEKIT_KEY=str(KEYS / "test.key"), IMAGEKIT_CACHE=str(tmp_path))
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_keys_are_made_once_and_for_their_owner_alone(tmp_path):
    path = tmp_path / "own" / "imagekit.key"
    made = run("key", "new", path)
    assert made.returncode == 0, made.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("key", "show", path).stdout == path.with_suffix(".pub").read_text()
    again = run("key", "new", path)
    assert again.returncode == 1
    assert "never overwritten" in again.stderr


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "x.py").write_text(
        'from imagekit import Image\nimage = Image(name="x", formats=("tar",), arches=("x86_64",))\n'
    )
    env = {"IMAGEKIT_KEY": str(KEYS / "test.key"), "IMAGEKIT_CACHE": str(tmp_path / "cache")}
    assert run("lock", tmp_path / "x.py", **env).returncode == 0
    (tmp_path / "file").touch()
    done = run("build", tmp_path / "x.py", "-o", tmp_path / "file" / "out", **env)
    assert (done.returncode, "cannot write to" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


def test_the_reader_of_the_output_may_leave(tmp_path):
    command = f"{sys.executable} -m imagekit.cli key show {KEYS / 'test.pub'} | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["build", "--help"]])
def test_starting_loads_nothing_heavy(words):
    done = run(*words, python=("-X", "importtime"))
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert "argparse" in loaded
    assert not loaded & set(HEAVY)


def test_version():
    assert re.fullmatch(r"imagekit \d+\.\d+\.\d+\n", run("--version").stdout)
