"""The launcher of bundles on hosts where little is allowed, with an EROFS, and in hands that want something else."""

import os
import random
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import small_root
from bundle_rig import ARCH, IS_ROOT, NOBODY, about, age, entries, make, reachable, root, start
from evil_tars import END, link, member

from imagekit import toolbox
from imagekit.artifact import Job
from imagekit.disk import roots as file_systems
from imagekit.stores.directory import open_store

SHELL = about("/bin/sh", "-c", env=("A=b c", "PATH=/bin"), workdir="/etc")
USERS = [-1, NOBODY] if IS_ROOT else [-1]
needs_root = pytest.mark.skipif(not IS_ROOT, reason="mounts on this host, which only root may make")


@pytest.fixture(scope="module")
def app():
    with reachable() as folder:
        yield make(folder, SHELL)


@pytest.fixture
def cache():
    with reachable() as folder:
        yield folder / "of-user"


# --- hosts of other kinds ---


def on(host: str, app: Path, *words: str, uid: int = 0, **env: str):
    """Run it where a script has arranged something before."""
    drop = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"] if uid else []
    argv = ["unshare", "--mount", "sh", "-ec", f'{host}; exec "$@"', "sh", *drop, str(app), *words]
    given = {"PATH": os.environ["PATH"], "IMAGEKIT_EXPLAIN": "1", **env}
    return subprocess.run(argv, env=given, capture_output=True, text=True, timeout=120, check=False)


HOSTS = {  # what is arranged, and what the launcher says of it
    "read-only home": ("mount --bind $HOME $HOME; mount -o remount,bind,ro $HOME", "the cache cannot be written to"),
    "home of another": (
        "mkdir -p $HOME/.cache/imagekit/roots; chown 4321 $HOME/.cache/imagekit/roots",
        "the cache's folder is another's",
    ),
    "noexec home": ("mount -t tmpfs -o mode=777,uid=$USER_ID,noexec none $HOME", "no program may be run from there"),
    "full home": ("mount -t tmpfs -o mode=777,uid=$USER_ID,size=1m none $HOME", "the cache has no room"),
    "home of somebody": ("chown 4321 $HOME", "the home is another's"),
    "no home": ("unset HOME", "there is no folder for a cache"),
    "noexec /tmp": ("mount --bind $DIR /mnt; mount -t tmpfs -o noexec none /tmp", "unpacked into memory"),
    "no /proc": ("umount --lazy /proc; mount -t tmpfs none /proc", "boot_id cannot be read"),
}


@needs_root
@pytest.mark.parametrize("uid", [0, NOBODY])
@pytest.mark.parametrize("host", HOSTS)
def test_it_runs_where_little_is_allowed(app, cache, host, uid):
    if host == "no /proc" and uid:
        pytest.skip("a user namespace is set up by /proc")
    arranged, told = HOSTS[host]
    home = cache.parent / "home"
    home.mkdir()
    home.chmod(0o777)
    os.chown(home, uid, uid)
    program = Path("/mnt/app") if "noexec /tmp" in host else app
    done = on(arranged, program, "cat /etc/hello", uid=uid, HOME=str(home), USER_ID=str(uid), DIR=str(app.parent))
    assert (done.returncode, done.stdout, told in done.stderr) == (0, "from the image\n", True), done.stderr


@needs_root
def test_without_user_namespaces_it_says_so(app):
    host = "unshare --user --map-root-user true; echo 0 > /proc/sys/user/max_user_namespaces"
    drop = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", str(app), "true"]
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", f'{host}; exec "$@"', "sh", *drop]
    done = subprocess.run(argv, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "cannot make a user namespace" in done.stderr
    assert "run as root, or use --bundle-extract" in done.stderr


@needs_root
def test_nomads_protection_from_the_oom_killer_is_not_inherited(app):
    arranged = "echo -1000 > /proc/self/oom_score_adj"
    if on(arranged, Path("/bin/true")).returncode:
        pytest.skip("this host's root may not do what Nomad does")
    assert on(arranged, app, "cat /proc/self/oom_score_adj", NOMAD_ALLOC_ID="x").stdout == "0\n"
    assert on(arranged, app, "cat /proc/self/oom_score_adj").stdout == "-1000\n"


def test_it_finds_itself_without_a_name(app):
    """By /proc/self/exe, where the name that the kernel was given leads nowhere any more."""
    line = "import os, sys; os.execve(os.open(sys.argv[1], os.O_RDONLY), sys.argv[1:], {'IMAGEKIT_CACHE': ''})"
    done = subprocess.run(
        [sys.executable, "-c", line, app, "cat /etc/hello"], capture_output=True, text=True, check=False
    )
    assert done.stdout == "from the image\n", done.stderr


# --- an EROFS ---


@pytest.fixture(scope="module")
def mounted():
    """The bundle of a file system."""
    tools = partial(toolbox.tools, store=open_store())
    with reachable() as folder:
        job = Job("small", "1", ARCH, open_store(folder / "store"), tools=tools)
        made = file_systems.write(small_root.tree(), kind="erofs", seed="a seed", job=job)
        yield make(folder, about("/bin/sh", "-c"), payload=Path(made.path).read_bytes())


@needs_root
def test_an_erofs_is_mounted(mounted, cache, tmp_path):
    line = "cat /etc/hello; echo x > /new; cat /new"
    for where, how in (
        (cache, "mounted, from the cache"),
        (cache, "mounted, from the cache"),
        ("", "from a copy without a name"),
    ):
        done = start(mounted, line, cache=where)
        if "as Linux 6.12 can" in done.stderr:
            pytest.skip("this kernel mounts no EROFS file")
        assert (done.stdout, how in done.stderr) == ("from the image\nx\n", True), done.stderr
    image = age(cache) / "image"
    image.chmod(0o600)
    with open(image, "r+b") as file:
        file.seek(2000)
        file.write(b"evil")
    assert start(mounted, line, cache=cache).stdout == "from the image\nx\n"
    data = bytearray(mounted.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "evil").write_bytes(data)
    (tmp_path / "evil").chmod(0o755)
    for where in (tmp_path / "cache", ""):
        done = start(tmp_path / "evil", line, cache=where)
        assert (done.returncode, done.stdout) == (125, ""), done.stderr


def test_an_erofs_takes_root_and_can_be_extracted(mounted, tmp_path):
    if IS_ROOT:
        done = start(mounted, "true", uid=NOBODY)
        assert (done.returncode, "only root can mount the EROFS" in done.stderr) == (125, True)
    assert start(mounted, "--bundle-extract", tmp_path / "new").returncode == 0
    assert (tmp_path / "new/image.erofs").read_bytes() == (mounted.parent / "plain").read_bytes()


# --- what others could make of it ---


def test_a_bundle_that_interprets_a_script_reads_itself(app, cache):
    """The script could bring a key and an image of its own."""
    script = cache.parent / "script"
    image = app.read_bytes()
    script.write_bytes(f"#!{app}\n".encode().ljust(4096, b"#") + image[image.rindex(b"imagekit bundle\n") :])
    script.chmod(0o755)
    done = start(script, cache=cache)
    assert (done.returncode, "from the cache" in done.stderr) == (127, True)  # there is no such script in its root


@needs_root
def test_a_bundle_does_not_run_with_rights_that_its_file_gives(app, cache):
    own = cache.parent / "own"
    own.write_bytes(app.read_bytes())
    own.chmod(0o4755)
    if os.statvfs(own).f_flag & os.ST_NOSUID or "NoNewPrivs:\t1" in Path("/proc/self/status").read_text():
        pytest.skip("nothing gives rights here")
    done = start(own, "id -u", uid=NOBODY)
    assert (done.returncode, done.stdout) == (125, "")
    assert "not made for setuid" in done.stderr


@pytest.mark.parametrize("uid", USERS)
def test_it_runs_where_no_thread_and_few_files_may_be_opened(cache, uid):
    app = make(
        cache.parent, SHELL, payload=root()[:-1024] + member(b"large", random.Random(1).randbytes(6 << 20)) + END
    )
    limit = 'ulimit -n 40; ulimit -u 1; exec "$@"'
    user = {"user": uid, "group": uid, "extra_groups": []} if uid > 0 else {}
    argv = ["bash", "-c", limit, "bash", app, "cat /etc/hello"]
    for where in (cache, cache, ""):
        env = {"PATH": os.environ["PATH"], "IMAGEKIT_CACHE": str(where)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False, **user)
        assert (done.stdout, done.stderr) == ("from the image\n", "")
    assert len(entries(cache)) == 1


def test_what_an_image_says_does_not_command_the_terminal(tmp_path):
    app = make(tmp_path, SHELL, payload=member(b"a\x1b[2Jb") + END)
    told = start(app, "--bundle-extract", tmp_path / "new").stderr
    assert told == "app: refused to unpack a?[2Jb: its name has control characters\n"


def test_an_image_does_not_reach_the_hosts_etc(tmp_path):
    before = Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else None
    assert start(make(tmp_path, about("/bin/true"), payload=link(b"etc", b"/proc/1/root/etc") + END)).returncode == 127
    assert (Path("/etc/resolv.conf").read_text() if Path("/etc/resolv.conf").exists() else None) == before


def test_no_descriptor_of_ours_leads_out_of_the_root(cache):
    """CVE-2024-21626: a working folder that is an open folder of the host's; by its name, or by a link of the image."""
    payload = root()[:-1024] + link(b"link", b"/proc/self/fd/5") + END
    for place in ("/link", *(f"/proc/self/fd/{number}" for number in (*range(3, 10), 60, 61))):
        app = make(cache.parent, about("/bin/pwd", workdir=place), payload=payload)
        for where in ("", cache):
            done = start(app, cache=where)
            assert (done.returncode, done.stdout) == (125, ""), (place, where)
            assert f"cannot enter {place} of the image" in done.stderr
