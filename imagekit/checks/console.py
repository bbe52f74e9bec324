"""The console: what a kernel prints there when something is wrong; a row per complaint, and one more knows another."""

import re
from typing import NamedTuple

from imagekit.console import WIDTH, escape
from imagekit.guest import Guest


class Complaint(NamedTuple):
    """A kind of line that no console should show."""

    name: str  # as a marker allows it: @pytest.mark.allows("oops")
    regex: str
    words: str


COMPLAINTS = (  # the first that fits a line names it; the kernel's file is where the words stand
    Complaint("panic", r"Kernel panic - not syncing", "the kernel panicked"),  # kernel/panic.c
    Complaint("lockup", r"(soft|hard|Soft|Hard) (lockup|LOCKUP)", "a processor locked up"),  # kernel/watchdog.c
    Complaint(
        "stall", r"rcu\w*.*(self-)?detected (expedited )?stall", "a processor stalled"
    ),  # kernel/rcu/tree_stall.h
    Complaint("hung-task", r"INFO: task \S+ blocked for more than", "a task hung"),  # kernel/hung_task.c
    Complaint(
        "oops",
        r"\bOops(:| -)|Internal error: |BUG: unable to handle|Unable to handle kernel|general protection fault",
        "the kernel oopsed",
    ),  # arch/*/mm/fault.c, arch/*/kernel/traps.c
    Complaint("bug", r"kernel BUG at |\bBUG: |UBSAN: ", "the kernel found a bug in itself"),
    Complaint("warning", r"WARNING: (CPU: \d+|at |.*\bat \S+:\d+)|WARNING: possible", "the kernel warned"),
    Complaint("oom", r"Out of memory: |Memory cgroup out of memory: |oom-kill:|invoked oom-killer", "memory ran out"),
    Complaint("io-error", r"\bI/O error\b|critical (medium|target) error", "a disk failed"),  # block/blk-core.c
    Complaint("ext4", r"EXT4-fs error|EXT4-fs \(\S+\): (error|delayed)|EXT4-fs warning", "ext4 found an error"),
    Complaint("read-only", r"[Rr]emounting filesystem read-only", "a file system became read-only"),
    Complaint(
        "segfault",
        r"\bsegfault at |traps: .*(general protection|trap )|unhandled .* (fault|exception)|fatal signal",
        "a program crashed",
    ),  # show_signal_msg() of arch/x86, arm64_show_signal()
    Complaint("go-panic", r"^panic: .*|^fatal error: .* goroutine", "a Go program panicked"),
    Complaint("sanitizer", r"(Address|Leak|Memory|Thread|UndefinedBehavior)Sanitizer: ", "a sanitizer complained"),
    Complaint("emergency", r"You are in emergency mode|Entering emergency mode", "it fell into emergency mode"),
)
BY_NAME = {complaint.name: complaint for complaint in COMPLAINTS}
_PATTERN = re.compile("|".join(f"(?P<_{number}>{row.regex})" for number, row in enumerate(COMPLAINTS)))
MAX_LINES = 20  # that are told of one name


def complaints(guest: Guest, *, since: int = 0) -> dict[str, list[str]]:
    """Lines that should not be there, by their complaint's name; `since` is a number of bytes of the console."""
    return found(guest.console.since(since))


def found(data: bytes) -> dict[str, list[str]]:
    """The same of bytes: `found(b"...")`. What a command's output says is not told apart from what the kernel says."""
    lines: dict[str, list[str]] = {}
    for line in escape(data).splitlines():
        if match := _PATTERN.search(line):
            named = lines.setdefault(COMPLAINTS[int(str(match.lastgroup)[1:])].name, [])
            if len(named) < MAX_LINES:
                named.append(line.strip()[:WIDTH])
    return lines
