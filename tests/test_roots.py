"""Roots on disks: every entry as the kernel and each file system's own tools see it, and what cannot be held."""

import errno
import os
import stat
import subprocess
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from test_disk import TREE

from imagekit import toolbox
from imagekit.artifact import Job
from imagekit.disk import roots
from imagekit.errors import Problem, RigProblem
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, directory, file, symlink

CAPABILITY = (
    "security.capability",
    bytes.fromhex("0100000200000000000000000000000000000000"),
)  # nothing, which is legal
MORE = Tree(
    {
        f"/names/{'ä' * 120}": file(b"of 240 bytes"),
        "/names/\udcff\udcfe": file(b"no UTF-8"),
        "/names/" + "\udcff" * 200: file(b"no UTF-8, and long"),
        f"/names/{'n' * 255}": directory(0o700, uid=7),
        f"/names/{'c' * 150}": file(b"both records")._replace(xattrs=(CAPABILITY,)),
        "/ping": file(b"ping", mode=0o4755)._replace(xattrs=(CAPABILITY,)),
        "/also/ping": Entry("hardlink", target="/ping"),
        "/wall": file(b"", mode=0o2755, gid=5),
        "/ids": file(b"x", mode=0o640, uid=2**31, gid=4_000_000),
        "/large": file(bytes(range(256)) * 20_000),
        "/zeros": file(bytes(3_000_000)),
        "/links/59": symlink("y" * 59),
        "/links/60": symlink("y" * 60),
        "/links/bytes": symlink("ü/\udcff"),
        "/dev/far": Entry("char", 0o600, device=(204, 64)),
        **{f"/many/{number:04}-{'m' * 40}": file(b"%d" % number) for number in range(300)},
    }
)
WHOLE = TREE.override(MORE).complete()
TYPES = {"file": stat.S_IFREG, "hardlink": stat.S_IFREG, "dir": stat.S_IFDIR, "symlink": stat.S_IFLNK,
         "char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}  # fmt: skip


@pytest.fixture(scope="module")
def bench():
    """The pinned tools, and the programs that read what they wrote."""
    return partial(toolbox.tools, mode="tree", store=open_store())


@pytest.fixture
def job(tmp_path, bench):
    return Job("toy", "1", "x86_64", open_store(tmp_path / "cache"), tools=bench)


def made(job, tree=WHOLE, *, kind):
    return Path(roots.write(tree, kind=kind, seed="a seed", job=job).path)


@contextmanager
def mounted(image, kind, place):
    """The image as the kernel sees it, where we may mount."""
    place.mkdir()
    done = subprocess.run(["mount", "-o", "loop,ro", "-t", kind, image, place], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"this machine does not mount {kind} for us")
    try:
        yield str(place)
    finally:
        subprocess.run(["umount", place], check=True)


def seen(path, *, kind):
    """What an entry of that kind looks like below a mount."""
    found = os.lstat(path)
    content = b"" if kind != "file" else Path(path).read_bytes()
    target = str(Path(path).readlink()) if kind == "symlink" else ""
    names = [] if kind == "symlink" else os.listxattr(path)
    device = (os.major(found.st_rdev), os.minor(found.st_rdev)) if kind in ("char", "block") else (0, 0)
    return (found.st_mode, found.st_uid, found.st_gid, found.st_mtime, device, target, sha256(content).hexdigest(),
            {name: os.getxattr(path, name) for name in names if name != "security.selinux"})  # fmt: skip


def expected(entry):
    digest = entry.sha256 if entry.kind == "file" else sha256(b"").hexdigest()
    target = entry.target if entry.kind == "symlink" else ""
    mode = TYPES[entry.kind] | (0o777 if entry.kind == "symlink" else entry.mode)
    return (mode, entry.uid, entry.gid, 0.0, entry.device, target, digest, dict(entry.xattrs))


def below(top):
    """Every path below a mount, as the Tree writes it."""
    found = set()
    for folder, folders, files in os.walk(top):
        found |= {f"{folder}/{name}"[len(top) :] for name in folders + files}
    return found


@pytest.mark.parametrize("kind", roots.MAKERS)
def test_the_kernel_sees_every_entry_as_it_is(kind, job, tmp_path):
    image = made(job, kind=kind)
    with mounted(image, kind, tmp_path / "mounted") as top:
        assert below(top) - {"/lost+found"} == set(WHOLE)
        wrong = {}
        for path, entry in WHOLE.items():
            real = WHOLE[entry.target] if entry.kind == "hardlink" else entry
            found = seen(top + path, kind=real.kind)
            if found != expected(real):
                wrong[path] = (found, expected(real))
        assert not wrong
        for link in ("/etc/same", "/also/ping"):
            assert os.lstat(top + link).st_ino == os.lstat(top + WHOLE[link].target).st_ino
        root = os.lstat(top)
        assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_gid) == (0o755, 0, 0)


def check(bench, name, *words):
    tools = bench(name)
    done = subprocess.run(tools.argv(name, *words), env=tools.env, capture_output=True, check=False)
    assert done.returncode == 0, done
    return done.stdout + done.stderr


def test_unsquashfs_lists_what_was_written(job, bench):
    listed = check(bench, "unsquashfs", "-lln", made(job, kind="squashfs"))
    rows = {line.rpartition(b"squashfs-root")[2].partition(b" -> ")[0]: line.split()
            for line in listed.splitlines() if b"squashfs-root" in line}  # fmt: skip
    assert {name.decode("utf-8", "surrogateescape") for name in rows} - {""} == set(WHOLE)
    assert rows[b"/bin/su"][:2] == [b"-rwsr-xr-x", b"0/0"]
    assert rows[b""][:2] == [b"drwxr-xr-x", b"0/0"]
    assert rows[b"/etc/same"][:3] == [b"-rw-------", b"1/2", b"11"]


def test_fsck_of_erofs_decodes_every_file(job, bench, tmp_path):
    image = made(job, kind="erofs")
    damaged = bytearray(image.read_bytes())
    damaged[1024 + 4] ^= 1  # the superblock's checksum
    (tmp_path / "damaged").write_bytes(damaged)
    for path, complains in ((image, False), (tmp_path / "damaged", True)):
        said = check(bench, "fsck.erofs", "--extract", path)  # its exit status does not tell
        assert (b"<E> erofs" in said) == complains, said


def test_e2fsck_and_debugfs_are_content(job, bench):
    image = made(job, kind="ext4")
    check(bench, "e2fsck", "-f", "-n", image)
    told = check(bench, "debugfs", "-R", "stat /bin/su", image).decode()
    assert "Mode:  04755" in told
    assert "mtime: 0x00000000" in told
    assert CAPABILITY[0] in check(bench, "debugfs", "-R", "ea_list /ping", image).decode()


@pytest.mark.parametrize("kind", roots.MAKERS)
def test_the_same_bytes_whoever_makes_them(kind, job, tmp_path, bench, monkeypatch):
    first = made(job, kind=kind).read_bytes()
    other = Job("other", "2", "aarch64", open_store(tmp_path / "other"), tools=bench)
    old = os.umask(0o077)
    try:
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        monkeypatch.setenv("HOME", "/nowhere")
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])  # one CPU
        assert made(other, Tree(list(WHOLE.items())[::-1]), kind=kind).read_bytes() == first
    finally:
        os.umask(old)
        os.sched_setaffinity(0, range(os.cpu_count() or 1))


def test_what_was_made_is_not_made_again_unless_it_was_damaged(job):
    calls = []

    def counted(*names):
        calls.append(names)
        return job.tools(*names)

    again = Job("toy", "1", "x86_64", job.store, tools=counted)
    place = made(again, kind="erofs")
    assert len(calls) == 2, "its version, and a run"
    assert made(again, kind="erofs") == place
    assert len(calls) == 3
    right = place.read_bytes()
    place.chmod(0o600)
    place.write_bytes(right[:-1] + b"?")
    assert made(again, kind="erofs").read_bytes() == right
    assert len(calls) == 5


LOST = (("ext4", "user.note"), ("ext4", "trusted.note"), ("squashfs", "system.posix_acl_access"))


@pytest.mark.parametrize(("kind", "name"), LOST)
def test_an_attribute_that_would_be_lost_is_told(kind, name, job):
    tree = Tree({"/noted": file(b"")._replace(xattrs=((name, b"value"),))})
    with pytest.raises(Problem, match=f"/noted has the extended attribute {name}, which cannot be written to {kind}"):
        made(job, tree, kind=kind)


def test_a_name_too_long_and_a_kind_unknown_are_told(job):
    with pytest.raises(Problem, match="names of 255 bytes"):
        made(job, Tree({f"/{'ä' * 128}": file(b"")}), kind="erofs")
    with pytest.raises(Problem, match="unknown kind of root 'btrfs'"):
        made(job, kind="btrfs")


class Failing:
    """A tool that is a script of the shell."""

    env: dict[str, str] = {}  # noqa: RUF012 - the toolbox's is as fixed

    def __init__(self, script):
        self.script = script

    def version(self, name):
        return f"1 of {name}"

    def argv(self, name, *words):
        return ["sh", "-c", self.script, name, *map(str, words)]


FULL = (
    ("echo 'write: No space left on device' >&2; exit 1", "tar2sqfs ended with 1: write: No space left", "make room"),
    ("kill -9 $$", "tar2sqfs ended with", ""),
    ("cat >/dev/null; echo half >&2; exit 3", "tar2sqfs ended with 3: half", ""),
)


@pytest.mark.parametrize(("script", "words", "hint"), FULL)
def test_a_tool_that_fails_is_told_and_leaves_nothing(script, words, hint, tmp_path):
    store = open_store(tmp_path / "cache")
    with pytest.raises(RigProblem, match=words) as told:
        made(Job("toy", "1", "x86_64", store, tools=lambda *_: Failing(script)), kind="squashfs")
    assert hint in told.value.hint
    assert not list(store.folder("drafts-of-roots").iterdir())
    assert not (tmp_path / "cache" / "objects").exists()


@pytest.mark.parametrize("kind", roots.MAKERS)
@pytest.mark.parametrize("size", ["512k", "5m"])  # too little for the tool, and for what the store would keep
def test_a_full_disk_is_told_and_nothing_is_left(kind, size, tmp_path, bench):
    tree = Tree({f"/{number}": file(os.urandom(400_000)) for number in range(10)})
    (tmp_path / "small").mkdir()
    options = ["-o", f"size={size},mode=700", "none", tmp_path / "small"]
    if subprocess.run(["mount", "-t", "tmpfs", *options], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not mount a tmpfs for us")
    try:
        job = Job("toy", "1", "x86_64", open_store(tmp_path / "small"), tools=bench)
        with pytest.raises(RigProblem) as told:
            made(job, tree, kind=kind)
        assert "make room" in told.value.hint
        left = [
            path
            for path in (tmp_path / "small").rglob("*")
            if path.is_file() and path.suffix != ".lock" and path.name != "in-use"
        ]
        assert not left
    finally:
        subprocess.run(["umount", "--lazy", tmp_path / "small"], check=True)


def test_a_tool_that_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(toolbox.host, "look_up", lambda _: None)
    store = open_store(tmp_path / "cache")
    with pytest.raises(RigProblem, match=r"this machine has no mkfs\.erofs"):
        made(Job("toy", "1", "x86_64", store, tools=partial(toolbox.tools, mode="host", store=store)), kind="erofs")


def test_no_room_for_the_draft_is_told(job, monkeypatch):
    def full(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(roots.host, "open_draft", full)
    with pytest.raises(RigProblem, match="No space left on device"):
        made(job, kind="squashfs")


def test_an_ext4_that_was_counted_too_small_grows(job, monkeypatch, bench):
    right = roots._ext4_size(WHOLE)
    monkeypatch.setattr(roots, "_ext4_size", lambda _: (right[0] * 3 // 4, right[1]))
    image = made(job, kind="ext4")
    check(bench, "e2fsck", "-f", "-n", image)


def test_an_ext4_of_many_groups_is_counted_close(job, bench):
    tree = Tree({f"/{n}/{m}": file(bytes([n, m]) * 30_000) for n in range(50) for m in range(60)}).complete()
    image = made(job, tree, kind="ext4")
    assert image.stat().st_size < tree.size * 1.12
    check(bench, "e2fsck", "-f", "-n", image)


def test_changes_are_an_empty_ext4_that_can_grow(job, bench):
    made = roots.changes(16 << 20, seed="a seed", job=job)
    assert (made.offset, made.size) == (0, 16 << 20)
    assert roots.changes(16 << 20, seed="a seed", job=job) == made
    check(bench, "e2fsck", "-f", "-n", made.path)
    told = check(bench, "debugfs", "-R", "stats -h", made.path).decode()
    about = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
    assert {"has_journal", "resize_inode", "64bit", "extent"} <= set(about["Filesystem features"].split())
    assert about["Filesystem volume name"].strip() == "changes"
    descriptors = int(about["Reserved GDT blocks"]) + 1
    assert descriptors * (4096 // 64) * (128 << 20) >= 1 << 40, "a TiB, at 64 bytes for a group of 128 MiB"
