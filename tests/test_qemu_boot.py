"""Real boots in QEMU, on both architectures: what a fake QEMU cannot show."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagekit import build, definition, key, plugs
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.image import Image, Service, Static, Step, Text
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_start

HOME = Path(__file__).parent.parent
SHELL = HOME / "images/shell.py"
KEY = HOME / "fixtures/keys/test.key"
__all__ = ["_qemu_start", "boot", "image"]  # what the script below uses
RAM = 256  # MiB
HTTPD = Service("httpd", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/index.html")


def image(**fields: Any) -> Image:
    """The example `shell` with other fields, so that its lock fits."""
    return replace(definition.load(SHELL), name="bench", **fields)


def boot(made: Image, arch: str, **options: Any) -> Guest:
    """What is not in the cache is fetched."""
    store, signer = open_store(), key.read(KEY)
    artifact = build.artifact(made, folder=SHELL.parent, lock=build.read_lock(SHELL), arch=arch,
                              format="kernel_initrd", key=signer, store=store)  # fmt: skip
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), memory=RAM, **options)
    with artifact.opened(signer) as opened:
        return plugs.load("targets", f"qemu_{arch}").start(opened, rig=rig, store=store)


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    files = {"/srv/index.html": Text("hello\n")}
    with boot(image(network="dhcp", services=(HTTPD,), files=files), request.param) as started:
        yield started


def test_it_is_ready_by_its_own_clock_and_tells_the_way_there(guest: Guest) -> None:
    stages = [words for _, words in guest.facts["stages"]]
    assert stages[0] == "early"
    assert stages[-1] == "ready"
    assert {"modules", "service start httpd", "service ready httpd"} <= set(stages)
    uptime = float(guest.run("cat /proc/uptime").text.split()[0])
    assert 0 < guest.facts["services"]["httpd"] <= guest.facts["boot_seconds"] <= uptime
    assert guest.facts["accelerator_why"]


def test_commands_run_in_the_guest(guest: Guest) -> None:
    assert guest.run("uname -m").text == guest.arch
    finished = guest.run(["/bin/sh", "-c", "cat; echo $A >&2; exit 3"], input=b"\0\xff\n" * 3000, env={"A": "b c"})
    assert (finished.code, finished.stdout, finished.stderr) == (3, b"\0\xff\n" * 3000, b"b c\n")
    assert guest.run(["/bin/sh", "-c", "kill -9 $$"]).code == 137
    assert guest.run("/no/such/program").code == 127
    with pytest.raises(GuestProblem, match=r"sleep did not end within 0\.5 s and was killed"):
        guest.run("sleep 1000", timeout=0.5)


def test_the_guest_answers_on_its_port_and_reaches_nobody(guest: Guest) -> None:
    assert guest.http.get("/index.html").text == "hello\n"
    with pytest.raises(GuestProblem, match=r"nobody listens on port 81 of the guest \(open ports: 80\)"):
        guest.tcp(81)
    with socket.create_server(("127.0.0.1", 0)) as ours:
        ours.settimeout(0.1)
        port = ours.getsockname()[1]
        assert guest.run(f"timeout 2 nc 10.0.2.2 {port}").code != 0
        with pytest.raises(TimeoutError):
            ours.accept()


def test_the_machine_stays_small(guest: Guest) -> None:
    rollup = Path(f"/proc/{guest.facts['pid']}/smaps_rollup").read_text().split()
    assert int(rollup[rollup.index("Pss:") + 1]) * 1024 < 300e6


def test_nothing_of_the_agent_is_in_the_image(guest: Guest) -> None:
    assert guest.run("ls -a /").stdout.decode().split().count(".imagekit") == 0


BAD: list[tuple[str, Callable[[], Image], dict[str, Any], str]] = [
    ("panic", image, {"channel": False, "cmdline": "rdinit=/none root=/none"}, r"the guest panicked \(Kernel panic"),
    ("step", lambda: image(onboot=(Step("fetch", ("/bin/sh", "-c", "echo no such host; exit 7")),)), {},
     r"the onboot step \S*fetch failed with 7\n(.*\n)*guest\| .*no such host"),
]  # fmt: skip


@pytest.mark.parametrize(("made", "options", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_a_boot_that_fails(made: Callable[[], Image], options: dict[str, Any], words: str) -> None:
    with pytest.raises(GuestProblem, match=words):
        boot(made(), "x86_64", **options)


def test_a_fixed_address_is_reached_and_a_clean_stop_is_one() -> None:
    address = Static("192.0.2.77/24", gateway="192.0.2.1")
    files, flush = {"/srv/index.html": Text("hello\n")}, Step("flush", "/bin/true")
    guest = boot(image(network=address, services=(HTTPD,), files=files, onshutdown=(flush,)), "aarch64")
    assert guest.http.get("/index.html").text == "hello\n"
    guest.stop()
    assert guest.facts["stopped"] == "the guest powered off"
    assert {"shutdown", "onshutdown done flush"} <= {words for _, words in guest.facts["shutdown"]}
    assert not Path(f"/proc/{guest.facts['pid']}").exists()
    with pytest.raises(GuestProblem, match="powered off"):
        guest.run("true")


def test_without_a_channel_the_artifact_boots_as_it_is() -> None:
    with boot(image(), "aarch64", channel=False) as guest:
        assert guest.facts["stages"][-1] == (guest.facts["boot_seconds"], "ready")
        assert "imagekit." not in guest.facts["cmdline"]
        assert "rdinit" not in guest.facts["cmdline"]
    assert guest.facts["stopped"] == "the guest was stopped"


KILLED = """
import sys, time
sys.path.insert(0, {tests!r})
import test_qemu_boot as t
start = t._qemu_start.boot
t._qemu_start.boot = lambda *a, **k: print((s := start(*a, **k)).pid, flush=True) or s
t.boot(t.image(), "x86_64")
"""


def test_kill_9_leaves_no_qemu() -> None:
    """The real one, out of the tools tree where that is used: entering it must not undo what makes it die with us."""
    script = KILLED.format(tests=str(Path(__file__).parent))
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout
    with process, process.stdout:
        pid = int(process.stdout.readline())
        process.kill()
    while lives(pid):  # a hang is the failure
        time.sleep(0.01)


def lives(pid: int) -> bool:
    """Whether it runs: process 1 of a container takes its time to bury the dead."""
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
