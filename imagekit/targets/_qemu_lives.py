"""The lives of a guest: one QEMU after the other, on the same disks, with one console and one address."""

from collections.abc import Callable
from contextlib import suppress
from threading import RLock
from typing import Any

from imagekit.errors import Problem
from imagekit.guest import GuestProblem, MachineProblem, Power
from imagekit.targets import _qemu_agent, _qemu_effort, _qemu_start, _qemu_wait
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_plan import Plan
from imagekit.targets._qemu_ports import Ports, lease

MUTE_HINT = (
    "http, tcp, console and power are there; for commands ask for `guest`, or boot() without firmware and channel"
)
MARK = "\r\n--- imagekit: {} ---\r\n"  # in the console, between two lives
REBOOTS = ("test", "-x", "/run/runit.reboot")  # whether somebody asked init for one (inside/stage.c)


class Lives:
    """The machine of a guest as it is now; each method leaves it as its name says, whatever state it was in."""

    def __init__(self, plan: Plan, machine: Machine, *, how: str) -> None:
        self.plan, self.machine = plan, machine
        self.console = machine.console
        self.boots = [how]  # how each life began, for the facts
        self.facts: dict[str, Any] = {}
        self._lock = RLock()
        self._place = lease()
        self.ports = Ports(
            self._place.address,
            human=lambda line: self.machine.ask(lambda: self.machine.monitor.human(line)),
            ask=self._ask,
            problem=lambda *words: self.machine.problem(*words),
            stopwatch=self.watch,
        )

    def check_disks(self) -> None:
        """Raise Problem when the guest, which is ready, has no driver for its disks."""
        if not self.plan.rig.disks or not self.machine.agent.hello or not self.machine.progress.is_ready:
            return
        if self._run(("test", "-e", "/sys/block/vda")).code == 1:
            hint = 'the image takes the driver along with modules=("virtio_blk",)'
            raise Problem(f"{self.plan.name} sees none of its disks: its kernel has no driver for them", hint)

    def watch(self) -> Callable[[], float]:
        """Start a stopwatch: seconds as they pass for the guest."""
        return _qemu_effort.stopwatch(self.machine.pid, self.plan.rig.timeout_scale)

    @property
    def power(self) -> Power:
        """The plug and the buttons."""
        return Power(cut=self.cut, on=self.on, reset=self.reset)

    def check_alive(self, what: str) -> Machine:
        """The machine; raises GuestProblem when it has ended."""
        if not self.machine.is_alive:
            raise self.machine.gone(f"before {what} was asked for")
        return self.machine

    def check_channel(self, what: str) -> Machine:
        """The machine, whose guest can be asked."""
        if not self.plan.rig.channel:
            raise GuestProblem(f"{what}: {self.plan.why_mute}", MUTE_HINT)
        return self.check_alive(what)

    def cut(self) -> None:
        """Pull the plug: what QEMU did not hand to the host's disk is lost, and nobody in the guest is asked."""
        with self._lock:
            self.machine.kill("the power was cut")

    def on(self) -> None:
        """Start again; returns at once."""
        with self._lock:
            if self.machine.is_alive:
                raise GuestProblem(f"{self.plan.name} is on already", "`power.cut()` comes before `power.on()`")
            self._begin("power on")

    def reset(self) -> None:
        """Press the reset button; returns at once. What was in memory is gone: it is another QEMU on the same disks."""
        with self._lock:
            self.machine.kill("the machine was reset")
            self._begin("reset")

    def set_link(self, card: int, is_up: bool) -> None:
        """Put the cable into a network card on a private switch, or pull it out: the guest's kernel sees it."""
        machine = self.machine
        if machine.is_alive:
            machine.ask(lambda: machine.monitor.execute("set_link", name=f"w{card}", up=is_up))

    def wait_ready(self) -> None:
        """Wait until the guest is ready; one that rebooted, or is about to, is started again first."""
        with self._lock:
            machine, rig = self.machine, self.plan.rig
            if machine.is_alive and self._is_going_down():
                machine.ask(lambda: machine.until(bool, rig.ready_timeout))
            if machine.is_alive and machine.progress.later and machine.progress.shutdown:
                raise machine.problem(f"{self.plan.name}: it went down and did not end in {rig.ready_timeout:g} s")
            if machine.ending and machine.ending.is_reboot and not machine.progress.panic:
                machine = self._begin("reboot")
            if not machine.is_alive:
                raise machine.gone(f"and is not started again by waiting for it; {self.plan.name} was to be ready")
            machine.ask(lambda: _qemu_wait.ready(machine, self.plan.name, rig))

    def stop(self) -> None:
        """A clean stop, then a hard one; twice is once. The facts say how it went."""
        with self._lock:
            machine = self.machine
            try:
                if machine.is_alive and machine.agent.hello:
                    with suppress(Problem):  # a guest that cannot be asked is ended without asking
                        machine.ask(lambda: _qemu_agent.power_off(machine))
            finally:
                machine.close()
                self.plan.close()
                self._place.guard.close()
                self.facts["stopped"] = machine.ending.words if machine.ending else ""
                self.facts["shutdown"] = list(machine.progress.shutdown)

    def _begin(self, how: str) -> Machine:
        self.machine.close()
        self.console.feed(MARK.format(how).encode())
        self.machine = _qemu_start.boot(self.plan, console=self.console)
        self.ports.forwards.clear()
        self.boots.append(how)
        self.facts.update(pid=self.machine.pid)
        return self.machine

    def _is_going_down(self) -> bool:
        """Whether the guest has said so, or was told to: between a `reboot` and init's first word there is a moment."""
        machine = self.machine
        if not machine.progress.is_ready or machine.progress.shutdown or not machine.agent.hello:
            return bool(machine.progress.shutdown)
        try:
            return bool(self._run(REBOOTS).code == 0)
        except GuestProblem:
            return not machine.is_alive

    def _run(self, argv: tuple[str, ...]) -> Any:
        machine = self.machine
        return machine.ask(lambda: _qemu_agent.run(machine, argv, stdin=b"", env={}, timeout=10.0))

    def _ask(self, argv: tuple[str, ...]) -> bytes | None:
        """A command's stdout in the guest; None where there is no agent, or no such command."""
        return (self._run(argv).stdout or None) if self.machine.agent.hello else None


def connector(lives: Lives) -> Callable[[int], Any]:
    """A way to the guest's ports, in whichever life it is."""

    def connect(port: int) -> Any:
        machine = lives.check_alive(f"port {port}")
        if lives.plan.rig.wires:
            hint = f"ask from another guest of it: `net.client.run('wget -qO- http://NAME:{port}/')`"
            raise GuestProblem(f"port {port}: the machine is on a private network, which the host is not on", hint)
        try:
            return lives.ports.connect(port)
        except OSError as error:
            raise machine.problem(f"port {port} of the guest: {error.strerror or error}", MachineProblem) from error

    return connect
