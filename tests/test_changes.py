"""What two artifacts differ in: packages by Debian's order, files whatever they are wrapped in, sizes, then bytes."""

import json
from hashlib import sha256
from pathlib import Path

import pytest
import zstandard

from imagekit import artifact, changes, cli

KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
DEFINITION = """from imagekit import Image, Symlink, Text
image = Image("toy", formats=("tar", "oci", "docker"), files={
    "/etc/motd": Text("%s"), "/etc/same": Text("same"), "/etc/%s": Text("x" * 2000), "/etc/link": Symlink("%s")})
"""


def row(name, version, *, digit="a", **more):
    return {"name": name, "version": version, "architecture": "amd64", "sha256": digit * 64, "size": 1, **more}


def laid(folder, parts, *, packages=(), **more):
    """An artifact of some parts: role -> bytes."""
    folder.mkdir(exist_ok=True)
    listed = []
    for role, data in parts.items():
        (folder / f"web.{role}").write_bytes(data)
        listed.append({"role": role, "file": f"web.{role}", "size": len(data), "sha256": sha256(data).hexdigest()})
    about = {"name": "web", "version": "1", "arch": "x86_64", "format": "toy", "kind": "disk"}
    (folder / "web.manifest.json").write_bytes(
        artifact.canonical({**about, "parts": listed, "packages": list(packages), **more})
    )
    return artifact.load(folder / "web.manifest.json")


def cpio(**files):
    """newc; names are paths without the first slash, with _ for /."""
    data = b""
    for name, content in {**files, "TRAILER!!!": b""}.items():
        path = name.replace("_", "/").encode() + b"\0"
        mode = 0 if name == "TRAILER!!!" else 0o100755 if content.startswith(b"#!") else 0o100644
        head = b"070701" + b"".join(b"%08X" % n for n in (1, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0))
        data += head + path + b"\0" * (-(len(head) + len(path)) % 4) + content + b"\0" * (-len(content) % 4)
    return data


@pytest.fixture
def built(tmp_path, monkeypatch):
    """The same image twice, with other files: format -> two artifacts."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    monkeypatch.chdir(tmp_path)
    for folder, words in (("one", ("hello", "old", "same")), ("other", ("welcome", "new", "motd"))):
        Path(folder).mkdir()
        Path(folder, "toy.py").write_text(DEFINITION % words)
        assert cli.main(["lock", f"{folder}/toy.py"]) == 0
        assert cli.main(["build", f"{folder}/toy.py", "--arch", "x86_64", "-o", folder]) == 0
    paths = [sorted(Path(folder).glob("*.manifest.json")) for folder in ("one", "other")]
    return {one.name.split(".")[1]: (artifact.load(one), artifact.load(two)) for one, two in zip(*paths, strict=True)}


def test_files_are_compared_whatever_they_are_wrapped_in(built):
    for format in ("tar", "oci", "docker"):
        found = changes.between(*built[format])
        files = {change.name: change for change in found.files if change.name.startswith("/etc/")}
        assert sorted(files) == ["/etc/link", "/etc/motd", "/etc/new", "/etc/old"], format
        assert (files["/etc/new"].how, files["/etc/new"].after) == ("added", "2.0 KiB")
        assert (files["/etc/old"].how, files["/etc/old"].before) == ("removed", "2.0 KiB")
        assert (files["/etc/motd"].before, files["/etc/motd"].after) == ("size 5", "size 7")
        assert (files["/etc/link"].before, files["/etc/link"].after) == ("linkname 'same'", "linkname 'motd'")
        assert [change.how for change in found.sizes] == ["changed"]
        assert found.bytes
        assert not found.same
        assert changes.between(built[format][0], built[format][0]).same


def test_an_initrd_is_read_through_its_frames(tmp_path):
    pack = zstandard.ZstdCompressor().compress
    one = pack(cpio(etc_a=b"1", etc_same=b"s")) + bytes(8) + pack(cpio(bin_x=b"sh"))
    other = pack(cpio(etc_a=b"22", etc_same=b"s")) + pack(cpio(bin_x=b"#!sh"))
    found = changes.between(laid(tmp_path / "a", {"initrd": one}), laid(tmp_path / "b", {"initrd": other}))
    assert list(map(str, found.files)) == [
        "  /bin/x  mode 100644, size 2 -> mode 100755, size 4", "  /etc/a  size 1 -> size 2"
    ]  # fmt: skip
    assert found.unread == ()


def test_what_cannot_be_read_is_told(tmp_path):
    one, other = (laid(tmp_path / n, {"root": b"hsqs" + n.encode() * 100}) for n in "ab")
    found = changes.between(one, other)
    assert found.unread == ("squashfs",)
    assert "files in squashfs were not compared" in list(found.lines())
    assert changes.between(one, one).lines() is not None
    assert list(changes.between(one, one).lines()) == []


PACKAGES = [  # rows before, rows after, what is told
    ([row("a", "1")], [row("a", "1")], []),
    ([row("a", "1.9")], [row("a", "1.10")], ["  a  1.9 -> 1.10  (newer)"]),
    ([row("a", "1:1")], [row("a", "2")], ["  a  1:1 -> 2  (older)"]),
    ([row("a", "1")], [row("a", "1~rc1")], ["  a  1 -> 1~rc1  (older)"]),
    ([row("a", "1")], [row("a", "1+b1")], ["  a  1 -> 1+b1  (newer)"]),
    ([row("a", "1")], [row("a", "x:y")], ["  a  1 -> x:y"]),
    ([row("a", "1.9", source="wheel")], [row("a", "1.10", source="wheel")], ["  wheel:a  1.9 -> 1.10"]),
    ([row("a", "1")], [row("b", "2")], ["- a  1", "+ b  2"]),
    ([row("a", "1")], [row("a", "1", source="wheel")], ["- a  1", "+ wheel:a  1"]),
    ([row("a", "1", digit="b")], [row("a", "1")], ["  a  1 sha256 bbbbbbbbbbbb -> sha256 aaaaaaaaaaaa"]),
    ([row("a", "1"), row("a", "1")], [row("a", "1")], []),
    ([row("a", "1"), row("a", "2")], [row("a", "2")], ["  a  1, 2 -> 2"]),
]


@pytest.mark.parametrize(("before", "after", "told"), PACKAGES, ids=range(len(PACKAGES)))
def test_packages_in_debians_order(tmp_path, before, after, told):
    one = laid(tmp_path / "a", {"disk": b"1"}, packages=before)
    other = laid(tmp_path / "b", {"disk": b"1"}, packages=after)
    found = changes.between(one, other)
    assert list(map(str, found.packages)) == told
    assert found.same is (not told and before == after)


def test_manifests_that_differ_alone_and_parts_that_one_has_are_told(tmp_path):
    one = laid(tmp_path / "a", {"disk": b"1"})
    other = laid(tmp_path / "b", {"disk": b"1", "kernel": b"k"})
    found = changes.between(one, other)
    assert list(map(str, found.sizes)) == ["+ kernel  1 bytes"]
    assert found.bytes == ("manifest: parts[1].file is only in the other",)
    plain = json.loads(json.dumps(found.json()))
    assert plain["same"] is False
    assert plain["sizes"] == [{"name": "kernel", "how": "added", "before": "", "after": "1 bytes"}]


def test_names_cannot_steer_a_terminal(tmp_path):
    one, other = (laid(tmp_path / n, {"initrd": cpio(**{f"etc_{n}\x1b[2J": b"1"})}) for n in "ab")
    told = "\n".join(changes.between(one, other).lines())
    assert "\x1b" not in told
    assert r"/etc/a\x1b[2J" in told
