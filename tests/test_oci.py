"""Container images, read by skopeo and umoci and by our own reader; and how a container of one starts."""

import io
import json
import os
import stat
import tarfile
from pathlib import Path

import pytest
from test_disk import TREE

from imagekit import early, host, plugs, toolbox
from imagekit.artifact import Job
from imagekit.disk import layers, rootfs, tar
from imagekit.errors import Problem
from imagekit.image import Image, Service
from imagekit.stores.directory import open_store
from imagekit.tree import Tree, directory, file, symlink

OWNED = {"/opt/a": "alpha", "/opt/deep/er/b": "beta", "/usr/bin/sh": "image"}
FOLDERS = {"/opt": directory(0o711), "/opt/deep": directory(0o700, uid=3), "/boot": directory(0o700)}
ROOT = TREE.override(Tree({path: file(owner.encode(), owner=owner) for path, owner in OWNED.items()} | FOLDERS))
ROOT = ROOT.override(Tree({"/bin/sh": symlink("/usr/bin/sh")})).complete()
WHOLE = ROOT.override(Tree({"/boot/kernel": file(b"kernel"), "/boot/stub": file(b"stub")}))
FORMATS = ("docker", "oci")


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path / "cache")


def written(tree, store, format, *, arch="x86_64", name="toy", version="1"):
    return plugs.load("formats", format).write(tree, job=Job(name, version, arch, store))["root"]


def archived(tree, store, format, **job):
    with tarfile.open(fileobj=io.BytesIO(store.read(written(tree, store, format, **job).sha256)), mode="r:") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


def configuration(tree, store, **job):
    files = archived(tree, store, "docker", **job)
    return json.loads(files[json.loads(files["manifest.json"])[0]["Config"]])


def tool(tools, name, *words, cwd):
    return host.run(tools.argv(name, *map(str, words)), env={**os.environ, **tools.env}, cwd=cwd, timeout=120).stdout


@pytest.mark.parametrize("format", FORMATS)
def test_our_own_reader_finds_the_tree_without_its_kernel(format, store):
    part = written(WHOLE, store, format)
    with open(store.path(part.sha256), "rb") as archive:
        found = dict(rootfs.members(archive.fileno()))
    assert found.keys() == ROOT.keys()
    for path, entry in ROOT.items():
        if entry.kind != "hardlink":
            plain = found[path]._replace(sha256=entry.sha256)
            assert plain.identity == entry.identity, path
            assert plain.content == (entry.read() if entry.kind == "file" else b"")


@pytest.mark.parametrize("format", FORMATS)
def test_every_layer_has_the_folders_above_its_files(format, store):
    for layer in written(WHOLE, store, format).facts["layers"]:
        with tarfile.open(fileobj=io.BytesIO(store.read(layer["sha256"])), mode="r:gz") as archive:
            seen = {"": True}
            for member in archive:
                path = f"/{member.name}"
                assert path.rpartition("/")[0] in seen, f"{layer['owner']}: {path}"
                seen[path] = True
                assert not member.isdir() or member.mode == ROOT[path].mode


def test_both_formats_have_the_same_layers(store):
    one, other = (written(WHOLE, store, format).facts["layers"] for format in FORMATS)
    assert one == other
    assert [layer["owner"] for layer in one] == ["folders", "", "alpha", "beta", "image"]


def test_skopeo_reads_both_and_umoci_unpacks_the_tree(store, tmp_path):
    tools = toolbox.tools("skopeo", "umoci", store=open_store())
    for format in FORMATS:
        kept = store.path(written(WHOLE, store, format, arch="aarch64").sha256)
        source = {"oci": f"oci-archive:{kept}", "docker": f"docker-archive:{kept}"}[format]
        told = json.loads(tool(tools, "skopeo", "inspect", source, cwd=tmp_path))
        assert (told["Architecture"], told["Os"], len(told["Layers"])) == ("arm64", "linux", 5)
        assert told["Created"] == "1970-01-01T00:00:00Z"
        words = ("--insecure-policy", f"--tmpdir={tmp_path}", "copy", "--quiet")
        tool(tools, "skopeo", *words, source, f"oci:{tmp_path}/{format}:1", cwd=tmp_path)
        tool(tools, "umoci", "unpack", "--rootless", f"--image={format}:1", f"{format}-bundle", cwd=tmp_path)
        differing = dict(compared(ROOT, tmp_path / f"{format}-bundle" / "rootfs"))
        assert not differing


def compared(tree, root):
    """What an unpacked folder has otherwise than the tree; devices are not made without root."""
    for path in {f"/{path.relative_to(root)}" for path in root.rglob("*")} - tree.keys():
        yield path, "not in the tree"
    for path, entry in tree.items():
        target = Path(f"{root}{path}")
        found = target.lstat()
        if entry.kind == "symlink":
            if str(target.readlink()) != entry.target:
                yield path, str(target.readlink())
        elif entry.kind == "hardlink":
            if not target.samefile(f"{root}{entry.target}"):
                yield path, "bytes of its own"
        elif entry.kind in ("file", "dir", "fifo") and stat.S_IMODE(found.st_mode) != entry.mode:
            yield path, oct(found.st_mode)
        elif entry.kind == "file" and target.read_bytes() != entry.read():
            yield path, "other bytes"


ONE = Service("web", ("/usr/bin/web", "-D", "a\\n\nb", "--"), user="www", env={"A": "1 2"}, ready="http:80/")
TWO = Service("other", "/usr/bin/other")
STARTS = (
    ((ONE,), {"Cmd": ["/usr/bin/web", "-D", "a\\n\nb", "--"], "User": "www", "ExposedPorts": {"80/tcp": {}}}),
    ((TWO,), {"Cmd": ["/usr/bin/other"], "User": None, "ExposedPorts": None}),
    ((ONE, TWO), {"Cmd": ["/bin/sh"], "User": None, "ExposedPorts": None}),
    ((), {"Cmd": ["/bin/sh"]}),
)


@pytest.mark.parametrize(("services", "expected"), STARTS)
def test_a_container_runs_the_only_service(services, expected, store):
    tree = WHOLE.override(early.tree(Image("toy", services=services), "x86_64", modules=()))
    found = configuration(tree, store)["config"]
    assert {name: found.get(name) for name in expected} == expected
    assert found["Env"][0].startswith("PATH=")
    assert found["Env"][1:] == (["A=1 2"] if services == (ONE,) else [])


def test_without_shell_and_service_nothing_is_run(store):
    assert "Cmd" not in configuration(ROOT.without(["/bin", "/usr"]), store)["config"]


@pytest.mark.parametrize(
    ("arch", "expected"),
    [("x86_64", {"architecture": "amd64"}), ("aarch64", {"architecture": "arm64", "variant": "v8"})],
)
def test_the_platform_has_gos_names(arch, expected, store):
    config = configuration(ROOT, store, arch=arch)
    assert {"os": "linux", **expected}.items() <= config.items()
    index = json.loads(archived(ROOT, store, "oci", arch=arch)["index.json"])
    assert index["manifests"][0]["platform"] == {"os": "linux", **expected}


def test_the_smallest_of_many_owners_share_a_layer(store):
    many = {f"/opt/{n}": file(bytes(n), owner=f"p{n:03}") for n in range(layers.MOST + 50)}
    one = layers.layers(Tree({**ROOT, **many}), store=store)
    assert len(one) == layers.MOST
    assert [layer.owner for layer in one][-2:] == ["others", "image"]
    assert "p149" in {layer.owner for layer in one}
    assert "p020" not in {layer.owner for layer in one}
    other = layers.layers(Tree(list({**ROOT, **many}.items())[::-1]), store=store)
    assert one == other


REFUSED = (
    ({"name": "c++"}, {}, "cannot have this name"),
    ({}, {"/etc/.wh.passwd": file(b"")}, r"/etc/.wh.passwd: a name that begins with .wh. removes another"),
    ({}, {"/.wh..wh..opq/x": file(b"")}, "removes another"),
)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("job", "entries", "words"), REFUSED)
def test_what_no_container_image_can_hold_is_refused(format, job, entries, words, store):
    with pytest.raises(Problem, match=words):
        written(ROOT.override(Tree(entries)), store, format, **job)


def packed(**members):
    files = [(f"/{name.replace('_', '.')}", file(data)) for name, data in members.items()]
    return b"".join(tar.chunks(files)) + tar.END


HOSTILE = (
    (b"", "cut short"),
    (b"\x1f\x8b\x08", "cut short"),
    (packed(), "no container image of ours"),
    (packed(manifest_json=b"[]"), "no container image of ours: IndexError"),
    (packed(manifest_json=b"{"), "no container image of ours: JSONDecodeError"),
    (packed(manifest_json=b'[{"Layers": ["gone"]}]'), "KeyError: '/gone'"),
    (packed(index_json=b'{"manifests": [{"digest": 1}]}'), "no container image of ours: AttributeError"),
    (packed(index_json=b"[" * 99999), "RecursionError"),
)


@pytest.mark.parametrize(("data", "words"), HOSTILE)
def test_what_is_no_image_is_told(data, words, tmp_path):
    (tmp_path / "image").write_bytes(data)
    with open(tmp_path / "image", "rb") as archive, pytest.raises(Problem, match=words):
        list(rootfs.members(archive.fileno()))
