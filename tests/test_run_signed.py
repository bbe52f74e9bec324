"""Signed image files that `imagekit run` enters: unpacked, or mounted as they lie there; never other bytes."""

import random
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import signed_rig
import small_root
from run_rig import ARCH, environment, words
from signed_rig import KEY

from imagekit import admission, roots, signing, toolbox
from imagekit.artifact import Job
from imagekit.disk import roots as file_systems
from imagekit.disk import signedfile
from imagekit.errors import Problem
from imagekit.formats import tar
from imagekit.stores.directory import open_store

COMMAND = ("/bin/sh", "-c", "cat /etc/hello; echo $A; pwd")
ABOUT = signing.About("small", "1", ARCH, COMMAND, ("A=b c", "HOME=/own"), workdir="/etc")
NO_EROFS = "that needs root and Linux 6.12"


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The signed .tar.gz of the small root."""
    folder = tmp_path_factory.mktemp("packed")
    store = open_store(folder / "store")
    written = tar.write(small_root.tree(), job=Job("small", "1", ARCH, store))["root"]
    return signed(store.path(written.sha256), folder / "small.tar.gz")


@pytest.fixture(scope="module")
def mounted(tmp_path_factory):
    """The signed file that is an EROFS of the small root."""
    folder = tmp_path_factory.mktemp("mounted")
    tools = partial(toolbox.tools, store=open_store())
    job = Job("small", "1", ARCH, open_store(folder / "store"), tools=tools)
    made = file_systems.write(small_root.tree(), kind="erofs", seed="a seed", job=job)
    return signed(Path(made.path), folder / "small.erofs")


def signed(plain: Path, out: Path, *, about: signing.About = ABOUT) -> Path:
    signing.sign(plain, out, about=about, key=signed_rig.KEY)
    return out


@pytest.fixture
def image(request, tmp_path):
    """A copy of the image that the test may spoil."""
    return Path(shutil.copy(request.getfixturevalue(request.param), tmp_path))


@pytest.fixture
def start(tmp_path):
    """Run an image with a cache of its own; skipped where this kernel mounts none of its kind."""

    def start(image: Path, *options: object, command=()):
        given = words("--explain", *options, image, *(["--", *command] if command else []))
        env = environment(tmp_path / "cache")
        done = subprocess.run(given, check=False, capture_output=True, text=True, timeout=120, env=env)
        if NO_EROFS in done.stderr:
            pytest.skip("this kernel mounts no EROFS file for us")
        return done

    return start


both = pytest.mark.parametrize("image", ["packed", "mounted"], indirect=True)


@both
@pytest.mark.parametrize("options", [("--ephemeral",), ("--persist", "kept"), ("-v", "/etc:/mnt"), ("--user", "1:1")])
def test_no_descriptor_of_ours_leads_out_of_the_root(start, image, options, tmp_path, monkeypatch):
    """As in CVE-2024-21626: an image that starts in /proc/self/fd/N stands in a folder of the machine's."""
    monkeypatch.chdir(tmp_path)
    for number in range(3, 12):
        for way in (f"/proc/self/fd/{number}", f"/proc/self/fd/{number}/.."):
            done = start(image, *options, "--workdir", way)
            assert (done.returncode, done.stdout) == (125, ""), f"{way} {done.stderr}"
            assert f"--workdir {way}: " in done.stderr


@both
def test_it_runs_as_it_says(start, image, tmp_path):
    for how in ("now", "verified by an earlier run, no file has changed since"):
        done = start(image)
        assert (done.stdout, how in done.stderr) == ("from the image\nb c\n/etc\n", True), done.stderr
    done = start(image, "-e", "A=mine", "--workdir", "/", command=["sh", "-c", "echo $A $HOME; echo new > /etc/hello"])
    assert done.stdout == "mine /own\n", done.stderr
    assert start(image, "--ephemeral").stdout == "from the image\nb c\n/etc\n"
    assert start(image, "--insecure").stdout == "from the image\nb c\n/etc\n"
    assert len(list((tmp_path / "cache/roots").iterdir())) == 1
    assert "WARNING: " + image.name + " is run without its signature" in start(image, "--insecure").stderr


@both
def test_kept_changes_lie_over_it(start, image, tmp_path):
    command = ["sh", "-c", "cat /etc/note 2> /dev/null; echo noted > /etc/note"]
    seen = [start(image, "--persist", tmp_path / "kept", *how, command=command) for how in ((), (), ("--ephemeral",))]
    assert [done.stdout for done in seen] == ["", "noted\n", "noted\n"], seen


@both
def test_a_root_in_the_cache_that_was_touched_is_made_again(start, image, tmp_path):
    start(image)
    place = next((tmp_path / "cache/roots").iterdir())
    target = place / "image" if (place / "image").exists() else place / "root/etc/hello"
    target.chmod(0o600)
    with open(target, "r+b") as file:
        file.write(bytes(12))
    done = start(image)
    assert (done.stdout, "was unpacked now" in done.stderr) == ("from the image\nb c\n/etc\n", True), done.stderr


@both
@pytest.mark.parametrize("options", [(), ("--ephemeral",), ("--insecure",)], ids=["cache", "ephemeral", "insecure"])
def test_no_changed_byte_is_run(start, image, options):
    data, dice = image.read_bytes(), random.Random(len(options) + image.stat().st_size)
    for _ in range(2):
        changed = bytearray(data)
        changed[dice.randrange(len(data) - 400)] ^= 1 << dice.randrange(8)  # but for names in what says itself unsigned
        image.write_bytes(changed)
        done = start(image, *options)
        assert (done.returncode, done.stdout, "Traceback" in done.stderr) == (125, "", False), done.stderr


def test_a_root_that_is_kept_has_the_content_that_was_said(start, packed, tmp_path):
    data = packed.read_bytes()
    found = signed_rig.read(data)
    text = found.manifest.replace(found.said.content.encode(), b"0" * 64)
    image = tmp_path / "wrong.tar.gz"
    trailer = signedfile.members(text, found.table, KEY.number, signing.signatures(text, KEY))
    image.write_bytes(data[: found.said.body] + trailer)
    done = start(image)
    assert (done.returncode, done.stdout, "has the sha256" in done.stderr) == (125, "", True), done.stderr
    assert not list((tmp_path / "cache/roots").iterdir())


@both
def test_a_file_that_is_rewritten_between_signature_and_use_is_refused(image, tmp_path):
    source = admission._signed(image, [signed_rig.KEY])
    with open(image, "r+b") as file:  # in place: the descriptor that was verified sees it
        file.seek(5000)
        file.write(b"evil")
    with pytest.raises(Problem, match="chunk"):
        roots.make(str(tmp_path / "cache"), source.digest, source.fill, say=pytest.fail)
    assert not list((tmp_path / "cache/roots").iterdir())


@both
def test_a_file_that_is_rewritten_while_it_runs_changes_nothing(start, image, tmp_path):
    start(image)
    pipe, line = subprocess.PIPE, "echo runs; read line; cat /etc/hello"
    argv = words(image, "--", "/bin/sh", "-c", line)
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=environment(tmp_path / "cache")) as program:
        assert program.stdout.readline() == b"runs\n"
        image.write_bytes(bytes(image.stat().st_size))
        assert program.communicate(b"go\n")[0] == b"from the image\n"


@pytest.mark.parametrize("image", ["packed"], indirect=True)
def test_who_signed_decides(start, image, tmp_path):
    other = tmp_path / "other.pub"
    other.write_text(signed_rig.OTHER.public_text())
    done = start(image, "--trust", other)
    assert (done.returncode, done.stdout, "not trusted" in done.stderr) == (125, "", True), done.stderr
    foreign = signed(image, tmp_path / "foreign.tar.gz", about=ABOUT._replace(architecture="riscv64"))
    done = start(foreign)
    assert (done.returncode, f"is for riscv64, this machine is {ARCH}" in done.stderr) == (125, True), done.stderr
    user = signed(image, tmp_path / "user.tar.gz", about=ABOUT._replace(user="33:44"))
    line = "while read name value rest; do case $name in Uid:|Gid:) echo $value;; esac; done < /proc/self/status"
    assert start(user, command=["sh", "-c", line]).stdout == "33\n44\n"


@pytest.mark.parametrize("options", [(), ("--ephemeral",)], ids=["cache", "ephemeral"])
@pytest.mark.parametrize("image", ["mounted"], indirect=True)
def test_an_erofs_that_cannot_be_mounted_is_unpacked(image, tmp_path, options):
    toolbox.tools("fsck.erofs", store=open_store(tmp_path / "cache"))
    argv = ["unshare", "--user", "--map-root-user", *words("--explain", *options, image)]
    if subprocess.run([*argv[:3], "true"], check=False, capture_output=True).returncode:
        pytest.skip("no user namespaces here")
    for _ in range(2):
        done = subprocess.run(argv, check=False, capture_output=True, text=True, env=environment(tmp_path / "cache"))
        assert (done.returncode, done.stdout) == (0, "from the image\nb c\n/etc\n"), done.stderr
