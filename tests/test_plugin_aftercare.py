"""What the plugin does about machines around a test: blame, replacement, exceptions, what is told and kept."""

import json
import subprocess
import sys
from datetime import date, timedelta
from xml.etree import ElementTree

import pytest
from toys import TOY, log, write

pytest_plugins = "pytester"
ONE = ("images", "--arch", "x86_64", "--format", "paper")
STARTS = [
    "start toy x86_64 paper toy_x86_64 -",
    "stop toy x86_64 paper toy_x86_64 -",
]


def started(project: pytest.Pytester) -> list[str]:
    return [line for line in log(project) if line.startswith(("start", "stop"))]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("break", "guest: service: a service failed: toy: failed: ended with 3, last ended with 3"),
        ("oops", "guest: oops: the kernel oopsed: *Oops: 0000*"),
        ("oops", "guest: taint: the kernel is tainted with 128: the kernel died (oops or BUG)"),
        ("warn", "guest: taint: the kernel is tainted with 512: the kernel warned (WARNING): *at kernel/toy.c:3"),
        ("remount", "guest: read-only: a file system became read-only: /data"),
        ("die", "guest: gone: the machine is no longer there"),
    ],
)
def test_who_breaks_the_machine_is_blamed_and_the_next_gets_another(
    project: pytest.Pytester, command: str, words: str
) -> None:
    tests = f"""
def test_before(guest): assert guest.run("echo 1").text
def test_culprit(guest): guest.run("{command}")
def test_after(guest): assert guest.run("echo 2").text
"""
    write(project, "images/toy.py", TOY + tests)
    result = project.runpytest_inprocess(*ONE)
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["test_culprit* left damage behind", f"  {words}", "  hint: *asks for `fresh`*"])
    result.stdout.fnmatch_lines(["FAILED images/toy.py::test_culprit*"])
    assert started(project) == [*STARTS, "start toy x86_64 paper toy_x86_64 fresh -", STARTS[1]]


def test_damage_by_a_fixture_that_is_taken_down_is_told_too(project: pytest.Pytester) -> None:
    tests = """
import pytest
@pytest.fixture
def late(guest):
    yield
    guest.run("break")
def test_it(guest, late): ...
def test_after(guest): assert not guest.health().failed
"""
    write(project, "images/toy.py", TOY + tests)
    result = project.runpytest_inprocess(*ONE)
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["test_it*: tearing down its fixtures left damage behind", "  guest: service: *"])


def test_a_failed_test_tells_the_damage_too_and_keeps_its_own_reason(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(guest):\n    guest.run('break')\n    assert guest.arch == 'vax'\n")
    result = project.runpytest_inprocess(*ONE)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["E*assert 'x86_64' == 'vax'", "*Captured stdout damage*", "  guest: service: *"])


def test_damage_that_is_allowed_fails_nobody_and_is_still_not_passed_on(project: pytest.Pytester) -> None:
    tests = """
import pytest
@pytest.mark.allows("service", match="toy")
def test_allowed(guest): guest.run("break")
@pytest.mark.allows("service", match="other")
def test_not_so(guest): guest.run("break")
@pytest.mark.allows("gone")
def test_gone(guest): guest.run("die")
def test_after(guest): assert not guest.health().failed
"""
    write(project, "images/toy.py", TOY + tests)
    project.runpytest_inprocess(*ONE).assert_outcomes(passed=3, failed=1)
    assert len(started(project)) == 8


def test_machines_of_ones_own_may_be_used_up_but_their_kernels_may_not_break(project: pytest.Pytester) -> None:
    tests = """
def test_fresh(fresh): fresh.run("break"); fresh.run("die")
def test_oops(fresh): fresh.run("oops")
def test_boot(boot):
    one, two = boot(memory=512), boot()
    assert (one.facts["memory"], two.facts["memory"]) == (512, 256)
    two.run("break")
def test_boot_oops(boot): boot().run("oops")
"""
    write(project, "images/toy.py", TOY + tests)
    result = project.runpytest_inprocess(*ONE)
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["  fresh: oops: *", "  boot-1: oops: *"])
    assert len(started(project)) == 2 * 5


def test_an_unknown_option_of_boot_lists_the_known_ones(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "def test(boot): boot(memroy=1)\n")
    result = project.runpytest_inprocess(*ONE)
    result.stdout.fnmatch_lines(["unknown option of boot() 'memroy'", "*did you mean 'memory'?*firmware*"])


def test_a_test_of_system_runs_at_both_depths(project: pytest.Pytester) -> None:
    write(
        project, "images/toy.py", TOY + "def test(system): assert system.run('echo 1').text\ndef test_g(guest): ...\n"
    )
    project.runpytest_inprocess("images", "--arch", "x86_64").assert_outcomes(passed=3, deselected=2)
    targets = [line.split()[4] for line in log(project) if line.startswith("start")]
    assert sorted(targets) == ["pretend", "toy_x86_64"]


def test_a_machine_that_does_not_power_off_is_an_error_at_its_end(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY.replace('"toy"', '"unclean"') + "def test(guest): ...\n")
    result = project.runpytest_inprocess(*ONE)
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["it did not power off cleanly when it was asked to: the guest was stopped"])


# --- markers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("allows('ops')", "unknown damage 'ops'"),
        ("allows()", "allows nothing"),
        ("allows('oops', match='(')", "allows: match: "),
        ("snooze(until='soon', reason='x')", "is no snooze"),
        ("snooze(until='2099-01-01')", "is no snooze"),
        ("snooze(until='2099-01-01', reason=' ')", "is no snooze"),
    ],
)
def test_a_marker_that_says_nothing_ends_the_run(project: pytest.Pytester, mark: str, words: str) -> None:
    write(project, "images/toy.py", TOY + f"import pytest\n@pytest.mark.{mark}\ndef test(guest): ...\n")
    result = project.runpytest_inprocess(*ONE)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert words in result.stdout.str()
    assert "Traceback" not in result.stdout.str() + result.stderr.str()


def test_a_snooze_expects_a_failure_until_it_is_over(project: pytest.Pytester) -> None:
    today = date.today()
    tests = f"""
import pytest
@pytest.mark.snooze(until="{today}", reason="the driver is being mended")
def test_fails(image): assert 0
@pytest.mark.snooze(until="{today + timedelta(9)}", reason="flaky")
def test_passes(image): ...
@pytest.mark.snooze(until="{today - timedelta(1)}", reason="the disk is slow")
def test_over(image): ...
"""
    write(project, "images/toy.py", TOY + tests)
    result = project.runpytest_inprocess("images", "-rx", "-o", "xfail_strict=true")
    result.assert_outcomes(xfailed=1, xpassed=1, failed=1)
    result.stdout.fnmatch_lines([f"snoozed until {today - timedelta(1)}, which is over: the disk is slow"])
    result.stdout.fnmatch_lines([f"snoozed: 2, the first until {today}", f"XFAIL*snoozed until {today}: the driver*"])


# --- what is told and kept --------------------------------------------------------------------------------------------

FAILING = "def test_it(guest):\n    guest.console.feed(b'now \\x1b[31mthis\\n')\n    assert 0\n"


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_a_failure_shows_and_keeps_what_happened_since_the_test_began(
    project: pytest.Pytester, workers: tuple[str, ...]
) -> None:
    write(project, "images/toy.py", TOY + FAILING)
    result = project.runpytest_subprocess(*ONE, "--on-failure", "keep", "--junitxml", "j.xml", *workers, timeout=300)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*stdout guest console*", r"guest| now \x1b[[]31mthis", "*stdout guest logs*"])
    result.stdout.no_fnmatch_line("*hello from the*")
    result.stdout.fnmatch_lines(["*stdout kept*", "*/failures/*", "imagekit attach 'images/toy.py::test_it*'"])
    (folder,) = (path for path in (project.path / "cache/failures").iterdir() if path.is_dir())
    assert b"now \x1b[31mthis\n" in (folder / "guest.console").read_bytes()
    assert json.loads((folder / "about.json").read_text())["targets"] == {"guest": "toy_x86_64"}
    assert (folder / "guest.machine/saved").read_text() == "0"
    said = subprocess.run([folder / "guest.sh"], capture_output=True, check=True).stdout
    assert said == b"booting by hand toy\n"
    text = ElementTree.parse(project.path / "j.xml").find(".//system-out").text  # type: ignore[union-attr]
    assert "now \\x1b[31mthis" in (text or "")


def test_what_was_kept_goes_on(project: pytest.Pytester) -> None:
    tests = "def test_it(guest):\n    guest.run('oops')\n    assert 0\n"
    write(project, "images/toy.py", TOY + tests)
    project.runpytest_subprocess(*ONE, "--on-failure", "keep", timeout=300).assert_outcomes(failed=1)
    test = "images/toy.py::test_it[x86_64-paper-toy_x86_64]"
    imagekit = [sys.executable, "-m", "imagekit.cli", "attach"]

    def attach(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*imagekit, *words], input="echo hello\n", capture_output=True, text=True, check=False)

    done = attach(test)
    assert (done.returncode, done.stdout) == (0, "/bin/sh"), done.stderr
    assert "resume auto cache -" in log(project)
    wrong = attach("images/toy.py::test_other")
    assert wrong.returncode == 1
    assert "no failure of 'images/toy.py::test_other' is kept" in wrong.stderr
    assert test in wrong.stderr
    assert "Traceback" not in wrong.stderr
    assert "there is guest" in attach(test, "--machine", "fresh").stderr


def test_shell_without_a_terminal_keeps_the_machine_and_says_so(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + FAILING)
    result = project.runpytest_subprocess(*ONE, "--on-failure=shell", "--failures", "kept", timeout=300)
    result.stdout.fnmatch_lines(["no shell: this run has no terminal of its own, so the machine was kept"])
    assert list((project.path / "kept").glob("*/guest.machine/saved"))


def test_only_the_last_failures_are_kept(project: pytest.Pytester) -> None:
    tests = "import pytest\n@pytest.mark.parametrize('n', range(23))\ndef test(guest, n): assert 0\n"
    write(project, "images/toy.py", TOY + tests)
    other = project.path / "kept/mine"
    other.mkdir(parents=True)
    project.runpytest_inprocess(*ONE, "--failures", str(project.path / "kept")).assert_outcomes(failed=23)
    assert other.is_dir()
    assert 19 <= len(list((project.path / "kept").glob("*/about.json"))) <= 20


@pytest.mark.parametrize("scale", ["0", "-1", "soon", "nan"])
def test_a_timeout_scale_that_is_none_ends_the_run(project: pytest.Pytester, scale: str) -> None:
    result = project.runpytest_inprocess(*ONE, f"--timeout-scale={scale}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--timeout-scale '{scale}' is no scale" in result.stderr.str()


def test_pdb_finds_the_machine_alive(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + FAILING)
    child = project.spawn_pytest(" ".join([*ONE, "--pdb"]))
    child.expect("Pdb")
    child.sendline("guest.run('echo alive').text")
    child.expect("echo alive'")
    child.sendline("q")
    child.read()
    child.wait()


def test_an_argument_that_only_has_a_guests_name_is_left_alone(project: pytest.Pytester) -> None:
    tests = "import pytest\n@pytest.mark.parametrize('guest', [True])\ndef test(guest): assert not guest\n"
    write(project, "test_other.py", tests)
    project.runpytest_inprocess("test_other.py").assert_outcomes(failed=1)
