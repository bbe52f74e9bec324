"""A bundle for another architecture, made here, in a machine of that architecture, whose root is an initramfs."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_rig import about, make
from signed_rig import KEY

from imagekit import build, definition, plugs
from imagekit.disk import tar
from imagekit.guest import Guest, Rig
from imagekit.image import File
from imagekit.stores.directory import open_store
from imagekit.tree import Entry, Tree, file

HOME = Path(__file__).parent.parent
MACHINE = HOME / "images/shell.py"
ARCH = "aarch64"
APPLETS = ("cat", "id", "ls", "sh", "sleep", "uname")
LINE = 'cat /etc/hello; uname -m; echo $$; id -u; ls /root 2>&1; exit "$0"'


def payload(busybox: bytes) -> bytes:
    links = {f"/bin/{name}": Entry("symlink", 0o777, target="busybox") for name in APPLETS}
    files = {"/bin/busybox": file(busybox, mode=0o755), "/etc/hello": file(b"from the image\n")}
    return b"".join(tar.chunks(Tree({**links, **files}).complete().items())) + tar.END


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    folder, store = tmp_path_factory.mktemp("guest"), open_store()
    image, lock = definition.load(MACHINE), build.read_lock(MACHINE)
    tree = build.tree(image, folder=MACHINE.parent, lock=lock, arch=ARCH, store=store)
    make(folder, about("/bin/sh", "-c", LINE, arch=ARCH), payload=payload(tree.read("/usr/bin/busybox")))
    image = replace(image, files={**image.files, "/srv/app": File("app", mode=0o755)})
    made = build.artifact(image, folder=folder, lock=lock, arch=ARCH, format="kernel_initrd", key=KEY, store=store)
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"))
    plug = plugs.load("targets", f"qemu_{ARCH}")
    with made.opened(KEY) as opened, plug.start(opened, rig=rig, store=store) as guest:
        yield guest


USERS = {
    "root": [],
    "another": ["/usr/bin/busybox", "start-stop-daemon", "-S", "-c", "65534:65534", "-x", "/srv/app", "--"],
}


@pytest.mark.parametrize("user", USERS)
def test_it_runs_there(machine: Guest, user: str) -> None:
    for cache in ("", "/tmp/of-" + user):
        env = {"IMAGEKIT_CACHE": cache, "IMAGEKIT_EXPLAIN": "1"}
        done = machine.run([*(USERS[user] or ["/srv/app"]), "42"], env=env)
        told = done.text.splitlines()
        assert (done.code, told[:2], told[3]) == (42, ["from the image", ARCH], "0"), (user, done.stdout, done.stderr)
        assert told[4] == "ls: /root: No such file or directory"


def test_it_verifies_itself_there_and_refuses_a_changed_file(machine: Guest) -> None:
    assert machine.run(["/srv/app", "--bundle-verify"]).check().text.startswith("verified: ")
    assert machine.run(["/srv/app", "--bundle-extract", "/tmp/new"]).check().code == 0
    assert machine.read("/tmp/new/etc/hello") == b"from the image\n"
    change = "cp /srv/app /tmp/evil; echo evil | dd of=/tmp/evil bs=1 seek=400000 conv=notrunc; exec /tmp/evil 0"
    done = machine.run(["/bin/sh", "-c", change], env={"IMAGEKIT_CACHE": ""})
    assert (done.code, done.stdout) == (125, b""), done.stderr
    assert b"damaged or was changed" in done.stderr
