"""./run: one environment, made once, by whatever this machine has; every miss told in one line."""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
NOBODY = 65534

PYTHON = """#!/bin/sh
# stands for the environment's python: says what it was started with
echo "$$ $0 $*"
exit ${EXIT:-0}
"""
UV = """#!/bin/sh
echo "$*" >>"$LOG"
case $1 in venv) for last; do :; done; mkdir -p "$last/bin"; cp "$FAKES/environment-python" "$last/bin/python" ;; esac
[ "$1" != pip ] || sleep ${SLOW:-0}
"""
PYTHON3 = """#!/bin/sh
echo "$*" >>"$LOG"
case "$*" in
    *version_info\\ \\<*) exit ${OLD:-0} ;;
    *"%d.%d"*) echo 3.11 ;;
    *ensurepip*) exit ${NO_VENV:-0} ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$FAKES/environment-python" "$3/bin/python" ;;
    --version) echo Python 3.9.2 ;;
esac
"""


@pytest.fixture
def place():
    """A checkout in a path with blanks that every user can reach, and a folder of fakes to put before PATH."""
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top)
        folder.chmod(0o755)
        checkout, fakes = folder / "a check out", folder / "fakes"
        for path in (checkout / "tests", checkout / "images", fakes):
            path.mkdir(parents=True)
        shutil.copy(HOME / "run", checkout / "run")
        (checkout / "pyproject.toml").write_text("[project]\n")
        (fakes / "environment-python").write_text(PYTHON)
        for name in ("cat", "cksum", "dirname", "tr", "mkdir", "cp", "flock", "sleep", "rm", "sh", "printf"):
            found = shutil.which(name)
            if found:
                (fakes / name).symlink_to(found)
        yield folder
        for path in folder.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o755)


def fake(folder: Path, **programs: str) -> None:
    for name, text in {"environment-python": PYTHON, **programs}.items():
        path = folder / "fakes" / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)


def start(folder: Path, *words, cwd: Path | None = None, user: int | None = None, **env) -> "subprocess.Popen[str]":
    """The script with nothing on PATH but the fakes."""
    variables = {"PATH": str(folder / "fakes"), "FAKES": str(folder / "fakes"), "LOG": str(folder / "log"), **env}
    ids = {"user": user, "group": user, "extra_groups": []} if user else {}
    argv = ["/bin/sh", str(folder / "a check out/run"), *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, cwd=cwd or folder, env=variables, stdout=pipe, stderr=pipe, text=True, **ids)


def run(*arguments, **options) -> "subprocess.CompletedProcess[str]":
    process = start(*arguments, **options)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(process.args, process.returncode, out.removeprefix(f"{process.pid} "), err)


def log(folder: Path) -> list[str]:
    path = folder / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    path.write_text("")
    return lines


@pytest.mark.parametrize("tool", ["uv", "python3"])
def test_installs_once_and_hands_over(place, tool):
    fake(place, **({"uv": UV} if tool == "uv" else {"python3": PYTHON3}))
    if tool == "python3":
        installer = PYTHON.replace("exit", '[ "$2" != pip ] || exit 0; exit')
        fake(place, **{"environment-python": installer})
    venv = place / "a check out/.venv"
    done = run(place, "images/", "-k", "one two", cwd=place / "a check out")
    assert done.stdout.splitlines()[-1].endswith(f"{venv}/bin/python -P -m pytest images/ -k one two")
    assert done.stderr.count("installing into") == 1
    assert log(place)
    again = run(place, "images/", cwd=place / "a check out")
    assert (again.returncode, again.stderr, log(place)) == (0, "", [])
    assert again.stdout == f"{venv}/bin/python -P -m pytest images/\n"


@pytest.mark.parametrize(
    ("change", "installs"),
    [
        (lambda checkout: (checkout / "pyproject.toml").write_text("[project]\nname = 'x'\n"), True),
        (lambda checkout: (checkout / ".venv/bin/python").unlink(), True),
        (lambda checkout: (checkout / "images/web.py").write_text("changed"), False),
        (lambda checkout: (checkout / "pyproject.toml").touch(), False),
    ],
)
def test_installs_again_only_when_it_must(place, change, installs):
    fake(place, uv=UV)
    run(place, "images")
    log(place)
    change(place / "a check out")
    assert run(place, "images").returncode == 0
    assert bool(log(place)) == installs


def test_a_moved_checkout_installs_again(place):
    fake(place, uv=UV)
    run(place, "images")
    log(place)
    (place / "a check out").rename(place / "elsewhere")
    (place / "a check out").symlink_to("elsewhere")
    assert str(place / "elsewhere/.venv/bin/python") in run(place, "images").stdout
    assert log(place)


@pytest.mark.parametrize(
    ("path", "extra"),
    [
        ("tests/", "[dev]"),
        ("tests/test_x.py::test_y", "[dev]"),
        ("./tests", "[dev]"),
        ("images", "[ssh,testinfra,uefi]"),
        ("-q", "[ssh,testinfra,uefi]"),
    ],
)
def test_only_the_tests_need_the_linters(place, path, extra):
    fake(place, uv=UV)
    run(place, path)
    assert log(place)[-1].endswith(f"--editable {place}/a check out{extra}")


def test_what_was_installed_for_the_tests_serves_the_images_too(place):
    fake(place, uv=UV)
    run(place, "tests")
    log(place)
    run(place, "images")
    assert log(place) == []


def test_from_any_directory(place):
    fake(place, uv=UV)
    assert run(place, "images/", "tests").stdout.endswith(f"-m pytest {place}/a check out/images/ tests\n")
    (place / "images").mkdir()
    assert run(place, "images/").stdout.endswith("-m pytest images/\n")


def test_exit_status_and_process_are_pytests(place):
    fake(place, uv=UV)
    run(place, "images")
    process = start(place, "images", EXIT="5")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 5
    assert out.split()[0] == str(process.pid)


@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({"OLD": "1"}, "no Python 3.11 or newer here: Python 3.9.2. Install one"),
        ({"NO_VENV": "1"}, "has no venv module. On Debian and Ubuntu: apt install python3.11-venv"),
    ],
)
def test_what_is_missing_is_told_in_one_line(place, env, words):
    fake(place, python3=PYTHON3)
    done = run(place, "images", **env)
    assert done.returncode == 1
    assert words in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_no_python_at_all(place):
    done = run(place, "images")
    assert done.returncode == 1
    assert "no Python 3.11 or newer here" in done.stderr


def test_a_failed_install_is_not_taken_for_done(place):
    fake(place, uv=UV.replace("sleep ${SLOW:-0}", "exit ${FAIL:-0}"))
    assert run(place, "images", FAIL="3").returncode == 3
    assert run(place, "images").returncode == 0
    assert "pip install" in " ".join(log(place))


def test_two_at_once_install_once(place):
    if not shutil.which("flock"):
        pytest.skip("no flock on this machine; the script then does without")
    fake(place, uv=UV)
    both = [start(place, "images", SLOW="0.3") for _ in range(2)]
    ends = {process.communicate(timeout=300)[0].partition(" ")[2] for process in both}
    assert ends == {f"{place}/a check out/.venv/bin/python -P -m pytest {place}/a check out/images\n"}
    assert sum(line.startswith("pip") for line in log(place)) == 1


def test_an_ordinary_user_in_a_checkout_of_others(place):
    if os.getuid():
        pytest.skip("only root can become another user")
    fake(place, uv=UV)
    cache = place / "cache"
    cache.mkdir()
    (place / "log").touch()
    for path in (cache, place / "log"):
        os.chown(path, NOBODY, NOBODY)
    done = run(place, "images", user=NOBODY, XDG_CACHE_HOME=str(cache))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{cache}/imagekit/venv-")
    assert not (place / "a check out/.venv").exists()
    run(place, "images")  # root makes one beside the checkout; the user then shares it
    assert run(place, "images", user=NOBODY).stdout.startswith(f"{place}/a check out/.venv/bin/python")


@pytest.mark.parametrize(("words", "code"), [((), 2), (("--help",), 0), (("-h",), 0)])
def test_usage(place, words, code):
    done = run(place, *words)
    assert done.returncode == code
    assert "usage: run PATH" in done.stdout + done.stderr
    assert log(place) == []


def test_ci_and_tox_say_the_same_commands():
    ci = (HOME / ".ci/run").read_text()
    assert "./run tests/ -n 2" in ci
    assert "./run images/ -n 2" in ci
    tox = (HOME / "tox.ini").read_text()
    assert "commands = pytest tests" in tox
    assert "commands = pytest images" in tox
    for path in ("run", ".ci/run"):
        assert os.access(HOME / path, os.X_OK)
