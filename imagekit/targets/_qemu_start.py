"""Start a QEMU by a plan: it reads the very bytes that were verified, from sealed memory files."""

import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from subprocess import DEVNULL, STDOUT, Popen
from threading import Thread
from typing import NamedTuple

from imagekit import channel, host
from imagekit import toolbox as toolbox
from imagekit.artifact import Opened
from imagekit.disk import cpio
from imagekit.errors import Defect, MachineProblem, RigProblem
from imagekit.guest import Console, Rig
from imagekit.store import Store
from imagekit.targets._machine import Lines, Machine
from imagekit.targets._qemu_command import Command, Wiring
from imagekit.targets._qemu_plan import Plan, plan
from imagekit.targets._tpm import Chip
from imagekit.tree import directory, file

INSIDE = Path(__file__).parents[1] / "inside" / "bin"
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Started(NamedTuple):
    """A running machine, and the plan that it was started by."""

    machine: Machine
    plan: Plan

    def close(self) -> None:
        """End both; nothing of them is left."""
        self.machine.close()
        self.plan.close()


def start(opened: Opened, *, rig: Rig, store: Store, on_console: Callable[[bytes], None] | None = None) -> Started:
    """A QEMU that boots the artifact; close it. Raises RigProblem when QEMU does not come up."""
    made = plan(opened, rig=rig, store=store)
    try:
        return Started(boot(made, on_console=on_console), made)
    except BaseException:
        made.close()
        raise


def boot(
    made: Plan,
    *,
    nonce: str = "",
    handles: tuple[int, ...] = (),
    console: Console | None = None,
    on_console: Callable[[bytes], None] | None = None,
) -> Machine:
    """One more QEMU of a plan, from its kernel on; `console` goes on with what an earlier one printed."""
    nonce = (nonce or channel.new_nonce()) if made.rig.channel else ""
    with _kernel(made, nonce) as (command, own):
        launch = launcher(replace(made, command=command), handles=(*own, *handles))
        machine = Machine(
            launch, nonce=nonce, by_hand=made.by_hand, rig=made.rig, on_console=on_console, console=console
        )
        _begin(machine, made.chip)
    return machine


def _begin(machine: Machine, chip: Chip | None) -> None:
    """Start it; a TPM that ends takes the machine along, and its words are the cause that is told."""
    try:
        machine.start()
    except RigProblem:
        if chip and chip.ended:
            raise MachineProblem(chip.ended) from None
        raise
    if chip:
        chip.watch(machine.lose)


@contextmanager
def _kernel(made: Plan, nonce: str) -> Iterator[tuple[Command, tuple[int, ...]]]:
    """The command that starts the kernel, and the descriptors that it names; none where firmware starts the disk."""
    if not made.load.kernel:
        yield made.command._replace(cmdline=""), ()
        return
    found, arch = made.load.kernel, made.opened.artifact.arch
    with _initrd(found["initrd"], arch, with_agent=made.rig.channel) as initrd:
        handles = {**found, "initrd": initrd}
        command = made.command._replace(
            kernel=_path(found["kernel"]),
            initrd=_path(initrd),
            cmdline=made.cmdline(nonce),
            device_tree=_path(found["device_tree"]) if "device_tree" in found else "",
        )
        yield command, tuple(handles.values())


def launcher(made: Plan, *, handles: tuple[int, ...]) -> Callable[[Lines], "Popen[bytes]"]:
    """A function that starts the plan's QEMU on lines; `handles` are the descriptors that its command names."""

    def launch(lines: Lines) -> "Popen[bytes]":
        channel_line = lines.channel.fileno() if made.rig.channel else None
        with ExitStack() as stack:
            console = stack.enter_context(_piped(lines.console)) if made.command.clock else lines.console.fileno()
            plugs = [(stack.enter_context(wire.plug()).fileno(), wire.mac) for wire in made.rig.wires]
            tpm = stack.enter_context(made.chip.plugged()) if made.chip else None
            wiring = Wiring(lines.monitor.fileno(), console, channel_line, tuple(plugs), tpm)
            more = (*(handle for handle, _ in plugs), *(() if tpm is None else (tpm,)))
            ends = (console, *(line.fileno() for line in lines[:3]), lines.bulk, *more)
            argv = made.tools.argv(made.program, *replace(made, command=made.command._replace(wiring=wiring)).arguments)
            return host.launch(argv, env=made.tools.env, pass_fds=(*handles, *made.handles, *ends),
                               stdin=DEVNULL, stdout=lines.words, stderr=STDOUT)  # fmt: skip

    return launch


@contextmanager
def _piped(line: socket.socket) -> Iterator[int]:
    """The writing end of a pipe whose bytes go to a line: QEMU opens its log by a name, which a socket has not."""
    ours, theirs = os.pipe()
    Thread(target=_pump, args=(ours, line.dup()), name="imagekit console", daemon=True).start()
    try:
        yield theirs
    finally:
        os.close(theirs)


def _pump(ours: int, line: socket.socket) -> None:
    """Pass on what QEMU writes until it ends, or until nobody reads any more."""
    with line, open(ours, "rb", buffering=0) as log, suppress(OSError):
        while printed := log.read(1 << 16):
            line.sendall(printed)


def _path(handle: int) -> str:
    return f"/proc/self/fd/{handle}"  # of QEMU: descriptors keep their numbers


@contextmanager
def _initrd(own: int, arch_name: str, *, with_agent: bool) -> Iterator[int]:
    """A sealed memory file: the artifact's initrd untouched, and the agent as one more archive after it."""
    if not with_agent:
        yield own
        return
    handle = os.memfd_create("initrd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = _copy(own, handle)
        _write(handle, bytes(-size % 4) + agent(arch_name))  # the kernel wants each archive at a multiple of four
        fcntl.fcntl(handle, fcntl.F_ADD_SEALS, SEALS)
        yield handle
    finally:
        os.close(handle)


def agent(arch_name: str) -> bytes:
    """The archive that brings the agent; the agent takes it out of the image's tree when it runs."""
    try:
        program = (INSIDE / f"agent.{arch_name}").read_bytes()
    except FileNotFoundError as error:
        raise Defect(f"{error.filename} is not there", "install imagekit again") from error
    folder = Path(channel.AGENT).parent
    return cpio.archive([(str(folder), directory(0o700)), (channel.AGENT, file(program, mode=0o755))])


def _copy(source: int, target: int) -> int:
    size = os.fstat(source).st_size
    done = 0
    while done < size:
        done += os.sendfile(target, source, done, size - done)
    return size


def _write(handle: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(handle, rest) :]
