"""What the QEMU machines share: start an artifact, wait for what was asked for, and give a Guest."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from imagekit.artifact import Opened
from imagekit.boot import Boot, Stage
from imagekit.guest import Finished, Guest, Rig
from imagekit.store import Store
from imagekit.stream import Stream
from imagekit.targets import (
    _qemu_agent,
    _qemu_fittings,
    _qemu_kept,
    _qemu_measure,
    _qemu_restore,
    _qemu_start,
    _qemu_stream,
    _qemu_tpm,
    _qemu_wait,
)
from imagekit.targets._qemu_lives import Lives, connector
from imagekit.targets._qemu_plan import Plan, plan
from imagekit.targets._qemu_progress import boot_seconds


def start(target: str, opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """Boot an opened artifact and return when the guest is ready; raises GuestProblem when it will not be."""
    began = time.monotonic()
    _qemu_wait.check(rig.wait)
    made = plan(opened, rig=rig, store=store)
    try:
        lives = _begun(made)
    except BaseException:
        made.close()
        raise
    lives.facts |= facts(lives) | {"wall_seconds": time.monotonic() - began}
    return guest(target, lives)


def _begun(made: Plan) -> Lives:
    """The first life: restored where that was asked for and can be, else booted."""
    if made.rig.fresh:
        machine, made, how = _qemu_restore.fresh(made)
    else:
        machine, how = _qemu_start.boot(made), ""
    try:
        machine.ask(lambda: _qemu_wait.boot(machine, made.name, made.rig))
        lives = Lives(made, machine, how=_qemu_restore.RESTORED if how == _qemu_restore.RESTORED else "booted")
    except BaseException:
        machine.close()
        raise
    try:
        lives.check_disks()
    except BaseException:
        lives.stop()
        raise
    if how:
        lives.facts["fresh"] = how
    return lives


def guest(target: str, lives: Lives) -> Guest:
    """The guest of a machine, whichever life it is in."""

    def run(argv: tuple[str, ...], *, input: bytes, env: Mapping[str, str], timeout: float) -> Finished:
        machine = lives.check_channel(argv[0])
        return machine.ask(lambda: _qemu_agent.run(machine, argv, stdin=input, env=env, timeout=timeout))

    def stream(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> Stream:
        machine = lives.check_channel(argv[0])
        opened = _qemu_stream.open_stream(machine, tuple(argv), env=env or {})
        return replace(opened, stopwatch=lives.watch)

    def is_alive() -> bool:
        return lives.machine.is_alive

    def events() -> list[Stage]:
        return [*lives.machine.progress.stages, *lives.machine.progress.later]

    def measure() -> Boot:
        return _qemu_measure.measure(lives.plan.opened, rig=lives.plan.rig, store=lives.plan.store)

    def save(folder: Path) -> None:
        from imagekit.targets import _qemu_saved

        _qemu_saved.saver(target, lives)(folder)

    def screenshot() -> bytes:
        return _qemu_fittings.screenshot(lives.check_alive("a picture"), lives.plan.display)

    return Guest(
        lives.plan.opened.artifact.arch,
        target,
        run,
        connector(lives),
        lives.stop,
        lives.console,
        lives.facts,
        is_alive,
        stream,
        stopwatch=lives.watch,
        events=events,
        wait_ready=lives.wait_ready,
        power=lives.power,
        measure=measure,
        save=save,
        set_link=lives.set_link,
        screenshot=screenshot,
        kept=lambda: _qemu_kept.kept(lives),
        tpm=_qemu_tpm.seen(lives.plan.chip),
    )


def facts(lives: Lives) -> dict[str, Any]:
    """What is measured and known of a machine whose start has gone well."""
    plan, machine = lives.plan, lives.machine
    board = plan.command.board
    booted = {"boot_seconds": boot_seconds(machine.progress.stages)} if machine.progress.is_ready else {}
    return booted | {
        "stages": list(machine.progress.stages),
        "services": machine.progress.services,
        "accelerator": plan.accelerator.name,
        "accelerator_why": plan.accelerator.why,
        "qemu": machine.version,
        "tools": plan.tools.origin(plan.program),
        "machine": board.machine_name,
        "cpu": board.cpu_name,
        "memory": plan.command.memory,
        "pid": machine.pid,
        "cmdline": plan.cmdline("..." if plan.rig.channel else ""),  # each start has a nonce of its own
        "address": lives.ports.address,
        "by_hand": plan.by_hand,
        "qemu_cpu_seconds": machine.cpu_seconds,
        "boots": lives.boots,
    }
