"""A shell in a guest on this terminal, by its agent: no login, no network, no console in its way."""

import os
import sys
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from threading import Event, Thread

from imagekit import failure
from imagekit.console import escape
from imagekit.errors import Problem
from imagekit.guest import Guest
from imagekit.stream import Stream

SHELL = ("/bin/sh", "-l")
PATIENCE = 3600.0  # seconds that a script may take
TICK = 0.2  # seconds between two looks at whether the shell is still there


def shell(guest: Guest, title: str) -> int:
    """A shell of the guest on this terminal until it ends; its exit status.

    Where stdin is no terminal, all of it is one script, and a guest's bytes are escaped unless they go to a terminal.
    """
    if not os.isatty(0):
        return _script(guest, sys.stdin.buffer.read())
    from imagekit.targets import _qemu_terminal as terminal

    print(f"{title}\n{terminal.KEYS.replace('stops the guest', 'ends the shell')}", file=sys.stderr, flush=True)
    rows, columns = os.get_terminal_size(0).lines, os.get_terminal_size(0).columns
    ended = Event()
    with guest.stream_argv(("@terminal", str(rows), str(columns), *SHELL)) as stream, terminal.raw_terminal():
        reader = Thread(target=_print, args=(stream, ended), daemon=True)
        reader.start()
        _type(stream, ended)
        stream.stop()
        reader.join(2 * TICK)
    return stream.code or 0


def find(place: Path, asked: str) -> tuple[Path, str, dict[str, str]]:
    """The folder of a kept failure, its test, and the targets of its machines; raises Problem that lists the known."""
    known = failure.kept(place)
    folder = known.get(asked) or (Path(asked) if (Path(asked) / failure.ABOUT).is_file() else None)
    if folder is None:
        names = "\n  ".join(reversed(known)) or "none: run pytest with --on-failure=keep"
        raise Problem(f"no failure of {asked!r} is kept", f"kept in {place}:\n  {names}")
    try:
        about = failure.read(folder)
        return folder, str(about["test"]), {str(name): str(target) for name, target in about["targets"].items()}
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise Problem(f"{folder} is no kept failure: {error}", "run the test again with --on-failure=keep") from error


def machine(folder: Path, targets: dict[str, str], name: str) -> tuple[Path, str, str]:
    """(folder, target, name) of a machine that was kept; raises Problem when it was not."""
    kept = [one for one in targets if (folder / f"{one}.machine").is_dir()]
    if not kept:
        raise Problem(f"{folder} has no machine in it", "run the test again with --on-failure=keep")
    chosen = name or kept[0]
    if chosen not in kept:
        raise Problem(f"no machine {name!r} was kept", f"there is {', '.join(kept)}")
    return folder / f"{chosen}.machine", targets[chosen], chosen


def _print(stream: Stream, ended: Event) -> None:
    from imagekit.targets import _qemu_terminal as terminal

    try:
        for data in stream.chunks():
            terminal.show(data)
    except Problem as problem:
        terminal.show(f"\r\n{problem}\r\n".encode())
    finally:
        ended.set()


def _type(stream: Stream, ended: Event) -> None:
    from imagekit.targets._qemu_terminal import Keys

    keys = Keys()
    with DefaultSelector() as waiting:
        waiting.register(0, EVENT_READ)
        while not ended.is_set() and not keys.is_leaving:
            if waiting.select(TICK):
                typed = os.read(0, 1024)
                if not typed:
                    return
                stream.send(keys.feed(typed))


def _script(guest: Guest, script: bytes) -> int:
    done = guest.run(SHELL[:1], input=script, timeout=PATIENCE)
    for stream, text in ((sys.stdout, done.stdout), (sys.stderr, done.stderr)):
        stream.buffer.write(text if stream.isatty() else escape(text).encode())
        stream.buffer.flush()
    return done.code
