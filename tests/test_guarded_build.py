"""From the definition of a protected image to its artifact, as it is typed: keys, what is refused, and built again."""

import shutil
from pathlib import Path

import pytest
from debian_archive import Item, archive, folders
from test_guarded import KEYS, LOADER, STUB
from test_kmod import module
from toy_program import program

from imagekit import artifact, cli, toolbox
from imagekit.disk import pe
from imagekit.stores.directory import open_store

DEFINITION = """
from imagekit import Image, Layout, Seal, SecureBoot, Verity
image = Image(
    name="vault", kernel="debian:linux-image-cloud", arches=("x86_64",), formats=("raw_efi", "update"),
    disk=Layout(root="squashfs", verity=Verity(), secure_boot=SecureBoot(), seal=Seal(), slots=2),
)
"""
VERSION = "6.1.0-1-cloud-amd64"
MODULES = f"./usr/lib/modules/{VERSION}/kernel"
NAMES = ("virtio_pci", "virtio_blk", "virtio_net", "squashfs", "overlay", "ext4", "dm_mod", "dm_verity", "dm_crypt",
         "xts", "tpm_crb")  # fmt: skip
KERNEL = pe.uki(program(text=b"a kernel" * 9999), {".osrel": b"without a signature"})


def fill(debian, *, without=()):
    """A kernel with what protection takes, and the programs for UEFI, as small as they can be."""
    items = [Item(f"{MODULES}/{name}.ko", module()) for name in NAMES if name not in without]
    items.append(Item(f"./boot/vmlinuz-{VERSION}", KERNEL))
    parents = folders("boot", "usr", "usr/lib", "usr/lib/modules", MODULES[2:].rpartition("/")[0], MODULES[2:])
    debian.add(f"linux-image-{VERSION}", [*parents, *items], architecture="amd64")
    debian.add("linux-image-cloud-amd64", folders(), architecture="amd64", fields={"Depends": f"linux-image-{VERSION}"})
    efi = "usr/lib/systemd/boot/efi"
    programs = [Item(f"./{efi}/linuxx64.efi.stub", STUB), Item(f"./{efi}/systemd-bootx64.efi", LOADER)]
    debian.add(
        "systemd-boot-efi", [*folders("usr", "usr/lib", "usr/lib/systemd", "usr/lib/systemd/boot", efi), *programs]
    )
    for name, path in (
        ("busybox-static", "bin/busybox"),
        ("runit", "usr/sbin/runit"),
        ("libc6", "lib64/ld-linux-x86-64.so.2"),
    ):
        debian.add(name, [*folders(path.rpartition("/")[0]), Item(f"./{path}", b"\x7fELF" + name.encode(), mode=0o755)])
    debian.publish()


@pytest.fixture(scope="module")
def debian(tmp_path_factory):
    with archive(tmp_path_factory.mktemp("mirror")) as made:
        fill(made)
        yield made


@pytest.fixture(scope="module")
def lent_tools():
    """The folder of real tools, which the tiny archive has not."""
    store = open_store()
    toolbox.tools("tar2sqfs", "mke2fs", mode="tree", store=store)
    return store.folder("tools")


@pytest.fixture
def project(tmp_path, debian, lent_tools, monkeypatch):
    debian.use(monkeypatch)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/tools").symlink_to(lent_tools)
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS.folder.parent / "test.key"))
    monkeypatch.delenv("IMAGEKIT_BOOT_KEYS", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vault.py").write_text(DEFINITION)
    assert cli.main(["lock", "vault.py"]) == 0
    return tmp_path


def build(keys, out, *words):
    """The two artifacts."""
    assert cli.main(["build", "vault.py", "--boot-keys", str(keys), "-o", out, *words]) == 0
    return [artifact.load(path) for path in sorted(Path(out).glob("*.manifest.json"))]


@pytest.mark.usefixtures("project")
def test_without_boot_keys_it_is_told_how_to_make_some(capsys):
    assert cli.main(["build", "vault.py"]) == 1
    told = capsys.readouterr().err
    assert "no boot keys" in told
    assert "`imagekit boot-keys DIR` makes some" in told
    assert "Traceback" not in told


def test_other_boot_keys_make_another_artifact_and_the_same_the_same(project):
    others = project / "others"
    shutil.copytree(KEYS.folder, others)
    for suffix in (".key", ".crt"):
        shutil.copy(others / f"KEK{suffix}", others / f"db{suffix}")
    first, other = build(KEYS.folder, "out"), build(others, "other")
    assert [one.digest for one in build(KEYS.folder, "again")] == [one.digest for one in first]
    for one, two in zip(first, other, strict=True):
        assert one.digest != two.digest
    (part,) = first[0].manifest["parts"]
    assert {"verity", "seal", "generation", "secure_boot", "pcrs", "uki"} <= part.keys()


def test_it_is_built_again_without_any_private_key(project, capsys):
    public = project / "public"
    public.mkdir()
    for path in KEYS.files[1:]:
        shutil.copy(path, public)
    for made in build(KEYS.folder, "out"):
        rebuild = ["rebuild", str(made.path), "--definition", "vault.py", "--boot-keys", str(public)]
        assert cli.main(rebuild) == 0, capsys.readouterr()
        told = capsys.readouterr().out
        assert f"vault x86_64 {made.format}: built again, the same" in told
        assert "its own signatures were taken" in told


@pytest.mark.usefixtures("project")
def test_what_is_refused_is_refused_before_anything_is_fetched(capsys):
    Path("vault.py").write_text(DEFINITION.replace('("raw_efi", "update")', '("raw_efi", "raw_bios")'))
    for verb in ("lock", "build"):
        assert cli.main([verb, "vault.py"]) == 1
        told = capsys.readouterr().err
        assert "format raw_bios cannot honour verity=Verity(...): a BIOS checks nothing that it starts" in told
        assert "qcow2_efi, raw_efi, update can" in told


def test_a_kernel_that_cannot_protect_is_named(tmp_path, monkeypatch, capsys):
    with archive(tmp_path / "mirror") as made:
        fill(made, without=("dm_verity",))
        made.use(monkeypatch)
        monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS.folder.parent / "test.key"))
        monkeypatch.chdir(tmp_path)
        Path("vault.py").write_text(DEFINITION)
        assert cli.main(["lock", "vault.py"]) == 0
        assert cli.main(["build", "vault.py", "--boot-keys", str(KEYS.folder)]) == 1
    assert "has no module dm_verity, which verity= needs" in capsys.readouterr().err
