"""The toolbox: this machine's tools where they suffice, else a tree: made once, whole, entered without a trace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread

import pytest
import small_root

from imagekit import host, lock, plugs, toolbox
from imagekit.arch import ARCHES
from imagekit.errors import Defect, Problem, RigProblem
from imagekit.package import Archive, Gone, Package, Pin, Resolved, Source
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, directory, file, symlink

HOST = os.uname().machine
MERGED = all(Path(path).is_symlink() for path in ("/bin", "/lib"))
NEEDS_MERGED = pytest.mark.skipif(not MERGED, reason="a tree is put over /usr alone, and /bin and /lib are not there")


def below_usr(path: Path) -> str:
    return str(path) if str(path).startswith("/usr/") else f"/usr{path}"


def little_tree() -> Tree:
    """A tools tree's content that this machine can run: its own shell and cat, and a tool that tells where it is."""
    paths = {path for program in small_root.PROGRAMS for path in small_root.files_of(Path(program))}
    entries = {below_usr(path): file(path.read_bytes(), mode=0o755) for path in paths}
    return Tree({
        **entries,
        "/usr/bin/where": file(b"#!/bin/sh\necho where 3.14\ncat /usr/share/little\n", mode=0o4755),
        "/usr/share/little": file(b"in the tree\n"),
        "/usr/share/doc/little/copyright": file(b"long"),
        "/etc/little.conf": file(b"not ours"),
        "/usr/lib/link": symlink("../bin/where"),
        "/usr/bin/hard": Entry("hardlink", 0o755, target="/usr/bin/where"),
    }).complete()  # fmt: skip


class Mirror:
    """A source of packages that counts, and can have dropped what is pinned."""

    def __init__(self, *trees: Tree) -> None:
        self.trees, self.gone, self.fetched, self.resolved = trees, set(), 0, 0

    def pin(self, version="1"):
        return Pin(
            "package", "debian", "little", version, "amd64", 1_000_000, version * 64, "debian", f"pool/{version}"
        )

    def resolve(self, requests, _):
        self.resolved += 1
        archive = Archive("debian", "trixie", "f" * 64, "2026", "KEY")
        return [Resolved((self.pin("2"),), (archive,)) for _ in requests]

    def packages(self, pins, _, progress, *, folder):
        assert folder == Path()  # tools lie beside no definition
        if any(pin.version in self.gone for pin in pins):
            raise Gone("little 1 is on the mirror no longer", "lock again")
        self.fetched += 1
        progress("fetching", 500_000, 1_000_000)
        return [Package("little", pin.version, "amd64", "0" * 64, tree) for pin in pins for tree in self.trees]


@pytest.fixture
def mirror(monkeypatch, tmp_path):
    """A toolbox with one group and three tools, and its lock."""
    made = Mirror(little_tree())
    groups = {"little": toolbox.Group(("little",))}
    rows = {
        "where": toolbox.Tool("little", "/usr/bin/where", (2, 9)),
        "cat": toolbox.Tool("little", "/usr/bin/cat", (1,)),
        "firmware": toolbox.Tool("little", "/usr/share/little", flag=""),
    }
    for name, value in {"GROUPS": groups, "TOOLS": rows, "LOCKS": tmp_path / "locks"}.items():
        monkeypatch.setattr(toolbox, name, value)
    source = Source(made.resolve, made.packages)
    monkeypatch.setattr(plugs, "load", lambda *_: source)
    toolbox._pinned.cache_clear()
    (tmp_path / "locks").mkdir()
    for arch in ARCHES:
        pins = {"little": (made.pin("1"),)}
        (tmp_path / f"locks/{arch}.lock").write_text(lock.Lock("x", (), pins).text())
    yield made
    toolbox._pinned.cache_clear()


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def program(folder: Path, version: str) -> None:
    path = folder / "where"
    path.write_text(f"#!/bin/sh\necho 'where is {version}, on this machine' >&2\nexit 1\n")
    path.chmod(0o755)


@NEEDS_MERGED
@pytest.mark.parametrize(
    ("mode", "own", "origin", "version"),
    [
        ("auto", "2.9", "host", "2.9"),
        ("auto", "2.10.1", "host", "2.10.1"),
        ("auto", "2.8.9", "tree", "3.14"),
        ("auto", "", "tree", "3.14"),
        ("auto", "unknown", "tree", "3.14"),
        ("tree", "9.0", "tree", "3.14"),
        ("host", "2.9", "host", "2.9"),
    ],
)
@pytest.mark.usefixtures("mirror")
def test_which_one_is_taken(store, monkeypatch, tmp_path, mode, own, origin, version):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    if own:
        program(tmp_path / "bin", own)
    tools = toolbox.tools("where", mode=mode, store=store)
    assert (tools.origin("where"), tools.version("where")) == (origin, version)
    out = subprocess.run(tools.argv("where"), check=False, capture_output=True, text=True, env=tools.env).stdout
    assert ("in the tree" in out) == (origin == "tree")


@pytest.mark.usefixtures("mirror")
@pytest.mark.parametrize(("own", "words"), [("2.8", "this machine has where 2.8, older than 2.9"), ("", "no where")])
def test_the_machines_own_are_not_replaced_in_silence(store, monkeypatch, tmp_path, own, words):
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    if own:
        program(tmp_path / "bin", own)
    with pytest.raises(RigProblem, match=words) as caught:
        toolbox.tools("where", mode="host", store=store)
    assert "--tools=auto" in caught.value.hint


def test_nothing_is_fetched_for_what_the_machine_has(mirror, store, monkeypatch, tmp_path):
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "4")
    program(tmp_path / "bin", "4.1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    toolbox.tools("where", store=store)
    assert mirror.fetched == 0


@NEEDS_MERGED
def test_a_tree_is_made_once_and_whole(mirror, store):
    said = []
    options = {"mode": "tree", "store": store, "say": said.append}
    threads = [Thread(target=toolbox.tools, args=("where",), kwargs=options) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (mirror.fetched, toolbox.fetched("little", store)) == (1, "pinned")
    assert "tools little: fetching [##########          ] 0.5 of 1.0 MB 50 %" in said
    [tree] = (Path(store.location) / "tools").iterdir()
    found = {f"/{path.relative_to(tree).as_posix()}" for path in tree.rglob("*")}
    assert {"/usr/bin/where", "/usr/share/little", "/usr/lib/link", "/usr/local", "/usr/src"} <= found
    assert not any(path.startswith(("/etc", "/usr/share/doc")) for path in found)
    assert (tree / "usr/bin/where").stat().st_mode & 0o7777 == 0o755  # no set-id bit
    assert (tree / "usr/bin/where").samefile(tree / "usr/bin/hard")


@NEEDS_MERGED
def test_what_a_killed_one_left_is_not_used(mirror, store):
    draft = store.folder("tools") / f"draft-{toolbox.digest('little', [mirror.pin()])}"
    (draft / "usr/bin").mkdir(parents=True)
    (draft / "usr/bin/where").write_text("half")
    assert toolbox.tools("where", mode="tree", store=store).version("where") == "3.14"
    assert [path.name for path in store.folder("tools").iterdir()] == [draft.name.removeprefix("draft-")]


def test_a_failure_leaves_nothing(mirror, store):
    mirror.trees = (Tree({"/usr/bin": symlink("/"), "/usr/bin/where": file(b"")}),)
    with pytest.raises(Problem, match="below the symlink"):
        toolbox.tools("where", mode="tree", store=store)
    assert list(store.folder("tools").iterdir()) == []


@NEEDS_MERGED
def test_what_the_mirror_dropped_is_replaced_aloud(mirror, store):
    mirror.gone.add("1")
    said = []
    assert toolbox.tools("where", mode="tree", store=store, say=said.append).origin("where") == "tree"
    assert [line for line in said if line.startswith("WARNING")] == [
        "WARNING: little 1 is on the mirror no longer",
        "WARNING: taking the newest tools of trixie instead, as signed by its archive",
    ]
    assert (mirror.resolved, mirror.fetched) == (1, 1)
    toolbox.tools("where", mode="tree", store=store)
    assert (mirror.resolved, mirror.fetched) == (1, 1)  # it is remembered
    assert toolbox.fetched("little", store) == "newer"


def test_locks_are_written_for_every_architecture(mirror, store, tmp_path):
    toolbox.write_locks(store)
    for arch in ARCHES:
        written = lock.read(tmp_path / f"locks/{arch}.lock")
        assert written.request == toolbox.table_digest()
        assert written.pins == {"little": (mirror.pin("2"),)}
        assert written.archives[0].name == "debian"
    assert toolbox.size("little") == 1_000_000


@pytest.mark.usefixtures("mirror")
def test_what_is_asked_wrongly_is_told(store):
    with pytest.raises(Problem, match="unknown tool 'qemu'"):
        toolbox.tools("qemu", store=store)
    with pytest.raises(Problem, match="unknown choice of tools 'best'"):
        toolbox.tools("where", mode="best", store=store)
    with pytest.raises(Defect, match="was not asked for"):
        toolbox.Tools({}).argv("where")


@NEEDS_MERGED
@pytest.mark.usefixtures("mirror")
def test_firmware_is_a_path_on_this_machine(store):
    tools = toolbox.tools("firmware", mode="tree", store=store)
    assert tools.path("firmware").read_text() == "in the tree\n"


def test_of_firmware_only_the_named_files_are_unpacked(mirror, store, monkeypatch):
    monkeypatch.setattr(toolbox, "GROUPS", {"little": toolbox.Group(("little",), r"/usr/share/(little|CODE\.fd)")})
    mirror.trees = (Tree({"/usr/share/little": file(b"1"), "/usr/share/CODE.fd": file(bytes(64 << 20)),
                          "/usr/share/CODE.ms.fd": file(b"1"), "/usr/share": directory()}),)  # fmt: skip
    tree = toolbox.tools("firmware", mode="tree", store=store).path("firmware").parent
    assert sorted(path.name for path in tree.iterdir()) == ["CODE.fd", "little"]
    assert (tree / "CODE.fd").stat().st_blocks == 0


PARENT = """
import subprocess, sys
from pathlib import Path
from imagekit.toolbox import Found, Tools
usr = Path(sys.argv[1])
tools = Tools({"cat": Found("tree", "1", usr / "bin/cat", ("/usr/bin/cat",), usr)})
subprocess.Popen(tools.argv("cat"), stdout=1).wait()
"""


@NEEDS_MERGED
@pytest.mark.usefixtures("mirror")
def test_a_tool_dies_with_who_started_it(store):
    usr = toolbox.tools("cat", mode="tree", store=store).path("cat").parents[1]
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PARENT, usr], stdin=pipe, stdout=pipe) as parent:
        parent.stdin.write(b"ready\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == b"ready\n"
        parent.kill()
        assert parent.stdout.read() == b""  # ends only when the tool has ended


BLOCKED = """
import sys
from pathlib import Path
from imagekit import host, toolbox
from imagekit.stores.directory import open_store
toolbox.TOOLS = {"cat": toolbox.Tool("little", "/usr/bin/cat", (1,))}
toolbox._tree = lambda *_: Path(sys.argv[1])
tools = toolbox.tools("cat", mode="tree", store=open_store(Path(sys.argv[2])))
print(tools.origin("cat"), host.run(tools.argv("cat", "/proc/self/maps"), env=tools.env).text)
"""


@NEEDS_MERGED
@pytest.mark.usefixtures("mirror")
def test_where_namespaces_are_forbidden_the_trees_loader_starts_it(store, tmp_path):
    """Made true for one process tree: a user namespace whose limit of further ones is 0, without CAP_SYS_ADMIN."""
    if not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs unshare and setpriv of util-linux")
    tree = toolbox.tools("cat", mode="tree", store=store).path("cat").parents[2]
    (tmp_path / "blocked.py").write_text(BLOCKED)
    words = f"'{sys.executable}' '{tmp_path}/blocked.py' '{tree}' '{tmp_path}/other-cache'"
    limit = "echo 0 > /proc/sys/user/max_user_namespaces"
    script = f"{limit} && exec setpriv --bounding-set -sys_admin --inh-caps -sys_admin {words}"
    env = {**os.environ, "PYTHONPATH": str(Path(toolbox.__file__).parents[1])}
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", script]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=env)
    assert done.stderr == ""
    origin, _, maps = done.stdout.partition(" ")
    assert origin == "loader"
    libraries = {line.split()[-1] for line in maps.splitlines() if "libc.so" in line}
    assert libraries
    assert all(path.startswith(str(tree)) for path in libraries)


@pytest.mark.parametrize("arch", ARCHES)
def test_shipped_locks_answer_the_table(arch):
    shipped = lock.read(toolbox.LOCKS / f"{arch}.lock")
    assert shipped.request == toolbox.table_digest(), "write them again: imagekit lock --tools"
    assert set(shipped.pins) == set(toolbox.GROUPS)
    for group, pins in shipped.pins.items():
        assert set(toolbox.GROUPS[group].packages) <= {pin.name for pin in pins}
        assert {pin.architecture for pin in pins} <= {ARCHES[arch].debian, "all"}


def test_every_tool_belongs_to_a_group():
    assert {tool.group for tool in toolbox.TOOLS.values()} == set(toolbox.GROUPS)


def test_the_real_tree():
    """The smallest real group, from the cache that all runs share: fetched, verified, unpacked, entered."""
    tools = toolbox.tools("mkfs.fat", "mcopy", mode="tree", store=open_store())
    assert tools.origin("mkfs.fat") in ("tree", "loader")
    assert toolbox._numbers(tools.version("mkfs.fat")) >= (4, 2)
    with host.once(open_store().folder("locks"), "test"):
        assert host.run(tools.argv("mcopy", "--version")).code == 0
