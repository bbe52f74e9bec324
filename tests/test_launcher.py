"""The launcher of bundles, in real runs: as root and another user, with a cache and without, killed and spoilt."""

import os
import random
import resource
import signal
import socket
import subprocess
import time
from functools import partial
from itertools import takewhile
from pathlib import Path

import pytest
from bundle_rig import IS_ROOT, NOBODY, about, age, entries, make, reachable, root, running, start
from evil_tars import END, link, member

SHELL = about("/bin/sh", "-c", env=("A=b c", "PATH=/bin"), workdir="/etc")
USERS = [-1, NOBODY] if IS_ROOT else [-1]


@pytest.fixture(scope="module")
def app():
    with reachable() as folder:
        yield make(folder, SHELL)


@pytest.fixture
def cache():
    with reachable() as folder:
        yield folder / "of-user"


@pytest.mark.parametrize("uid", USERS)
def test_it_runs_the_program_in_its_root(app, cache, uid):
    line = 'cat /etc/hello; pwd; echo "$A" "$0" "$1"; id -u; echo x > /new; cat /new; ls /host 2> /dev/null'
    told = "from the image\n/etc\nb c zero one two\n0\nx\n"
    for how, where in (("", "into memory: there is no folder"), (cache, "from the cache"), (cache, "from the cache")):
        done = start(app, line, "zero", "one two", cache=how, uid=uid)
        assert (done.returncode, done.stdout) == (1, told), done.stderr  # ls found no /host
        assert where in done.stderr
    assert len(entries(cache)) == 1


@pytest.mark.parametrize("uid", USERS)
@pytest.mark.parametrize("cached", [True, False])
def test_process_signals_codes_descriptors_and_limits_are_the_callers(app, cache, uid, cached):
    env = {"IMAGEKIT_CACHE": str(cache) if cached else "", "B": "mine", "A": "mine", "PATH": "/no", "LISTEN_FDS": "1"}
    limits = (resource.RLIMIT_NOFILE, (77, 77))
    user = {"user": uid, "group": uid, "extra_groups": []} if uid > 0 else {}
    line = "echo $$ $A $B $PATH $LISTEN_FDS; umask; ulimit -n; cat; ls -l /proc/$$/fd; echo end; exec sleep 100"
    user["preexec_fn"] = partial(resource.setrlimit, *limits)
    with (
        socket.socket() as given,
        running(app, line, env=env, pass_fds=[given.fileno()], umask=0o27, **user) as program,
    ):
        program.stdin.write(b"through a pipe\n")
        program.stdin.close()
        told = [word.decode().strip() for word in takewhile(lambda word: word != b"end\n", program.stdout)]
        assert told[:4] == [f"{program.pid} mine mine /bin 1", "0027", "77", "through a pipe"]
        links = [one.partition(" -> ") for one in told[5:]]
        files = {name.split()[-1]: target for name, _, target in links}
        assert set(files) == {"0", "1", "2", str(given.fileno())} | ({"60"} if cached else set())
        assert files[str(given.fileno())].startswith("socket:")
        assert not cached or files["60"].endswith("/lock"), "a folder would lead out of the root"
        program.kill()
        assert program.wait() == -signal.SIGKILL


@pytest.mark.parametrize("code", [0, 1, 42, 125, 255])
def test_the_exit_code_is_the_programs(app, cache, code):
    assert start(app, f"exit {code}", cache=cache).returncode == code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_ends_the_program(app, cache, number):
    with running(app, "exec cat", cache=cache) as it:
        it.stdin.write(b"up\n")
        it.stdin.flush()
        assert it.stdout.readline() == b"up\n"  # by cat, which has no handlers: a shell has one for SIGINT
        it.send_signal(number)
        assert it.wait() == -number


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--bundle-exec", "id", "-u"), 0, ""),
        (("--bundle-exec", "/bin/id", "-u"), 0, ""),
        (("--bundle-exec", "nothing"), 127, "app: cannot execute nothing: No such file or directory"),
        (("--bundle-exec", "/etc/hello/x"), 127, "app: cannot execute /etc/hello/x: Not a directory"),
        (("--bundle-exec", "/etc/hello"), 126, "app: cannot execute /etc/hello: Permission denied"),
        (("--bundle-exec", "/etc"), 126, "app: cannot execute /etc: Permission denied"),
        (("--bundle-exec",), 125, "app: the image names no program: say which (--bundle-exec PROGRAM)"),
    ],
)
def test_other_programs_of_the_image(app, cache, words, code, told):
    done = start(app, *words, cache=cache)
    assert (done.returncode, done.stdout) == (code, "" if code else "0\n")
    assert told in done.stderr


@pytest.mark.parametrize("uid", USERS)
@pytest.mark.parametrize("cached", [True, False])
def test_the_user_is_the_images(cache, uid, cached):
    line = "id -u; id -g; echo $HOME; touch /tmp/x"
    own = make(cache.parent, about("/bin/sh", "-c", line, user="33:44"))
    done = start(own, cache=cache if cached else "", uid=uid)
    assert (done.stdout, done.returncode) == ("33\n44\n/\n", 0), done.stderr


@pytest.mark.parametrize("uid", USERS)
def test_a_read_only_root_is_that_and_has_memory_for_files(cache, uid):
    line = "touch /new; touch /etc/hello; echo a > /tmp/a; cat /tmp/a"
    fixed = make(cache.parent, about("/bin/sh", "-c", line), read_only=True)
    for where in (cache, cache, ""):
        done = start(fixed, cache=where, uid=uid)
        assert done.stdout == "a\n", done.stderr
        assert done.stderr.count("Read-only file system") == 2


def test_a_user_cannot_make_it_writable(cache):
    line = "mount -o remount,rw /; mount -o remount,bind,rw /; echo evil > /etc/hello; cat /etc/hello"
    fixed = make(cache.parent, about("/bin/sh", "-c", line), read_only=True)
    for _ in range(2):
        done = start(fixed, cache=cache, uid=USERS[-1])
        assert "from the cache" in done.stderr
        assert USERS[-1] < 0 or done.stdout == "from the image\n", done.stderr
    if USERS[-1] > 0:
        assert (entries(cache)[0] / "root/etc/hello").read_text() == "from the image\n"


@pytest.mark.parametrize("name", ["proc", "sys", "dev", "run", "tmp"])
def test_a_link_as_a_mount_point_is_refused(tmp_path, name):
    evil = make(tmp_path, about("/bin/sh"), payload=link(name.encode(), b"/etc") + END)
    for where in ("", tmp_path / "cache"):
        done = start(evil, cache=where)
        assert done.returncode == 125
        assert f"/{name} of this image is no folder: refused as a mount point" in done.stderr
    assert not entries(tmp_path / "cache")


def test_names_are_looked_up_as_the_host_does(tmp_path):
    own = Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else ""
    app = make(tmp_path, about("/bin/cat", "/etc/resolv.conf"))
    assert start(app).stdout == own
    kept = root()[:-1024] + member(b"etc/resolv.conf", b"of the image\n") + END
    assert start(make(tmp_path, about("/bin/cat", "/etc/resolv.conf"), payload=kept)).stdout == "of the image\n"
    linked = root()[:-1024] + link(b"etc/resolv.conf", b"/run/none/resolv.conf") + END
    assert start(make(tmp_path, about("/bin/cat", "/etc/resolv.conf"), payload=linked)).stdout == own


# --- the cache ---


def test_what_was_touched_is_made_again_and_what_is_in_use_is_left(app, cache):
    start(app, "true", cache=cache)
    with open(entries(cache)[0] / "root/etc/hello", "w") as file:
        file.write("evil bytes now\n")
    age(cache)
    with running(app, "echo up; cat; cat /etc/hello", cache=cache) as it:
        assert it.stdout.readline() == b"up\n"
        with open(entries(cache)[0] / "root/etc/hello", "w") as file:
            file.write("evil bytes now\n")
        age(cache)
        done = start(app, "cat /etc/hello", cache=cache)
        assert (done.stdout, "changed, and is being used" in done.stderr) == ("from the image\n", True)
        it.communicate(b"")
    done = start(app, "cat /etc/hello", cache=cache)
    assert (done.stdout, "from the cache" in done.stderr) == ("from the image\n", True)


@pytest.mark.parametrize("lost", ["note", "lock", "root/bin/busybox", "root"])
def test_what_is_lost_is_made_again(app, cache, lost):
    start(app, "true", cache=cache)
    entry = age(cache)
    (entry / lost).rename(cache / "away")
    done = start(app, "cat /etc/hello", cache=cache)
    assert (done.stdout, "from the cache" in done.stderr) == ("from the image\n", True), done.stderr


def test_what_others_left_is_removed_and_what_is_not_ours_stays(app, cache):
    start(app, "true", cache=cache)
    entry = entries(cache)[0]
    ours, boot = entry.name[:64], entry.name[67:]
    gone = [f"{ours}-b-00000000", f"{'0' * 64}-b-{boot}.draft-1"]
    stay = [f"{'0' * 64}-2-00000000", f"{'0' * 64}-b-{boot}", "another"]
    for name in (*gone, *stay):
        (entry.with_name(name) / "root/d").mkdir(parents=True)
        (entry.with_name(name) / "root/d").chmod(0)
    entry.rename(entry.with_name("aside"))
    start(app, "true", cache=cache)
    assert {path.name for path in entries(cache)} == {entry.name, "aside", *stay}


def test_a_draft_of_the_same_number_is_in_nobodys_way(app, cache):
    """In containers every start is process 1, and so was the one that was killed."""
    start(app, "true", cache=cache)
    entry = entries(cache)[0]
    entry.rename(cache / "away")
    line = 'mkdir -p "$1.draft-$$/root"; app=$2; shift 2; exec "$app" "$@"'
    argv = ["sh", "-c", line, "sh", entry, app, "cat /etc/hello"]
    done = subprocess.run(
        argv, env={"PATH": os.environ["PATH"], "IMAGEKIT_CACHE": str(cache)}, capture_output=True, check=True
    )
    assert done.stdout == b"from the image\n"
    assert entries(cache) == [entry]


def test_many_first_starts_at_once_give_one_entry(app, cache):
    env = {"IMAGEKIT_CACHE": str(cache)}
    programs = [subprocess.Popen([app, "cat /etc/hello"], stdout=subprocess.PIPE, env=env) for _ in range(6)]
    assert [program.communicate()[0] for program in programs] == [b"from the image\n"] * 6
    assert len(entries(cache)) == 1


def test_kills_at_any_moment_leave_nothing_that_is_used(app, cache):
    dice = random.Random(6)
    for number in range(40):
        where = cache if number % 4 else cache.with_name(f"new{number}")
        program = subprocess.Popen([app, "exec sleep 100"], env={"IMAGEKIT_CACHE": str(where)})
        time.sleep(dice.random() * 0.012)
        program.kill()
        assert program.wait() == -signal.SIGKILL
        done = start(app, "cat /etc/hello", cache=where)
        assert (done.returncode, done.stdout, len(entries(where))) == (0, "from the image\n", 1), done.stderr
    assert str(cache.parent) not in Path("/proc/self/mountinfo").read_text()


def test_a_changed_image_is_not_vouched_for_by_its_cache(app, cache, tmp_path):
    """The words that it starts with are signed: nothing that was verified before speaks for others."""
    assert start(app, "true", cache=cache).returncode == 0
    data = app.read_bytes()
    evil = tmp_path / "evil"
    for old, new in (
        (b"argument: /bin/sh", b"argument: /bin/ls"),
        (b"A=b c", b"A=evi"),
        (b"workdir: /etc", b"workdir: /bin"),
    ):
        assert data.count(old) == 1
        evil.write_bytes(data.replace(old, new))
        evil.chmod(0o755)
        done = start(evil, "true", cache=cache)
        assert (done.returncode, done.stdout) == (125, ""), done.stderr


def test_what_runs_is_not_changed_by_who_changes_the_file(app, cache):
    own = cache.parent / "own"
    own.write_bytes(app.read_bytes())
    own.chmod(0o755)
    with running(own, "echo up; cat; cat /etc/hello") as it:
        assert it.stdout.readline() == b"up\n"
        own.write_bytes(bytes(len(app.read_bytes())))
        assert it.communicate(b"")[0] == b"from the image\n"
