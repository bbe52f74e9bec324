"""Signing: what becomes of a .tar.gz, a tar, an EROFS and an artifact; golden files; and the verbs."""

import gzip as standard
import io
import os
import shutil
import subprocess
import tarfile
import zlib
from hashlib import sha256
from pathlib import Path

import pytest
from signed_rig import ABOUT, KEY, OTHER, SMALL, large, many, read, signed, taken, tar
from small_root import tree

from imagekit import cli, early, plugs, signing, toolbox, unpack
from imagekit.artifact import Job, canonical
from imagekit.disk import bali, flushes, gzip, signedfile
from imagekit.errors import Problem
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, file

FIXTURES = Path(__file__).parent.parent / "fixtures"
GOLDEN = FIXTURES / "signed"
PUBLIC = str(FIXTURES / "keys/test.pub")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEKIT_KEY", str(FIXTURES / "keys/test.key"))
    return tmp_path


def told(capsys, *words: object) -> tuple[int, str]:
    """Exit status of a command line, and what it says."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


# --- golden files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["small.tar.gz", "many.tar.gz", "small.erofs"])
def test_golden_files_are_read(name):
    data = (GOLDEN / name).read_bytes()
    content = taken(data)
    assert sha256(content).hexdigest() == read(data).said.content
    if name == "small.tar.gz":
        assert content == SMALL


@pytest.mark.parametrize("name", ["small.tar.gz", "small.erofs"])
def test_golden_files_are_what_signing_writes_today(name, folder):
    """Of their own bodies: those depend on the version of zlib, the rest on nothing."""
    signing.strip(GOLDEN / name, folder / name)
    about = ABOUT._replace(compressor=read((GOLDEN / name).read_bytes()).said.compressor)
    signing.sign(folder / name, folder / "again", about=about, key=KEY)
    assert (folder / "again").read_bytes() == (GOLDEN / name).read_bytes()


def test_the_golden_file_of_many_chunks_is_what_is_written_today():
    data, golden = many(), (GOLDEN / "many.tar.gz").read_bytes()
    assert taken(data) == taken(golden)
    if read(golden).said.compressor == gzip.VERSION:
        assert data == golden


def test_the_golden_detached_signature(folder):
    signing.export(read((GOLDEN / "small.tar.gz").read_bytes()), folder / "small.tar.gz")
    for name in ("small.tar.gz.manifest", "small.tar.gz.manifest.minisig"):
        assert (folder / name).read_bytes() == (GOLDEN / name).read_bytes()
    assert KEY.verify((folder / "small.tar.gz.manifest").read_bytes(), (folder / name).read_text())


# --- what is signed -------------------------------------------------------------------------------------------------


def sources() -> dict[str, bytes]:
    """The small tar in files of many kinds; True for those that can be cut as they are."""
    pressed = io.BytesIO()
    with standard.GzipFile("name.tar", "wb", mtime=7, fileobj=pressed) as stream:
        stream.write(SMALL)
    return {
        "a tar": SMALL,
        "gzip with a name and a time": pressed.getvalue(),
        "one member without flushes": standard.compress(SMALL, mtime=0),
        "two members": standard.compress(SMALL[:700]) + standard.compress(SMALL[700:]),
    }


@pytest.mark.parametrize("kind", sources())
def test_whatever_a_tar_is_packed_in_it_is_signed_the_same(kind, folder):
    (folder / "source").write_bytes(sources()[kind])
    signing.sign(folder / "source", folder / "out", about=ABOUT, key=KEY)
    data = (folder / "out").read_bytes()
    assert taken(data) == SMALL
    assert data == signed(folder, SMALL).read_bytes()
    assert read(data).said.compressor == gzip.VERSION


def test_a_body_with_flushes_stays_as_it_is(folder):
    body = b"".join(gzip.member(gzip.segment([large()[at : at + 70_000]]) for at in range(0, len(large()), 70_000)))
    (folder / "source").write_bytes(body)
    found = signing.sign(folder / "source", folder / "out", about=ABOUT._replace(compressor="mine"), key=KEY)
    assert (folder / "out").read_bytes().startswith(body)
    assert (found.said.compressor, found.said.body) == ("mine", len(body))
    assert 10 <= len(found.chunks) < 20  # small runs are put together
    signing.strip(folder / "out", folder / "stripped")
    assert (folder / "stripped").read_bytes() == body


def test_what_is_signed_can_be_signed_again(folder):
    path = signed(folder, SMALL)
    signing.sign(path, folder / "again", about=ABOUT._replace(name="other"), key=OTHER)
    data = (folder / "again").read_bytes()
    assert (read(data, [OTHER]).said.name, taken(data, [OTHER])) == ("other", SMALL)
    signing.sign(folder / "again", folder / "third", about=ABOUT, key=KEY)
    assert (folder / "third").read_bytes() == path.read_bytes()


def test_bytes_that_only_look_like_flushes_are_no_cuts(folder):
    """Files that hold deflate of their own have the bytes of a flush in them, stored as they are."""
    inner = b"".join(gzip.member(gzip.segment([os.urandom(3000)]) for _ in range(900)))
    whole = tar({"inner.gz": inner})
    body = b"".join(gzip.member(gzip.runs([whole])))
    assert body.count(signedfile.FLUSHED) > 100
    (folder / "source").write_bytes(body)
    signing.sign(folder / "source", folder / "out", about=ABOUT, key=KEY)
    data = (folder / "out").read_bytes()
    assert data.startswith(body)
    assert taken(data) == whole


def test_what_looks_back_over_a_flush_is_packed_anew(folder):
    """A sync flush looks like a full one, and what follows it refers to what stands before it."""
    packer, body = zlib.compressobj(6, zlib.DEFLATED, -15), b""
    for at in range(0, len(large()), 1 << 19):
        body += packer.compress(large()[at : at + (1 << 19)]) + packer.flush(zlib.Z_SYNC_FLUSH)
    whole = gzip.segment([large()])
    body = b"".join(gzip.member([whole._replace(data=body)]))
    assert flushes.cut(body) is None
    (folder / "source").write_bytes(body)
    signing.sign(folder / "source", folder / "out", about=ABOUT, key=KEY)
    data = (folder / "out").read_bytes()
    assert (taken(data) == large(), data.startswith(body)) == (True, False)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"x" * 2000, "holds no tar"),
        (standard.compress(b"x" * 2000), "holds no tar"),
        (standard.compress(SMALL)[:-9], "cut short"),
        (standard.compress(SMALL) + b"x", "gunzipped|cut short"),
        (standard.compress(SMALL)[:60] + b"\xff" + standard.compress(SMALL)[61:], "gunzipped|cut short"),
    ],
    ids=["empty", "no tar", "no tar in it", "cut", "a byte more", "a byte other"],
)
def test_what_is_no_image_is_not_signed(folder, data, words):
    (folder / "source").write_bytes(data)
    with pytest.raises(Problem, match=words):
        signing.sign(folder / "source", folder / "out", about=ABOUT, key=KEY)
    assert {path.name for path in folder.iterdir()} == {"source"}


@pytest.mark.parametrize(
    "wrong",
    [{"name": "a b"}, {"version": ""}, {"architecture": "x86-64"}, {"arguments": ("sh",)}, {"user": "www"},
     {"arguments": ("/bin/sh", "a\nb")}, {"environment": ("B=1", "A=2")}, {"workdir": "srv"}, {"environment": ("=",)}],
)  # fmt: skip
def test_what_no_manifest_can_say_is_not_signed(folder, wrong):
    (folder / "source").write_bytes(SMALL)
    with pytest.raises(Problem):
        signing.sign(folder / "source", folder / "out", about=ABOUT._replace(**wrong), key=KEY)
    assert not (folder / "out").exists()


def test_a_device_or_a_folder_is_never_replaced(folder):
    (folder / "source").write_bytes(SMALL)
    os.mkfifo(folder / "pipe")
    for place in (folder / "pipe", folder, Path("/dev/null")):
        with pytest.raises(Problem, match="is no file"):
            signing.sign(folder / "source", place, about=ABOUT, key=KEY)
    with pytest.raises(Problem, match="is no file"):
        signing.sign(folder / "pipe", folder / "out", about=ABOUT, key=KEY)


# --- artifacts ------------------------------------------------------------------------------------------------------


def gzip_of(data: bytes) -> bytes:
    return standard.compress(data, mtime=0)


def artifact(folder: Path, root: Tree) -> Path:
    """The .tar.gz of an artifact of the format `tar`, with its manifest and signature."""
    store = open_store(folder / "cache")
    written = plugs.load("formats", "tar").write(root, job=Job("toy", "1", "x86_64", store))["root"]
    path = folder / "toy_1_x86_64.tar.gz"
    shutil.copy(store.path(written.sha256), path)
    part = {"role": "root", "file": path.name, "size": written.size, "sha256": written.sha256, **written.facts}
    text = canonical(
        {"name": "toy", "version": "1", "arch": "x86_64", "format": "tar", "kind": "root", "parts": [part]}
    )
    (folder / "toy_1_x86_64.tar.manifest.json").write_bytes(text)
    (folder / "toy_1_x86_64.tar.manifest.json.minisig").write_text(KEY.sign(text, comment="toy"))
    return path


def serving() -> Tree:
    """A tree with one service, as compose makes it."""
    settings = {
        early.TABLE: file(b"hello - - tcp:80\n"),
        f"{early.SETTINGS}/services/hello/run": file(b"env=B=2\nenv=A=1\nuser=hello\n--\n/bin/sh\n-c\nexit 3\n"),
        "/etc/passwd": file(b"root:x:0:0::/root:/bin/sh\nhello:x:7:8::/:/bin/sh\n"),
    }
    return tree().override(Tree(settings)).complete()


def test_an_artifact_tells_what_it_is_and_its_bytes_stay(folder, capsys):
    path = artifact(folder, serving())
    before = path.read_bytes()
    code, said = told(capsys, "sign", path)
    assert (code, path.read_bytes()) == (0, before), said
    data = (folder / "toy_1_x86_64.signed.tar.gz").read_bytes()
    found = read(data)
    assert data.startswith(before)
    assert (found.said.name, found.said.version, found.said.architecture) == ("toy", "1", "x86_64")
    assert found.said.arguments == (b"/bin/sh", b"-c", b"exit 3")
    assert found.said.environment == (b"A=1", b"B=2")
    assert (found.said.uid, found.said.gid, found.said.compressor) == (7, 8, gzip.VERSION)
    assert told(capsys, "verify", folder / "toy_1_x86_64.signed.tar.gz", "--key", PUBLIC)[0] == 0


def test_an_artifact_that_was_changed_is_not_signed(folder, capsys):
    path = artifact(folder, tree())
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    code, said = told(capsys, "sign", path)
    assert (code, "has other bytes" in said) == (1, True)


def test_a_tree_without_a_service_names_no_program(folder, capsys):
    assert told(capsys, "sign", artifact(folder, tree()), "-o", "out.tar.gz")[0] == 0
    assert read((folder / "out.tar.gz").read_bytes()).said.arguments == ()


def test_an_image_is_signed_by_another_key_as_it_says_itself(folder, capsys):
    path = signed(folder, SMALL, by=OTHER)
    (folder / "other.pub").write_text(OTHER.public_text())
    code, said = told(capsys, "sign", path, "-o", "again")
    assert (code, "which is not trusted" in said) == (1, True), (
        said
    )  # nobody takes a name from what anybody may have said
    assert told(capsys, "sign", path, "--trust", "other.pub", "-o", "again", "--version", "3")[0] == 0
    before, after = read(path.read_bytes(), [OTHER]).said, read((folder / "again").read_bytes()).said
    assert (after.version, after.name, after.content) == ("3", before.name, before.content)
    assert (after.arguments, after.environment, after.uid) == (before.arguments, before.environment, before.uid)


def test_what_was_changed_since_it_was_verified_is_not_signed(folder):
    path = artifact(folder, tree())
    known = signing.known(path, KEY)
    (folder / "source").write_bytes(gzip_of(SMALL))
    for one in (known, known._replace(file="", content="0" * 64)):
        with pytest.raises(Problem, match="since it was verified"):
            signing.sign(folder / "source", folder / "out", about=ABOUT, key=KEY, known=one)
    assert not (folder / "out").exists()


# --- verbs ----------------------------------------------------------------------------------------------------------

WHAT = ("--name", "app", "--version", "2", "--arch", "any")


def test_sign_verify_and_strip(folder, capsys):
    (folder / "app.tar").write_bytes(SMALL)
    options = (*WHAT, "-e", "B=2", "-e", "A=1", "--user", "5:6", "--workdir", "/srv")
    code, said = told(capsys, "sign", "app.tar", *options, "--", "/bin/sh", "-x")
    assert (code, "app.signed.tar.gz: app 2 any, signed by" in said) == (0, True), said
    found = read((folder / "app.signed.tar.gz").read_bytes())
    assert (found.said.environment, found.said.arguments) == ((b"A=1", b"B=2"), (b"/bin/sh", b"-x"))
    assert (found.said.uid, found.said.gid, found.said.workdir) == (5, 6, b"/srv")
    code, said = told(capsys, "verify", "app.signed.tar.gz", "--key", PUBLIC, "--export")
    assert (code, found.said.content in said, KEY.id in said) == (0, True, True)
    assert (folder / "app.signed.tar.gz.manifest").read_bytes() == found.manifest
    assert told(capsys, "strip", "app.signed.tar.gz", "-o", "plain.tar.gz")[0] == 0
    assert standard.decompress((folder / "plain.tar.gz").read_bytes()) == SMALL


def test_a_signed_image_is_inspected(folder, capsys):
    path = signed(folder, SMALL)
    good = f"signature: good, by {KEY.id}: web 1.2 x86_64 tar.gz, runs /bin/sh -c exit 7"
    assert good in told(capsys, "inspect", path, "--key", PUBLIC)[1]
    path.write_bytes(path.read_bytes()[:40] + b"x" + path.read_bytes()[41:])
    assert "signature: not accepted: " in told(capsys, "inspect", path, "--key", PUBLIC)[1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sign", "app.tar", "-o", "x"), "say what it is: --name, --version, --arch"),
        (("sign", *WHAT, "nowhere.tar"), "cannot read nowhere.tar"),
        (("sign", *WHAT, "app.tar", "--key", PUBLIC), "cannot sign"),
        (("strip", "app.tar", "-o", "x"), "not a signed image"),
        (("verify", "app.tar", "--key", PUBLIC, "--export"), "no signed image"),
        (("verify", "app.tar", "--bali", "cXYZ"), "is no identity of bali"),
        (("verify", "signed.tar.gz", "--key", PUBLIC, "--deep"), "which has no --deep"),
        (("verify", "signed.tar.gz", "--key", "other.pub"), "signed by key 415CB4C8B815A063, which is not trusted"),
        (("verify", "changed.tar.gz", "--key", PUBLIC), "changed.tar.gz: chunk 0 of 1 is not the one"),
    ],
)
def test_mistakes_are_told(folder, capsys, words, said):
    (folder / "app.tar").write_bytes(SMALL)
    data = signed(folder, SMALL, name="signed.tar.gz").read_bytes()
    (folder / "changed.tar.gz").write_bytes(data[:50] + b"x" + data[51:])
    (folder / "other.pub").write_text(OTHER.public_text())
    code, told_ = told(capsys, *words)
    assert (code, said in told_) == (1, True), told_
    assert not (folder / "x").exists()


def test_a_tar_becomes_a_file_system(folder, capsys):
    (folder / "app.tar").write_bytes(SMALL)
    code, said = told(capsys, "sign", "app.tar", "--payload", "erofs", *WHAT, "--", "/bin/sh")
    assert code == 0, said
    data = (folder / "app.signed.erofs").read_bytes()
    found = read(data)
    assert (found.said.payload, found.said.compressor[:11]) == ("erofs", "mkfs.erofs ")
    assert taken(data)[1024:1028] == signing.EROFS[1]
    tools = toolbox.tools("fsck.erofs", store=open_store())
    (folder / "plain").write_bytes(taken(data))
    subprocess.run(tools.argv("fsck.erofs", "--extract=root", "plain"), env=tools.env, check=True)
    assert (folder / "root/bin/sh").read_bytes() == b"#!nothing\n"
    told(capsys, "sign", signed(folder, SMALL), "--payload", "erofs", "-o", "again", *WHAT, "--", "/bin/sh")
    assert taken((folder / "again").read_bytes()) == taken(data)  # of a signed image of the same tar
    code, said = told(capsys, "sign", "again", "--payload", "erofs", "-o", "third", *WHAT)
    assert (code, "again holds no tar" in said) == (1, True), said
    assert {path.name for path in folder.iterdir() if path.name.startswith(".")} == set()


# --- bali -----------------------------------------------------------------------------------------------------------

SIGNER = "cDGEJEXIRZL3MXVPSSBPT74IFGTWDDL6ZPYW44OBTDVOM4GQWHQPV3DI"


def test_a_file_of_bali_is_verified(capsys):
    code, said = told(capsys, "verify", FIXTURES / "bali/toy.tar.gz", "--bali", SIGNER)
    assert (code, SIGNER in said) == (0, True), said


def test_a_file_of_bali_becomes_a_signed_image(folder, capsys):
    """Its own signature would be bytes behind the end of the tar, which no strict reader takes."""
    toy = FIXTURES / "bali/toy.tar.gz"
    assert told(capsys, "strip", toy, "--bali", SIGNER, "-o", "plain.tar.gz")[0] == 0
    assert standard.decompress((folder / "plain.tar.gz").read_bytes()) == standard.decompress(toy.read_bytes())[:-80]
    assert told(capsys, "sign", "plain.tar.gz", *WHAT, "-o", "ours.tar.gz")[0] == 0
    unpack.unpack(iter([taken((folder / "ours.tar.gz").read_bytes())]), folder / "root")
    assert (folder / "root/etc/hello").read_bytes() == b"hello from bali\n"
    code, said = told(capsys, "strip", toy, "--bali", bali.identity(KEY.public), "-o", "none.tar.gz")
    assert (code, "none of the identities" in said, (folder / "none.tar.gz").exists()) == (1, True, False)


def test_what_is_written_for_bali_is_read_back_and_is_a_tar(folder, capsys):
    (folder / "app.tar").write_bytes(SMALL)
    code, said = told(capsys, "sign", "app.tar", "--bali")
    assert code == 0, said
    identity = said.split()[-1]
    assert told(capsys, "verify", "app.bali.tar.gz", "--bali", SIGNER, "--bali", identity)[0] == 0
    assert told(capsys, "verify", "app.bali.tar.gz", "--bali", SIGNER)[0] == 1
    subprocess.run(["tar", "-xzf", "app.bali.tar.gz"], check=True)
    assert (folder / "bin/sh").read_bytes() == b"#!nothing\n"
    with tarfile.open("app.bali.tar.gz") as archive:
        assert archive.getnames() == ["bin/sh"]
