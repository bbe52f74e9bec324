"""What the QEMU machines share: start an artifact, wait until the guest is ready, and give a Guest."""

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from threading import Lock
from typing import Any

from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.boot import Stage
from imagekit.errors import Problem
from imagekit.guest import Finished, Guest, GuestProblem, MachineProblem, Rig
from imagekit.patience import Patience
from imagekit.store import Store
from imagekit.targets import _qemu_agent, _qemu_effort, _qemu_start
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_ports import Lease, Ports, lease
from imagekit.targets._qemu_progress import boot_seconds

SETTLE, GOING_DOWN = 0.3, 3.0  # seconds for the console's last words after a failure; the latter ends with QEMU


def start(target: str, opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """Boot an opened artifact and return when the guest is ready; raises GuestProblem when it will not be."""
    began = time.monotonic()
    started = _qemu_start.start(opened, rig=rig, store=store)
    machine, place = started.machine, lease()
    try:
        machine.ask(lambda: await_ready(machine, f"{opened.artifact.name} {opened.artifact.arch}", rig))
    except BaseException:
        machine.close()
        place.guard.close()
        raise
    facts = _facts(started, place.address) | {"wall_seconds": time.monotonic() - began}

    def watch() -> Callable[[], float]:
        return _qemu_effort.stopwatch(machine.pid, rig.timeout_scale)

    ports = Ports(
        place.address, human=_monitor_of(machine), ask=_asking(machine), problem=machine.problem, stopwatch=watch
    )

    def run(argv: tuple[str, ...], *, input: bytes, env: Mapping[str, str], timeout: float) -> Finished:
        _check_alive(machine, argv[0])
        if not rig.channel:
            raise GuestProblem(f"{argv[0]}: this machine was started without a channel", "its console is all there is")
        return machine.ask(lambda: _qemu_agent.run(machine, argv, stdin=input, env=env, timeout=timeout))

    def connect(port: int) -> Any:
        _check_alive(machine, f"port {port}")
        if rig.wires:
            hint = f"ask from another guest of it: `net.client.run('wget -qO- http://NAME:{port}/')`"
            raise GuestProblem(f"port {port}: the machine is on a private network, which the host is not on", hint)
        try:
            return ports.connect(port)
        except OSError as error:
            raise machine.problem(f"port {port} of the guest: {error.strerror or error}", MachineProblem) from error

    def is_alive() -> bool:
        return machine.is_alive

    def events() -> list[Stage]:
        return [*machine.progress.stages, *machine.progress.later]

    return Guest(
        opened.artifact.arch, target, run, connect, _stopper(machine, place, facts), machine.console, facts, is_alive,
        stopwatch=watch, events=events,
    )  # fmt: skip


async def await_ready(machine: Machine, name: str, rig: Rig) -> None:
    """Wait until the guest says that everything is up; raises GuestProblem as soon as it will not be."""
    boot = machine.progress
    tell = machine.teller(lambda: (f"{name}: waiting for {boot.awaited}", boot.last))

    def tick() -> None:
        if boot.is_in_step:  # which the guest itself ends when its time is up: it may sleep in silence
            machine.excuse()
        tell()

    patience = Patience(work=rig.ready_timeout, idle=rig.ready_timeout, silent=rig.ready_timeout / 4)
    outcome = await machine.until(lambda: boot.is_ready or boot.failure or boot.panic, patience, tick)
    if boot.is_ready:
        return
    if boot.failure or boot.panic:
        await machine.until(bool, GOING_DOWN if boot.is_going_down else SETTLE)
        raise machine.problem(f"{name}: {boot.failure or f'the guest panicked ({boot.panic})'}")
    if machine.ending:
        raise machine.gone(f"before it was ready; {name} waited for {boot.awaited}; last: {boot.last}")
    agent = "" if machine.agent.hello or not rig.channel else "; its agent never spoke"
    raise machine.problem(
        f"{name} is not ready: {outcome.limit}; it waits for {boot.awaited}; last: {boot.last}{agent}; "
        f"its console has been silent for {machine.silence:.0f} s{await machine.pause()}"
    )


def _facts(started: _qemu_start.Started, address: str) -> dict[str, Any]:
    machine, command = started.machine, started.command
    arch = ARCHES[command.board.arch]
    return {
        "boot_seconds": boot_seconds(machine.progress.stages),
        "stages": list(machine.progress.stages),
        "services": machine.progress.services,
        "accelerator": started.accelerator.name,
        "accelerator_why": started.accelerator.why,
        "qemu": machine.version,
        "tools": started.tools,
        "machine": arch.machine,
        "cpu": arch.cpu,
        "memory": command.memory,
        "pid": machine.pid,
        "cmdline": command.cmdline,
        "address": address,
        "qemu_cpu_seconds": machine.cpu_seconds,
    }


def _check_alive(machine: Machine, what: str) -> None:
    if not machine.is_alive:
        raise machine.gone(f"before {what} was asked for")


def _monitor_of(machine: Machine) -> Callable[[str], str]:
    return lambda line: machine.ask(lambda: machine.monitor.human(line))


def _asking(machine: Machine) -> Callable[[tuple[str, ...]], bytes | None]:
    """A command's stdout in the guest; None where there is no agent, or no such command."""

    def ask(argv: tuple[str, ...]) -> bytes | None:
        if not machine.agent.hello:
            return None
        finished = machine.ask(lambda: _qemu_agent.run(machine, argv, stdin=b"", env={}, timeout=10.0))
        return finished.stdout or None

    return ask


def _stopper(machine: Machine, place: Lease, facts: dict[str, Any]) -> Callable[[], None]:
    """A clean stop, then a hard one; twice is once. The facts say how it went."""
    lock = Lock()

    def stop() -> None:
        with lock:
            try:
                if machine.is_alive and machine.agent.hello:
                    with suppress(Problem):  # a guest that cannot be asked is ended without asking
                        machine.ask(lambda: _qemu_agent.power_off(machine))
            finally:
                machine.close()
                place.guard.close()
                facts["stopped"] = machine.ending.words if machine.ending else ""
                facts["shutdown"] = list(machine.progress.shutdown)

    return stop
