"""How commands run in an image's tree: unpacked once per digest, entered by a mount namespace, changed by nobody.

Each command sees the tree as it was built, with the machine's /proc, /sys, /dev and network; what it writes is gone
when it ends, and so is everything that it left running.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from imagekit import host, inuse, namespace, room
from imagekit.artifact import Opened
from imagekit.disk import folder, rootfs
from imagekit.errors import Problem, RigProblem
from imagekit.guest import Console, Finished, Guest, GuestProblem, Rig
from imagekit.store import Store, touch

BUILTINS = Path(__file__).parents[1] / "inside" / "bin" / f"agent.{os.uname().machine}"  # "@read" and its like
FORM = "1"  # raise it when what is unpacked changes
MOUNT_POINTS = ("proc", "sys", "dev", "run", "tmp")
MAX_OUTPUT = 64 << 20  # bytes of each stream of one command
EPHEMERAL = "each command of a namespace sees the tree as it was built"
HINT = "`imagekit doctor` tells how this machine can allow it"


def start(opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """The tree, unpacked once per digest; raises RigProblem when this machine allows no such namespace."""
    root = unpacked(opened, store, rig)
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
        stopped.append(True)
        for process in tuple(running):  # commands of other threads; our own have ended
            host.kill(process)  # whoever talks with it reads its end, reaps it and closes its pipes

    facts = {"writable": writable, "user": "root" if os.getuid() == 0 else "root, mapped to an ordinary user"}
    return Guest(opened.artifact.arch, "namespace", run, _connect, stop, console, facts, lambda: not stopped)


def execute(opened: Opened, argv: Sequence[str], *, store: Store, env: Mapping[str, str] | None = None) -> int:
    """Become a program of the image: same process, same descriptors, same limits; returns only when that failed."""
    try:
        root = unpacked(opened, store, Rig(say=_tell))
        inuse.outlive(Path(store.location))
        namespace.unshare(inside=0)
        namespace.stage(str(root))
        namespace.pivot()
    except OSError as error:
        namespace.say(f"{error.strerror or error} ({HINT})")
        return namespace.FAILED
    except Problem as problem:
        namespace.say(str(problem))
        return namespace.FAILED
    return namespace.become(list(argv), {**_environment(), **(env or {})})


def unpacked(opened: Opened, store: Store, rig: Rig) -> Path:
    """The verified bytes as a folder of the cache, made once per digest and boot: a power cut may tear files."""
    part = next((part for part in opened.artifact.parts if part.role == "root"), None)
    if part is None or opened.artifact.arch != os.uname().machine:
        raise Problem(
            f"{opened.artifact.name} {opened.artifact.arch} {opened.artifact.format} cannot run in a namespace",
            f"that takes an image in the format tar, oci or docker, for {os.uname().machine}",
        )
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()[:8]
    final = store.folder("roots") / f"{part.sha256}-{FORM}-{boot}"
    if not final.is_dir():
        with host.once(store.folder("locks"), f"root-{part.sha256}", say=rig.say):
            if not final.is_dir():
                rig.say(f"{opened.artifact.name}: unpacking")
                _unpack(opened, final)
    touch(final)
    return final


def _unpack(opened: Opened, final: Path) -> None:
    for stale in final.parent.glob(f"{final.name[:64]}*"):  # drafts of the killed, folders of earlier boots
        shutil.rmtree(stale, ignore_errors=True)
    draft = final.with_name(f"{final.name}.draft")
    try:
        folder.write(rootfs.members(opened.handles["root"]), draft)
        for name in MOUNT_POINTS:
            with suppress(FileExistsError):  # as a symlink too: namespace.stage refuses to mount through one
                (draft / name).mkdir()
        draft.rename(final)
    except OSError as error:
        hint = room.hint(final.parent.parent, error)
        raise RigProblem(f"cannot unpack to {draft}: {error.strerror}", hint) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


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


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        namespace.say(line)
