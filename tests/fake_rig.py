"""Machines of the fake QEMU, started through the very target that starts real ones."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from imagekit import host
from imagekit.artifact import Artifact, Opened
from imagekit.guest import Guest

FAKE = Path(__file__).with_name("fake_qemu.py")
PARTS = {"kernel": b"a kernel", "initrd": b"an initrd, of 23 bytes.", "cmdline": b"quiet panic=-1\n"}


class FakeTools:
    """As toolbox.Tools, with one tool."""

    env = host.environment()

    def __init__(self, scenario: str) -> None:
        self.scenario = scenario

    def argv(self, _: str, *args: str) -> list[str]:
        return host.launcher([sys.executable, "-I", str(FAKE), self.scenario, *args])

    def origin(self, _: str) -> str:
        return "fake"


@contextmanager
def opened(arch: str = "x86_64", **parts: bytes) -> Iterator[Opened]:
    whole = PARTS | parts
    handles = {}
    for role, data in whole.items():
        handles[role] = os.memfd_create(role)
        os.write(handles[role], data)
    rows = [{"role": r, "file": f"x.{r}", "size": len(b), "sha256": sha256(b).hexdigest()} for r, b in whole.items()]
    manifest = {"name": "tiny", "arch": arch, "format": "kernel_initrd", "kind": "kernel", "parts": rows}
    try:
        yield Opened(Artifact(Path("/images/tiny.manifest.json"), b"", manifest), handles)
    finally:
        for handle in handles.values():
            os.close(handle)


Start = Callable[..., Guest]
