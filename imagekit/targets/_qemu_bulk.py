"""Copies what lies in a guest's memory, by QEMU's own hand: `pmemsave` writes it to a memory file that both know.

The addresses are the guest's words. They lead nowhere but into its own machine, sizes are bounded, and the bytes are
checked by whoever uses them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from imagekit.channel import Bulk

if TYPE_CHECKING:
    from imagekit.targets._machine import Machine


@contextmanager
def file() -> Iterator[int]:
    """A memory file, which QEMU inherits under the same number."""
    handle = os.memfd_create("bulk", os.MFD_CLOEXEC)
    try:
        yield handle
    finally:
        os.close(handle)


def install(machine: "Machine", handle: int) -> None:
    """Have a machine's agent fetch bulk through this file."""
    machine.agent.fetch = partial(_fetch, machine, handle)


async def _fetch(machine: "Machine", handle: int, bulk: Bulk) -> bytes:
    """The bytes at the places that the guest told; raises RigProblem when QEMU does not give them."""
    path, pieces = f"/proc/self/fd/{handle}", []
    for address, size in bulk.runs:
        await machine.monitor.execute("pmemsave", val=address, size=size, filename=path)
        pieces.append(os.pread(handle, size, 0))
    return b"".join(pieces)
