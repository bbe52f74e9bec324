"""A package.toml becomes a package: its files laid out, or its steps run where they can do no harm."""

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest
from sleepers import NAP, sleepers

from imagekit import cli, making, namespace, plain, recipe, workshop
from imagekit import key as keyring
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.stores.directory import open_store

PROJECT = Path(__file__).parents[1]
KEY = PROJECT / "fixtures" / "keys" / "test.key"
HEAD = 'name = "hello"\nversion = "1.0"\nlicence = "MIT"\narchitecture = "all"\n'
ROOM = '[build]\nimage = "shell.py"\nsteps = [["/bin/sh", "-c", {}]]\n[build.limits]\n{}\n'
LIMITS = 'seconds = 20\nmemory = "64 MiB"\nprocesses = 30\noutput = "1 MiB"'


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a locked definition that has a shell."""
    folder = tmp_path_factory.mktemp("image")
    for name in ("shell.py", "shell.lock"):
        shutil.copy(PROJECT / "images" / name, folder)
    return folder


@pytest.fixture
def folder(tmp_path: Path, image: Path) -> Path:
    return Path(shutil.copytree(image, tmp_path / "hello"))


def made(folder: Path, text: str, store: Store | None = None) -> making.Made:
    (folder / "package.toml").write_text(HEAD + text)
    said: list[str] = []
    return making.make(recipe.read(folder), "all", key=keyring.read(KEY), store=store or open_store(), say=said.append)


def stepped(folder: Path, script: str, limits: str = LIMITS, more: str = "") -> making.Made:
    assert "'''" not in script
    return made(folder, more + ROOM.format(f"'''{script}'''", limits))


def test_files_are_laid_out_as_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "hello.sh").write_text("#!/bin/sh\n")
    (tmp_path / "hello.sh").chmod(0o700)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    digest = sha256(b"#!/bin/sh\n").hexdigest()
    text = (
        f'[[source]]\npath = "hello.sh"\nsha256 = "{digest}"\n[files]\n"/bin/hello" = "hello.sh"\n'
        '"/usr/share/hello" = "data"\n"/etc/hello" = {text = "x", mode = "0600", owner = 7}\n'
        '"/usr/bin/hi" = {symlink = "hello"}\n"/usr/lib/hello" = {fetched = "hello.sh", mode = "0444"}\n'
    )
    found = made(tmp_path, text, open_store(tmp_path / "cache"))
    shown = {path: (e.kind, oct(e.mode)[2:], e.uid, e.target) for path, e in found.package.tree.items()}
    assert shown == {
        "/usr/bin/hello": ("file", "755", 0, ""),
        "/usr/bin/hi": ("symlink", "777", 0, "hello"),
        "/usr/share/hello": ("dir", "755", 0, ""),
        "/usr/share/hello/a": ("file", "644", 0, ""),
        "/etc/hello": ("file", "600", 7, ""),
        "/usr/lib/hello": ("file", "444", 0, ""),
    }
    assert found.sources == (("hello.sh", digest),)
    assert found.package.licence == "MIT"


BAD_FILES = {
    "another source": ('[[source]]\npath = "a"\nsha256 = "' + "0" * 64 + '"\n[files]\n"/a" = "a"\n', "has the sha256"),
    "no source": ('[[source]]\npath = "none"\n[files]\n"/a" = "a"\n', "no such file"),
    "a pipe": ('[[source]]\npath = "pipe"\n[files]\n"/a" = "a"\n', "is no file"),
    "no file": ('[files]\n"/a" = "none"\n', "cannot read none"),
    "twice": ('[files]\n"/usr/a" = "a"\n"/usr/" = "d"\n', "is given twice"),
    "a link that leads out": ('[files]\n"/a" = "out"\n', "is not beside package.toml"),
    "a source that leads out": ('[[source]]\npath = "out"\n[files]\n"/a" = "a"\n', "is not beside package.toml"),
    "setuid": ('[files]\n"/a" = {file = "a", mode = "4755"}\n', "setuid"),
}


@pytest.mark.parametrize(("text", "told"), BAD_FILES.values(), ids=BAD_FILES)
def test_what_cannot_be_laid_out_is_told(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("other")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "out").symlink_to("/etc/passwd")
    with pytest.raises(Problem, match=told):
        made(tmp_path, text, open_store(tmp_path / "cache"))


def test_steps_make_what_they_leave(folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "hello.sh").write_text("#!/bin/sh\necho hello\n")
    found = stepped(
        folder,
        "umask 0; mkdir -p $OUT/bin $OUT/etc; cp src/hello.sh $OUT/bin/hello; chmod 777 $OUT/bin/hello\n"
        "ln -s hello $OUT/bin/hi; ln $OUT/bin/hello $OUT/bin/hard; echo $GREETING >$OUT/etc/hello; sleep 1000 &",
        LIMITS + '\n[build.env]\nGREETING = "hi"',
        '[[source]]\npath = "src"\n',
    )
    tree = found.package.tree
    shown = {path: (e.kind, oct(e.mode)[2:], e.uid) for path, e in tree.items() if e.kind != "dir"}
    assert shown == {
        "/usr/bin/hard": ("file", "755", 0),
        "/usr/bin/hello": ("hardlink", "755", 0),
        "/usr/bin/hi": ("symlink", "777", 0),
        "/etc/hello": ("file", "644", 0),
    }
    assert tree.read("/etc/hello") == b"hi\n"
    assert len(found.sources) == 1


def test_the_room_is_the_same_for_everybody_and_closed(folder: Path) -> None:
    found = stepped(
        folder,
        "mkdir $OUT/d; { id -u; pwd; umask; hostname; env | sort | grep -v ^SHLVL; ls /tmp/build; "
        "grep -E '^Cap(Eff|Bnd)|^NoNewPrivs' /proc/self/status; ls /proc | grep -c '^[0-9]*$'; ls /sys /dev | sort; "
        "grep -c : /proc/net/dev; } >$OUT/d/told 2>&1",
    )
    lines = found.package.tree.read("/d/told").decode().splitlines()
    assert lines[:4] == ["0", "/tmp/build", "0022", "build"]
    assert [line for line in lines if "=" in line] == sorted(f"{k}={v}" for k, v in workshop.ENV.items())
    assert [line.split()[1].strip("0") for line in lines if line.startswith("Cap")] == ["", ""]
    assert "NoNewPrivs:\t1" in lines
    assert not {"sda", "vda", "kvm", "mem", "tty", "kernel", "fs"} & set(lines)
    assert lines[-1] == "1"  # lo alone, which is down


def test_sources_that_do_not_fit_are_told(folder: Path) -> None:
    (folder / "big").write_bytes(bytes(3 << 20))
    with pytest.raises(Problem, match="sources do not fit into limits"):
        stepped(folder, "true", LIMITS.replace("64 MiB", "1 MiB"), '[[source]]\npath = "big"\n')


REFUSED = {  # what a step does, and what is told of it
    "fails": ("echo something went wrong; exit 3", "step 1 .* ended with 3; .*something went wrong"),
    "is not there": ("exec /no/such", "ended with 127"),
    "writes outside": ("echo x >/usr/x", "[Rr]ead-only"),
    "mounts": ("mount -t tmpfs none /usr", "ended with"),
    "opens the root": ("mount -o remount,rw /", "ended with"),
    "makes a device": ("mknod $OUT/null c 1 3", "[Nn]ot permitted"),
    "leaves a fifo": ("mkfifo $OUT/f", "is neither file, folder nor link"),
    "leaves a setuid file": ("cp /bin/sh $OUT/sh; chmod 4755 $OUT/sh", "is setuid"),
    "fills its output": ("dd if=/dev/zero of=$OUT/big bs=1M count=3", "ended with"),
    "fills its memory": ("dd if=/dev/zero of=/tmp/big bs=1M count=100", "ended with"),
    "asks the network": ("nc -w 2 127.0.0.1 22 </dev/null || nc -w 2 192.0.2.1 80 </dev/null", "ended with"),
    "forks for ever": ("f() { sleep 9 & f; }; f", "ended with"),
    "kills all": ("kill -9 -1; kill -9 1", "left nothing in .OUT|was ended by signal"),
    "leaves nothing": ("true", "left nothing in .OUT"),
}


@pytest.mark.parametrize(("script", "told"), REFUSED.values(), ids=REFUSED)
def test_what_a_step_may_not_is_told(script: str, told: str, folder: Path) -> None:
    with pytest.raises(Problem, match=f"(?s){told}"):
        stepped(folder, script)
    assert not (folder / "out").exists()


def test_a_step_that_hangs_is_ended_with_all_that_it_started(folder: Path) -> None:
    with pytest.raises(Problem, match="did not end within 2 s"):
        stepped(folder, f"sleep {NAP} & sleep {NAP}", LIMITS.replace("seconds = 20", "seconds = 2"))
    assert not sleepers()


def test_another_users_room_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    """As whoever runs this, and as a user of another number: what the steps see and leave is the same."""
    unshare = ["unshare", "--map-user=1234", "--map-group=1234"]
    if subprocess.run([*unshare, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespace with another number can be made here")
    script = (
        "id -u; mkdir $OUT/a; id -u >$OUT/a/id; touch $OUT/a/b; env | sort >$OUT/a/env; date -r $OUT/a/b +%Y >/dev/null"
    )
    (folder / "package.toml").write_text(HEAD + ROOM.format(f"'''{script}'''", LIMITS))
    code = (
        "import sys; from contextlib import ExitStack; from pathlib import Path\n"
        "from imagekit import making, recipe\n"
        "asked = recipe.read(Path(sys.argv[1])).build\n"
        "with ExitStack() as stack: sys.stdout.buffer.write(making._ran(Path(sys.argv[2]), asked, {}, stack))"
    )
    stepped(folder, script)
    root = _unpacked(folder, tmp_path)
    words = [sys.executable, "-c", code, str(folder), str(root)]
    env = {**os.environ, "PYTHONPATH": str(PROJECT)}
    own, other = (subprocess.run([*who, *words], check=True, capture_output=True, env=env) for who in ([], unshare))
    assert len(own.stdout) > 1000
    assert own.stdout == other.stdout


def _unpacked(folder: Path, scratch: Path) -> Path:
    """The build image in a folder that its user may enter."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        found = making._root(folder / "shell.py", os.uname().machine, key=keyring.read(KEY), store=open_store(),
                             say=lambda _: None, stack=stack)  # fmt: skip
        return Path(shutil.copytree(found, scratch / "root", symlinks=True))


def test_built_twice_the_file_is_the_same_and_verifies(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "mkdir $OUT/a; echo 1 >$OUT/a/b"
    (folder / "package.toml").write_text(HEAD + ROOM.format(f"'''{script}'''", LIMITS))
    for out in ("one", "two"):
        assert cli.main(["package", "build", str(folder), "-o", str(tmp_path / out), "--key", str(KEY)]) == 0
    one, two = (tmp_path / out / "hello_1.0_all.ikp" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    capsys.readouterr()
    assert cli.main(["package", "verify", str(one), "--key", str(KEY)]) == 0
    assert "hello 1.0 all, signed by" in capsys.readouterr().out
    assert cli.main(["package", "show", str(one), "--key", str(KEY)]) == 0
    assert "licence       MIT" in capsys.readouterr().out
    one.write_bytes(one.read_bytes()[:-1])
    assert cli.main(["package", "verify", str(one), "--key", str(KEY)]) == 1


def test_show_runs_and_reads_nothing_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "package.toml").write_text(
        HEAD + '[[source]]\npath = "none"\n' + ROOM.format('"touch /tmp/ran"', LIMITS)
    )
    assert cli.main(["package", "show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "build image   shell.py" in out
    assert "touch /tmp/ran" in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["package", "build", "none"], "cannot read none"),
        (["package", "verify", "none.ikp"], "none.ikp"),
        (["package", "show", "none"], "cannot read none"),
    ],
)
def test_what_is_not_there_is_told(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--key", str(KEY)]) == 1
    assert told in capsys.readouterr().err


def test_steps_for_another_machine_are_not_run(folder: Path) -> None:
    foreign = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    both = f'["{os.uname().machine}", "{foreign}"]'  # that this machine is one of them makes nothing of the other
    (folder / "package.toml").write_text(HEAD.replace('"all"', both) + ROOM.format('"true"', LIMITS))
    with pytest.raises(Problem, match="this machine is"):
        making.make(recipe.read(folder), foreign, key=keyring.read(KEY), store=open_store(), say=lambda _: None)
    assert plain.SUFFIX == ".ikp"
    assert workshop.FAILED == namespace.FAILED
