"""Plan: all that it takes to start one machine, kept for as many starts as its guest makes of it.

A guest's power is cut and comes back, it reboots, it is restored: each is one more QEMU of the same plan.
"""

import os
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from shlex import join

from imagekit import memory, plugs, toolbox
from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.errors import Problem, RigProblem, unknown
from imagekit.guest import Rig
from imagekit.store import Store
from imagekit.targets import _kvm, _qemu_fittings, _qemu_load, _qemu_tpm, _raspi
from imagekit.targets._qemu_command import BOARDS, Board, Command, Ram, cmdline, network
from imagekit.targets._qemu_disks import Drive, attach
from imagekit.targets._qemu_fittings import Fitting
from imagekit.targets._qemu_load import Accelerator, Load
from imagekit.targets._tpm import Chip

DISKS = "disks"  # a folder of the cache, for files without names
ACCELERATORS = ("auto", "kvm", "tcg")
LOADERS = dict.fromkeys(_raspi.PIS, _raspi.load)  # by firmware: who finds what of an artifact is started


@dataclass(frozen=True)
class Plan:
    """One machine, before and between its starts; what it holds is its own until `close`."""

    opened: Opened  # with descriptors of its own
    load: Load  # what of it is started
    rig: Rig
    store: Store
    tools: toolbox.Tools
    accelerator: Accelerator
    command: Command  # without what changes from start to start: the agent's nonce, and descriptors
    drives: tuple[Drive, ...]
    firmware: tuple[Fitting, ...]
    display: tuple[Fitting, ...]
    chip: Chip | None  # its TPM, which all its lives share
    held: ExitStack = field(repr=False)

    @property
    def name(self) -> str:
        """The guest, for messages."""
        return f"{self.opened.artifact.name} {self.opened.artifact.arch}"

    @property
    def program(self) -> str:
        """QEMU's name for this architecture."""
        return program(self.command.board)

    @property
    def identity(self) -> tuple[object, ...]:
        """What makes this machine and is not in its command."""
        return tuple(part.identity for part in self._parts)

    @property
    def handles(self) -> tuple[int, ...]:
        """Descriptors that QEMU must inherit, beyond those of its boot."""
        own = (self.chip.ram,) if self.chip else ()
        return (*own, *(handle for part in self._parts for handle in part.handles))

    @property
    def arguments(self) -> list[str]:
        """QEMU's arguments, without its name."""
        return [*self.command.arguments, *(word for part in self._parts for word in part.arguments)]

    @property
    def why_mute(self) -> str:
        """Why a machine without a channel cannot run commands."""
        if self.load.kernel:
            return "this machine was started without a channel"
        return f"{self.rig.firmware} starts this image as it is shipped, with no agent in it that could run commands"

    @property
    def _parts(self) -> tuple[Drive | Fitting, ...]:
        return (*self.firmware, *self.drives, *self.display)

    def cmdline(self, nonce: str = "") -> str:
        """The kernel's arguments; a nonce starts the agent."""
        return cmdline(self.load.cmdline, self.command.board, nonce=nonce, more=self.rig.cmdline)

    @property
    def by_hand(self) -> str:
        """A line for the shell that boots the same files with their console on the terminal, without the agent."""
        if not self.command.board.has_slots:
            return _raspi.by_hand(self.opened, self.rig)
        files = {part.role: str(self.opened.artifact.path.parent / part.file) for part in self.opened.artifact.parts}
        kernel, initrd = (files.get(role, "") for role in ("kernel", "initrd"))
        is_inside = bool(self.load.kernel) or "disk" not in files  # and no line of QEMU's looks into a file for one
        if (is_inside and not kernel) or _qemu_fittings.is_guarded(self.rig, self.command.board):  # nor makes variables
            rig = ("--memory", str(self.rig.memory), "--firmware", self.rig.firmware)
            return join(["imagekit", "boot", str(self.opened.artifact.path), *rig])
        line = self.command._replace(kernel=kernel, initrd=initrd, cmdline=self.cmdline() if kernel else "")
        more = [word for part in self._parts for word in part.by_hand]
        argv = self.tools.argv(self.program, *line.arguments, *more)
        if "--die-with" in argv:  # with whom it dies is our concern
            place = argv.index("--die-with")
            del argv[place : place + 2]
        return join(argv)

    def close(self) -> None:
        """Let go of all that is held. Twice is once."""
        self.held.close()


def plan(opened: Opened, *, rig: Rig, store: Store) -> Plan:
    """What starts the artifact as the rig says; close it. Raises Problem when that cannot be, and starts nothing."""
    rig = _qemu_fittings.settled(rig, opened.artifact.manifest)
    board = _qemu_fittings.board(rig, _board(opened, rig))
    _check_firmware(opened, rig)
    memory.check(opened.artifact.manifest, firmware=rig.firmware, memory=board.memory or rig.memory)
    files = _qemu_fittings.wanted(rig, board)
    names = (program(board), *files, *_qemu_tpm.wanted(rig, board))
    tools = toolbox.tools(*names, mode=rig.tools, store=store, say=rig.say)
    accelerator = accelerate(rig.accelerator, board.arch, tools, store) if board.has_slots else _raspi.ACCELERATOR
    with ExitStack() as held:
        opened = _qemu_load.kept(opened, held)
        folder = store.folder(DISKS) if rig.disks or files or _qemu_load.has_disks(opened) else Path()
        load = LOADERS.get(rig.firmware, _qemu_load.load)(opened, rig=rig, folder=folder, held=held)
        chip = _qemu_tpm.chip(rig, tools, held)
        command = Command(
            board=board,
            kernel="",
            initrd="",
            cmdline=cmdline(load.cmdline, board, more=rig.cmdline),
            memory=board.memory or rig.memory,
            accelerator=accelerator.name,
            network=network(opened.artifact.manifest),
            smbios=rig.smbios,
            ram=Ram(f"/proc/self/fd/{chip.ram}", is_shared=True) if chip else None,
        )
        variables = _qemu_fittings.variables(files, tools, rig, store, folder, held)
        drives = (*variables, *load.drives, *attach(rig.disks, folder, held))
        firmware = _qemu_fittings.firmware(files, tools, rig, board, held)
        display = _qemu_fittings.display(rig, board, held)
        parts = drives, firmware, display, chip
        return Plan(opened, load, rig, store, tools, accelerator, command, *parts, held.pop_all())


def program(board: Board) -> str:
    """QEMU's name for a board."""
    return f"qemu-system-{ARCHES[board.arch].qemu}"


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


def _board(opened: Opened, rig: Rig) -> Board:
    made = opened.artifact
    if rig.firmware in _raspi.PIS:
        return _raspi.board(opened, rig)
    if made.arch not in BOARDS:
        raise Problem(f"{made.name} {made.arch} {made.format} cannot be started here", f"known: {' and '.join(BOARDS)}")
    return BOARDS[made.arch]


def _check_firmware(opened: Opened, rig: Rig) -> None:
    """Raise Problem for what nothing can be added to, what the firmware cannot start, and an unknown medium."""
    if rig.firmware != "direct":
        _check_made_for(opened.artifact.format, rig.firmware)
    by_firmware = not _qemu_load.takes_more(opened, rig)
    if by_firmware and rig.channel:
        raise Problem(
            f"{opened.artifact.format}: an image that firmware starts cannot be given the agent",
            "Rig(channel=False): console, http and tcp are left; or Rig(firmware='direct')",
        )
    if by_firmware and rig.cmdline:
        raise Problem(f"{opened.artifact.format}: the kernel's arguments are in the image that firmware starts")
    if rig.media not in ("", *_qemu_load.MEDIA):
        raise unknown("medium", rig.media, _qemu_load.MEDIA)


def _check_made_for(format: str, firmware: str) -> None:
    """Raise Problem when a format is made for other firmware, which would look for something to start for ever."""
    made_for = plugs.load("formats", format).firmware
    if made_for and firmware not in made_for:
        raise Problem(f"{format} is not started by firmware {firmware!r}", f"it is made for: {', '.join(made_for)}")
