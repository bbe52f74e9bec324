"""A service for systemd, and the socket that it is started by."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from imagekit.errors import Problem
from imagekit.unit import Program, Unit, Wishes

Rows = Iterable[tuple[str, str | None]]  # None leaves the row out
PLAIN = re.compile(r"[A-Za-z0-9_@+=:,./-]+\Z")  # needs no quotation marks (systemd.syntax(7), "Quoting")
NEVER = re.compile(r"[\x00-\x1f\x7f-\x9f\"'\\\ud800-\udfff]")  # systemd takes none of these in a path
LISTEN = re.compile(
    r"(?:/[A-Za-z0-9_.@+/-]{1,100}|@[A-Za-z0-9_.-]{1,100}|(?:(?:[0-9]{1,3}\.){3}[0-9]{1,3}:|\[[0-9A-Fa-f:.]{2,45}\]:)?([0-9]{1,5}))\Z"
)
RESTART = {"always": "always", "on-failure": "on-failure", "never": "no"}
KEY = "image.pub"
HOMES, TEMPORARY = ("/home/", "/root/", "/run/user/"), ("/tmp/", "/var/tmp/")
LONGEST_NAME = 255 - len(".service")  # systemd.unit(5)

HARDENING = (  # of systemd.exec(5), what leaves a mount namespace possible, alone or in a user namespace
    ("NoNewPrivileges", "yes"),
    ("PrivateDevices", "yes"),
    ("PrivateTmp", "yes"),
    ("ProtectClock", "yes"),
    ("ProtectControlGroups", "yes"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectSystem", "strict"),
    ("LockPersonality", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "mnt user"),
    ("RestrictRealtime", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "~@clock @cpu-emulation @debug @module @obsolete @raw-io @reboot @swap"),
    ("SystemCallErrorNumber", "EPERM"),
)
DROPPED = (  # root keeps what mounts and a change of user need
    "CAP_AUDIT_CONTROL CAP_AUDIT_READ CAP_BLOCK_SUSPEND CAP_BPF CAP_LINUX_IMMUTABLE CAP_MAC_ADMIN CAP_MAC_OVERRIDE "
    "CAP_PERFMON CAP_SYS_BOOT CAP_SYS_MODULE CAP_SYS_PACCT CAP_SYS_PTRACE CAP_SYS_RAWIO CAP_SYS_TIME CAP_SYSLOG "
    "CAP_SYS_TTY_CONFIG CAP_WAKE_ALARM"
)


def write(programs: Sequence[Program], wishes: Wishes) -> Mapping[str, str]:
    """NAME.service for each program, and NAME.socket where sockets are to be handed over."""
    if wishes.listen and len(programs) > 1:
        raise Problem("sockets are handed to one service", "choose it with --service")
    texts: dict[str, str] = {}
    for program in programs:
        _check(program, wishes)
        name = escaped(program.name)
        texts[f"{name}.service"] = _text(program, _service(program, name, wishes))
        if wishes.listen:
            texts[f"{name}.socket"] = _text(program, _socket(program, wishes.listen))
    return texts


def word(text: str) -> str:
    """One word of a command line, exactly: systemd.syntax(7), "Quoting"; systemd.unit(5), "Specifiers".

    `$` stands for itself, since every command line here begins with `:` (systemd.service(5), "Command lines").
    """
    return text if PLAIN.match(text) else f'"{"".join(map(_character, text))}"'


def escaped(name: str) -> str:
    """The name of a unit, as systemd-escape writes what no such name may hold."""
    found = "".join(c if re.match(r"[A-Za-z0-9:_.-]", c) else _bytes(c) for c in name)
    if len(found) > LONGEST_NAME or not found:
        raise Problem(f"{name!r} is no name of a unit", "give one with --name")
    return found


def _bytes(text: str) -> str:
    return "".join(f"\\x{byte:02x}" for byte in text.encode("utf-8", "surrogateescape"))


def _character(c: str) -> str:
    if c in ('"', "\\"):
        return f"\\{c}"
    return "%%" if c == "%" else (c if c.isprintable() else _bytes(c))


def _path(text: str) -> str:
    """A path where systemd takes no quotation marks."""
    if NEVER.search(text) or text != text.strip() or not text.startswith("/"):
        raise Problem(f"systemd takes no path {text!r}", "an absolute one, without quotation marks and backslashes")
    return text.replace("%", "%%")


def _check(program: Program, wishes: Wishes) -> None:
    """Raise a Problem for what a unit cannot do."""
    if program.is_bundle and (wishes.volumes or wishes.credentials):
        raise Problem("a bundle takes no volumes and no credentials", "take the .tar.gz, which `imagekit run` starts")
    if program.is_bundle and program.is_fetched:
        raise Problem(f"systemd starts no program from {program.file}", "name the path where it will lie, with --at")
    started = program.file if program.is_bundle else wishes.imagekit
    if NEVER.search(started) or not (started.startswith("/") or PLAIN.match(started)):
        raise Problem(
            f"systemd starts no program {started!r}", "an absolute path without quotation marks and backslashes"
        )
    if hidden := [path for path in _files(program, wishes) if path.startswith(TEMPORARY)]:
        raise Problem(f"{hidden[0]} is not there for a service, which has temporary folders of its own",
                      "put it elsewhere, and name that with --at")  # fmt: skip
    for address in wishes.listen:
        found = LISTEN.match(address)
        if not found or not 0 < int(found[1] or 1) < 65536:
            raise Problem(
                f"{address!r} is no address to listen on", "80, 127.0.0.1:80, [::1]:80, /run/web.sock or @web"
            )


def _files(program: Program, wishes: Wishes) -> tuple[str, ...]:
    return (program.file, wishes.trust, wishes.imagekit, *(volume.source for volume in wishes.volumes))


def _service(program: Program, name: str, wishes: Wishes) -> Iterator[tuple[str, Rows]]:
    socket = f"{name}.socket" if wishes.listen else None
    yield "Unit", _order(program, socket)
    yield "Service", (*_started(program, wishes), *_handed(program, name, wishes), *_bounds(program, wishes))
    yield "Install", [("WantedBy", "multi-user.target"), ("Also", socket)]


def _order(program: Program, socket: str | None) -> Rows:
    online = "network-online.target" if program.is_fetched else None
    others = [f"{escaped(other)}.service" for other in program.after]
    yield "Description", program.image
    yield "Wants", " ".join(filter(None, (online, *others))) or None
    yield "Requires", socket
    yield "After", " ".join(filter(None, (online or "network.target", *others, socket)))


def _started(program: Program, wishes: Wishes) -> Rows:
    yield "Type", "exec"  # the program takes the place of what starts it: its process is the unit's main process
    yield "ExecStart", " ".join(_command(program, wishes))
    yield "Restart", RESTART[program.restart]
    yield "RestartSec", "3"  # slower than the 5 starts in 10 seconds after which systemd gives up
    yield "KillMode", "mixed"  # SIGTERM is the program's; what it leaves behind gets SIGKILL
    yield "TimeoutStopSec", f"{program.stop_timeout:g}"


def _bounds(program: Program, wishes: Wishes) -> Rows:
    is_in_home = any(path.startswith(HOMES) for path in _files(program, wishes))
    yield "MemoryMax", str(wishes.memory) if wishes.memory else None
    yield "CPUQuota", f"{round(wishes.cpus * 100)}%" if wishes.cpus else None
    yield "TasksMax", str(wishes.pids) if wishes.pids else None
    yield from HARDENING
    yield "ProtectHome", "read-only" if is_in_home else "yes"
    yield "DynamicUser", "yes" if wishes.unprivileged else None
    yield "CapabilityBoundingSet", "" if wishes.unprivileged else f"~{DROPPED}"


def _command(program: Program, wishes: Wishes) -> Iterator[str]:
    """The words of ExecStart, quoted; %d is the folder with the service's credentials."""
    if program.is_bundle:
        yield word(f":{program.file}")
        yield from map(word, ("--bundle-exec", *program.command) if program.command else ())
        return
    yield word(f":{wishes.imagekit}")
    yield from ("run", "--trust", word(wishes.trust) if wishes.trust else f"%d/{KEY}")
    for name, value in program.env.items():
        yield from ("-e", word(f"{name}={value}"))
    for volume in wishes.volumes:
        yield from ("-v", word(str(volume)))
    yield from ("-v", "%d:%d:ro") if wishes.credentials else ()
    yield from ("--user", word(program.user)) if program.user else ()
    yield word(program.file)
    yield from map(word, ("--", *program.command) if program.command else ())


def _handed(program: Program, name: str, wishes: Wishes) -> Rows:
    """A cache, and files that only this service reads (systemd.exec(5), "Credentials")."""
    cache = re.sub(r"[^A-Za-z0-9_.-]", "_", name) if wishes.unprivileged else "imagekit"
    yield "CacheDirectory", cache
    yield "CacheDirectoryMode", "0700"
    yield "Environment", f"IMAGEKIT_CACHE=%C/{cache}"
    if not (program.is_bundle or wishes.trust):
        yield "SetCredential", f"{KEY}:{''.join(map(_character, wishes.key))}"
    for credential, file in wishes.credentials:
        yield "LoadCredential", f"{credential}:{_path(file)}"
    for volume in wishes.volumes:
        if not volume.is_read_only:
            yield "ReadWritePaths", f'"{_path(volume.source)}"'


def _socket(program: Program, listen: Sequence[str]) -> Iterator[tuple[str, Rows]]:
    yield "Unit", [("Description", f"Sockets of {program.image}")]
    yield "Socket", [("ListenStream", address) for address in listen]
    yield "Install", [("WantedBy", "sockets.target")]


def _text(program: Program, sections: Iterable[tuple[str, Rows]]) -> str:
    text = f"# Written by imagekit for {program.arch}, from an image file whose sha256 is\n# {program.sha256}\n"
    for name, rows in sections:
        text += f"\n[{name}]\n" + "".join(f"{key}={value}\n" for key, value in rows if value is not None)
    return text


UNIT = Unit(write)
