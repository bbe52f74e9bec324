"""Restore a booted machine from its template, made by whoever asks first; boot it where that cannot be, and say why."""

import asyncio
import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagekit import channel, host
from imagekit.disk import qcow2
from imagekit.errors import RigProblem
from imagekit.guest import GuestProblem, MachineProblem
from imagekit.targets import _qemu_agent, _qemu_start, _qemu_template, _qemu_wait
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_command import Command, Ram
from imagekit.targets._qemu_disks import Drive, stacked
from imagekit.targets._qemu_plan import DISKS, Plan
from imagekit.targets._qemu_template import Template

RESTORED = "restored"
MARK = b"\r\n--- imagekit: restored ---\r\n"  # in the console, after what was printed before
MOVING = 60.0  # seconds of QEMU's own to write or read a machine's state
LOOK_AGAIN = 0.002  # seconds between two looks at how far it is
KEPT = 1 << 18  # bytes of the console that a template remembers
IGNORE_SHARED = "x-ignore-shared"


def fresh(plan: Plan) -> tuple[Machine, Plan, str]:
    """A machine that is ready or will be, its plan, and how it came about: "restored", or "booted: REASON"."""
    reason = _qemu_template.impossible(plan)
    if not reason:
        try:
            return (*_restored(plan), RESTORED)
        except RigProblem as problem:  # a guest that does not boot is told as such, a rig that fails is gone around
            reason = problem.message.splitlines()[0]
    return _qemu_start.boot(plan), plan, f"booted: {reason}"


def _restored(plan: Plan) -> tuple[Machine, Plan]:
    disks = [drive.name for drive in plan.drives]
    name = _qemu_template.key(plan, _qemu_start.agent(plan.opened.artifact.arch))
    found = _qemu_template.find(plan.store, name, plan.held, disks=disks)
    if found is None:
        with host.once(plan.store.folder("locks"), f"template-{name[:16]}", say=plan.rig.say):
            found = _qemu_template.find(plan.store, name, plan.held, disks=disks)  # made while we waited
            if found is None:
                _make(plan, name)
                found = _qemu_template.find(plan.store, name, plan.held, disks=disks)
    if found is None:
        raise RigProblem("the template was removed before it was used")
    folder = plan.store.folder(DISKS) if plan.drives else Path()
    drives = tuple(stacked(drive, found.disks[drive.name], folder, plan.held) for drive in plan.drives)
    stacked_plan = replace(plan, drives=drives)
    try:
        return _restore(stacked_plan, found), stacked_plan
    except (GuestProblem, RigProblem) as problem:
        _qemu_template.remove(found.folder)
        raise MachineProblem(problem.message, problem.hint) from problem


def _make(plan: Plan, name: str) -> None:
    """Boot, and keep the machine as it is when its guest is ready."""
    plan.rig.say(f"{plan.name}: making a template")
    with _qemu_template.draft(plan.store, name) as folder, ExitStack() as own:
        ram = _created(folder / _qemu_template.RAM, own)
        os.posix_fallocate(ram, 0, plan.command.memory << 20)  # a full disk is told here, not to QEMU by a signal
        drives = tuple(_lying_in(folder, drive, own) for drive in plan.drives)
        command = plan.command._replace(ram=Ram(f"/proc/self/fd/{ram}", is_shared=True))
        nonce = channel.new_nonce()
        machine = _qemu_start.boot(replace(plan, command=command, drives=drives), nonce=nonce, handles=(ram,))
        try:
            machine.ask(lambda: _qemu_wait.ready(machine, plan.name, plan.rig))
            with open(folder / _qemu_template.STATE, "xb") as state:
                machine.ask(lambda: save(machine, state.fileno(), ignore_shared=True))
        finally:
            machine.close()
        _qemu_template.describe(folder, nonce=nonce, **told(machine))


def _lying_in(folder: Path, drive: Drive, own: ExitStack) -> Drive:
    """The same disk, whose overlay is a file of the template."""
    top = _created(folder / f"{drive.name}.disk", own)
    os.write(top, qcow2.empty(drive.size))
    return replace(drive, top=top)


def told(machine: Machine) -> dict[str, Any]:
    """What a guest has said so far, for those who go on from there."""
    console = machine.console.last(KEPT).decode("latin-1")
    return {"stages": machine.progress.stages, "later": machine.progress.later, "console": console}


def remember(machine: Machine, notes: Mapping[str, Any]) -> None:
    """Have a machine know what the guest said before it was saved."""
    machine.progress.stages[:] = [(float(at), str(words)) for at, words in notes["stages"]]
    machine.progress.later[:] = [(float(at), str(words)) for at, words in notes["later"]]
    machine.console.feed(str(notes["console"]).encode("latin-1", "replace") + MARK)


def _restore(plan: Plan, found: Template) -> Machine:
    command = plan.command._replace(ram=Ram(f"/proc/self/fd/{found.ram}", is_shared=False))
    machine = incoming(plan, command, found.notes, handles=(found.ram, found.state))
    try:
        machine.ask(lambda: arrive(machine, found.state, ignore_shared=True))
    except BaseException:
        machine.close()
        raise
    return machine


def incoming(plan: Plan, command: Command, notes: Mapping[str, Any], *, handles: tuple[int, ...]) -> Machine:
    """A machine that waits for its state, and knows what its guest has said."""
    command = command._replace(kernel="", initrd="", cmdline="", is_incoming=True)
    launch = _qemu_start.launcher(replace(plan, command=command), handles=handles)
    machine = Machine(launch, nonce=notes["nonce"], by_hand=plan.by_hand, rig=plan.rig)
    remember(machine, notes)
    machine.start()
    return machine


async def save(machine: Machine, handle: int, *, ignore_shared: bool) -> None:
    """Stop a machine and write its state to a file that is open for writing; raises RigProblem when that fails."""
    await _allow(machine, ignore_shared)
    await machine.monitor.execute("stop")
    await machine.monitor.execute("migrate", uri=await _sent(machine, handle))
    how = await machine.within(MOVING, _moved(machine))
    if how["status"] == "failed":
        raise RigProblem(f"QEMU cannot write the machine's state: {how.get('error-desc', 'it does not say why')}")


async def arrive(machine: Machine, handle: int, *, ignore_shared: bool) -> None:
    """Go on with a machine's state; its guest then has the time, randomness and a nonce of its own."""
    os.lseek(handle, 0, os.SEEK_SET)
    try:
        await _allow(machine, ignore_shared)
        await machine.monitor.execute("migrate-incoming", uri=_inherited(machine, handle))
        await machine.within(MOVING, _loaded(machine))
        await machine.monitor.execute("cont")
    except (RigProblem, TimeoutError) as problem:
        await machine.until(bool, 1.0)  # for QEMU's last words
        words = machine.ending.words if machine.ending else str(problem)
        raise MachineProblem(f"QEMU does not go on with the state: {words}") from problem
    if machine.rig.channel:
        await _qemu_agent.renew(machine, channel.new_nonce())


async def _moved(machine: Machine) -> dict[str, Any]:
    while (how := await machine.monitor.execute("query-migrate")).get("status") not in ("completed", "failed"):
        await asyncio.sleep(LOOK_AGAIN)
    return dict(how)


async def _loaded(machine: Machine) -> None:
    while (await machine.monitor.execute("query-status"))["status"] == "inmigrate":
        await asyncio.sleep(LOOK_AGAIN)


async def _allow(machine: Machine, ignore_shared: bool) -> None:
    wanted = [{"capability": IGNORE_SHARED, "state": ignore_shared}]
    await machine.monitor.execute("migrate-set-capabilities", capabilities=wanted)


def _inherited(machine: Machine, handle: int) -> str:
    """The address of a file whose descriptor QEMU was started with, to read from."""
    return f"file:/proc/self/fd/{handle}" if _knows_files(machine) else f"fd:{handle}"


async def _sent(machine: Machine, handle: int) -> str:
    """The address of a file whose descriptor QEMU is given now, to write to: 7.2 takes no inherited one for that."""
    if _knows_files(machine):
        answer = await machine.monitor.give(handle, "add-fd")
        return f"file:/dev/fdset/{answer['fdset-id']}"
    await machine.monitor.give(handle, "getfd", fdname="state")
    return "fd:state"


def _knows_files(machine: Machine) -> bool:
    """`fd:` is for files up to QEMU 9.0, `file:` from 8.2 on (docs/about/deprecated.rst)."""
    major = machine.version.partition(".")[0]
    return major.isdigit() and int(major) >= 9


def _created(path: Path, own: ExitStack) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    own.callback(os.close, handle)
    return handle
