"""What is told and kept of a machine when a test on it has failed: texts for the report, files for whoever looks later.

A folder of the store holds the last failures, one folder each:

    about.json          the test, its machine, what was kept when
    NAME.console        all that is kept of the console, as bytes
    NAME.events         what the guest told, a line each
    NAME.logs           the ends of its log files that grew since the test began
    NAME.sh             starts the same artifact with its console on the terminal
    NAME.png            its display, where it has one
    NAME.machine/       the machine itself, with --on-failure=keep: `imagekit attach`
"""

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from imagekit import host
from imagekit.boot import Stage
from imagekit.console import escape, marked
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Guest

KEPT = 20  # failures; the oldest make room
CONSOLE_LINES, EVENT_LINES, LOG_LINES, LOG_BYTES = 60, 40, 20, 1 << 18
LOGS = "/var/log"
ABOUT = "about.json"
MAX_ABOUT = 1 << 20


class Seen(NamedTuple):
    """A machine of a failed test."""

    name: str  # "guest", "fresh", "net.client", ...
    guest: Guest
    console: int  # bytes that it had printed when the test began
    events: int  # how many events it had told by then
    since: float  # when that was, in seconds of CLOCK_REALTIME


def sections(seen: Seen) -> Iterator[tuple[str, str]]:
    """(title, text) for the report; a guest's words are marked and escaped."""
    guest, name = seen.guest, seen.name
    printed = guest.console.since(seen.console)
    if printed:
        yield f"{name} console", marked(printed, CONSOLE_LINES)
    else:  # the end of what came before is still the best hint
        yield f"{name} console", f"(nothing since the test began; before that:)\n{guest.console.end(10)}"
    events = list(guest.events())[seen.events :]
    if events:
        yield f"{name} events", "\n".join(_event(event) for event in events[-EVENT_LINES:])
    if logs := _logs(seen):
        yield f"{name} logs", marked(logs, CONSOLE_LINES)


def keep(folder: Path, seen: Seen, *, machine: bool) -> str:
    """Write what is known of a machine into a folder; what could not be had is said in words, "" when all was."""
    guest, missing = seen.guest, []
    _write(folder / f"{seen.name}.console", bytes(guest.console.head + guest.console.tail))
    _write(folder / f"{seen.name}.events", "".join(f"{_event(event)}\n" for event in guest.events()).encode())
    if logs := _logs(seen):
        _write(folder / f"{seen.name}.logs", logs)
    if by_hand := str(guest.facts.get("by_hand", "")):
        _script(folder / f"{seen.name}.sh", by_hand)
    if guest.is_alive() and guest.facts.get("display"):
        _write(folder / f"{seen.name}.png", guest.screenshot())
    if machine and guest.is_alive():
        try:
            guest.save(folder / f"{seen.name}.machine")
        except Problem as problem:
            missing.append(f"{seen.name} could not be kept: {problem.message.splitlines()[0]}")
    elif machine:
        missing.append(f"{seen.name} could not be kept: it is no longer there")
    return "; ".join(missing)


def keep_start(folder: Path, error: BaseException) -> None:
    """What is known of a machine that never became ready: its Problem, whose hint is the line that starts it."""
    _write(folder / "problem.txt", f"{error}\n".encode())
    for line in str(error).splitlines():
        if (command := line.strip().removeprefix("hint: ")).startswith("$ "):
            _script(folder / "machine.sh", command[2:])


def open_folder(place: Path, test: str) -> Path:
    """A new, empty folder for a failed test; the oldest of too many are removed. Raises RigProblem for a full disk."""
    folder = place / name_of(test)
    try:
        place.mkdir(parents=True, exist_ok=True)
        with host.once(place, ".failures"):  # other workers keep theirs
            for old in list(kept(place).values())[: -KEPT + 1]:
                shutil.rmtree(old, ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(mode=0o700)
            describe(folder, test, {}, "")
    except OSError as error:
        raise RigProblem(
            f"cannot keep the failure in {folder}: {error.strerror}", "--failures names a folder"
        ) from error
    return folder


def describe(folder: Path, test: str, targets: Mapping[str, str], said: str) -> None:
    """Note what the folder is about; `targets` names the target of each machine."""
    about = {
        "test": test,
        "targets": dict(targets),
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "said": said,
    }
    _write(folder / ABOUT, json.dumps(about, indent=1).encode())


def name_of(test: str) -> str:
    """A test's name as that of a folder: readable, and another one for every test."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", test.rpartition("/")[2]).strip("-.")[:80]
    return f"{plain}-{sha256(test.encode()).hexdigest()[:10]}"


def kept(place: Path) -> dict[str, Path]:
    """The failures that are kept: test -> folder, the newest last. What is no folder of ours is passed by."""
    found: list[tuple[float, str, Path]] = []
    for path in place.glob(f"*/{ABOUT}"):
        with suppress(OSError, ValueError, KeyError, TypeError):  # another's file of that name
            found.append((path.stat().st_mtime, str(read(path.parent)["test"]), path.parent))
    return {test: path for _, test, path in sorted(found)}


def read(folder: Path) -> dict[str, Any]:
    """What `describe` noted; raises ValueError or OSError when that cannot be read."""
    with open(folder / ABOUT, "rb") as file:
        found = json.loads(file.read(MAX_ABOUT))
    if not isinstance(found, dict):
        raise ValueError(f"{folder / ABOUT} is no object")
    return found


def _event(event: Stage) -> str:
    return f"{event[0]:.6f} {escape(event[1].encode())}"


def _logs(seen: Seen) -> bytes:
    """The ends of the log files that grew since the test began; "" where nobody can be asked."""
    guest = seen.guest
    if not guest.is_alive():
        return b""
    words: Sequence[str] = ("@tail", LOGS, f"{seen.since - 1:.0f}", str(LOG_LINES))
    try:
        done = guest.run_argv(tuple(words), input=b"", env={}, timeout=10.0)
    except Problem:  # it hangs, or has no agent: the report of the failure itself says more
        return b""
    return done.stdout[:LOG_BYTES] if done.code == 0 else b""


def _script(path: Path, by_hand: str) -> None:
    about = "# The same artifact in the same machine, its console on this terminal."
    _write(path, f"#!/bin/sh\n{about}\nexec {by_hand}\n".encode())
    path.chmod(0o755)


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise RigProblem(f"cannot write {path}: {error.strerror}", "make room, or --failures names a folder") from error
