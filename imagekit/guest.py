"""Guest: something alive, started from an artifact: a QEMU machine and a namespace look alike.

The narrow waist is `run(argv)`; `http` and `tcp` go through `connect`. Also here: what a target is. A plug in targets/
starts an Artifact and gives a Guest; formats and targets meet only in a format's kind.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO, NoReturn

from imagekit import expect, files, health, ssh
from imagekit.boot import Boot, Stage
from imagekit.console import Console as Console
from imagekit.console import escape as escape
from imagekit.errors import GuestProblem as GuestProblem
from imagekit.errors import MachineProblem as MachineProblem
from imagekit.files import Stat as Stat
from imagekit.health import Health as Health
from imagekit.health import ServiceState as ServiceState
from imagekit.http import Http
from imagekit.patience import Stopwatch, wall_watch
from imagekit.rig import Kept as Kept
from imagekit.rig import Rig as Rig
from imagekit.ssh import Ssh
from imagekit.stream import Stream as Stream

FOLLOWING = 30.0  # seconds of its own that a guest takes to open a file
SHOW_HOST_KEYS = """cat /etc/ssh/ssh_host_*_key.pub
for key in /etc/dropbear/dropbear_*_host_key; do dropbearkey -y -f $key; done"""


@dataclass(frozen=True)
class Finished:
    """How a command in a guest ended; its streams are kept apart and are whatever bytes the guest sent."""

    argv: tuple[str, ...]
    code: int  # exit status; 128 + signal where a signal ended it
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text, without the last line end; bytes that are no UTF-8 are shown as escapes."""
        return self.stdout.decode("utf-8", "backslashreplace").removesuffix("\n")

    def check(self) -> "Finished":
        """Itself when the code is 0; raises GuestProblem with both streams otherwise."""
        if self.code:
            streams = "\n".join(escape(s[-4000:]) for s in (self.stdout, self.stderr) if s)
            raise GuestProblem(f"{' '.join(self.argv)} ended with {self.code}\n{streams}".rstrip())
        return self


def _cannot(*_: object, **__: object) -> NoReturn:
    raise GuestProblem("this kind of guest cannot do that", "ask for `guest` or `boot` on a machine that boots")


@dataclass(frozen=True)
class Power:
    """A machine's plug and buttons. Its disks stay; what is in memory does not."""

    cut: Callable[[], None] = _cannot  # the plug is pulled: the guest is not asked
    on: Callable[[], None] = _cannot  # start again; returns at once, `guest.wait_ready()` waits
    reset: Callable[[], None] = _cannot  # the reset button; returns at once


@dataclass(frozen=True)
class Chip:
    """A machine's TPM, as seen from outside: the guest is not asked, and may have been killed."""

    pcrs: Callable[[], Mapping[int, bytes]]  # PCR -> SHA-256
    log: Callable[[], bytes]  # what firmware, loader and stub say that they measured (TCG's event log)
    state: Callable[[], bytes]  # what Rig(tpm=Tpm(state)) goes on from
    send: Callable[[bytes], bytes]  # a TPM2 command on the bus, and the response


def _no_tpm(*_: object) -> NoReturn:
    raise GuestProblem("this machine has no TPM", "start it with Rig(tpm=Tpm())")


NO_CHIP = Chip(_no_tpm, _no_tpm, _no_tpm, _no_tpm)


@dataclass(frozen=True)
class Guest:
    """A running image. `with guest:` stops it at the end, whatever happened."""

    arch: str
    target: str
    run_argv: Callable[..., Finished] = field(repr=False)  # (argv, *, input, env, timeout)
    connect: Callable[[int], Any] = field(repr=False)  # guest port -> a connected socket.socket
    stop: Callable[[], None] = field(repr=False)  # a clean stop, then a hard one; twice is once
    console: Console = field(repr=False)
    facts: dict[str, Any]  # what was measured: "boot_seconds", "stages", "services", "accelerator", ...
    is_alive: Callable[[], bool] = field(repr=False, default=lambda: True)
    stream_argv: Callable[..., Any] = field(repr=False, default=_cannot)  # a command whose output is taken as it comes
    wait_ready: Callable[[], None] = field(repr=False, default=_cannot)  # after power.on, power.reset or a reboot
    power: Power = field(repr=False, default=Power())
    measure: Callable[[], Boot] = field(repr=False, default=_cannot)  # boot the same bytes by the instruction clock
    save: Callable[[Any], None] = field(repr=False, default=_cannot)  # freeze the machine as it is into a folder
    stopwatch: Stopwatch = field(repr=False, default=wall_watch)  # start one: seconds as they pass for the guest
    screenshot: Callable[[], bytes] = field(repr=False, default=_cannot)  # PNG of its display
    tpm: Chip = field(repr=False, default=NO_CHIP)
    kept: Callable[[], Kept] = field(repr=False, default=_cannot)  # what is left of it without its power
    set_link: Callable[[int, bool], None] = field(repr=False, default=lambda *_: None)  # (number of a wire, is up)
    events: Callable[[], Sequence[Stage]] = field(repr=False, default=tuple)  # all that it told of its services so far

    @property
    def boot(self) -> Boot:
        """How its boot went by the instruction clock: the same figure on any host; measured when first asked for."""
        if "boot" not in self.facts:
            self.facts["boot"] = self.measure()
        found: Boot = self.facts["boot"]
        return found

    def run(
        self,
        argv: Sequence[str] | str,
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float = 60.0,  # seconds that the guest may work, or be idle, until the command is killed
    ) -> Finished:
        """Run a command in the guest and wait for it; a string is split as a shell would split words, no shell runs.

        While a busy host keeps the guest waiting, its time does not pass: docs/testing.md tells how time-outs count.
        """
        if isinstance(argv, str):
            import shlex

            argv = shlex.split(argv)
        return self.run_argv(tuple(argv), input=input, env=dict(env or {}), timeout=timeout)

    def health(self) -> Health:
        """How the guest is at this moment: kernel, mounts, memory, services; cheap enough to ask after every test."""
        told = self.run_argv(("@health",), input=b"", env={}, timeout=30.0).check().stdout
        return health.parse(told, self.events())

    def services(self) -> Mapping[str, ServiceState]:
        """Every service by its name, as it is now: `guest.services()["web"].state == "ready"`."""
        return self.health().services

    def ports(self) -> set[int]:
        """The TCP ports that something in the guest listens on."""
        tables = [files.read(self.run_argv, f"/proc/net/{name}") for name in ("tcp", "tcp6") if self._has(name)]
        return expect.listening(b"".join(tables))

    def _has(self, table: str) -> bool:
        return self.run_argv(("@stat", f"/proc/net/{table}"), input=b"", env={}, timeout=30.0).code == 0

    def expect(self, condition: str, *, by: str = "", timeout: float = 60.0) -> str:
        """Wait until a condition holds, as `guest.expect("tcp:80", by="nginx")`; expect.py lists them.

        Gives up at once when the guest is gone, or the service `by` (any, where none is named) failed or ended twice.
        """
        return expect.wait(self, condition, by=by, timeout=timeout, states=lambda: health.states(self.events()))

    def follow(self, path: str) -> Stream:
        """What is added to a file from now on: `with guest.follow("/var/log/x") as log: log.expect("started")`."""
        stream: Stream = self.stream_argv(("@follow", path))
        seconds = self.stopwatch()
        while b"following" not in stream.stderr:
            if stream.poll(1.0) is not None or seconds() > FOLLOWING:
                stream.stop()
                raise GuestProblem(f"follow: {path}: {escape(stream.stderr).strip() or 'the agent does not answer'}")
        return stream

    def read(self, path: str, *, limit: int = files.LIMIT) -> bytes:
        """A file of the guest's; raises GuestProblem when it is missing, or has more than `limit` bytes."""
        return files.read(self.run_argv, path, limit=limit)

    def read_to(self, path: str, file: BinaryIO) -> str:
        """Copy a file of the guest's, of any size, into an open one of the host's; returns its SHA-256."""
        return files.read_to(self.run_argv, path, file)

    def write(self, path: str, data: bytes, *, mode: int = 0o644) -> str:
        """Put a file into the guest, whole or not at all; returns its SHA-256, which the guest has confirmed."""
        return files.write(self.run_argv, path, data, mode=mode)

    def stat(self, path: str, *, digest: bool = False) -> Stat:
        """What a path is in the guest; a symlink is not followed. `digest` has its contents digested too."""
        return files.stat(self.run_argv, path, digest=digest)

    @property
    def http(self) -> "Http":
        """Ask the guest's web server: `guest.http.get("/").status`."""
        return Http(self.connect, self.stopwatch)

    def tcp(self, port: int) -> Any:
        """A connected socket to a port of the guest; raises GuestProblem when nobody listens there."""
        return self.connect(port)

    def ssh(self, *, key: Any, user: str = "root", port: int = 22, host_key: str = "") -> Ssh:
        """Log in over the guest's own ssh server; `key` is a private key, or where one lies.

        The server must have one of its host keys: `host_key` ("ssh-ed25519 AAAA..."), else the ones that the agent
        finds in the guest. None is ever accepted unseen.
        """
        trusted = ssh.host_keys(host_key or self._read_host_keys())
        if not trusted:
            what = f"{host_key!r} is no public key" if host_key else "the guest has no ssh host key"
            raise GuestProblem(f"ssh: {what}", 'host_key="ssh-ed25519 AAAA..." names the one that it must have')
        return ssh.connect(self.connect(port), trusted, user=user, key=key, finished=Finished)

    def _read_host_keys(self) -> str:
        """Public keys of OpenSSH and of dropbear, which keeps no file of them."""
        return self.run(["/bin/sh", "-c", SHOW_HOST_KEYS]).stdout.decode("ascii", "replace")

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass(frozen=True)
class Target:
    """A kind of machine, as a value of functions."""

    start: Callable[..., Guest]  # (opened artifact, *, rig: Rig, store: Store) -> Guest, booted and ready
    arches: tuple[str, ...]
    kinds: tuple[str, ...]  # the kinds of format it can start: "kernel", "disk", "root"
    boots: bool  # whether a kernel and the services run; False where commands run in the tree alone
    firmware: str = ""  # what starts an image on it: "bios", "uefi", ...; "" where its kernel is started at once
    reads: tuple[str, ...] = ()  # the firmwares in whose place it finds the kernel on a disk, and adds the agent to it
    modules: tuple[str, ...] = ()  # kernel modules that an image needs to live on it
    serial: str = ""  # the kernel's name of the console
    resume: Callable[..., Guest] | None = None  # (folder of Guest.save, *, rig, store) -> Guest, as it was
    measure: Callable[..., Boot] | None = None  # (opened, *, rig, store): its boot by the instruction clock
    interact: Callable[..., int] | None = None  # (opened, *, rig, store) -> exit status: the console on this terminal

    @property
    def has_agent(self) -> bool:
        """Whether a test can run commands on it: where firmware starts the image, nothing can be added to it."""
        return not self.firmware or self.firmware in self.reads
