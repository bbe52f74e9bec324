"""Commands in an image's tree: ephemeral, bounded, and gone when they end."""

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
import small_root
from sleepers import NAP, sleepers

from imagekit import host
from imagekit.artifact import Artifact, Job, Opened
from imagekit.errors import Problem
from imagekit.formats import tar
from imagekit.guest import GuestProblem, Rig
from imagekit.stores.directory import open_store
from imagekit.targets import _namespace as target
from imagekit.tree import Tree, file, symlink

ARCH = os.uname().machine


def opened(store, tree, *, arch=ARCH, role="root") -> Opened:
    """What `Artifact.opened` gives for this tree in the format tar."""
    written = tar.write(tree, job=Job("small", "0", arch, store))["root"]
    part = {"role": role, "file": "small.tar.gz", "size": written.size, "sha256": written.sha256}
    manifest = {"name": "small", "arch": arch, "format": "tar", "kind": "root", "parts": [part]}
    handle = os.memfd_create("root")
    os.write(handle, store.read(written.sha256))
    return Opened(Artifact(Path("small.manifest.json"), b"", manifest), {role: handle})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return open_store(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def guest(store):
    with target.start(opened(store, small_root.tree()), rig=Rig(), store=store) as guest:
        yield guest


def test_streams_code_and_environment(guest):
    done = guest.run(["sh", "-c", 'cat; echo "$GREETING" >&2; exit 7'], input=b"given", env={"GREETING": "hello"})
    assert (done.code, done.stdout, done.stderr) == (7, b"given", b"hello\n")
    assert b"given" in bytes(guest.console.head)


def test_runs_as_root_of_its_own_tree(guest):
    assert guest.run("cat /etc/hello").text == "from the image"  # mode 0600, root's
    assert guest.run(["sh", "-c", "echo $$ $PATH; umask"]).text.startswith("2 /usr/local/sbin:")


def test_each_command_sees_the_tree_as_built(guest):
    guest.run(["sh", "-c", "echo changed > /etc/hello; echo more > /more; : > /tmp/t"]).check()
    assert guest.run(["sh", "-c", "cat /etc/hello; echo /more* /tmp/*"]).text == "from the image\n/more* /tmp/*"


@pytest.mark.parametrize(
    ("argv", "code"), [("nothing-here", 127), ("/etc/hello", 126), (["sh", "-c", "kill -9 $$"], 137)]
)
def test_codes(guest, argv, code):
    assert guest.run(argv).code == code


def test_too_slow_is_ended_with_all_it_started(guest):
    with pytest.raises(GuestProblem, match=r"did not end within 0\.5 s"):
        guest.run(["sh", "-c", f"sleep {NAP} & sleep {NAP}"], timeout=0.5)
    assert_none()


def test_what_a_command_leaves_running_is_ended(guest):
    assert guest.run(["sh", "-c", f"sleep {NAP} & echo left"]).text == "left"
    assert_none()


def assert_none() -> None:
    """The kernel ends a process namespace's members before its first process is reaped; killing one takes a moment."""
    deadline = time.monotonic() + 300
    while sleepers():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_stop_ends_the_commands_of_other_threads(store):
    guest = target.start(opened(store, small_root.tree()), rig=Rig(), store=store)
    codes = []
    thread = threading.Thread(target=lambda: codes.append(guest.run(f"sleep {NAP}").code))
    thread.start()
    while not sleepers():
        time.sleep(0.01)
    guest.stop()
    guest.stop()
    thread.join(300)
    assert codes == [137]
    assert not guest.is_alive()
    with pytest.raises(GuestProblem, match="was stopped"):
        guest.run("cat")


def test_no_services(guest):
    with pytest.raises(GuestProblem, match="no services"):
        guest.http.get("/")


def test_unpacked_once(store, guest):
    made = list(Path(store.location, "roots").iterdir())
    target.start(opened(store, small_root.tree()), rig=Rig(say=pytest.fail), store=store)
    assert list(Path(store.location, "roots").iterdir()) == made
    assert guest.facts["writable"] in (True, False)


def test_a_killed_unpacking_leaves_nothing_that_is_used(tmp_path):
    store = open_store(tmp_path)
    part = opened(store, small_root.tree()).artifact.parts[0]
    draft = tmp_path / "roots" / f"{part.sha256}-2-xxxxxxxx.77.draft"
    (draft / "etc").mkdir(parents=True)
    with target.start(opened(store, small_root.tree()), rig=Rig(), store=store) as guest:
        assert guest.run("cat /etc/hello").text == "from the image"
    assert not draft.exists()


@pytest.mark.parametrize("name", ["/proc", "/dev", "/run"])
def test_a_tree_with_a_trap_is_refused(tmp_path, name):
    store = open_store(tmp_path)
    trap = Tree({**dict(small_root.tree()), name: symlink("/etc")})
    with pytest.raises(Problem, match="is not a folder: refused as a mount point"):
        target.start(opened(store, trap), rig=Rig(), store=store)


def test_wrong_kinds_are_told(store):
    for bad in (opened(store, small_root.tree(), arch="riscv64"), opened(store, small_root.tree(), role="disk")):
        with pytest.raises(Problem, match="cannot run in a namespace"):
            target.start(bad, rig=Rig(), store=store)


def test_cut_archive_is_refused(tmp_path):
    store = open_store(tmp_path)
    bad = opened(store, Tree({"/f": file(b"x" * 5000)}).complete())
    os.truncate(bad.handles["root"], 40)
    with pytest.raises(Problem, match="cut short"):
        target.start(bad, rig=Rig(), store=store)
    assert list((tmp_path / "roots").iterdir()) == []


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (None, "host"),
        (file(b"own\n"), "own"),
        (symlink("/run/net/resolv.conf"), "host"),
        (symlink("/run/../etc/hello"), "from the image"),
        (symlink("hello"), "from the image"),
    ],
    ids=["none", "own", "made at boot", "odd", "elsewhere"],
)
def test_names_are_resolved_as_on_the_host_unless_the_image_says_how(store, written, expected):
    if not Path("/etc/resolv.conf").is_file():
        pytest.skip("this machine has no resolv.conf")
    tree = small_root.tree() if written is None else Tree({**small_root.tree(), "/etc/resolv.conf": written})
    with target.start(opened(store, tree), rig=Rig(), store=store) as guest:
        if not guest.facts["writable"]:
            pytest.skip("this kernel allows no overlay here")
        found = guest.run("cat /etc/resolv.conf").text + "\n"
    assert found == (Path("/etc/resolv.conf").read_text() if expected == "host" else f"{expected}\n")


def test_no_mount_is_left(guest, store):
    guest.run("cat /etc/hello").check()
    assert store.location not in Path("/proc/self/mountinfo").read_text()  # others mount and unmount theirs meanwhile
    assert host.look_up("sh")


def test_files_are_read_and_told_without_any_program_of_the_image(guest):
    assert guest.read("/etc/hello") == b"from the image\n"
    told = guest.stat("/etc/hello", digest=True)
    assert (told.kind, told.size, told.mode, told.uid) == ("file", 15, 0o600, 0)
    assert told.sha256 == hashlib.sha256(b"from the image\n").hexdigest()
    with pytest.raises(GuestProblem, match="read: /none: No such file or directory"):
        guest.read("/none")
    assert guest.run(["@none"]).code == 127
    assert guest.stat("/proc/self/fd/1").kind == "symlink"
    for handle in range(3, 10):  # neither the program nor its environment is held
        with pytest.raises(GuestProblem, match="No such file"):
            guest.stat(f"/proc/self/fd/{handle}")


def test_what_would_be_gone_again_is_not_written(guest):
    with pytest.raises(GuestProblem, match=r"/etc/hello: .* each command of a namespace sees the tree as it was built"):
        guest.write("/etc/hello", b"more")
