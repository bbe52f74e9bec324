"""Bundles: what is written, and that it is refused unless every byte is the one that was signed."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from bundle_rig import ARCH, about, make, start
from evil_tars import EVIL
from signed_rig import KEY, OTHER, handle_of
from tar_kit import END, folder, link, member, pax

from imagekit import bundle, cli, signing
from imagekit.disk import signedfile
from imagekit.errors import Problem

SH = about("/bin/sh", "-c", "cat /etc/hello")
HOME = Path(__file__).parent.parent
KEPT = ("--bundle-info",), ("--bundle-verify",), ("--bundle-extract", "new")


@pytest.fixture(scope="module")
def app(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("bundle"), SH)


def test_it_is_the_launcher_the_key_and_the_signed_image(app):
    data, image = app.read_bytes(), app.with_name("image").read_bytes()
    program = (bundle.LAUNCHERS / f"launcher.{ARCH}").read_bytes()
    assert data.startswith(program)
    assert data.endswith(image)
    before = data[len(program) : -len(image)]
    assert before.strip(b"\0") == (b"imagekit bundle\n" + KEY.number + KEY.public).strip(b"\0")
    assert (len(data) - len(image)) % 4096 == 0
    with handle_of(data) as handle:
        assert signedfile.read(handle, [KEY], in_bundle=True).start == len(data) - len(image)
    assert app.stat().st_mode & 0o777 == 0o755


def test_the_same_image_is_the_same_bundle(app, tmp_path):
    bundle.bundle(app.with_name("image"), tmp_path / "again", keys=[OTHER, KEY])
    assert (tmp_path / "again").read_bytes() == app.read_bytes()


@pytest.mark.parametrize(
    ("said", "asked", "words"),
    [
        (SH._replace(architecture="riscv64"), ARCH, "the image is for riscv64"),
        (SH._replace(architecture="mips"), "", "no launcher for mips"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(tmp_path, said, asked, words):
    (tmp_path / "t").write_bytes(member() + END)
    signing.sign(tmp_path / "t", tmp_path / "i", about=said, key=KEY)
    with pytest.raises(Problem, match=words):
        bundle.bundle(tmp_path / "i", tmp_path / "app", keys=[KEY], arch=asked)
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize("arch", bundle.ARCHES)
def test_an_image_for_any_machine_takes_the_launcher_that_is_asked_for(tmp_path, arch):
    (tmp_path / "t").write_bytes(member() + END)
    signing.sign(tmp_path / "t", tmp_path / "i", about=SH._replace(architecture="any"), key=KEY)
    assert bundle.bundle(tmp_path / "i", tmp_path / "app", keys=[KEY], arch=arch).arch == arch


def test_the_command_line(app, tmp_path):
    words = [sys.executable, "-m", "imagekit.cli", "bundle", app.with_name("image"), "-o", tmp_path / "app"]
    key = HOME / "fixtures/keys"
    done = subprocess.run([*words, "--key", key / "test.pub"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"runs on {ARCH}" in done.stdout
    assert f"trusts {KEY.id}" in done.stdout
    assert (tmp_path / "app").read_bytes() == app.read_bytes()
    (tmp_path / "other.pub").write_text(OTHER.public_text())
    done = subprocess.run([*words, "--key", tmp_path / "other.pub"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert KEY.id in done.stderr


def test_it_tells_of_itself_and_verifies_itself(app):
    told = start(app, "--bundle-info").stdout
    with open(app, "rb") as file:
        signed = signedfile.read(file.fileno(), [KEY], in_bundle=True)
    assert told == signed.manifest.decode() + f"signed by key {KEY.id}\n"
    assert start(app, "--bundle-verify").stdout == f"verified: {signed.said.size} bytes, sha256 {signed.said.content}\n"
    for words in (("--bundle-info", "x"), ("--bundle-extract",)):
        assert start(app, *words).returncode == 125


def test_it_is_extracted_as_tar_would(app, tmp_path):
    new, oracle = tmp_path / "new", tmp_path / "oracle"
    assert start(app, "--bundle-extract", new).stderr == ""
    oracle.mkdir()
    subprocess.run(["tar", "-xpf", app.with_name("plain"), "-C", oracle], check=True)
    assert subprocess.run(["diff", "-r", "--no-dereference", new, oracle], check=False).returncode == 0
    look = ["find", ".", "-type", "f", "-printf", "%P %m %s %n %T@ %U\\n", "-o", "-type", "d", "-printf", "%P %m\\n"]
    seen = [subprocess.run(look, cwd=at, capture_output=True, check=True).stdout for at in (new, oracle)]
    assert sorted(seen[0].splitlines()) == sorted(seen[1].splitlines())
    done = start(app, "--bundle-extract", new)
    assert (done.returncode, done.stderr) == (125, f"app: cannot make {new}: File exists\n")


TAKEN = {  # what unpack.py refuses, and why the launcher need not
    **dict.fromkeys(("trusted attribute", "overlay attribute", "access list", "attribute of a link"), "it sets none"),
}


@pytest.mark.parametrize("what", [what for what in EVIL if what not in TAKEN and EVIL[what][0]])
def test_evil_archives_are_refused_and_reach_nothing_outside(what, tmp_path):
    try:
        app = make(tmp_path, SH, payload=EVIL[what][0])
    except Problem:
        pytest.skip("nobody can sign that: it is no tar at all")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/canary").write_text("sings")
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    done = start(app, "--bundle-extract", tmp_path / "tree")
    assert (done.returncode, done.stdout) == (125, ""), done.stderr
    assert "refused to unpack" in done.stderr or "ends in it" in done.stderr
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before
    assert not (tmp_path / "tree").exists()


def test_every_cut_of_an_archive_is_refused(tmp_path):
    whole = folder(b"d") + pax((b"path", b"d/long")) + member(b"d/a", b"x" * 700) + link(b"l", b"d") + END
    assert start(make(tmp_path, SH, payload=whole), "--bundle-extract", tmp_path / "tree").returncode == 0
    for end in range(512, len(whole), 128):
        done = start(make(tmp_path, SH, payload=whole[:end]), "--bundle-extract", tmp_path / "cut")
        assert (done.returncode, (tmp_path / "cut").exists()) == (125, False), end


def spoilt(data: bytes, dice: random.Random, start_at: int) -> bytes:
    changed = bytearray(data)
    changed[dice.randrange(start_at, len(data))] ^= 1 << dice.randrange(8)
    return bytes(changed)


def test_no_changed_bit_is_run_verified_or_extracted(tmp_path):
    """Of a small image each byte of what is signed, of the key and of the trailer is tried, each time another bit."""
    app = make(tmp_path, SH, payload=member(b"a", b"some text " * 50) + END)
    data, dice = app.read_bytes(), random.Random(6)
    signed_from = data.rindex(b"imagekit bundle\n")
    evil = tmp_path / "evil"
    for at in range(signed_from, len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << dice.randrange(8)
        evil.write_bytes(changed)
        evil.chmod(0o755)
        done = start(evil, "--bundle-verify")
        assert (done.returncode, done.stdout) == (125, ""), (at, done.stderr)
        assert done.stderr.startswith("evil: this file is damaged or was changed: "), (at, done.stderr)


@pytest.mark.parametrize("read_only", [False, True])
def test_every_byte_before_the_image_is_known_to_verify(tmp_path, read_only, capsys):
    app = make(tmp_path, SH, payload=member(b"a", b"some text " * 50) + END, read_only=read_only)
    key = tmp_path / "key.pub"
    key.write_text(KEY.public_text())
    assert cli.main(["verify", str(app), "--key", str(key)]) == 0
    assert f"signed by {KEY.id}: " in capsys.readouterr().out
    data, dice = app.read_bytes(), random.Random(7)
    begins = data.rindex(b"imagekit bundle\n")
    for at in (*range(begins, begins + 64), *(dice.randrange(begins) for _ in range(200))):
        changed = bytearray(data)
        changed[at] ^= 1 << dice.randrange(8)
        with handle_of(bytes(changed)) as handle, pytest.raises(Problem, match="launcher is none"):
            bundle.check(handle, [KEY])
    for before in (bytes(4096), b"#!/bin/sh\n".ljust(4096, b"#"), data[:8192]):
        with handle_of(before + data) as handle, pytest.raises(Problem, match="launcher is none"):
            bundle.check(handle, [KEY])


@pytest.mark.parametrize("words", [(), *KEPT], ids=lambda words: words[0] if words else "run")
def test_no_cut_and_no_longer_file_is_taken(app, tmp_path, words):
    data, evil = app.read_bytes(), tmp_path / "evil"
    size = len(app.with_name("image").read_bytes())
    for changed in (data[:-1], data[: -size // 2], data[:-size], data + b"\0", data + data[-186:], data[:-186]):
        evil.write_bytes(changed)
        evil.chmod(0o755)
        done = subprocess.run([evil, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (125, ""), done.stderr
        assert not (tmp_path / "new").exists()


def test_chunks_that_are_swapped_or_of_another_image_are_refused(tmp_path):
    rows = [member(b"a", random.Random(n).randbytes(3 << 20)) + END for n in (1, 2)]
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    one, two = (make(tmp_path / str(n), SH, payload=rows[n - 1]) for n in (1, 2))
    with open(one, "rb") as file:
        signed = signedfile.read(file.fileno(), [KEY], in_bundle=True)
    data, evil, at = one.read_bytes(), tmp_path / "evil", signed.start
    (first, size, *_), (second, other, *_) = signed.chunks[1:3]
    swapped = data[at + second : at + second + other] + data[at + first : at + first + size]
    body = signed.said.body
    for changed in (
        data[: at + first] + swapped + data[at + second + other :],
        data[:at] + two.read_bytes()[at : at + body] + data[at + body :],
        data[: at + body] + two.read_bytes()[at + body :],
    ):
        evil.write_bytes(changed)
        evil.chmod(0o755)
        for words in ((), ("--bundle-verify",)):
            done = start(evil, *words, cache=tmp_path / "cache")
            assert (done.returncode, done.stdout) == (125, ""), done.stderr
    assert not list((tmp_path / "cache/roots").iterdir())


def test_a_key_of_small_order_opens_nothing(tmp_path):
    """Under the identity as public key, R = identity and S = 0 fit any text, in libraries that do not look."""
    app = make(tmp_path, SH, payload=member() + END)
    data = bytearray(app.read_bytes())
    slot = data.rindex(b"imagekit bundle\n")
    data[slot + 24 : slot + 56] = identity = b"\1" + bytes(31)
    end = len(data) - 186 + 16
    data[end + 24 : end + 152] = (identity + bytes(32)) * 2
    app.write_bytes(data)
    done = start(app, "--bundle-info")
    assert (done.returncode, done.stderr) == (
        125,
        "app: this file is damaged or was changed: its signature does not fit\n",
    )
