"""The one door to other programs: what goes in, what comes out, and that nothing stays behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest

from imagekit import host
from imagekit.errors import RigProblem


def wait_until(what, seconds=300.0):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """No such process, or a zombie that nobody has reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("script", "given", "expected"),
    [
        ("printf one; printf two >&2", None, (0, b"one", b"two")),
        ("cat", b"x" * 300_000, (0, b"x" * 300_000, b"")),
        ("exit 3", None, (3, b"", b"")),
        ("kill -TERM $$", None, (143, b"", b"")),
        ("read line; echo $line", b"first\nsecond\n" * 100_000, (0, b"first\n", b"")),
        ("cat", None, (0, b"", b"")),  # stdin is empty, not the terminal
    ],
)
def test_gives_streams_and_code(script, given, expected):
    assert host.run(["sh", "-c", script], input=given, ok=None, timeout=300) == expected


def test_environment_is_clean(monkeypatch):
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("SECRET", "canary")
    lines = host.run(["env"], env={"EXTRA": "1"}).text.splitlines()
    assert {line.partition("=")[0] for line in lines} <= {"PATH", "LC_ALL", "TZ", "HOME", "TMPDIR", "EXTRA"}
    assert "LC_ALL=C.UTF-8" in lines
    assert "EXTRA=1" in lines


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["sh", "-c", "echo broken pipe dream >&2; exit 7"], "sh ended with 7: broken pipe dream"),
        (["sh", "-c", r"printf '\033[2J' >&2; exit 1"], r"\x1b[2J"),
        (["no-such-program-here", "x"], "no-such-program-here is not on this machine"),
        (["sleep", "60"], "sleep did not end within 0.2 s"),
        (["sh", "-c", "yes | head -c 9000000"], None),
    ],
)
def test_failures_are_problems_of_the_rig(argv, words):
    if words is None:
        assert len(host.run(argv).stdout) == 9_000_000
        return
    with pytest.raises(RigProblem) as caught:
        host.run(argv, timeout=0.2 if argv[0] == "sleep" else 30)
    assert words in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_too_much_output_ends_the_program():
    process = host.launch(["yes"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with pytest.raises(RigProblem, match="printed more than 100000 bytes"):
        host.converse(process, limit=100_000)
    assert process.returncode == -signal.SIGKILL


def test_timeout_ends_grandchildren_too(tmp_path):
    told = tmp_path / "pid"
    for seconds in (0.5, 5.0, 50.0):  # until it began before its time was up, on however slow a machine
        with pytest.raises(RigProblem, match="did not end"):
            host.run(["sh", "-c", f"sleep 61 & echo $! > {told}; wait"], timeout=seconds)
        if told.exists() and told.read_text():
            break
    wait_until(lambda: is_gone(int(told.read_text())))


PARENT = """
import sys, time
from imagekit import host
child = host.launch(["sleep", "62"])
print(child.pid, flush=True)
time.sleep(62)
"""


def test_killing_the_parent_ends_the_child():
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    with parent:
        pid = int(parent.stdout.readline())
        wait_until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0])
        parent.kill()
    wait_until(lambda: is_gone(pid))


def test_parent_that_died_before_the_launcher_asked():
    argv = [*host.LAUNCHER, "--die-with", "1", "--", "true"]  # as if adopted meanwhile
    done = host.run(argv, ok=None)
    assert done.code == 125
    assert b"has ended" in done.stderr


def test_program_is_the_started_process_itself():
    process = host.launch(["sh", "-c", "echo $$"], stdout=subprocess.PIPE)
    assert int(host.converse(process).text) == process.pid


def test_descriptors_pass_only_when_named(tmp_path):
    (tmp_path / "f").write_text("through")
    with open(tmp_path / "f") as file:
        named = host.launch(["cat", f"/proc/self/fd/{file.fileno()}"], pass_fds=[file.fileno()], stdout=subprocess.PIPE)
        assert host.converse(named).text == "through"
        assert host.run(["cat", f"/proc/self/fd/{file.fileno()}"], ok=None).code != 0


def test_launcher_is_added_once():
    argv = host.launcher(["true"])
    assert host.launcher(argv) == argv
    assert host.run(argv).code == 0


def test_look_up():
    assert host.look_up("sh")
    assert host.look_up("no-such-program-here") is None


def test_look_up_knows_sbin(monkeypatch, tmp_path):
    (tmp_path / "mkfs.thing").write_text("#!/bin/sh\n")
    monkeypatch.setattr(host, "SYSTEM_FOLDERS", (str(tmp_path),))
    assert host.look_up("mkfs.thing") is None  # not executable
    (tmp_path / "mkfs.thing").chmod(0o755)
    assert host.look_up("mkfs.thing") == tmp_path / "mkfs.thing"


def test_look_up_passes_over_closed_folders(monkeypatch, tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    monkeypatch.setenv("PATH", f"{tmp_path}/closed:/usr/bin:/bin")
    assert host.look_up("sh")


def test_once_lets_one_at_a_time_go_on(tmp_path):
    inside, seen = [0], []

    def work():
        with host.once(tmp_path, "thing"):
            inside[0] += 1
            seen.append(inside[0])
            time.sleep(0.01)
            inside[0] -= 1

    threads = [Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 8


HOLDER = """
import sys, time
from pathlib import Path
from imagekit import host
with host.once(Path(sys.argv[1]), "thing"):
    print("held", flush=True)
    time.sleep(63)
"""


def test_lock_of_a_killed_holder_is_free_and_a_wait_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "PATIENCE", 0.1)
    said = []
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline() == b"held\n"

        def kill(line):
            said.append(line)
            holder.kill()

        with host.once(tmp_path, "thing", say=kill):
            pass
    assert said == [f"waiting for process {holder.pid}, which is making thing"]


def test_import_is_cheap():
    heavy = "{'subprocess', 'logging', 'selectors', 'ctypes', 'shutil'}"
    code = f"import sys; before = set(sys.modules); import imagekit.host; print({heavy} & (set(sys.modules) - before))"
    assert (
        host.run([sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(root())!r}); {code}"]).text
        == "set()"
    )


def root() -> Path:
    return Path(host.__file__).parents[1]


def test_powers_stay_the_same_and_tell_a_lesser_process(tmp_path):
    if not host.look_up("setpriv"):
        pytest.skip("needs setpriv of util-linux")
    script = tmp_path / "powers.py"
    script.write_text("from imagekit import host; print(host.powers())")
    env = {"PYTHONPATH": str(root())}
    assert host.run([sys.executable, script], env=env).text == str(host.powers())
    assert host.run(["setpriv", "--no-new-privs", sys.executable, script], env=env).text != str(host.powers())


def test_zombie_counts_as_gone():
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert is_gone(process.pid)
    process.wait()
