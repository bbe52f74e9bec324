"""`fresh`: machines that are restored from a template, and what happens when that cannot be."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fake_rig import FakeTools, opened
from test_qemu_boot import HTTPD, KEY, SHELL, boot, image, lives

from imagekit import build, inuse, key, plugs
from imagekit.guest import Guest, GuestProblem, Rig
from imagekit.image import Text
from imagekit.rig import Wire
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_start, _qemu_template

ARCHES = ("x86_64", "aarch64")
SERVES = {"network": "dhcp", "services": (HTTPD,), "files": {"/srv/index.html": Text("hello\n")}}
__all__ = ["KEY", "SERVES", "SHELL", "boot", "build", "image", "key", "plugs"]  # what the scripts below use


def templates(store: Store) -> list[Path]:
    return sorted((Path(store.location) / "templates").glob("*"))


def held(path: Path) -> bool:
    """Whether something in this process still has a file of that folder; the lock of a cache is had to the end."""
    files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    return any(str(path) in file and not file.endswith(f"/{inuse.NAME}") for file in files)


# --- a fake QEMU -----------------------------------------------------------------------------------------------------

Fresh = Callable[..., Guest]


class VersionedTools(FakeTools):
    """As toolbox.Tools, of a QEMU whose file and version can be told apart."""

    def __init__(self, scenario: str, version: str) -> None:
        super().__init__(scenario)
        self._version = version

    def version(self, _: str) -> str:
        return self._version

    def path(self, _: str) -> Path:
        return Path(sys.executable)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(tmp_path / "cache")


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: Store) -> Iterator[Fresh]:
    """Restore from the fake's template; what is started is stopped."""
    (tmp_path / "agent.x86_64").write_bytes(b"the agent")
    monkeypatch.setattr(_qemu_start, "INSIDE", tmp_path)
    started: list[Guest] = []

    def fresh(scenario: str = "good", *, version: str = "1", **options: object) -> Guest:
        monkeypatch.setattr(_qemu_start.toolbox, "tools", lambda *_, **__: VersionedTools(scenario, version))
        rig = Rig(accelerator="tcg", ready_timeout=20.0, memory=16, fresh=True, **options)  # type: ignore[arg-type]
        with opened() as artifact:
            guest = plugs.load("targets", "qemu_x86_64").start(artifact, rig=rig, store=store)
        started.append(guest)
        return guest

    yield fresh
    for guest in started:
        guest.stop()
    assert not held(Path(store.location))


def test_the_first_makes_the_template_and_all_go_on_from_it(fresh: Fresh, store: Store) -> None:
    first, second = fresh(), fresh()
    for guest in (first, second):
        assert guest.facts["fresh"] == "restored"
        assert guest.facts["boots"] == ["restored"]
        assert guest.facts["boot_seconds"] == 1.5
        assert guest.run("upper", input=b"x").stdout == b"X"
        assert guest.console.text.index("Linux version") < guest.console.text.index("imagekit: restored")
    assert len(templates(store)) == 1
    first.power.cut()
    first.power.on()
    first.wait_ready()
    assert first.facts["boots"] == ["restored", "power on"]
    assert first.run("sums").text.endswith("False")  # from the artifact's own kernel


def test_another_qemu_or_rig_is_another_template(fresh: Fresh, store: Store) -> None:
    fresh()
    for options in ({"version": "2"}, {"cmdline": "debug"}):
        assert fresh(**options).facts["fresh"] == "restored"
    assert len(templates(store)) == 3


IMPOSSIBLE = [
    ({"channel": False}, "booted: without a channel"),
    ({"wait": "nothing"}, "booted: it is waited for 'nothing'"),
    ({"wires": (Wire("52:54:00:00:00:01", socket.socket),)}, "booted: the other machines"),
]


@pytest.mark.parametrize(("options", "words"), IMPOSSIBLE)
def test_where_it_cannot_be_the_machine_boots_and_says_why(
    fresh: Fresh, store: Store, options: dict[str, object], words: str
) -> None:
    guest = fresh(**options)
    assert guest.facts["fresh"].startswith(words)
    assert guest.facts["boots"] == ["booted"]
    assert not templates(store)


def _cut(name: str, size: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, size)


def _garbage(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with open(folder / name, "r+b") as file:
            file.write(b"garbage")

    return write


DAMAGE = [
    (_cut("ram", 4096), "its memory was changed, or has 4096 bytes instead of 16777216"),
    (_garbage("ram"), "its memory was changed"),
    (_cut("state", 5), "its state has 5 bytes"),
    (_garbage("state"), "its state has other bytes"),
    (_garbage("template.json"), "is no JSON"),
    (lambda folder: (folder / "template.json").write_text("[]"), "makes no sense"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE, ids=[words for _, words in DAMAGE])
def test_a_damaged_template_is_told_and_removed(
    fresh: Fresh, store: Store, damage: Callable[[Path], None], words: str
) -> None:
    fresh().stop()
    damage(templates(store)[0])
    guest = fresh()
    assert guest.facts["fresh"].startswith("booted: the template was damaged and is removed: ")
    assert words in guest.facts["fresh"]
    assert not templates(store)
    assert fresh().facts["fresh"] == "restored"


def test_what_qemu_refuses_is_told_in_its_words(fresh: Fresh, store: Store) -> None:
    guest = fresh("refuses_states")
    assert "load of migration failed: Invalid argument" in guest.facts["fresh"]
    assert not templates(store)
    assert guest.run("upper", input=b"x").stdout == b"X"


def test_a_state_that_cannot_be_written_leaves_nothing(fresh: Fresh, store: Store) -> None:
    guest = fresh("cannot_save")
    assert guest.facts["fresh"] == "booted: QEMU cannot write the machine's state: No space left on device"
    assert not templates(store)


def test_an_image_that_does_not_boot_is_told_as_ever(fresh: Fresh, store: Store) -> None:
    with pytest.raises(GuestProblem, match="the onboot step 10-fetch failed with 7"):
        fresh("step_fails")
    assert not templates(store)


def test_a_full_disk_leaves_nothing(fresh: Fresh, store: Store) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8 << 20, hard))
    try:
        guest = fresh()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert guest.facts["fresh"].startswith("booted: cannot keep a template in ")
    assert not templates(store)


def test_there_are_never_too_many_and_one_in_use_stays(
    fresh: Fresh, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_qemu_template, "MOST", 3)
    kept = fresh(version="kept")
    (living,) = templates(store)
    for number in range(5):
        fresh(version=str(number)).stop()
    left = templates(store)
    assert len(left) == 3
    assert living in left
    kept.stop()
    for number in range(5):
        fresh(version=str(number)).stop()
    assert living not in templates(store)


def test_templates_of_an_earlier_boot_of_the_host_are_removed(fresh: Fresh, store: Store) -> None:
    fresh().stop()
    (old,) = templates(store)
    notes = old / "template.json"
    notes.write_text(notes.read_text().replace(_qemu_template._boot_id(), "an earlier one"))
    _qemu_template.sweep(store.folder("templates"))
    assert not templates(store)


# --- real machines ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHES)
def test_restored_machines_are_alike_alive_and_each_its_own(arch: str) -> None:
    made = image(**SERVES)
    tell = ["/bin/sh", "-c", "head -c 16 /dev/urandom | md5sum; date +%s"]
    told = []
    for _ in range(2):
        began = time.time()  # the clock is set after this and then runs no faster than ours, however slow the machine
        with boot(made, arch, fresh=True) as guest:
            assert guest.facts["fresh"] == "restored"
            random, now = guest.run(tell).text.splitlines()
            assert int(began) <= int(now) <= time.time() + 1
            assert guest.http.get("/index.html").text == "hello\n"
            guest.run(["/bin/sh", "-c", "echo it prints > /dev/console; echo 1 > /srv/index.html"]).check()
            assert "it prints" in guest.console.text
            assert guest.http.get("/index.html").text == "1\n"
            told.append(random)
        assert guest.facts["stopped"] == "the guest powered off"
    assert told[0] != told[1]


@pytest.mark.parametrize("arch", ARCHES)
def test_eight_at_once_each_run_a_command(arch: str) -> None:
    made = image(**SERVES)
    boot(made, arch, fresh=True).stop()
    with ThreadPoolExecutor(8) as pool:
        guests = list(pool.map(lambda _: boot(made, arch, fresh=True), range(8)))
        try:
            assert [guest.facts["fresh"] for guest in guests] == ["restored"] * 8
            names = list(pool.map(lambda guest: guest.run("uname -m").text, guests))
            assert names == [arch] * 8
        finally:
            list(pool.map(lambda guest: guest.stop(), guests))


RESTORE = """
import os, sys, time
sys.path.insert(0, {tests!r})
import test_qemu_template as t
from imagekit.stores.directory import open_store
t.boot.__globals__["open_store"] = lambda: t.of_its_own(open_store({cache!r}))
{first}
guest = t.boot(t.image(**t.SERVES), "aarch64", fresh=True, cmdline="printk.time=1")
print(guest.facts["fresh"], guest.run("uname -m").text, flush=True)
guest.stop()
"""


def of_its_own(own: Store) -> Store:
    """The shared cache, but with templates in a place of its own."""
    shared = open_store()

    def folder(name: str) -> Path:
        return (own if name in ("templates", "locks") else shared).folder(name)

    return replace(shared, location=own.location, folder=folder)


def script(store: Store, first: str = "") -> list[str]:
    text = RESTORE.format(tests=str(Path(__file__).parent), cache=store.location, first=first)
    return [sys.executable, "-c", text]


def test_two_processes_want_the_same_template(store: Store) -> None:
    runs = [subprocess.Popen(script(store), stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [run.communicate()[0] for run in runs] == ["restored aarch64\n"] * 2
    assert len(templates(store)) == 1


HANG = """
from imagekit.targets import _qemu_restore
async def hang(machine, *_, **__):
    print(machine.pid, flush=True)
    time.sleep(600)
_qemu_restore.save = hang
"""


def test_a_maker_that_is_killed_leaves_nothing_that_is_used(store: Store) -> None:
    with subprocess.Popen(script(store, HANG), stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout
        pid = int(maker.stdout.readline())
        maker.kill()
    while lives(pid):
        time.sleep(0.01)
    (left,) = templates(store)
    assert left.name.startswith("draft-")
    done = subprocess.run(script(store), stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "restored aarch64\n"
    (made,) = templates(store)
    assert not made.name.startswith("draft-")


@pytest.mark.parametrize("arch", ARCHES)
def test_a_real_qemu_refuses_a_state_of_another_machine(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it would that of another version: the key alone keeps them apart, and here it lies."""
    name = f"forged-{os.getpid()}"
    monkeypatch.setattr(_qemu_template, "key", lambda *_: name)
    folder = open_store().folder("templates") / name
    try:
        boot(image(network="none"), arch, fresh=True).stop()
        notes = folder / "template.json"
        _forge(folder)
        with boot(image(network="none"), arch, fresh=True) as guest:
            assert guest.facts["fresh"].startswith("booted: QEMU does not go on with the state: ")
            assert f"QEMU ended with 1: qemu-system-{arch}: " in guest.facts["fresh"]  # whatever it says there
        assert not notes.exists()
    finally:
        _qemu_template.remove(folder)


def _forge(folder: Path) -> None:
    """Another device in the state, and notes that say so is right."""
    state = (folder / "state").read_bytes()
    (folder / "state").write_bytes(state[: len(state) // 2])
    notes = json.loads((folder / "template.json").read_text())
    notes["state"] = [len(state) // 2, _qemu_template._digest(folder / "state")]
    (folder / "template.json").write_text(json.dumps(notes))


def test_a_small_disk_is_full_under_a_template(tmp_path: Path) -> None:
    if os.getuid():
        pytest.skip("mounting a small file system takes root")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(small)], check=True)
    try:
        store = open_store(small / "cache")
        signer = key.read(KEY)
        made = build.artifact(image(**SERVES), folder=SHELL.parent, lock=build.read_lock(SHELL), arch="aarch64",
                              format="kernel_initrd", key=signer, store=open_store())  # fmt: skip
        rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), fresh=True)
        with made.opened(signer) as artifact:
            target = plugs.load("targets", "qemu_aarch64")
            with target.start(artifact, rig=rig, store=of_its_own(store)) as guest:
                assert "No space left on device" in guest.facts["fresh"]
                assert guest.run("uname -m").text == "aarch64"
        assert not templates(store)
    finally:
        subprocess.run(["umount", "--lazy", str(small)], check=True)
