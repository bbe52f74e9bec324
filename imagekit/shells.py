"""Shells: whether a command starts one for whoever comes by, as far as its words tell."""

import re
import shlex
from collections.abc import Iterator, Sequence
from itertools import pairwise

SHELLS = {"sh", "ash", "bash", "dash", "zsh", "ksh", "mksh", "csh", "tcsh", "fish", "hush", "rbash"}
LOGINS = {"getty", "agetty", "mingetty", "fgetty", "sulogin", "login", "telnetd", "in.telnetd", "in.rlogind", "in.rshd"}
WRAPPERS = {"busybox", "env", "exec", "setsid", "cttyhack", "nohup", "nice", "ionice", "chpst", "chroot", "openvt",
            "timeout", "script", "su"}  # fmt: skip
RUNS_NEXT = ("-e", "-c", "--exec", "--sh-exec")  # of nc, ncat, script, su: the next word is a command
SOCAT = re.compile(r"(?:EXEC|SYSTEM|SHELL):([^,]+)", re.IGNORECASE)


def started(words: Sequence[str]) -> Iterator[str]:
    """Interactive shells and logins that a command starts."""
    program, rest = _program(words)
    if program in LOGINS or (program in SHELLS and _is_interactive(rest)):
        yield program
    for option, inner in pairwise(rest):
        if program in SHELLS and re.fullmatch(r"-[a-z]*c", option):
            yield from _of_script(inner)
        elif program not in SHELLS and option in RUNS_NEXT:
            yield from started(_split(inner))
    for match in (match for word in rest for match in SOCAT.finditer(word)):
        yield from started(_split(match[1]))


def _program(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """What a command comes to, without programs that only start another one; and its arguments."""
    names = [word.rpartition("/")[2].lstrip("-") if "=" not in word else "" for word in words]
    at = 0
    if names and (names[0] in WRAPPERS or not names[0]):
        at = next((number for number, name in enumerate(names) if name in SHELLS | LOGINS), 0)
    return (names[at], words[at + 1 :]) if names else ("", ())


def _is_interactive(arguments: Sequence[str]) -> bool:
    """Whether a shell would read its commands from its input: it was given neither a script nor a command."""
    if any(re.fullmatch(r"-[a-z]*[is][a-z]*|--login|--interactive", word) for word in arguments[:1]):
        return True
    return all(word.startswith(("-", "+")) and not re.fullmatch(r"-[a-z]*c", word) for word in arguments)


def _of_script(script: str) -> Iterator[str]:
    """The same of each simple command of a script for a shell."""
    for command in re.split(r"[;&|\n(){}]+|\b(?:then|do|else)\b", script):
        words = re.sub(r"\d?[<>]+&?\s*\S+", " ", command)  # where its input comes from is no word
        if words.strip():
            yield from started(_split(words))


def _split(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # quotes across what was cut
        return command.split()
