"""`imagekit run`: the process becomes the program, sees the root, and leaves nothing."""

import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import small_root
from run_rig import HOME, IS_ROOT, environment, words

from imagekit import fitting

NOBODY = 65534
FOLDERS = ("proc", "sys", "dev", "run", "tmp", "etc", "srv")


@pytest.fixture(scope="module")
def place():
    """A folder that every user can reach, which pytest's own temporary folders are not."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.fixture(scope="module")
def root(place):
    made = place / "root"
    for name in FOLDERS:
        (made / name).mkdir(parents=True)
    for program in small_root.PROGRAMS:
        small_root.copy_program(Path(program), made)
    (made / "etc/hello").write_text("from the root\n")
    (made / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\njoe:x:1000:1001::/home/joe:/bin/sh\n")
    (made / "etc/group").write_text("joe:x:1001:\nwheel:x:10:joe\n")
    (made / "srv/link").symlink_to("/etc")
    return made


@pytest.fixture(scope="module")
def cache(place):
    return place / "cache"


@pytest.fixture
def run(root, cache):
    """Run a shell's line in the root; options come before it."""

    def start(line: str, *options, image=root, env=(), **how):
        given = words(image, "--insecure", *options, "--", "sh", "-c", line)
        return subprocess.run(
            given, check=False, capture_output=True, text=True, timeout=300, env=environment(cache, **dict(env)), **how
        )

    return start


def told(done) -> str:
    """Its errors, without the warning that nothing is verified."""
    return "".join(line for line in done.stderr.splitlines(keepends=True) if "WARNING" not in line)


# --- the process ------------------------------------------------------------------------------------------------------


def test_it_is_the_same_process(root, cache):
    argv = words(root, "--insecure", "--", "sh", "-c", "echo $$; read line; exit 7")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment(cache)) as program:
        assert int(program.stdout.readline()) == program.pid
        program.communicate(b"go\n")
    assert program.returncode == 7


@pytest.mark.parametrize("code", [0, 1, 77, 124, 255])
def test_the_exit_status_is_the_programs(run, code):
    assert run(f"exit {code}").returncode == code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_signal_ends_the_program_itself(root, cache, number):
    argv = words(root, "--insecure", "--", "sh", "-c", "echo runs; exec sleep 3621")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment(cache)) as program:
        program.stdout.readline()
        program.send_signal(number)
        assert program.stdout.read() == b""  # who held this pipe has ended
    assert program.returncode == -number


def test_no_signal_is_ignored_that_the_caller_does_not_ignore(run):
    """Python ignores SIGPIPE, and `yes | head` would complain instead of ending."""
    line = "while read name value; do case $name in SigIgn:) echo $value;; esac; done < /proc/self/status"
    assert int(run(line).stdout, 16) == 0
    ignoring = run(line, preexec_fn=lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN))
    assert int(ignoring.stdout, 16) == 1 << (signal.SIGUSR1 - 1)


def test_it_stops_and_goes_on(root, cache):
    argv = words(root, "--insecure", "--", "sh", "-c", "echo runs; read line; echo $line")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment(cache)) as program:
        program.stdout.readline()
        program.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(program.pid, os.WUNTRACED)[1])
        program.send_signal(signal.SIGCONT)
        assert program.communicate(b"on\n")[0] == b"on\n"


def test_limits_descriptors_and_streams_are_the_callers(run):
    read, write = os.pipe()
    os.write(write, b"of the socket\n")
    os.close(write)

    def before() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (77, 77))
        os.dup2(read, 3)

    line = 'ulimit -n; cat <&3; test "$LISTEN_PID" = $$ || echo other; cat; echo error >&2; echo /proc/$$/fd/*'
    done = run(line, input="given\n", preexec_fn=before, pass_fds=[3], env={"LISTEN_FDS": "1"})
    os.close(read)
    *lines, handles = done.stdout.splitlines()
    assert lines == ["77", "of the socket", "other", "given"]
    assert told(done) == "error\n"
    ours = {path.name for path in Path("/proc/self/fd").iterdir() if int(path.name) > 4 and _is_open_to_all(path)}
    names = {Path(path).name for path in handles.split()}
    assert names - ours == {"0", "1", "2", "3", "4"}  # the last: the folder, listed


def _is_open_to_all(path: Path) -> bool:
    """Whether whoever started the tests left it open, which a low limit keeps subprocess from closing."""
    try:
        return os.get_inheritable(int(path.name))
    except OSError:
        return False


def test_the_environment_is_the_callers_but_for_folders(run):
    done = run('echo "$OWN $MORE $PATH $HOME"', "-e", "MORE=two words", env={"OWN": "1", "HOME": "/home/me"})
    assert done.stdout == "1 two words /usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin /root\n"
    assert run("echo $PATH", "-e", "PATH=/bin").stdout == "/bin\n"


@pytest.mark.parametrize(("given", "written"), [("-1000\n", "0"), ("-500\n", ""), ("300\n", "")])
def test_an_exemption_from_being_ended_is_taken_back(tmp_path, monkeypatch, given, written):
    score = tmp_path / "oom_score_adj"  # a file of our own: not all that are root here may write -1000 to the kernel's
    score.write_text(given)
    monkeypatch.setattr(fitting, "SCORE", str(score))
    fitting.end_exemption()
    assert score.read_text() == given + written


def test_the_programs_own_score_is_seen(run):
    done = run("cat /proc/self/oom_score_adj", preexec_fn=lambda: Path("/proc/self/oom_score_adj").write_text("300"))
    assert done.stdout == "300\n"


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["nothing"], 127, "nothing not found in /usr/local/sbin:"),
        ([""], 127, "a program without a name not found"),
        (["/etc/hello"], 126, "cannot execute /etc/hello: Permission denied"),
        (["/srv/foreign"], 126, "cannot execute /srv/foreign: Exec format error"),
    ],
)
def test_own_failures_have_own_codes(root, cache, command, code, words):
    foreign = root / "srv/foreign"
    foreign.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xf3\x00" + bytes(44))  # e_machine of RISC-V
    foreign.chmod(0o755)
    argv = globals()["words"](root, "--insecure", "--", *command)
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment(cache))
    assert (done.returncode, words in done.stderr) == (code, True)


# --- what it is given -------------------------------------------------------------------------------------------------


def test_volumes_are_shown(run, place):
    shared = place / "shared"
    shared.mkdir()
    (shared / "f").write_text("of the host\n")
    line = "cat /srv/a/f /srv/new/place/f /etc/file; echo more > /srv/a/g; echo no > /srv/new/place/h"
    options = ["-v", f"{shared}:/srv/a", "-v", f"{shared}:/srv/new/place:ro", "-v", f"{shared}/f:/etc/file:ro"]
    done = run(line, *options)
    assert done.stdout == "of the host\n" * 3
    assert "Read-only file system" in told(done)
    assert sorted(path.name for path in shared.iterdir()) == ["f", "g"]


@pytest.mark.parametrize(
    ("volume", "words"),
    [
        ("/etc", "a volume is SOURCE:PLACE"),
        ("/etc:srv", "with a PLACE that begins with /"),
        ("/etc:/srv:rx", "SOURCE:PLACE:ro"),
        ("/etc:/srv/../../etc", "no place in the image"),
        ("/etc:/", "no place in the image"),
        ("/nowhere:/srv", "there is no /nowhere"),
        ("/etc:/srv/link", "leads through link, which is no folder: refused"),
        ("/etc:/srv/link/below", "leads through link, which is no folder: refused"),
        ("/etc:/proc/self/cwd/etc", "is no folder: refused"),
        ("/etc/hosts:/srv/link", "is no file: refused"),
        ("/etc/hosts:/srv", "is no file: refused"),
    ],
)
def test_no_volume_lies_where_it_should_not(run, volume, words):
    done = run("echo ran", "-v", volume)
    assert (done.returncode, done.stdout, words in told(done)) == (125, "", True), done.stderr


@pytest.mark.parametrize("name", ["proc", "dev", "tmp", "run", "sys"])
def test_the_machines_folders_are_not_mounted_over_a_symlink(run, root, place, name):
    trap = place / f"trap-{name}"
    shutil.copytree(root, trap, symlinks=True)
    (trap / name).rmdir()
    (trap / name).symlink_to("/etc")
    done = run("echo ran", image=trap)
    assert (done.returncode, f"/{name} of this root is not a folder: refused" in told(done)) == (125, True)


def test_what_is_written_is_gone_or_kept(run, root, place):
    kept = place / "kept"
    line = "cat /etc/note 2>/dev/null || echo none; echo noted > /etc/note"
    assert [run(line).stdout for _ in range(2)] == ["none\n", "none\n"]
    assert [run(line, "--persist", kept).stdout for _ in range(2)] == ["none\n", "noted\n"]
    assert not (root / "etc/note").exists()
    handle = os.open(kept / "lock", os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = run(line, "--persist", kept)
    os.close(handle)
    assert (done.returncode, "another run uses it now" in told(done)) == (125, True)


@pytest.mark.parametrize(
    ("user", "seen"), [("joe", "1000 1001 1001 10"), ("1000:10", "1000 10 10"), ("4242", "4242 4242 4242")]
)
def test_users_are_those_of_the_image(run, user, seen):
    line = (
        "while read name value rest; do case $name in Uid:|Gid:) echo $value;; Groups:) echo $value $rest;; esac; done"
    )
    done = run(f"{line} < /proc/self/status; echo $HOME", "--user", user)
    uid, gid, groups, home = done.stdout.splitlines()
    wanted = seen.split(" ")
    assert ([uid, gid], home) == (wanted[:2], "/" if user == "4242" else "/home/joe")
    if IS_ROOT:
        assert set(groups.split()) == set(wanted[2:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--user", "nobody-here"], "the image has no user nobody-here"),
        (["--user", "joe:nobodies"], "the image has no group nobodies"),
        (["--user", "4294967295"], "no such number"),
        (["--workdir", "/nowhere"], "--workdir /nowhere: No such file"),
        (["--memory", "much"], "--memory much: that is no such number"),
        (["--memory", "10"], "no program runs in less than 1M"),
        (["--cpus", "0"], "that is no such number"),
        (["--pids", "-1"], "that is no such number"),
        (["-e", "=x"], "-e takes NAME=VALUE"),
    ],
)
def test_wrong_options_are_told(run, options, words):
    done = run("echo ran", *options)
    assert (done.returncode, done.stdout, words in told(done)) == (125, "", True), done.stderr


def test_limits_hold_and_leave_no_group(run):
    line = "cat /proc/self/cgroup; for n in 1 2 3 4; do sleep 0.2 & done; wait"
    done = run(line, "--pids", "2", "--memory", "64M", "--cpus", "1.5")
    if IS_ROOT and "no control group" not in done.stderr:
        assert "fork" in told(done)
    groups = [text.rpartition(":")[2] for text in done.stdout.splitlines() if "/imagekit-" in text]
    assert groups or "no control group can be made here" in done.stderr
    deadline = time.monotonic() + 300
    while any(path.is_dir() for group in groups for path in Path("/sys/fs/cgroup").glob(f"**{group}")):
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def as_another(root, place):
    """Run a shell's line in the root as an ordinary user; options come before it."""
    if not IS_ROOT:
        pytest.skip("the caller is an ordinary user already")
    python = next((p for p in ("/usr/bin/python3", sys.executable) if is_startable(p)), None)
    if python is None:
        pytest.skip("no Python here that another user can start")
    package = place / "package/imagekit"
    shutil.copytree(HOME / "imagekit", package, ignore=lambda *_: ["inside", "__pycache__"], dirs_exist_ok=True)
    code = f"import sys; sys.path.insert(0, {str(package.parent)!r}); from imagekit import cli; sys.exit(cli.main())"

    def start(line: str, *options):
        argv = [python, "-I", "-S", "-c", code, "run", root, "--insecure", *options, "--", "sh", "-c", line]
        return subprocess.run(
            argv, check=False, capture_output=True, text=True, user=NOBODY, group=NOBODY, extra_groups=[]
        )

    return start


def test_an_ordinary_user_is_root_in_there(as_another):
    line = "read none first rest < /proc/self/uid_map; echo $first; cat /etc/hello; echo new > /tmp/new; cat /tmp/new"
    done = as_another(line)
    assert done.stdout == f"{NOBODY}\nfrom the root\nnew\n", done.stderr


def test_who_is_root_in_there_opens_no_read_only_folder(as_another, root, place):
    """A user namespace may change what it mounted; so the program is in a second one."""
    small_root.copy_program(Path("/bin/mount"), root)
    shared = place / "closed"
    shared.mkdir()
    os.chown(shared, NOBODY, NOBODY)
    line = "mount -o remount,rw,bind /srv; echo evil > /srv/f; mount -t tmpfs none /tmp && echo mounts"
    done = as_another(line, "-v", f"{shared}:/srv:ro")
    assert (done.stdout, list(shared.iterdir())) == ("mounts\n", []), done.stderr
    assert as_another("echo new > /srv/f", "-v", f"{shared}:/srv").returncode == 0
    assert (shared / "f").read_text() == "new\n"


def is_startable(python: str) -> bool:
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"],
            check=False, user=NOBODY, group=NOBODY, extra_groups=[],
        )  # fmt: skip
    except OSError:
        return False
    return done.returncode == 0


def test_missing_namespaces_are_told_with_a_hint(root, cache):
    """As on hosts that forbid them: a limit of 0, inside a user namespace that has none left to give."""
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs unshare and setpriv of util-linux")
    limit = (
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin"
    )
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{limit} "$@"', "sh"]
    done = subprocess.run(
        [*argv, *words(root, "--insecure", "--", "sh")], check=False, capture_output=True, text=True,
        env=environment(cache),
    )  # fmt: skip
    assert done.returncode == 125
    assert "cannot make a user namespace" in done.stderr
    assert "`imagekit doctor` tells how" in done.stderr


def test_a_folder_is_run_only_when_that_is_said(root, cache):
    done = subprocess.run(words(root, "--", "sh"), check=False, capture_output=True, text=True, env=environment(cache))
    assert done.returncode == 125
    assert "which nobody signed: --insecure runs it all the same" in done.stderr


def test_nothing_is_loaded_that_a_run_does_not_use(root):
    code = f"""
import os, sys
before = set(sys.modules)
sys.path.insert(0, {str(HOME)!r})
from imagekit import cli
os.execve = lambda *_: os._exit(print(*sorted(set(sys.modules) - before), flush=True) or 0)
cli.main(["run", {str(root)!r}, "--insecure", "--", "/bin/sh"])
"""
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True)
    own = {"imagekit", *(f"imagekit.{name}" for name in ("asked", "cli", "fitting", "namespace", "runner"))}
    assert {name for name in done.stdout.split() if "." in name or name == "imagekit"} == own
    assert not {"ctypes", "typing", "re", "pathlib", "collections", "argparse", "json"} & set(done.stdout.split())


@pytest.mark.parametrize(
    "given", [["--nonsense"], ["image", "--user"], ["/nowhere.py"], ["http://[::1/x"], ["http://127.0.0.1:99999/x"]]
)
def test_a_wrong_command_line_is_our_failure(given, cache):
    done = subprocess.run(words(*given), check=False, capture_output=True, text=True, env=environment(cache))
    assert (done.returncode, "Traceback" in done.stderr) == (125, False), done.stderr
