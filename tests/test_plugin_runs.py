"""The plugin, as pytest runs it: what it builds and boots, what it tells of that, and how it shares work out."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
from toys import TESTS, TOY, log, write

pytest_plugins = "pytester"


# --- building and booting ---------------------------------------------------------------------------------------------


def test_everything_is_made_once_and_every_machine_is_stopped(project: pytest.Pytester) -> None:
    project.runpytest_inprocess("images").assert_outcomes(passed=12)
    assert log(project) == [
        "lock toy.py -",
        "tree toy x86_64 -",
        "artifact toy x86_64 paper -",
        "start toy x86_64 paper toy_x86_64 -",
        "stop toy x86_64 paper toy_x86_64 -",
        "artifact toy x86_64 sketch -",
        "start toy x86_64 sketch pretend -",
        "stop toy x86_64 sketch pretend -",
        "tree toy aarch64 -",
        "artifact toy aarch64 paper -",
        "start toy aarch64 paper toy_aarch64 -",
        "stop toy aarch64 paper toy_aarch64 -",
        "artifact toy aarch64 sketch -",
    ]


def test_only_what_a_test_asks_for_is_made(project: pytest.Pytester) -> None:
    project.runpytest_inprocess("images", "-k", "test_value").assert_outcomes(passed=1, deselected=11)
    assert log(project) == []
    project.runpytest_inprocess("images", "-k", "test_tree", "--arch", "aarch64").assert_outcomes(
        passed=1, deselected=11
    )
    assert log(project) == ["lock toy.py -", "tree toy aarch64 -"]


def test_fixtures_can_be_overridden(project: pytest.Pytester) -> None:
    own = """
import pytest
from dataclasses import replace

@pytest.fixture(scope="module", name="image")
def variant(image): return replace(image, name="variant")

@pytest.fixture(scope="module")
def rig(rig): return replace(rig, tools="host")

def test_variant(guest, artifact):
    assert artifact.name == "variant"
    assert guest.facts["tools"] == "host"
"""
    write(project, "images/toy.py", TOY + own)
    project.runpytest_inprocess("images").assert_outcomes(passed=2)
    assert "artifact variant x86_64 paper -" in log(project)


def test_a_test_elsewhere_may_bring_an_image_by_fixture(project: pytest.Pytester) -> None:
    own = """
import pytest
from imagekit import Image

@pytest.fixture(scope="module")
def image(): return Image("mine")

def test(tree, image): assert image.name == "mine"
"""
    write(project, "test_own.py", own)
    project.runpytest_inprocess("test_own.py").assert_outcomes(passed=2)
    write(project, "test_own.py", "def test(tree): ...\n")
    result = project.runpytest_inprocess("test_own.py")
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*test_own.py defines no image", "*hint: write `image = Image(...)`*"])


def test_a_fixture_asked_for_too_late_says_so(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(request): request.getfixturevalue('guest')\n")
    result = project.runpytest_inprocess("images")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["the matrix was made without this test*", "*hint: name tree, artifact, sandbox or guest*"]
    )


def test_a_rebuild_shares_nothing_and_leaves_nothing(project: pytest.Pytester) -> None:
    own = "def test(artifact, rebuilt): assert artifact.digest == rebuilt.digest and artifact.path != rebuilt.path\n"
    write(project, "images/toy.py", TOY + own)
    killed = project.path / "cache/rebuilt/toy-x86_64-paper/artifacts/toy-x86_64-paper"
    killed.mkdir(parents=True)
    (killed / "toy.manifest.json").write_text("half")
    project.runpytest_inprocess("images").assert_outcomes(passed=4)
    assert [line for line in log(project) if line.startswith("artifact")].count("artifact toy x86_64 paper -") == 2
    assert list((project.path / "cache/rebuilt").iterdir()) == []


def test_standard_checks_can_be_imported(project: pytest.Pytester) -> None:
    write(
        project, "images/toy.py", TOY + "from imagekit.checks.standard import test_within_size_budget, test_is_signed\n"
    )
    project.runpytest_inprocess("images").assert_outcomes(passed=8)
    write(project, "images/toy.py", TOY.replace("1 KiB", "1 B") + "from imagekit.checks.standard import *\n")
    result = project.runpytest_inprocess("images", "-k", "budget")
    result.assert_outcomes(failed=4, passed=2, deselected=16)
    result.stdout.fnmatch_lines(["*largest packages*", "*600 B  toy 1", "*6 B  /etc/motd"])


# --- telling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_a_problem_is_shown_without_frames(project: pytest.Pytester, workers: tuple[str, ...]) -> None:
    write(project, "images/toy.py", TOY.replace('"toy"', '"broken"') + "def test(guest): ...\n")
    result = project.runpytest_subprocess("images", "--arch", "x86_64", *workers, timeout=300)
    result.assert_outcomes(errors=1, deselected=0 if workers else 1)
    result.stdout.fnmatch_lines(
        [
            "the toy did not become ready",
            r"guest| [[]    0.0] hello from the \x1b[[]31mtoy\x1b[[]0m",
            "  hint: wind it up",
        ]
    )
    result.stdout.fnmatch_lines(["ERROR images/toy.py::test* the toy did not *"])
    for word in ("Traceback", "fixtures.py", "outside_toys.py", "GuestProblem("):
        result.stdout.no_fnmatch_line(f"*{word}*")


def test_a_problem_in_a_test_shows_the_console_beside_it(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(guest): guest.run('fail')\n")
    result = project.runpytest_inprocess("images", "--arch", "x86_64")
    result.assert_outcomes(failed=1, deselected=1)
    result.stdout.fnmatch_lines(["the toy fell over", "  hint: pick it up", "*stdout guest console*", "guest| *hello*"])
    result.stdout.no_fnmatch_line("*outside_toys.py*")


def test_a_failed_assertion_keeps_its_frames(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(guest):\n    assert guest.arch == 'vax'\n")
    result = project.runpytest_inprocess("images", "--arch", "x86_64")
    result.stdout.fnmatch_lines(["*def test(guest):", "E*assert 'x86_64' == 'vax'", "*stdout guest console*"])


def test_a_defect_keeps_its_frames(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "from imagekit.errors import Defect\ndef test(): raise Defect('ours')\n")
    project.runpytest_inprocess("images").stdout.fnmatch_lines(["*raise Defect*", "E*ours"])


TABLE = [
    "image  arch     format  target       size              boot                result",
    "toy                                                                        1 passed",
    "toy    aarch64                                                             1 passed",
    "toy    aarch64  paper                600 B of 1.0 KiB                      1 passed",
    "toy    aarch64  paper   toy_aarch64  600 B of 1.0 KiB  1.500 s of 2.000 s  2 passed",
    "toy    aarch64  sketch               600 B of 1.0 KiB                      1 passed",
    "toy    x86_64                                                              1 passed",
    "toy    x86_64   paper                600 B of 1.0 KiB                      1 passed",
    "toy    x86_64   paper   toy_x86_64   600 B of 1.0 KiB  1.500 s of 2.000 s  2 passed",
    "toy    x86_64   sketch               600 B of 1.0 KiB                      1 passed",
    "toy    x86_64   sketch  pretend      600 B of 1.0 KiB                      1 passed",
]


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_the_report_is_the_same_from_one_process_and_from_many(
    project: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    result = project.runpytest_subprocess(
        "images", "--image-report", "r.jsonl", "--junitxml", "j.xml", *workers, timeout=300
    )
    result.assert_outcomes(passed=12)
    start = result.outlines.index(TABLE[0])
    assert result.outlines[start : start + len(TABLE)] == TABLE
    assert result.outlines[start + len(TABLE)] == "boot: virtual seconds of 500 million instructions each"
    assert result.outlines[start + len(TABLE) + 1].startswith("toy_aarch64: toy")
    rows = [json.loads(line) for line in (project.path / "r.jsonl").read_text().splitlines()]
    assert len(rows) == len(TABLE) - 1
    booted = next(row for row in rows if row["target"] == "toy_x86_64")
    assert booted["results"] == {"passed": 2}
    assert booted["stages"] == [[0.5, "early"], [1.5, "ready"]]
    assert (booted["size_bytes"], booted["size_budget_bytes"], booted["boot_seconds"]) == (600, 1024, 1.5)
    found = {p.get("name"): p.get("value") for p in ElementTree.parse(project.path / "j.xml").iter("property")}
    assert found["imagekit.boot_seconds"] == "1.5"
    assert json.loads(found["imagekit.boot"])["seconds"] == booted["boot"]["seconds"] == 1.5


def test_a_failure_stands_in_the_table_and_the_report(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(artifact): assert 0\ndef test_good(artifact): ...\n")
    result = project.runpytest_inprocess("images", "--arch", "x86_64", "--format", "paper", "--image-report", "r.jsonl")
    result.stdout.fnmatch_lines(["toy    x86_64  paper  *  1 failed, 1 passed"])
    row = json.loads((project.path / "r.jsonl").read_text())
    assert row["failures"] == ["images/toy.py::test[x86_64-paper]"]


@pytest.mark.parametrize("path", ["no/such/folder/r.jsonl", "images"])
def test_a_report_that_cannot_be_written_is_told_before_anything_runs(project: pytest.Pytester, path: str) -> None:
    result = project.runpytest_inprocess("images", "--image-report", path)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: --image-report: */{path} cannot be a file: make its folder, or name another"])
    assert log(project) == []


def test_no_image_no_table(project: pytest.Pytester) -> None:
    write(project, "test_unit.py", "def test(record_property): record_property('a', 1)\n")
    result = project.runpytest_inprocess("test_unit.py", "--image-report", "r.jsonl")
    result.stdout.no_fnmatch_line("*= images =*")
    assert (project.path / "r.jsonl").read_text() == ""


def test_progress_is_told_outside_of_what_tests_print(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(guest):\n    print('of the test')\n    assert 0\n")
    result = project.runpytest_subprocess("images", "--arch", "x86_64")
    result.stdout.fnmatch_lines(
        ["toy x86_64: writing paper", "toy x86_64: booting", "*Captured stdout call*", "of the test"]
    )
    assert result.outlines.count("toy x86_64: booting") == 1


# --- in parallel ------------------------------------------------------------------------------------------------------


def test_a_machine_boots_once_and_its_architectures_run_side_by_side(project: pytest.Pytester) -> None:
    write(project, "images/second.py", TOY.replace('"toy"', '"second"') + TESTS.replace('"toy"', '"second"'))
    write(project, "test_unit.py", "import pytest\n@pytest.mark.parametrize('n', range(20))\ndef test(n): ...\n")
    result = project.runpytest_subprocess("images", "test_unit.py", "-n", "4", timeout=300)
    result.assert_outcomes(passed=44)
    starts = [line.rpartition(" ") for line in log(project) if line.startswith("start")]
    assert len(starts) == len({what for what, _, _ in starts}) == 6
    builds = [line.rpartition(" ")[0] for line in log(project) if line.startswith("artifact")]
    assert len(builds) == len(set(builds)) == 8
    workers: dict[str, set[str]] = {}
    for what, _, worker in starts:
        workers.setdefault(" ".join(what.split()[1:3]), set()).add(worker)
    assert all(len(names) == 1 for names in workers.values()), "all formats of one architecture stay on one worker"
    assert len(set.union(*workers.values())) > 1, "they were shared out"


def test_nothing_left_ends_with_5_in_parallel_too(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("images", "-n", "2", "--format", "tar", timeout=300)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED


def test_another_dist_is_obeyed(project: pytest.Pytester) -> None:
    result = project.runpytest_subprocess("images", "-n", "2", "--dist", "loadfile", timeout=300)
    result.assert_outcomes(passed=12)
    assert len({line.rpartition(" ")[2] for line in log(project) if line.startswith("start")}) == 1


def test_no_worker_outlives_its_controller(project: pytest.Pytester) -> None:
    write(
        project,
        "images/toy.py",
        TOY + "import os, time\ndef test(guest):\n    print(os.getpid(), file=open('pids', 'a'))\n    time.sleep(60)\n",
    )
    argv = [sys.executable, "-m", "pytest", "images", "-n", "2"]
    with subprocess.Popen(argv, cwd=project.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as controller:
        pids = waited_for(lambda: len(lines := lines_of(project.path / "pids")) == 2 and lines)
        controller.send_signal(signal.SIGKILL)
    assert waited_for(lambda: not any(map(is_alive, pids)))


def lines_of(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def is_alive(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def waited_for(condition):  # type: ignore[no-untyped-def]
    """The condition's value as soon as it holds; minutes are only a last net."""
    until = time.monotonic() + 300
    while not (value := condition()):
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)
    return value
