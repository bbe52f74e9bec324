"""`imagekit run` of an address, and of a tar that nobody signed."""

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import signed_rig
import small_root
from debian_mirror import Mirror, serving
from range_rig import ranges
from run_rig import ARCH, environment, words

from imagekit import signing
from imagekit.artifact import Job
from imagekit.formats import tar
from imagekit.stores.directory import open_store

ABOUT = signing.About("small", "1", ARCH, ("/bin/sh", "-c", "cat /etc/hello"), ())
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a signed image, the same one unsigned, and as a tar with what strangers put into one."""
    folder = tmp_path_factory.mktemp("served")
    store = open_store(folder / "store")
    written = tar.write(small_root.tree(), job=Job("small", "1", ARCH, store))["root"]
    plain = store.path(written.sha256)
    signing.sign(plain, folder / "small.tar.gz", about=ABOUT, key=signed_rig.KEY)
    (folder / "unsigned.tar.gz").write_bytes(plain.read_bytes())
    data = bytearray(gzip.decompress(plain.read_bytes())[:-1024])
    more = io.BytesIO()
    with tarfile.open(fileobj=more, mode="w") as out:
        for name, kind, mode in (("su", tarfile.REGTYPE, 0o4755), ("null", tarfile.CHRTYPE, 0o666)):
            member = tarfile.TarInfo(name)
            member.type, member.mode = kind, mode
            out.addfile(member)
    (folder / "export.tar").write_bytes(data + more.getvalue())
    return folder


@pytest.fixture
def mirror(served: Path) -> Iterator[Mirror]:
    with serving(served) as running:
        running.answers["*"] = ranges
        yield running


@pytest.fixture
def start(tmp_path: Path) -> Start:
    def start(*given: object) -> "subprocess.CompletedProcess[str]":
        env = environment(tmp_path / "cache", no_proxy="127.0.0.1")
        return subprocess.run(
            words("--explain", *given), check=False, capture_output=True, text=True, timeout=120, env=env
        )

    return start


def test_an_address_is_fetched_once_and_asked_about_each_time(start: Start, mirror: Mirror, tmp_path: Path) -> None:
    for count in (2, 1):
        mirror.requests.clear()
        done = start(f"{mirror.address}/small.tar.gz")
        assert (done.returncode, done.stdout) == (0, "from the image\n"), done.stderr
        assert "small.tar.gz: small 1, signed by" in done.stderr
        assert len(mirror.requests) == count
    assert len(list((tmp_path / "cache/images").iterdir())) == 1


def test_a_copy_that_was_touched_is_fetched_again(start: Start, mirror: Mirror, tmp_path: Path) -> None:
    start(f"{mirror.address}/small.tar.gz")
    (copy,) = (tmp_path / "cache/images").iterdir()
    copy.chmod(0o600)
    with open(copy, "r+b") as file:
        file.seek(5000)
        file.write(b"evil")
    done = start("--ephemeral", f"{mirror.address}/small.tar.gz")
    assert (done.returncode, done.stdout) == (125, "")
    assert "its copy was removed" in done.stderr
    assert start("--ephemeral", f"{mirror.address}/small.tar.gz").stdout == "from the image\n"


def test_what_nobody_signed_is_refused_from_an_address(start: Start, mirror: Mirror, tmp_path: Path) -> None:
    done = start(f"{mirror.address}/unsigned.tar.gz")
    assert (done.returncode, done.stdout) == (125, "")
    assert "not a signed image" in done.stderr
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size]


@pytest.mark.parametrize("name", ["small.tar.gz", "unsigned.tar.gz", "export.tar"])
@pytest.mark.parametrize("place", ["here", "there"])
def test_insecure_runs_it_and_says_so(start: Start, mirror: Mirror, tmp_path: Path, name: str, place: str) -> None:
    image = f"{mirror.address}/{name}" if place == "there" else mirror.folder / name
    done = start("--insecure", image, "--", "/bin/sh", "-c", "cat /etc/hello; [ -u /su ] && echo evil")
    assert done.stdout == "from the image\n", done.stderr
    assert f"WARNING: {name} is run without its signature being looked at" in done.stderr
    left_out = "left out: setuid and setgid bits (1), device nodes (1)"
    assert (left_out in done.stderr) == (name == "export.tar")
    assert not list(tmp_path.glob("cache/images/*"))


def test_a_tar_that_nobody_signed_needs_insecure(start: Start, served: Path) -> None:
    done = start(served / "unsigned.tar.gz")
    assert (done.returncode, done.stdout) == (125, "")
    assert "unsigned.tar.gz is signed by nobody" in done.stderr
    assert "--insecure" in done.stderr
