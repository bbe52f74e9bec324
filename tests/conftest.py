"""What tests of several files need."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import depot_rig
import fake_rig
import pytest
import toys
from xdist.scheduler import LoadFileScheduling

from imagekit import inuse, matrix, plugs, site
from imagekit.guest import Guest, Rig
from imagekit.store import Store
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_start

USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL, signal.SIGQUIT: signal.SIG_DFL}
for number, handler in USUAL.items():  # a job in a shell's background begins otherwise, and so do its children
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Plain -n gives a file to one worker, which makes its machines once and has its tests in their order.

    The files come in theirs, too: those at the end are short, so that no worker waits long for the other.
    """
    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Two workers must have one name for a test: bytes are often of a new key, or tell what time it is."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(autouse=True)
def nothing_is_held_of_a_tests_own_caches(request: pytest.FixtureRequest) -> Iterator[None]:
    """A process holds a lock of each cache that it ever opened, and here it opens one in most of thousands of tests."""
    own = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else None
    yield
    for mine, handle in list(inuse._HELD.items()):
        if own is not None and Path(mine[1]).is_relative_to(own):
            os.close(handle)
            del inuse._HELD[mine]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, that every verb uses."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def store(root: Path) -> Store:
    """The store in it."""
    return open_store(root)


@pytest.fixture
def depot(tmp_path: Path) -> depot_rig.Depot:
    """A depot with one image."""
    found = depot_rig.Depot(tmp_path)
    found.publish(depot_rig.made(tmp_path / "1"))
    return found


@pytest.fixture
def reader(depot: depot_rig.Depot, tmp_path: Path) -> Iterator[depot_rig.Reader]:
    """Somebody who trusts it, and reads it from a real server."""
    with depot_rig.served(depot.place) as address:
        yield depot_rig.Reader(site.at(address), tmp_path / "reader").trusts(depot.root)


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.Pytester]:
    """A folder with the toy image, and the kinds of fixtures/outside installed."""
    for name in [name for name in os.environ if name.startswith("IMAGEKIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("IMAGEKIT_CACHE", str(pytester.path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(toys.HERE / "fixtures/keys/test.key"))
    monkeypatch.setenv("OUTSIDE_LOG", str(pytester.path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(toys.OUTSIDE), prepend=os.pathsep)
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # what this run is told, the runs in it are not
        monkeypatch.delenv(name, raising=False)
    pytester.syspathinsert(toys.OUTSIDE)
    pytester.makeconftest(toys.CONFTEST)
    pytester.mkdir("images")
    toys.write(pytester, "images/toy.py", toys.TOY + toys.TESTS)
    for cached in (plugs._foreign, matrix._offered):
        cached.cache_clear()
    yield pytester
    for cached in (plugs._foreign, matrix._offered):
        cached.cache_clear()


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[fake_rig.Start]:
    """Start a scenario of the fake QEMU; what is started is stopped."""
    (tmp_path / "agent.x86_64").write_bytes(b"the agent")
    monkeypatch.setattr(_qemu_start, "INSIDE", tmp_path)
    started: list[Guest] = []

    def start(scenario: str, *, ready_timeout: float = 20.0, **options: Any) -> Guest:
        monkeypatch.setattr(_qemu_start.toolbox, "tools", lambda *_, **__: fake_rig.FakeTools(scenario))
        rig = Rig(accelerator="tcg", ready_timeout=ready_timeout, **options)
        with fake_rig.opened() as artifact:
            guest = plugs.load("targets", "qemu_x86_64").start(artifact, rig=rig, store=None)
        started.append(guest)
        return guest

    yield start
    for guest in started:
        guest.stop()
        assert not Path(f"/proc/{guest.facts['pid']}").exists()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for 3 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=3m,mode=700", "none", str(folder)]
    if subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not mount a tmpfs for us")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a store that was opened there is in use still
