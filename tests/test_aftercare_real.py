"""Real machines that tests break: the culprit is blamed, the next test gets another machine, the broken one is kept."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import toys

pytest_plugins = "pytester"
BREAKING = """
from imagekit import DOCS, Image, Service
import pytest

image = Image("shell", version="1", kernel="debian:linux-image-cloud", without=DOCS, network="none",
              services=(Service("idler", "/usr/bin/busybox sleep 1000000"),), formats=("kernel_initrd", "tar"))

def sh(guest, script):
    return guest.run(["/bin/sh", "-c", script])

def test_good(guest):
    assert sh(guest, "touch /tmp/mark").code == 0
    assert guest.facts.get("fresh") is None

def test_still_the_same(guest): assert sh(guest, "test -e /tmp/mark").code == 0

def test_kills_a_service(guest): sh(guest, f"kill -9 {guest.services()['idler'].pid}; sleep 1")

def test_after_the_service(guest):
    assert sh(guest, "test -e /tmp/mark").code == 1
    assert guest.facts["fresh"] == "restored"

def test_remounts(guest): sh(guest, "mount -o remount,ro /tmp")

@pytest.mark.allows("panic", "gone")
def test_panics_as_it_may(guest):
    with pytest.raises(Exception, match="panicked"):
        sh(guest, "echo c > /proc/sysrq-trigger; sleep 60")

def test_warns(guest):
    sh(guest, "echo '<6>WARNING: CPU: 0 at toy.c:3' > /dev/kmsg; echo 512 > /proc/sys/kernel/tainted")

def test_uses_up_memory(guest): sh(guest, "tail /dev/zero")

def test_last(guest): assert not guest.health().failed

def test_fresh_ones_are_used_up(fresh):
    sh(fresh, f"kill -9 {fresh.services()['idler'].pid}")
    fresh.power.cut()
"""


@pytest.fixture
def definition(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("IMAGEKIT_CACHE", toys.CACHE)  # pytester's HOME is empty: all would be fetched anew
    monkeypatch.setenv("IMAGEKIT_FAILURES", str(pytester.path / "kept"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(toys.HERE / "fixtures/keys/test.key"))
    Path(pytester.path, "breaks.lock").write_text((toys.HERE / "images/shell.lock").read_text())
    return pytester


def test_every_kind_of_damage_is_its_own_tests_failure(definition: pytest.Pytester) -> None:
    toys.write(definition, "breaks.py", BREAKING)
    result = definition.runpytest_subprocess("breaks.py", "--arch", "aarch64", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=6, failed=4)
    for words in (
        "*test_kills_a_service*left damage behind",
        "  guest: service: a service failed: idler: *last ended with 137*",
        "*test_remounts*left damage behind",
        "  guest: read-only: a file system became read-only: /tmp",
        "*test_warns*left damage behind",
        "  guest: taint: the kernel is tainted with 512: the kernel warned (WARNING): *WARNING: CPU: 0 at toy.c:3",
        "*test_uses_up_memory*left damage behind",
        "  guest: oom: memory ran out: *",
    ):
        result.stdout.fnmatch_lines([words])


def test_a_broken_machine_is_kept_and_goes_on_as_it_was(definition: pytest.Pytester) -> None:
    failing = "def test_it(guest):\n    sh(guest, 'echo was here > /tmp/x')\n    assert 0\n"
    tests = BREAKING.partition("def test_good")[0] + failing
    toys.write(definition, "breaks.py", tests)
    options = ("--arch", "aarch64", "-p", "no:cacheprovider", "--on-failure=keep")
    result = definition.runpytest_subprocess("breaks.py", *options)
    result.assert_outcomes(failed=1)
    test = "breaks.py::test_it[aarch64-kernel_initrd-qemu_aarch64]"
    result.stdout.fnmatch_lines([f"imagekit attach '{test}'"])
    for _ in range(2):  # any number of times
        argv = [sys.executable, "-m", "imagekit.cli", "attach", test]
        done = subprocess.run(argv, input=b"cat /tmp/x; uname -m; exit 7", capture_output=True, check=False)
        assert (done.returncode, done.stdout) == (7, b"was here\naarch64\n"), done.stderr


def test_a_shell_opens_in_the_broken_machine_on_the_users_terminal(definition: pytest.Pytester) -> None:
    failing = "def test_it(guest):\n    guest.write('/tmp/x', b'was here')\n    assert 0\n"
    toys.write(definition, "breaks.py", BREAKING.partition("def test_good")[0] + failing)
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "breaks.py", "--arch", "aarch64"]
    ours, theirs = pty.openpty()
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(
        [*argv, "--on-failure=shell"], cwd=definition.path, start_new_session=True, **terminal
    ) as run:
        os.close(theirs)
        seen = until(ours, "ends the shell") + until(ours, "# ")
        os.write(ours, b"cat /tmp/x; tty; echo $((6*7))end\r")
        seen += until(ours, "42end")
        os.write(ours, b"exit\r")
        seen += until(ours, "1 failed")
    os.close(ours)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "was here/dev/pts/" in seen


def until(terminal: int, words: str) -> str:
    """Read a terminal until these words were shown."""
    seen = b""
    while words.encode() not in seen:
        data = os.read(terminal, 4096)  # EIO when the run has ended: what was seen is in the traceback
        assert data, seen
        seen += data
    return seen.decode(errors="replace")
