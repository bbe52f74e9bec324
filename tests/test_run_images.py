"""Images that `imagekit run` enters: verified, unpacked once, made again when touched, never other bytes."""

import gzip
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from run_rig import ARCH, HOME, IS_ROOT, KEYS, environment, make_image, words

from imagekit import inuse, key


@pytest.fixture
def image(tmp_path):
    """A signed artifact of the small root; its manifest."""
    return make_image(tmp_path / "image")


@pytest.fixture
def start(tmp_path):
    """Run a shell's line in an image, with a cache of its own."""

    def start(image: Path, line: str, *options, **env: str):
        given = words("--explain", *options, image, "--", "sh", "-c", line)
        env = {**environment(tmp_path / "cache"), **env}
        return subprocess.run(given, check=False, capture_output=True, text=True, timeout=120, env=env)

    return start


def test_an_image_is_unpacked_once_and_then_found(start, image, tmp_path):
    hows = ["in the cache, was unpacked now", "verified by an earlier run, no file has changed since"]
    for how in hows:
        done = start(image, "cat /etc/hello; echo gone > /etc/hello; echo $$ > /etc/more")
        assert (done.stdout, how in done.stderr) == ("from the image\n", True), done.stderr
    os.utime(image)
    assert "in the cache, was there" in start(image, ":").stderr
    assert start(image.with_name("small.tar.gz"), "cat /etc/hello").stdout == "from the image\n"  # named by its part
    assert len(list((tmp_path / "cache/roots").iterdir())) == 1


def test_in_memory_when_asked_or_where_the_cache_cannot_be(start, image, tmp_path):
    done = start(image, "cat /etc/hello; echo new > /etc/hello; cat /etc/hello", "--ephemeral")
    assert (done.stdout, "--ephemeral was given" in done.stderr) == ("from the image\nnew\n", True), done.stderr
    assert not (tmp_path / "cache/roots").exists()
    (tmp_path / "cache").mkdir(mode=0o777, exist_ok=True)
    (tmp_path / "cache").chmod(0o777)
    done = start(image, "cat /etc/hello")
    assert (done.stdout, "can be written to by others" in done.stderr) == ("from the image\n", True), done.stderr


@pytest.mark.skipif(not IS_ROOT, reason="gives a folder away")
def test_no_cache_is_made_in_anothers_home(start, image, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, 65534, 65534)
    done = start(image, "cat /etc/hello", IMAGEKIT_CACHE=str(home / "a/cache"))
    assert (done.stdout, f"{home} belongs to user 65534" in done.stderr) == ("from the image\n", True), done.stderr
    assert not list(home.iterdir())


@pytest.mark.skipif(not IS_ROOT, reason="mounts a small disk")
def test_a_full_disk_is_no_reason_not_to_run(image, tmp_path):
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o700)
    full = f'mount -t tmpfs -o size=300k,mode=700 small {cache} && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", full, "sh", *words("--explain", image, "--", "cat", "/etc/hello")]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment(cache))
    assert done.stdout == "from the image\n", done.stderr
    assert "in memory, for this run alone: the cache cannot be used: No space left on device" in done.stderr


def test_little_memory_is_told(image, tmp_path):
    def before() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    argv = words("--ephemeral", image, "--", "cat", "/etc/hello")
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, env=environment(tmp_path), preexec_fn=before
    )
    assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (125, "", False), done.stderr
    assert "File too large" in done.stderr


@pytest.mark.parametrize("how", ["content", "removed", "added"])
def test_a_root_that_was_touched_is_made_again(start, image, tmp_path, how):
    start(image, ":")
    root = next((tmp_path / "cache/roots").iterdir()) / "root"
    if how == "content":
        times = (root / "etc/hello").stat()
        (root / "etc/hello").write_text("other content!\n")  # of the same length
        os.utime(root / "etc/hello", ns=(times.st_atime_ns, times.st_mtime_ns))
    elif how == "removed":
        (root / "etc/hello").unlink()
    else:
        (root / "etc/more").write_text("")
    done = start(image, "cat /etc/hello; echo /etc/m*")
    assert done.stdout == "from the image\n/etc/m*\n", done.stderr
    assert "was unpacked now" in done.stderr


def test_who_runs_in_a_root_keeps_it(start, image, tmp_path):
    cache, pipe = tmp_path / "cache", subprocess.PIPE
    line = "echo runs; read line; cat /etc/hello; for n in 3 4 5 6; do test -e /proc/$$/fd/$n && echo $n; done"
    with subprocess.Popen(words(image, "--", "sh", "-c", line), stdin=pipe, stdout=pipe, env=environment(cache)) as one:
        assert one.stdout.readline() == b"runs\n"
        clear(cache)  # what is not used now
        (next((cache / "roots").iterdir()) / "root/etc/hello").chmod(0o640)  # another run makes it again
        assert start(image, "cat /etc/hello").stdout == "from the image\n"
        assert one.communicate(b"go\n")[0] == b"from the image\n"
    clear(cache)
    assert not list((cache / "roots").iterdir())


def clear(cache: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "imagekit.cli", "store", "gc", "--older-than", "0"],
        check=False, capture_output=True, text=True, env=environment(cache),
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stderr


def test_a_cache_stays_as_small_as_was_said(start, image, tmp_path):
    other = make_image(tmp_path / "other", more="/etc/more")
    start(other, ":")
    first = {path.name for path in (tmp_path / "cache/roots").iterdir()}
    assert start(image, "cat /etc/hello", IMAGEKIT_CACHE_SIZE="1M").stdout == "from the image\n"
    assert not first & {path.name for path in (tmp_path / "cache/roots").iterdir()}
    assert len(list((tmp_path / "cache/roots").iterdir())) == 1  # the one that was to be entered


def test_a_killed_run_leaves_what_the_next_one_removes(start, image, tmp_path):
    name = "0" * 64 + "-2-00000000.7.draft"
    (tmp_path / "cache/roots" / name / "root").mkdir(parents=True)
    (tmp_path / "cache").chmod(0o700)
    assert start(image, "cat /etc/hello").stdout == "from the image\n"
    assert not (tmp_path / "cache/roots" / name).exists()


@pytest.mark.parametrize("how", ["rewritten", "replaced", "cut"])
def test_other_bytes_than_the_signed_ones_never_run(start, image, how):
    part = image.with_name("small.tar.gz")
    data = bytearray(part.read_bytes())
    if how == "replaced":
        part.unlink()
    data[len(data) // 2] ^= 1
    part.write_bytes(data[: len(data) // 2] if how == "cut" else data)
    for option in ((), ("--ephemeral",)):
        done = start(image, "echo ran", *option)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (125, "", False)
        assert "small.tar.gz has" in done.stderr


def test_a_file_that_changes_after_it_was_verified_changes_nothing(start, image):
    start(image, ":")
    image.with_name("small.tar.gz").write_bytes(b"evil")
    assert start(image, "cat /etc/hello").stdout == "from the image\n"  # out of the cache: these bytes were signed


def test_what_was_run_unverified_is_nobody_elses_root(start, image):
    part = image.with_name("small.tar.gz")
    signed = part.read_bytes()
    evil = gzip.decompress(signed).replace(b"from the image\n", b"from a thief!!\n")
    part.write_bytes(gzip.compress(evil))
    assert start(image, "cat /etc/hello", "--insecure").stdout == "from a thief!!\n"
    part.write_bytes(signed)
    assert start(image, "cat /etc/hello").stdout == "from the image\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trust", KEYS / "other.pub"), "signed by key"),
        (("--trust", "/nowhere.pub"), "there is no key /nowhere.pub"),
    ],
)
def test_only_trusted_keys_count(start, image, tmp_path, options, words):
    other = tmp_path / "other.pub"
    other.write_text(key.from_seed(bytes(32)).public_text())
    given = [other if str(word).endswith("other.pub") else word for word in options]
    for _ in range(2):
        done = start(image, "echo ran", *given)
        assert (done.returncode, done.stdout, words in done.stderr) == (125, "", True), done.stderr
    assert start(image, "echo ran", *given, "--insecure").stdout == "ran\n"
    assert start(image, "echo ran", "--keyring", KEYS / "test.pub", "--trust", other).stdout == "ran\n"


def test_another_machines_image_is_told(start, tmp_path):
    done = start(make_image(tmp_path / "foreign", arch="sparc"), "echo ran")
    assert done.returncode == 125
    assert f"small is for sparc, this machine is {ARCH}" in done.stderr


def test_a_cache_is_in_use_while_it_is_filled_only(start, image, tmp_path):
    start(image, ":")
    with inuse.alone(tmp_path / "cache"):
        assert start(image, "echo ran").stdout == "ran\n"


def test_no_descriptor_leads_out(start, image, tmp_path):
    """By one of a folder of the machine the program could walk up from it, as in CVE-2024-21626."""
    line = (
        "for n in /proc/$$/fd/*; do test -d $n && echo $n; done; for n in /proc/$$/fd/*; do test -f $n && echo $n; done"
    )
    for option in ((), ("--ephemeral",), ("--persist", tmp_path / "kept")):
        done = start(image, line, *option)
        held = 2 if "--persist" in option else 0 if option else 1
        assert len(done.stdout.splitlines()) == held, done.stdout + done.stderr
        told = "while read -r name value; do test $name = flags: && echo ${n##*/} $value; done"
        lines = start(image, f"for n in /proc/$$/fdinfo/*; do {told} < $n; done", *option).stdout.splitlines()
        modes = [line.split()[1] for line in lines if int(line.split()[0]) >= 50]
        assert [mode[-1] for mode in modes] == ["0"] * held, lines  # and nothing can be written by it


@pytest.mark.skipif(not IS_ROOT, reason="mounts")
def test_killed_runs_leave_nothing():
    kills = HOME / "benchmarks/run_kills.py"
    done = subprocess.run([sys.executable, kills, "--kills", "8"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr  # the seed stands there
    assert "8 kills" in done.stdout
    assert "left: 0 []; in the cache: 1 root" in done.stdout
