"""What tests of several files need."""

import os
import signal
from collections.abc import Iterator

import pytest
import toys

from imagekit import matrix, plugs

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a job in a shell's background begins so, and so do its children
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
