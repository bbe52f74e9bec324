"""A shell in a guest on this terminal, by its agent: no login, no network, no console in its way."""

import sys

from imagekit.console import escape
from imagekit.errors import Problem
from imagekit.guest import Guest

PROMPT, FOLDER = "guest# ", "/root"
PATIENCE = 3600.0  # seconds that a command may take
HELP = "each line is run by the guest's /bin/sh; an empty line does nothing, Ctrl-D or `exit` leaves"


def shell(guest: Guest, title: str) -> int:
    """Run what is typed in the guest until the input ends; the exit status of the last command.

    Where stdin is no terminal, all of it is one script.
    """
    if not sys.stdin.isatty():
        return _show(guest, ["/bin/sh"], sys.stdin.buffer.read())
    print(f"{title}\n{HELP}", file=sys.stderr)
    code, folder = 0, FOLDER
    while (line := _typed()) is not None:
        if line.strip() == "exit":
            break
        if not line.strip():
            continue
        try:
            code, folder = _run(guest, line, folder)
        except Problem as problem:  # it may be the guest's end; the next line tells
            print(problem, file=sys.stderr)
            code = 1
        if not guest.is_alive():
            print("the guest is no longer there", file=sys.stderr)
            break
    return code


def _typed() -> str | None:
    try:
        return input(PROMPT)
    except EOFError:
        print()
        return None


def _run(guest: Guest, line: str, folder: str) -> tuple[int, str]:
    """One line, in the folder that the one before left: (exit status, folder)."""
    script = 'cd "$1"; eval "$2"; code=$?; pwd >&3; exit $code'
    wrapped = f"exec 3>/tmp/.imagekit-folder; {script}"
    code = _show(guest, ["/bin/sh", "-c", wrapped, "sh", folder, line], b"")
    told = guest.run(["/bin/sh", "-c", "cat /tmp/.imagekit-folder; rm -f /tmp/.imagekit-folder"]).text
    return code, told if told.startswith("/") else folder


def _show(guest: Guest, argv: list[str], data: bytes) -> int:
    done = guest.run(argv, input=data, timeout=PATIENCE)
    is_terminal = sys.stdout.isatty()
    for stream, text in ((sys.stdout, done.stdout), (sys.stderr, done.stderr)):
        shown = text if is_terminal else escape(text).encode()
        stream.buffer.write(shown)
        stream.buffer.flush()
    return done.code
