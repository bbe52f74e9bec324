"""Machines that are frozen into a folder, and guests that go on from there as they were."""

import json
import os
import shutil
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest
from fake_rig import Start
from test_qemu_boot import HTTPD, boot, image

from imagekit import plugs
from imagekit.errors import Problem
from imagekit.guest import Guest, Rig
from imagekit.image import Text
from imagekit.rig import Disk
from imagekit.stores.directory import open_store


def resume(folder: Path, arch: str) -> Guest:
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"))
    target = plugs.load("targets", f"qemu_{arch}")
    assert target.resume
    return target.resume(folder, rig=rig, store=open_store())


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.parametrize(("arch", "fresh"), [("x86_64", False), ("aarch64", True)])
def test_a_machine_goes_on_as_it_was_any_number_of_times(arch: str, fresh: bool, tmp_path: Path) -> None:
    source, folder = tmp_path / "source", tmp_path / "saved"
    source.write_bytes(b"from the source".ljust(1 << 20))
    made = image(network="dhcp", services=(HTTPD,), files={"/srv/index.html": Text("hello\n")}, modules=("virtio_blk",))
    disks = (Disk("blank", "64 MiB"), Disk("source", source=source))
    with boot(made, arch, disks=disks, fresh=fresh) as guest:
        guest.run(
            ["/bin/sh", "-c", "echo in memory > /srv/index.html; echo on disk | dd of=/dev/vda conv=fsync"]
        ).check()
        guest.save(folder)
        assert guest.http.get("/index.html").text == "in memory\n"  # it goes on
        guest.run(["/bin/sh", "-c", "echo later > /srv/index.html; echo later | dd of=/dev/vda conv=fsync"]).check()
        with pytest.raises(Problem, match="is there already"):
            guest.save(folder)
    before = digests(folder)
    for round_ in range(2):
        with resume(folder, arch) as guest:
            assert guest.facts["boots"] == ["resumed"]
            assert guest.http.get("/index.html").text == "in memory\n"
            assert guest.run("head -c 7 /dev/vda").text == "on disk"
            assert guest.run("head -c 15 /dev/vdb").text == "from the source"
            assert "imagekit: ready" in guest.console.text
            if round_ == 1:
                break
            guest.run(["/bin/sh", "-c", "echo changed | dd of=/dev/vda conv=fsync; rm /srv/index.html"]).check()
            guest.power.cut()
            guest.power.on()
            guest.wait_ready()
            assert guest.run("head -c 7 /dev/vda").text == "changed"
            assert guest.http.get("/index.html").text == "hello\n"
    assert digests(folder) == before


def test_a_machine_of_one_that_was_resumed(tmp_path: Path) -> None:
    with boot(image(), "aarch64") as guest:
        guest.run(["/bin/sh", "-c", "echo 1 > /root/here"]).check()
        guest.save(tmp_path / "first")
    with resume(tmp_path / "first", "aarch64") as guest:
        guest.run(["/bin/sh", "-c", "echo 2 >> /root/here"]).check()
        guest.save(tmp_path / "second")
    shutil.rmtree(tmp_path / "first")
    with resume(tmp_path / "second", "aarch64") as guest:
        assert guest.run("cat /root/here").text == "1\n2"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "machine"
    source = folder.parent / "source"
    source.write_bytes(bytes(1 << 20))
    with boot(image(modules=("virtio_blk",)), "aarch64", disks=(Disk("source", source=source),)) as guest:
        guest.save(folder)
    return folder


def _noted(**fields: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        notes = json.loads((folder / "saved.json").read_text())
        (folder / "saved.json").write_text(json.dumps(notes | fields))

    return change


def _short(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, 100)


DAMAGE = [
    (lambda folder: (folder / "saved.json").unlink(), "is no saved machine: there is no saved.json"),
    (lambda folder: (folder / "saved.json").write_text("{"), "is no saved machine: saved.json makes no sense"),
    (lambda folder: (folder / "saved.json").write_text("[]"), "is no saved machine: saved.json makes no sense"),
    (lambda folder: (folder / "kernel").unlink(), "there is no kernel"),
    (lambda folder: (folder / "source.0.disk").unlink(), "there is no source.0.disk"),
    (_short("state"), "is damaged: state has other bytes"),
    (_short("initrd"), "is damaged: initrd has other bytes"),
    (_noted(form=0), "was saved by another imagekit"),
    (_noted(qemu="7.2.22"), "was saved by QEMU 7.2.22, and this is "),
    (lambda folder: os.utime(folder.parent / "source", (1, 1)), "is not what it was when it was saved"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_what_cannot_go_on_is_told(saved: Path, tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    folder, source = tmp_path / "copy", saved.parent / "source"
    shutil.copytree(saved, folder)
    shutil.copy2(source, tmp_path / "source")
    times = source.stat()
    try:
        damage(saved.parent / "copy" if words.startswith("is not what") else folder)
        with pytest.raises(Problem) as caught:
            resume(folder, "aarch64")
        assert words in str(caught.value)
    finally:
        os.utime(source, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_machine_that_has_ended_cannot_be_saved(start: Start, tmp_path: Path) -> None:
    guest = start("good")
    guest.power.cut()
    with pytest.raises(Problem, match="the power was cut before it was saved"):
        guest.save(tmp_path / "saved")
    assert not list(tmp_path.glob("*saved*"))
