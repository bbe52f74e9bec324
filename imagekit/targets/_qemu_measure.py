"""A boot that is measured by the instruction clock: the same bytes, untouched, in a machine that is the same each time.

No agent rides along, and no nonce: the events are taken from the console, where the kernel tells their times. With
`sleep=off` a guest that waits for a timer is taken there at once, so that idle time is exact too; but where a disk
works on a thread of the host's, its answer would come after a time that depends on the host. There only the
instructions that were executed are counted, QEMU is asked for them at each event, and the median of several boots
counts: on a busy host the guest's own clock varied by 5 % and these by 0.03 to 0.5 %.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from statistics import median

from imagekit.artifact import Opened
from imagekit.boot import SHIFT, Boot, Stage
from imagekit.guest import Rig
from imagekit.store import Store
from imagekit.targets import _qemu_load, _qemu_start, _qemu_wait
from imagekit.targets._machine import Machine
from imagekit.targets._qemu_plan import plan

REPEATS = 3  # boots where one is not exact
SLOWER = 4.0  # times the work of a plain boot: what counting instructions may cost
FIXED = ("-rtc", "base=2024-01-01T00:00:00,clock=vm", "-seed", "1")
COUNTED = "nokaslr imagekit.counter"  # kernel arguments: the same addresses each time; see note_counter in early.c
NANOSECONDS = 1_000_000_000
COUNTER = "counter "


def measure(opened: Opened, *, rig: Rig, store: Store) -> Boot:
    """How an opened artifact boots by the instruction clock; raises GuestProblem when it does not become ready.

    What the rig adds to a machine, but for disks and firmware, is left out.
    """
    counted = COUNTED if _qemu_load.takes_more(opened, rig) else ""
    plain = replace(
        rig, channel=False, wires=(), display=False, fresh=False, wait="ready", accelerator="tcg",
        cmdline=f"{rig.cmdline} {counted}".strip(), timeout_scale=rig.timeout_scale * SLOWER,
    )  # fmt: skip
    boots = [_once(opened, plain, store)]
    while len(boots) < REPEATS and not boots[0].is_exact:
        boots.append(_once(opened, plain, store))
    chosen = sorted(boots, key=lambda boot: boot.seconds)[len(boots) // 2]
    assert chosen.seconds == median(boot.seconds for boot in boots)
    return replace(chosen, runs=tuple(boot.seconds for boot in boots))


def _once(opened: Opened, rig: Rig, store: Store) -> Boot:
    made = plan(opened, rig=rig, store=store)
    is_exact = not made.drives and rig.firmware == "direct"
    try:
        rig.say(f"{made.name}: measuring its boot")
        sleep = "off" if is_exact else "on"
        clock = ("-icount", f"shift={SHIFT},sleep={sleep}", *FIXED)
        machine = _qemu_start.boot(replace(made, command=made.command._replace(clock=clock)))
        try:
            counts = machine.ask(
                lambda: (_qemu_wait.ready if is_exact else _counted)(machine, f"{made.name}, measured", rig)
            )
        finally:
            machine.close()
        kernel = _qemu_load.kernel_digest(made.opened, made.load)[:16]  # another one is another boot
    finally:
        made.close()
    board, stages = made.command.board, tuple(machine.progress.stages)
    about = {"qemu": machine.version, "machine": board.machine_name, "cpu": board.cpu_name, "firmware": rig.firmware,
             "memory": f"{made.command.memory} MiB", "kernel": kernel}  # fmt: skip
    before = _before_kernel(stages)
    if counts is not None:
        stages, before = _executed(stages, counts, before if rig.firmware == "direct" else None)
    told = tuple(stage for stage in stages if not stage[1].startswith(COUNTER))
    return Boot(told, "instructions" if is_exact else "executed", before, (), about)


async def _counted(machine: Machine, name: str, rig: Rig) -> list[int]:
    """Wait until the guest is ready; how many instructions had been executed when each event was heard."""
    stages, counts = machine.progress.stages, list[int]()

    async def count() -> None:
        while machine.ending is None and (len(counts) < len(stages) or not machine.progress.is_ready):
            heard = len(stages)
            if heard > len(counts):
                executed = (await machine.monitor.execute("query-replay"))["icount"]
                counts.extend([executed] * (heard - len(counts)))
            else:
                await machine.until(lambda: len(stages) > len(counts), rig.ready_timeout)

    counting = asyncio.ensure_future(count())
    try:
        await _qemu_wait.ready(machine, name, rig)
        await counting
    finally:
        counting.cancel()
    return counts


def _executed(stages: Sequence[Stage], counts: Sequence[int], before: float | None) -> tuple[tuple[Stage, ...], float]:
    """Stages by the instructions that were executed, and the seconds before the kernel's clock began.

    Firmware waits too, so that its counter is no measure: there it is what the kernel's own time leaves.
    """
    seconds = [count * 2**SHIFT / NANOSECONDS for count in counts]
    if before is None:
        before = max(0.0, seconds[0] - stages[0][0])
    return tuple((max(0.0, at - before), words) for at, (_, words) in zip(seconds, stages, strict=True)), before


def _before_kernel(stages: tuple[Stage, ...]) -> float:
    """Seconds before the kernel's clock began: the processor's counter began with the machine."""
    for at, words in stages:
        numbers = words.removeprefix(COUNTER).split()
        if words.startswith(COUNTER) and len(numbers) == 2 and all(n.isascii() and n.isdecimal() for n in numbers):
            value, rate = int(numbers[0][:20]), int(numbers[1][:20])
            return max(0.0, value / (rate or NANOSECONDS) - at)  # x86 tells no rate: QEMU counts nanoseconds there
    return 0.0
