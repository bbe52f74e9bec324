"""What `imagekit unit systemd` writes, in a machine with Debian's systemd: verified, started, asked."""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import signed_rig

from imagekit import build, bundle, cli, definition, key, plugs, signing
from imagekit.guest import Guest, Rig
from imagekit.image import File, Symlink, Text
from imagekit.stores.directory import open_store
from imagekit.unit import Program, Volume, Wishes
from imagekit.units import systemd

HOME = Path(__file__).parent.parent
MACHINE = HOME / "fixtures/units/guest.py"
KEY = HOME / "fixtures/keys/test.key"
SIGNER = key.read(KEY)
UNITS = "/etc/systemd/system"
HOSTILE = [
    *("", " ", "a b", "'", '"', "\\", "\\\\x41", "a\\", "$HOME", "${HOME}", "$$", "%n", "%%", "%", ";", "\\;", "#"),
    *("\n", "a\nExecStart=/bin/false", "\t", "\x01\x7f", "\x85\u2028", "é", "\udcff", "-", "@x", "*", "`id`"),
]  # fmt: skip
RECORDER = """#!/bin/sh
printf '%s\\0' "$@" >$CACHE_DIRECTORY/words
cat "$3" >$CACHE_DIRECTORY/draft
mv $CACHE_DIRECTORY/draft $CACHE_DIRECTORY/key # whole when it is there: a test waits for it
exec /usr/bin/busybox sleep 100000
"""


def answering(folder: Path) -> bytes:
    """The program that answers on a socket that it is handed."""
    if find_spec("ziglang") is None and not os.environ.get("CI"):
        pytest.skip("a C compiler is needed: pip install 'imagekit[dev]'")
    made = folder / "answer"
    zig = [sys.executable, "-m", "ziglang", "cc", "-target", "x86_64-linux-musl", "-static", "-Os", "-s"]
    same = ["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"]  # as what is shipped: the C library is made once
    subprocess.run([*zig, *same, "-o", made, HOME / "fixtures/units/answer.c"], check=True)
    return made.read_bytes()


def bundled(folder: Path) -> Path:
    """A bundle of an image that holds that program."""
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, data in (("app", answering(folder)), ("only-in-the-image", b"")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    about = signing.About("web", "1", "x86_64", ("/app", "from the image"))
    image = signed_rig.signed(folder, whole.getvalue(), about=about)
    bundle.bundle(image, folder / "bundle", keys=[SIGNER])
    return folder / "bundle"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """It runs web.service and other.service by sockets, and words.service."""
    folder = tmp_path_factory.mktemp("units")
    wanted = ["--listen", "127.0.0.1:80", "--unprivileged", "--memory", "32M", "--cpus", "1.5", "--pids", "9", "--key"]
    asked = ["unit", "systemd", str(bundled(folder)), "--at", "/srv/the app", "-o", str(folder), *wanted, str(KEY)]
    assert cli.main(asked) == 0
    other = Program("other", "web 1", "x86_64", "/srv/the app", True, "0" * 64, ("/app", "a b", "$x %n"))
    words = Program("words", "words 1", "x86_64", "/srv/words.tar.gz", False, "0" * 64, ("/x", *HOSTILE), {"A": "b $c"})
    wishes = Wishes(key=SIGNER.public_text(), imagekit="/srv/a recorder", volumes=(Volume("/srv", "/data", False),))
    texts = {
        **systemd.write([words], wishes),
        **systemd.write([other], Wishes(listen=("127.0.0.1:81",))),
        **{name: (folder / name).read_text() for name in ("web.service", "web.socket")},
    }
    image = definition.load(MACHINE)
    files = {
        **image.files,
        **{f"{UNITS}/{name}": Text(text) for name, text in texts.items()},
        **{f"{UNITS}/sockets.target.wants/{name}.socket": Symlink(f"../{name}.socket") for name in ("web", "other")},
        f"{UNITS}/default.target.wants/words.service": Symlink("../words.service"),
        "/srv/the app": File("bundle", mode=0o755),
        "/srv/a recorder": Text(RECORDER, mode=0o755),
    }
    plug, store = plugs.load("targets", "qemu_x86_64"), open_store()
    made = build.artifact(replace(image, files=files), folder=folder, lock=build.read_lock(MACHINE), arch="x86_64",
                          format="kernel_initrd", key=SIGNER, store=store)  # fmt: skip
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"))
    with made.opened(SIGNER) as opened, plug.start(opened, rig=rig, store=store) as guest:
        yield guest
        guest.power.cut()  # it is of no use any more, and ends in no other way that early boot knows


def test_systemd_finds_nothing_to_say_of_them(machine: Guest) -> None:
    names = [f"{UNITS}/{name}" for name in ("web.service", "web.socket", "words.service", "other.service")]
    done = machine.run(["/usr/bin/systemd-analyze", "verify", *names])
    assert (done.code, done.stdout, done.stderr) == (0, b"", b"")


def test_every_word_arrives_as_it_was(machine: Guest) -> None:
    machine.expect("file:/var/cache/imagekit/key")
    said = machine.read("/var/cache/imagekit/words").split(b"\0")[:-1]
    assert said[:3] == [b"run", b"--trust", b"/run/credentials/words.service/image.pub"]
    assert said[3:8] == [b"-e", b"A=b $c", b"-v", b"/srv:/data", b"/srv/words.tar.gz"]
    assert said[8:] == [b"--", b"/x", *(word.encode("utf-8", "surrogateescape") for word in HOSTILE)]
    assert machine.read("/var/cache/imagekit/key") == SIGNER.public_text().encode()


def shown(machine: Guest, property: str, name: str = "web") -> str:
    """A property of a service."""
    return machine.run(f"systemctl show --value -p {property} {name}.service").check().text


def answer(machine: Guest, port: int = 80) -> str:
    return machine.run(f"wget -q -O - http://127.0.0.1:{port}/").check().text


def test_the_socket_starts_the_bundle_whose_program_is_the_process_of_the_unit(machine: Guest) -> None:
    assert shown(machine, "ActiveState") == "inactive"
    said, pid = answer(machine), shown(machine, "MainPID")
    assert said == f"pid {pid} for {pid} as 0: [from the image]\nroot of the image"
    user = int(machine.run(["stat", "-c", "%u", f"/proc/{pid}"]).text)
    assert 61184 <= user <= 65519  # DynamicUser= (systemd.exec(5)), who is root in its user namespace alone
    limits = [shown(machine, name) for name in ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec")]
    assert limits == ["33554432", "9", "1.500000s"]


def test_root_starts_another_program_of_the_bundle(machine: Guest) -> None:
    said, pid = answer(machine, port=81), shown(machine, "MainPID", "other")
    assert said == f"pid {pid} for {pid} as 0: [a b] [$x %n]\nroot of the image"
    assert machine.run(["stat", "-c", "%u", f"/proc/{pid}"]).text == "0"


def test_a_program_that_was_killed_is_started_again_and_one_that_is_stopped_is_not(machine: Guest) -> None:
    answer(machine)
    pid = shown(machine, "MainPID")
    machine.run(["kill", "-KILL", pid]).check()
    machine.expect("command:[ $(systemctl show --value -p NRestarts web.service) = 1 ]")
    assert f"pid {pid} " not in answer(machine)
    machine.run("systemctl stop web.socket web.service").check()
    assert [shown(machine, name) for name in ("ActiveState", "MainPID")] == ["inactive", "0"]
