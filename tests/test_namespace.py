"""Other roots: entered as root and as an ordinary user, left without a trace, refused when they are traps."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from sleepers import NAP, sleepers
from small_root import copy_program

from imagekit import host, namespace

NOBODY = 65534


@pytest.fixture(scope="module")
def folder():
    """A folder that every user can reach, which pytest's own temporary folders are not."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        shutil.copy(namespace.__file__, Path(path) / "namespace.py")
        yield Path(path)


@pytest.fixture(scope="module")
def root(folder):
    made = folder / "a root, with: odd name"
    for name in ("proc", "sys", "dev", "run", "tmp", "etc"):
        (made / name).mkdir(parents=True)
    for program in ("/bin/sh", "/bin/cat", "/bin/sleep", "/bin/rm", "/bin/mv"):
        copy_program(Path(program), made)
    (made / "etc/hello").write_text("from the root\n")
    (made / "etc/not-executable").write_text("#!/bin/sh\n")
    (made / "etc/more/inner").mkdir(parents=True)
    (made / "etc/more/file").touch()
    if os.getuid() == 0:
        for path in (made, *made.rglob("*")):
            os.chown(path, NOBODY, NOBODY)  # as when that user unpacked it
    return made


def interpreter_for(user: int | None) -> str:
    """A Python that this user can start: one below /root cannot be reached by others."""
    candidates = [sys.executable] if user is None else [sys.executable, "/usr/bin/python3"]
    for path in candidates:
        ids = {} if user is None else {"user": user, "group": user, "extra_groups": []}
        try:
            if (
                subprocess.run([path, "-I", "-S", "-c", ""], check=False, **ids, stderr=subprocess.DEVNULL).returncode
                == 0
            ):
                return path
        except OSError:
            continue
    pytest.skip(f"no Python here that user {user} can start")


@pytest.fixture(params=[None, NOBODY], ids=["caller", "nobody"])
def enter(request, folder):
    """Run namespace.py with these words, as the caller and, where the caller is root, as an ordinary user."""
    if request.param and os.getuid():
        pytest.skip("only root can become another user; the caller is an ordinary one already")
    ids = {"user": request.param, "group": request.param, "extra_groups": []} if request.param else {}
    python = interpreter_for(request.param)

    def run(*words, **options):
        argv = [python, "-I", "-S", folder / "namespace.py", *words]
        return subprocess.run(argv, check=False, capture_output=True, timeout=300, text=True, **ids, **options)

    return run


def is_mounted(root: Path) -> bool:
    """Whether anything there is a mount that the machine sees: others mount and unmount theirs meanwhile."""
    return str(root).replace(" ", "\\040") in Path("/proc/self/mountinfo").read_text()


def test_runs_in_the_root(enter, root):
    done = enter(
        "--root", root, "--writes", "yes", "--", "sh", "-c", "cat /etc/hello; echo /*; echo $$; echo hm >&2; exit 5"
    )
    assert done.stdout.splitlines() == [
        "from the root",
        "/bin /dev /etc /lib /lib64 /proc /run /sys /tmp".replace(
            " /lib64", " /lib64" if (root / "lib64").exists() else ""
        ),
        "2",
    ]
    assert (done.returncode, done.stderr) == (5, "hm\n")
    assert not is_mounted(root)


def test_writes_are_gone_at_the_end(enter, root):
    script = "for f in /etc/hello /more /tmp/t /run/r; do echo new > $f; cat $f; done"
    assert enter("--root", root, "--writes", "yes", "--", "sh", "-c", script).stdout == "new\n" * 4
    assert (root / "etc/hello").read_text() == "from the root\n"
    assert not (root / "more").exists()


def test_folders_of_the_root_are_removed_and_moved(enter, root):
    script = "rm -r /etc/more && echo /etc/mo*; mv /etc /other && cat /other/hello; echo /etc*"
    done = enter("--root", root, "--writes", "yes", "--", "sh", "-c", script)
    assert (done.stdout, done.stderr) == ("/etc/mo*\nfrom the root\n/etc*\n", "")
    assert (root / "etc/more/file").exists()


def test_read_only_where_overlays_are_refused(enter, root):
    script = "echo t > /tmp/t && cat /tmp/t; echo x > /etc/hello"
    done = enter("--root", root, "--writes", "no", "--", "sh", "-c", script)
    assert done.stdout == "t\n"
    assert "Read-only" in done.stderr
    assert (root / "etc/hello").read_text() == "from the root\n"


def test_the_hosts_kernel_folders_are_there(enter, root):
    script = "test -c /dev/null && test -d /sys/kernel && cat /proc/self/status"
    assert "Name:\tcat" in enter("--root", root, "--", "sh", "-c", script).stdout


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["no-such"], 127, "no-such not found in /usr/local/sbin"),
        (["/no/such"], 127, "/no/such not found"),
        (["/etc/hello/x"], 127, "not found"),
        (["/etc/not-executable"], 126, "cannot execute /etc/not-executable: Permission denied"),
        (["/etc"], 126, "cannot execute /etc"),
        (["sh", "-c", "kill -9 $$"], 137, ""),
    ],
)
def test_own_failures_have_own_codes(enter, root, argv, code, words):
    done = enter("--root", root, "--", *argv, env={"PATH": namespace.PATH})
    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize("name", ["proc", "dev", "tmp"])
def test_a_symlink_is_no_mount_point(enter, folder, name):
    trap = folder / f"trap-{name}"
    trap.mkdir(exist_ok=True)
    for other in {"proc", "sys", "dev", "run", "tmp"} - {name}:
        (trap / other).mkdir(exist_ok=True)
    (trap / name).unlink(missing_ok=True)
    (trap / name).symlink_to("/etc")
    for writes in ("yes", "no"):
        done = enter("--root", trap, "--writes", writes, "--", "sh")
        assert done.returncode == 125
        assert f"/{name} of this root is not a folder" in done.stderr


def test_missing_root_is_told(enter, folder):
    done = enter("--root", folder / "nowhere", "--", "sh")
    assert (done.returncode, "No such file" in done.stderr) == (125, True)


def test_what_it_leaves_running_is_ended(enter, root):
    done = enter("--root", root, "--", "sh", "-c", f"sleep {NAP} & echo started")
    assert done.stdout == "started\n"  # and its end was seen: the sleeper held this pipe
    assert not sleepers()


def test_environment_from_a_descriptor(enter, root):
    handle = os.memfd_create("environment")
    os.write(handle, b"PATH=/bin\0GREETING=hello world\0LD_PRELOAD=\0")
    os.lseek(handle, 0, os.SEEK_SET)
    words = ("--root", root, "--environment", str(handle), "--", "sh", "-c", 'echo "$GREETING"; echo "$OUTER"')
    done = enter(*words, pass_fds=[handle], env={"OUTER": "not for it"})
    os.close(handle)
    assert done.stdout == "hello world\n\n"


@pytest.mark.parametrize(
    ("old", "new", "writable"),
    [
        ("PIVOT_ROOT.get(os.uname().machine)", "None", True),  # / of an initramfs stays: the mount is moved
        ('b"root", b"overlay"', 'b"root", b"no-such-kind"', False),  # an older kernel, or an overlay on an overlay
    ],
    ids=["no pivot_root", "no overlay"],
)
def test_where_the_kernel_refuses(root, folder, old, new, writable):
    script = (folder / "namespace.py").read_text()
    assert script.count(old) == 1
    copy = folder / "namespace_refused.py"
    copy.write_text(script.replace(old, new))
    words = [interpreter_for(None), "-I", "-S", copy, "--root", root, "--"]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    assert told == ("writable\n" if writable else "read-only\n")
    script = "cat /etc/hello; echo /*; echo t > /tmp/t; cat /tmp/t"
    done = subprocess.run([*words, "sh", "-c", script], check=False, capture_output=True, text=True)
    assert done.stdout.startswith("from the root\n/bin /dev /etc /lib")
    assert done.stdout.endswith("\nt\n")


def test_a_tree_over_usr(enter, folder):
    usr = folder / "tree/usr"
    for name in ("bin", "local", "src"):
        (usr / name).mkdir(parents=True, exist_ok=True)
    copied = folder / "copied"
    copy_program(Path("/bin/cat"), copied)
    for path in [p for p in copied.rglob("*") if p.is_file()]:  # below usr, where merged hosts look for it
        target = usr / path.relative_to(copied).as_posix().removeprefix("usr/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (usr / "bin/marker").write_text("of the tree\n")
    if not all(Path(p).is_symlink() for p in ("/bin", "/lib")):
        pytest.skip("this host's /bin and /lib are not below /usr")
    done = enter("--usr", usr, "--", "/usr/bin/cat", "/usr/bin/marker")
    assert (done.stdout, done.stderr) == ("of the tree\n", "")
    assert not is_mounted(usr)


def test_the_hosts_usr_local_stays_visible(folder):
    usr = folder / "bare/usr"
    (usr / "local").mkdir(parents=True, exist_ok=True)
    own = sorted(p.name for p in Path("/usr/local").iterdir())
    code = f"""
import os, sys
sys.path.insert(0, {str(folder)!r})
import namespace
namespace.over_usr({str(usr)!r})
print(sorted(os.listdir("/usr/local")), os.listdir("/usr"))
"""
    done = subprocess.run([interpreter_for(None), "-I", "-S", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == f"{own} ['local']"


def test_user_namespaces_that_are_off_are_told(root):
    """As on hosts that forbid them: a limit of 0, inside a user namespace that has none left to give."""
    limit = (
        "echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin"
    )
    code = f"{limit} {interpreter_for(None)} -I -S {namespace.__file__} --root '{root}' -- sh"
    if not host.look_up("unshare") or not host.look_up("setpriv"):
        pytest.skip("needs unshare and setpriv of util-linux")
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "sh", "-c", code], check=False, capture_output=True, text=True
    )
    assert done.returncode == 125
    assert "cannot make a user namespace" in done.stderr


def test_killing_the_starter_ends_everything_inside(root):
    script = f"sleep {NAP} & echo up; sleep {NAP}"
    starter = f"""
import os, subprocess
words = ["--die-with", str(os.getpid()), "--root", {str(root)!r}, "--", "sh", "-c", {script!r}]
subprocess.Popen([*{host.LAUNCHER!r}, *words], stdout=1).wait()
"""
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.stdout.read() == b""  # ends only when the last holder of the pipe, the sleepers, ended


def test_imports_nothing_of_imagekit():
    lines = [line.split() for line in Path(namespace.__file__).read_text().splitlines()]
    imported = {words[1] for words in lines if words[:1] in (["import"], ["from"])}
    assert imported == {"_ctypes", "os", "select", "stat", "sys"}
