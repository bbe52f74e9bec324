"""Start a QEMU from an opened artifact: it reads the very bytes that were verified, from sealed memory files."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shlex import join
from subprocess import DEVNULL, STDOUT, Popen
from typing import NamedTuple

from imagekit import channel, host, toolbox
from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.disk import cpio
from imagekit.errors import Defect, Problem, RigProblem, unknown
from imagekit.guest import Rig
from imagekit.store import Store
from imagekit.targets import _kvm
from imagekit.targets._machine import Lines, Machine
from imagekit.targets._qemu_command import BOARDS, Board, Command, Wiring, cmdline, network
from imagekit.tree import directory, file

INSIDE = Path(__file__).parents[1] / "inside" / "bin"
ROLES = ("kernel", "initrd", "cmdline")
ACCELERATORS = ("auto", "kvm", "tcg")
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class Accelerator(NamedTuple):
    """Which accelerator a machine gets, and why."""

    name: str
    why: str


class Started(NamedTuple):
    """A running machine, and what it was made of."""

    machine: Machine
    command: Command
    accelerator: Accelerator
    tools: str  # where QEMU is from


def start(opened: Opened, *, rig: Rig, store: Store, on_console: Callable[[bytes], None] | None = None) -> Started:
    """A QEMU that boots the artifact; close its machine. Raises RigProblem when QEMU does not come up."""
    board = _board(opened)
    program = f"qemu-system-{ARCHES[board.arch].qemu}"
    tools = toolbox.tools(program, mode=rig.tools, store=store, say=rig.say)
    accelerator = accelerate(rig.accelerator, board.arch, tools, store)
    nonce = channel.new_nonce() if rig.channel else ""
    command = Command(
        board=board,
        kernel=_path(opened.handles["kernel"]),
        initrd="",
        cmdline=cmdline(opened.read("cmdline"), board, nonce=nonce, more=rig.cmdline),
        memory=rig.memory,
        accelerator=accelerator.name,
        network=network(opened.artifact.manifest),
    )
    with _initrd(opened, board.arch, with_agent=rig.channel) as initrd:

        def launch(lines: Lines) -> "Popen[bytes]":
            channel_line = lines.channel.fileno() if rig.channel else None
            with ExitStack() as stack:
                plugs = [(stack.enter_context(wire.plug()).fileno(), wire.mac) for wire in rig.wires]
                wiring = Wiring(lines.monitor.fileno(), lines.console.fileno(), channel_line, tuple(plugs))
                wired = command._replace(initrd=_path(initrd), wiring=wiring)
                ends = (*(line.fileno() for line in lines[:3]), *(handle for handle, _ in plugs))
                handles = (opened.handles["kernel"], initrd, *ends)
                argv = tools.argv(program, *wired.arguments)
                words = lines.words
                return host.launch(argv, env=tools.env, pass_fds=handles, stdin=DEVNULL, stdout=words, stderr=STDOUT)

        by_hand = _by_hand(command, opened, tools, rig)
        machine = Machine(launch, nonce=nonce, by_hand=by_hand, rig=rig, on_console=on_console)
        machine.start()
    return Started(machine, command, accelerator, tools.origin(program))


def accelerate(asked: str, guest: str, tools: toolbox.Tools, store: Store) -> Accelerator:
    """KVM where a probe guest ran under it, else emulation; raises RigProblem when what was asked for cannot be."""
    if asked not in ACCELERATORS:
        raise unknown("accelerator", asked, ACCELERATORS)
    if asked == "tcg":
        return Accelerator("tcg", "asked for")
    own = os.uname().machine
    probe = _kvm.probe(store, tools) if own == guest else _kvm.Probe(False, f"a machine of {own} emulates {guest}")
    if asked == "kvm" and not probe.works:
        raise RigProblem(f"KVM was asked for and cannot be used: {probe.why}", "`--accel tcg` emulates")
    return Accelerator("kvm", probe.why) if probe.works else Accelerator("tcg", f"kvm: {probe.why}")


def _board(opened: Opened) -> Board:
    made = opened.artifact
    if made.arch not in BOARDS or any(role not in opened.handles for role in ROLES):
        raise Problem(
            f"{made.name} {made.arch} {made.format} cannot be started by its kernel",
            f"that takes an artifact with {', '.join(ROLES)}, for {' or '.join(BOARDS)}",
        )
    return BOARDS[made.arch]


def _path(handle: int) -> str:
    return f"/proc/self/fd/{handle}"  # of QEMU: descriptors keep their numbers


@contextmanager
def _initrd(opened: Opened, arch_name: str, *, with_agent: bool) -> Iterator[int]:
    """A sealed memory file: the artifact's initrd untouched, and the agent as one more archive after it."""
    if not with_agent:
        yield opened.handles["initrd"]
        return
    handle = os.memfd_create("initrd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        size = _copy(opened.handles["initrd"], handle)
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


def _by_hand(command: Command, opened: Opened, tools: toolbox.Tools, rig: Rig) -> str:
    """A line for the shell that boots the same files with their console on the terminal, without the agent."""
    files = {part.role: opened.artifact.path.parent / part.file for part in opened.artifact.parts}
    words = cmdline(opened.read("cmdline"), command.board, more=rig.cmdline)
    line = command._replace(kernel=str(files["kernel"]), initrd=str(files["initrd"]), cmdline=words)
    argv = tools.argv(f"qemu-system-{ARCHES[command.board.arch].qemu}", *line.arguments)
    if "--die-with" in argv:  # with whom it dies is our concern
        place = argv.index("--die-with")
        del argv[place : place + 2]
    return join(argv)
