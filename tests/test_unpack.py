"""unpack.py against good tars (GNU tar is the oracle), and against every kind of evil one."""

import ctypes
import os
import stat
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest
from evil_tars import EVIL
from tar_kit import END, V7, folder, gnu, link, member, pax

from imagekit import namespace, unpack
from imagekit.disk import newtree, tarread
from imagekit.disk import tar as tar_of_ours
from imagekit.errors import Problem, RigProblem
from imagekit.tree import Entry, file


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything that can be seen of a tree."""
    found: dict[str, tuple[object, ...]] = {}
    for at, folders, files in os.walk(root):
        for name in (".", *folders, *files):
            path = Path(at, name)
            seen = path.lstat()
            is_file = stat.S_ISREG(seen.st_mode)
            found[os.path.relpath(path, root)] = (
                oct(seen.st_mode),
                seen.st_uid,
                seen.st_gid,
                seen.st_mtime_ns,
                seen.st_nlink if is_file else 0,
                seen.st_rdev,
                path.read_bytes() if is_file else str(path.readlink()) if path.is_symlink() else b"",
                {name: os.getxattr(path, name) for name in os.listxattr(path)} if is_file else {},
            )
    return found


def unpacked(tar: bytes, into: Path, *, policy: newtree.Policy = newtree.SIGNED, piece: int = 1000) -> unpack.Unpacked:
    pieces = (tar[at : at + piece] for at in range(0, len(tar), piece))
    return unpack.unpack(pieces, str(into), policy=policy, durable=False)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a root can hold."""
    root = tmp_path_factory.mktemp("tree")
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(os.urandom(100_000))
    (root / "usr/bin/empty").write_bytes(b"")
    os.link(root / "usr/bin/tool", root / "usr/also")
    (root / "bin").symlink_to("usr/bin")
    (root / "dangling").symlink_to("../../../etc/passwd")
    (root / ("n" * 120)).mkdir()
    (root / ("n" * 120) / ("o" * 140)).write_text("long")
    (root / "to-long").symlink_to("t" * 200)
    (root / "fő.txt").write_text("names are bytes")
    (root / "closed").mkdir()
    (root / "closed/inner").write_text("x")
    os.mkfifo(root / "fifo", 0o640)
    if not os.geteuid():
        os.chown(root / "usr/bin/empty", 12, 34)
        os.chown(root / "bin", 12, 34, follow_symlinks=False)
    for path, mode in (("usr/bin/tool", 0o755), ("usr/bin/empty", 0o4711), ("closed", 0o500), ("usr", 0o2775)):
        (root / path).chmod(mode)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + number * 10**9), follow_symlinks=False)
    return root


@pytest.mark.parametrize("form", ["ustar", "gnu", "pax", "oldgnu"])
@pytest.mark.parametrize("piece", [1, 511, 1 << 20])
def test_unpacks_what_gnu_tar_packs_as_gnu_tar_does(tree: Path, tmp_path: Path, form: str, piece: int) -> None:
    left = ["--exclude", "to-long", "--exclude", "n" * 120] if form == "ustar" else []
    packed = tmp_path / "t.tar"
    subprocess.run(["tar", "-C", tree, "--format", form, *left, "-cf", packed, "."], check=True)
    (tmp_path / "oracle").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "oracle", "-xpf", packed], check=True)
    unpacked(packed.read_bytes(), tmp_path / "ours", piece=piece)
    assert listing(tmp_path / "ours") == listing(tmp_path / "oracle")


def test_a_tree_of_ours_comes_back(tmp_path: Path) -> None:
    entries = {
        "/etc": Entry("dir", 0o755),
        "/etc/a": file(b"abc", mode=0o640),
        "/etc/b": Entry("hardlink", 0o640, target="/etc/a"),
        "/n" + "x" * 150: Entry("symlink", target="y" * 150),
        "/latin-\udcff-" + "z" * 100: file(b""),
    }
    unpacked(b"".join(tar_of_ours.chunks(entries.items())) + tar_of_ours.END, tmp_path / "ours")
    found = listing(tmp_path / "ours")
    assert set(found) == {path[1:] or "." for path in ("/", *entries)}
    assert (tmp_path / "ours/etc/b").read_bytes() == b"abc"
    assert all(row[3] == 0 for row in found.values())


@pytest.mark.parametrize("what", EVIL)
def test_evil_archives_are_refused_and_reach_nothing_outside(what: str, tmp_path: Path) -> None:
    tar, words = EVIL[what]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/canary").write_text("sings")
    before = listing(tmp_path)
    with pytest.raises(Problem, match=words):
        unpacked(tar, tmp_path / "tree")
    for path in (".", "tree"):
        before.pop(path, None)
    after = listing(tmp_path)
    del after["."]
    assert after == before, "and nothing of it is left"


def test_every_cut_is_refused(tmp_path: Path) -> None:
    tar = folder(b"d") + pax((b"path", b"d/long")) + member(b"d/a", b"x" * 700) + link(b"l", b"d") + END
    for end in range(0, len(tar), 64):
        with pytest.raises(Problem):
            unpacked(tar[:end], tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_flipped_bits_give_a_problem_or_a_tree_never_another_error(tmp_path: Path) -> None:
    tar = (
        folder(b"d")
        + pax((b"path", b"d/long"), (b"mtime", b"1.5"))
        + member(b"d/a", b"x")
        + gnu(b"y")
        + link(b"l", b"d")
    )
    tar += END
    refused = 0
    for bit in range(0, len(tar) * 8, 37):
        evil = bytearray(tar)
        evil[bit // 8] ^= 1 << bit % 8
        try:
            unpacked(bytes(evil), tmp_path / str(bit))
            unpack.remove(str(bit), os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY))
        except Problem:
            refused += 1
    assert refused > 50
    assert list(tmp_path.iterdir()) == []


CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep: capabilities(7)


def test_policies(tmp_path: Path) -> None:
    tar = (
        member(b"su", b"x", mode=b"0004755\0")
        + member(b"null", kind=b"3", major=b"0000001\0", minor=b"0000003\0", mode=b"0000666\0")
        + member(b"queue", kind=b"6")
        + pax((b"SCHILY.xattr.user.note", b"hi"), (b"SCHILY.xattr.security.capability", CAPABILITY))
        + member(b"noted")
        + END
    )
    foreign = unpacked(tar, tmp_path / "foreign", policy=newtree.FOREIGN)
    assert foreign.left_out == {newtree.BITS: 1, newtree.DEVICES: 1, newtree.XATTRS: 2}
    assert stat.S_IMODE((tmp_path / "foreign/su").stat().st_mode) == 0o755
    assert not (tmp_path / "foreign/null").exists()
    signed = unpacked(tar, tmp_path / "signed")
    assert stat.S_IMODE((tmp_path / "signed/su").stat().st_mode) == 0o4755
    if not signed.left_out:
        assert (tmp_path / "signed/null").stat().st_rdev == os.makedev(1, 3)
        assert os.getxattr(tmp_path / "signed/noted", "user.note") == b"hi"
        assert os.getxattr(tmp_path / "signed/noted", "security.capability") == CAPABILITY


def as_user(tmp_path: Path, tar: bytes, enter: Callable[[], object]) -> dict[str, int]:
    """What fill() leaves out in a child that gave up its rights; by words and numbers."""
    home = tmp_path / "theirs"
    home.mkdir()
    os.chown(home, 65534, 65534)
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            enter()
            done = unpack.fill(iter((tar,)), handle)
            os.write(send, "\n".join(f"{key}: {value}" for key, value in done.left_out.items()).encode())
            os._exit(0)
        except BaseException as error:
            os.write(send, repr(error).encode())
        os._exit(1)
    os.close(send)
    with open(receive, "rb") as pipe:
        said = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0, said
    os.close(handle)
    return {key: int(value) for key, _, value in (line.partition(": ") for line in said.splitlines())}


def leave_root() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


def into_a_namespace() -> None:
    leave_root()
    ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: who changed its user may not write its own id maps otherwise
    namespace.unshare(inside=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("enter", [leave_root, into_a_namespace])
def test_an_ordinary_user_gets_all_but_what_only_root_may_make(tmp_path: Path, enter: Callable[[], object]) -> None:
    tar = (
        folder(b"d", mode=b"0000500\0", uid=b"0000005\0")
        + member(b"d/a", b"x", mode=b"0000400\0")
        + member(b"su", b"x", mode=b"0004755\0", uid=b"0000007\0")
        + member(b"null", kind=b"3", major=b"0000001\0", minor=b"0000003\0")
        + link(b"l", b"d")
        + END
    )
    left_out = as_user(tmp_path, tar, enter)
    theirs = tmp_path / "theirs"
    assert left_out.pop(newtree.OWNERS) >= 2
    assert left_out == {newtree.BITS: 1, newtree.DEVICES: 1}
    assert (theirs / "d/a").read_bytes() == b"x"
    assert stat.S_IMODE((theirs / "d").stat().st_mode) == 0o500
    assert stat.S_IMODE((theirs / "su").stat().st_mode) == 0o755
    assert {path.lstat().st_uid for path in theirs.rglob("*")} == {65534}


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
def test_an_ordinary_user_removes_what_is_closed_to_him(tmp_path: Path) -> None:
    home = tmp_path / "theirs"
    (home / "tree/inner").mkdir(parents=True)
    for path in (home / "tree/inner", home / "tree", home):
        os.chown(path, 65534, 65534)
        path.chmod(0o700 if path == home else 0)
    handle = os.open(home, os.O_RDONLY | os.O_DIRECTORY)
    child = os.fork()
    if not child:
        leave_root()
        unpack.remove("tree", handle)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.close(handle)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(umask: int, tmp_path: Path) -> None:
    old = os.umask(umask)
    try:
        unpacked(folder(b"d") + member(b"d/a", mode=b"0000666\0") + member(b"b/c") + END, tmp_path / "tree")
    finally:
        os.umask(old)
    modes = {name: row[0][-3:] for name, row in listing(tmp_path / "tree").items()}
    assert modes == {".": "755", "d": "755", "d/a": "666", "b": "755", "b/c": "644"}


def test_a_folder_that_comes_after_what_lies_in_it_gets_its_own_mode(tmp_path: Path) -> None:
    unpacked(member(b"a/b/c") + folder(b"a/b", mode=b"0000711\0") + END, tmp_path / "tree")
    assert stat.S_IMODE((tmp_path / "tree/a/b").stat().st_mode) == 0o711


def test_works_without_openat2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newtree, "OPENAT2", 100_000)  # ENOSYS
    unpacked(member(b"a/b/c", b"x") + END, tmp_path / "tree")
    assert (tmp_path / "tree/a/b/c").read_bytes() == b"x"
    with pytest.raises(Problem, match="no folder"):
        unpacked(link(b"a", b"/tmp") + member(b"a/b/c", b"x") + END, tmp_path / "other")


def test_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Problem, match="more than it may"):
        unpack.unpack(iter([member(b"a", bytes(5000)) + END]), str(tmp_path / "a"), most=5000)
    with pytest.raises(Problem, match="follows the end"):
        unpack.unpack(chain([member() + END], (bytes(1 << 20) for _ in iter(int, 1))), str(tmp_path / "b"))
    monkeypatch.setattr(newtree, "MAX_ENTRIES", 20)
    with pytest.raises(Problem, match="more than 20 members"):
        unpacked(b"".join(member(b"%d" % number) for number in range(21)) + END, tmp_path / "c")
    with pytest.raises(Problem, match="more than 20 members"):
        unpacked(member(b"/".join([b"x"] * 22)) + END, tmp_path / "c2")
    monkeypatch.setattr(newtree, "MAX_FOLDERS", 500)
    with pytest.raises(Problem, match="too many folders"):
        unpacked(b"".join(folder(b"%d" % number) for number in range(9)) + END, tmp_path / "d")
    assert list(tmp_path.iterdir()) == []


def many(count: int) -> Iterator[bytes]:
    for number in range(count):
        yield member(b"%04d/%06d" % (number // 100, number))
    yield END


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    peaks = []
    for count in (500, 5000):
        tracemalloc.start()
        unpack.unpack(many(count), str(tmp_path / str(count)), durable=False)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 100_000


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("mounts a small disk")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", small], check=True)
    try:
        with pytest.raises(RigProblem, match="'big': No space left"):
            unpacked(member(b"a", b"x") + member(b"big", bytes(200_000)) + END, small / "tree")
        assert list(small.iterdir()) == []
    finally:
        subprocess.run(["umount", small], check=True)


def test_where_nothing_can_be_locked_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(9, "Bad file descriptor")  # NFS's answer for a folder

    monkeypatch.setattr(unpack, "flock", refuse)
    with pytest.raises(RigProblem, match="Bad file descriptor"):
        unpacked(member(b"a") + END, tmp_path / "tree")
    assert list(tmp_path.iterdir()) == []


def test_who_was_faster_keeps_the_name(tmp_path: Path) -> None:
    unpacked(member(b"a", b"1") + END, tmp_path / "tree")
    unpacked(member(b"a", b"2") + END, tmp_path / "tree")
    assert (tmp_path / "tree/a").read_bytes() == b"1"
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_what_a_killed_one_left_is_swept_and_what_is_written_is_not(tmp_path: Path) -> None:
    def dying() -> Iterator[bytes]:
        yield folder(b"d", mode=b"0000000\0") + member(b"d/a", b"x" * 5000)[:2000]
        os.kill(os.getpid(), 9)

    child = os.fork()
    if not child:
        unpack.unpack(dying(), str(tmp_path / "tree"))
    assert os.waitpid(child, 0)[1] == 9
    assert [path.name.endswith(".draft") for path in tmp_path.iterdir()] == [True]

    def slow() -> Iterator[bytes]:
        yield member(b"a", b"slow")
        assert len(list(tmp_path.iterdir())) == 1, "what was left is gone"
        unpacked(member(b"a", b"fast") + END, tmp_path / "tree")
        assert len(list(tmp_path.iterdir())) == 2, "and this one is still written"
        yield END

    unpack.unpack(slow(), str(tmp_path / "tree"))
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    assert (tmp_path / "tree/a").read_bytes() == b"fast"


@pytest.mark.parametrize("step", [1, 2, 5, 9])
def test_killed_at_any_step_it_is_not_there_and_what_it_left_is_swept(step: int, tmp_path: Path) -> None:
    members = [folder(b"d", mode=b"0000000\0"), member(b"d/a", b"x" * 900), link(b"l", b"d"), link(b"h", b"d/a", b"1")]
    tar = b"".join(members) + END

    def dying() -> Iterator[bytes]:
        yield tar[: 512 * step - 1]
        os.kill(os.getpid(), 9)

    child = os.fork()
    if not child:
        unpack.unpack(dying(), str(tmp_path / "tree"))
    assert os.waitpid(child, 0)[1] == 9
    assert not (tmp_path / "tree").exists()
    unpacked(tar, tmp_path / "tree")
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]
    assert (tmp_path / "tree/h").read_bytes() == b"x" * 900


def test_imports_nothing_that_takes_long() -> None:
    code = "import sys; from imagekit import unpack; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-S", "-c", code], check=True, capture_output=True, text=True)
    assert not {"typing", "re", "dataclasses", "pathlib", "threading", "contextlib"} & set(done.stdout.split())
    assert "imagekit.unpack" in done.stdout


def test_reader_knows_the_tar_of_1979() -> None:
    tar = member(b"d/", magic=V7) + member(b"d/a", b"x", magic=V7, uid=b"        ", kind=b"\0") + END
    reader = tarread.Reader(iter([tar]))
    first = reader.member()
    assert first
    assert (first.kind, first.name) == (tarread.DIR, b"d")
