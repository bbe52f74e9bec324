"""How commands run in an image's tree: unpacked once per digest, entered by a mount namespace, changed by nobody.

Each command sees the tree as it was built, with the machine's /proc, /sys, /dev and network; what it writes is gone
when it ends, and so is everything that it left running.
"""

import os
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from imagekit import host, namespace, room, roots
from imagekit.artifact import Opened
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Console, Finished, Guest, GuestProblem, Rig
from imagekit.store import Store

BUILTINS = Path(__file__).parents[1] / "inside" / "bin" / f"agent.{os.uname().machine}"  # "@read" and its like
MAX_OUTPUT = 64 << 20  # bytes of each stream of one command
EPHEMERAL = "each command of a namespace sees the tree as it was built"
HINT = "`imagekit doctor` tells how this machine can allow it"


def start(opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """The tree, unpacked once per digest; raises RigProblem when this machine allows no such namespace."""
    held = unpacked(opened, store, rig)
    root = Path(held.root)
    writable = _is_writable(root)
    running: set[subprocess.Popen[bytes]] = set()
    stopped: list[bool] = []
    console = Console()

    def run(argv: Sequence[str], *, input: bytes, env: Mapping[str, str], timeout: float) -> Finished:
        if stopped:
            raise GuestProblem(f"{' '.join(argv)}: the guest was stopped")
        if argv[0] == "@write":
            raise GuestProblem(f"{argv[1]}: a file that is written is gone again: {EPHEMERAL}", "ask for `guest`")
        process = _launch(root, argv, env)
        running.add(process)
        if stopped:  # between the question above and now
            host.kill(process)
        try:
            done = host.converse(process, input=input, timeout=timeout * rig.timeout_scale, limit=MAX_OUTPUT)
        except TimeoutError:
            raise GuestProblem(f"{' '.join(argv)} did not end within {timeout:g} s") from None
        finally:
            running.discard(process)
        console.feed(done.stdout + done.stderr)
        return Finished(tuple(argv), *done)

    def stop() -> None:
        if not stopped:
            os.close(held.handle)
        stopped.append(True)
        for process in tuple(running):  # commands of other threads; our own have ended
            host.kill(process)  # whoever talks with it reads its end, reaps it and closes its pipes

    facts = {"writable": writable, "user": "root" if os.getuid() == 0 else "root, mapped to an ordinary user"}
    return Guest(opened.artifact.arch, "namespace", run, _connect, stop, console, facts, lambda: not stopped)


def unpacked(opened: Opened, store: Store, rig: Rig) -> roots.Held:
    """The verified bytes as a root of the cache, made once per digest and boot, locked until it is closed."""
    part = next((part for part in opened.artifact.parts if part.role == "root"), None)
    if part is None or opened.artifact.arch != os.uname().machine:
        raise Problem(
            f"{opened.artifact.name} {opened.artifact.arch} {opened.artifact.format} cannot run in a namespace",
            f"that takes an image in the format tar, oci or docker, for {os.uname().machine}",
        )

    def fill(draft: str) -> None:
        rig.say(f"{opened.artifact.name}: unpacking")
        roots.unpack(opened.handles["root"], Path(draft, "root"))

    try:
        return roots.hold(store.location, part.sha256) or roots.make(store.location, part.sha256, fill, say=rig.say)
    except OSError as error:
        hint = room.hint(Path(store.location), error)
        raise RigProblem(f"cannot unpack to {store.location}: {error.strerror}", hint) from error


def _is_writable(root: Path) -> bool:
    done = host.run(_argv(root, ()), ok=None, timeout=60)
    if done.code:
        raise RigProblem(f"no namespace for {root.name}: {host.printable(done.stderr).strip()}", HINT)
    return done.stdout == b"writable\n"


def _launch(root: Path, argv: Sequence[str], env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    pipe = subprocess.PIPE
    text = "".join(f"{name}={value}\0" for name, value in {**_environment(), **env}.items())
    with ExitStack() as stack:
        files = {"--environment": memory(text.encode("utf-8", "surrogateescape"), stack)}
        if argv[0].startswith("@"):
            files["--builtins"] = memory(BUILTINS.read_bytes(), stack)
        options = [word for name, handle in files.items() for word in (name, str(handle))]
        full = _argv(root, argv, *options)
        return host.launch(full, stdin=pipe, stdout=pipe, stderr=pipe, pass_fds=tuple(files.values()))


def memory(data: bytes, stack: ExitStack) -> int:
    """A descriptor of a file in memory with these bytes, closed with the stack."""
    handle = os.memfd_create("imagekit")
    stack.callback(os.close, handle)
    rest, done = memoryview(data), 0
    while done < len(data):
        done += os.pwrite(handle, rest[done:], done)
    return handle


def _argv(root: Path, argv: Sequence[str], *options: str) -> list[str]:
    return [*host.LAUNCHER, "--die-with", str(os.getpid()), "--root", str(root), *options, "--", *argv]


def _environment() -> dict[str, str]:
    terminal = {"TERM": os.environ["TERM"]} if "TERM" in os.environ else {}
    return {"PATH": namespace.PATH, "HOME": "/root", **terminal}


def _connect(port: int) -> None:
    raise GuestProblem(
        f"nothing listens on port {port}: a namespace runs single commands, no services",
        "ask for `guest` on a target that boots, as qemu_x86_64",
    )
