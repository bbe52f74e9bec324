"""How long a machine is waited for: its own seconds, told apart from those in which the host kept it waiting."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from math import inf
from pathlib import Path

import pytest

from imagekit.patience import Outcome, Patience, Spent
from imagekit.targets import _qemu_effort
from imagekit.targets._qemu_effort import Effort

LIMITS = [
    (Patience(5), Spent(4.9, 100, 100, 50), ""),
    (Patience(5), Spent(5, 0, 0, 5), "the guest worked 5 s"),
    (Patience(5, idle=7), Spent(4, 7, 3, 11), "the guest was idle for 7 s"),
    (Patience(5, idle=70, silent=2), Spent(4, 2.5, 1.9, 7), ""),
    (Patience(5, idle=70, silent=2), Spent(4, 2.5, 2, 7), "the guest is idle, not slow: nothing for 2 s"),
    (Patience(5, idle=7), Spent(4.9, 6.9, 6.9, 109), ""),
    (Patience(5, idle=7), Spent(4.9, 6.9, 6.9, 110), "the wall limit of 110 s was reached; the guest worked 4.9 s"),
    (Patience(5, wall=6), Spent(4, 1, 1, 6), "the wall limit of 6 s was reached"),
    (Patience.of(3), Spent(2.9, 2.9, 2.9, 80), ""),
    (Patience.of(3), Spent(0, 3, 0, 3), "the guest was idle for 3 s"),
    (Patience.of(3) * 2, Spent(3, 3, 3, 100), ""),
    (Patience.of(3) * 2, Spent(6, 3, 3, 100), "the guest worked 6 s"),
    (Patience.of(inf), Spent(1e9, 1e9, 1e9, 1e9), ""),
    (Patience(5, wall=6) * 2, Spent(9, 0, 0, 11), ""),
]


@pytest.mark.parametrize(("patience", "spent", "words"), LIMITS)
def test_which_limit_ends_a_wait(patience: Patience, spent: Spent, words: str) -> None:
    assert patience.over(spent).startswith(words)
    assert bool(patience.over(spent)) is bool(words)


def test_the_next_look_is_when_a_limit_can_be_reached_at_the_earliest() -> None:
    assert Patience(5, idle=3).left(Spent(1, 1, 1, 2)) == 2
    assert Patience(5, idle=30, silent=2).left(Spent(1, 1.5, 1, 2)) == 1
    assert 0 < Patience(5).left(Spent(6)) < 0.1
    assert Patience.of(inf).left(Spent()) == inf


def test_an_outcome_is_true_when_what_was_awaited_came() -> None:
    assert Outcome(True)
    assert not Outcome(False, "the guest worked 1 s")


# --- what a process did, by a real kernel


@contextmanager
def python(code: str, cpus: set[int] | None = None) -> Iterator[int]:
    """A process that has begun to do what `code` says."""
    begin = f"import os, time; os.sched_setaffinity(0, {cpus or os.sched_getaffinity(0)!r}); print(flush=True)\n"
    with subprocess.Popen([sys.executable, "-S", "-c", begin + code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        process.stdout.readline()
        try:
            yield process.pid
        finally:
            process.kill()


def watch(pid: int, seconds: float) -> Spent:
    """What it did while it used `seconds` of wall clock."""
    effort = Effort(pid)
    begin = effort.look()
    time.sleep(seconds)
    return effort.since(begin)


SLEEP, BURN = "time.sleep(600)", "while True: pass"


def test_a_process_that_sleeps_is_idle() -> None:
    with python(SLEEP) as pid:
        spent = watch(pid, 0.5)
    assert spent.worked < 0.1 * spent.wall
    assert 0 < spent.idle <= spent.wall  # less what kept us waiting
    assert spent.silent == spent.idle


def test_a_process_that_works_is_not_idle() -> None:
    with python(BURN) as pid:
        effort = Effort(pid)
        begin = effort.look()
        while (spent := effort.since(begin)).worked < 0.3:  # a hang is the failure
            time.sleep(0.05)
    assert spent.idle < 0.2 * spent.wall


def test_a_process_that_is_kept_waiting_neither_works_nor_is_idle() -> None:
    """Five processes want one processor of the host: load must not look like work, nor like sleep."""
    cpus = {max(os.sched_getaffinity(0))}
    with ExitStack() as stack:
        pids = [stack.enter_context(python(BURN, cpus)) for _ in range(5)]
        effort = Effort(pids[-1])
        begin = effort.look()
        while (spent := effort.since(begin)).wall < 2:
            time.sleep(0.1)
    assert spent.worked < 0.6 * spent.wall
    assert spent.idle < 0.1 * spent.wall


def test_threads_that_came_and_went_are_counted() -> None:
    burn = "from threading import Thread\ndef f():\n    end = time.thread_time() + 0.1\n"
    burn += "    while time.thread_time() < end: pass\nwhile True:\n    t = Thread(target=f); t.start(); t.join()\n"
    with python(burn) as pid:
        effort = Effort(pid)
        begin = effort.look()
        while (spent := effort.since(begin)).worked < 0.4:  # a hang is the failure
            time.sleep(0.02)
    assert spent.worked <= spent.wall * len(os.sched_getaffinity(0))


def test_a_stopped_process_is_not_idle() -> None:
    with python(SLEEP) as pid:
        os.kill(pid, signal.SIGSTOP)
        while "T" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]:
            time.sleep(0.01)
        assert watch(pid, 0.2).idle == 0


def test_news_end_a_silence_but_not_idleness() -> None:
    with python(SLEEP) as pid:
        effort = Effort(pid)
        begin = effort.look()
        while effort.since(begin).silent < 0.1:
            time.sleep(0.05)
        effort.news()
        spent = effort.since(begin) if time.sleep(0.03) is None else None
        assert spent
        assert spent.silent == 0
        assert spent.idle >= 0.1


def test_a_process_that_has_ended_is_nothing() -> None:
    with python(SLEEP) as pid:
        effort = Effort(pid)
    begin = effort.look()
    time.sleep(0.05)
    assert effort.since(begin)[:3] == (0, 0, 0)


def test_a_kernel_without_counts_never_calls_a_guest_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_qemu_effort, "_schedstat", lambda _: (0.0, 0.0))
    with python(SLEEP) as pid:
        assert watch(pid, 0.1)[1:3] == (0, 0)
    with python(BURN) as pid:
        effort = Effort(pid)
        while effort.look().worked < 0.1:  # a hang is the failure
            time.sleep(0.05)
        assert effort.look().idle <= 0
