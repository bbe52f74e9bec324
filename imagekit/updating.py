"""Updating: an update file into the slot of a disk that does not run, here or on another machine by ssh.

It is one program that does it, the one that images with two slots have (inside/slots/): a machine runs it for itself,
and this machine runs it for a disk whose machine is off. What it is given is verified here before, and by it again.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from typing import NamedTuple
from urllib.parse import urlsplit

from imagekit import early, host, key, sftp, signing, slots
from imagekit.arch import ARCHES
from imagekit.arch import host as this_machine
from imagekit.disk import fatfiles, gpt, pe, updatefile
from imagekit.disk.discoverable import ESP
from imagekit.disk.sparse import Sparse, of_file
from imagekit.errors import Problem, RigProblem
from imagekit.key import Key

PROGRAM = "imagekit-update"
OVER_THERE = f"exec /usr/sbin/{PROGRAM} -"
NOT_FOUND, OF_SSH = 127, 255  # exit codes: of a shell, of ssh
PAUSE = 0.2  # seconds between two looks at how far it is
SLOWEST = 50_000  # bytes a second that a connection is waited for, beside a start
START = 600.0  # seconds
HINT = "try `ssh {host}` first: its host key must be known, and a key or an agent must let you in"
Say = Callable[[str], None]


class Running(NamedTuple):
    """What a disk's machine starts."""

    version: str
    arguments: bytes  # of the kernel


def verified(path: Path, keys: Sequence[Key]) -> updatefile.Said:
    """What an update says of itself, once every byte of it was verified; raises Problem."""
    try:
        with signing.opened(path) as file:
            found = updatefile.read(file, keys)
            updatefile.check(file, found)
    except Problem as problem:
        raise Problem(f"{path}: {problem.message}", problem.hint) from problem
    return found.said


def on_disk(path: Path, disk: Path, *, said: updatefile.Said, keys: Sequence[Key]) -> str:
    """Install an update on a raw disk whose machine is off, and give a line about it; raises Problem.

    keys: those that the caller trusts. The ones that the disk's image does would lie in a root that is checked by it.
    """
    starts = _starts(disk, said.name)
    if this_machine().name not in ARCHES:
        raise RigProblem(f"no program of updates is there for this machine: {this_machine().name}")
    with TemporaryDirectory(prefix="imagekit-update-") as name:
        folder = Path(name)
        about = f"name {said.name}\nversion {starts.version}\narchitecture {said.arch}\n"
        (folder / "slots").write_text(about)
        (folder / "update.pub").write_text("".join(key.Key(of.number, of.public).public_text() for of in keys))
        (folder / "cmdline").write_bytes(starts.arguments)
        program = folder / PROGRAM
        program.write_bytes(early.program("slots", this_machine().name).read())
        program.chmod(0o700)
        done = host.run([program, path.absolute(), disk.absolute(), folder, folder / "cmdline"], ok=None)
    return _told(done, f"{disk}")


def by_ssh(path: Path, to: str, *, say: Say) -> str:
    """Stream an update into a machine, which installs it, and give the line that it says; raises Problem."""
    argv, shown = _place(to)
    agent = {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}
    with signing.opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        from subprocess import PIPE

        process = host.launch(argv, env=agent, stdin=file, stdout=PIPE, stderr=PIPE)
        try:
            with _telling(file.fileno(), size, f"{shown}: {path.name}", say):
                done = host.converse(process, timeout=START + size / SLOWEST)
        except TimeoutError:
            raise RigProblem(f"{shown} did not take {path.name} in time") from None
    if done.code == OF_SSH:
        raise RigProblem(f"ssh says: {_words(done) or 'nothing'}", HINT.format(host=shown))
    if done.code == NOT_FOUND:
        raise RigProblem(f"{shown} has no {PROGRAM}", "images with Layout(slots=2) have it, and root may run it")
    return f"{shown}: {_told(done, shown)}"


def _told(done: host.Done, where: str) -> str:
    """The last line of a program that succeeded; raises Problem with what another one said."""
    if done.code:
        words = _words(done).removeprefix(f"{PROGRAM}: ") or f"{PROGRAM} ended with {done.code}"
        raise Problem(f"{where}: {words}")
    return host.printable(done.stdout[-500:]).strip()


def _words(done: host.Done) -> str:
    return host.printable(done.stderr[-500:]).strip()


def _starts(disk: Path, name: str) -> Running:
    """Which version of an image a disk's machine starts; raises Problem where that is not clear, or not proven."""
    files = fatfiles.read(_boot_partition(disk))
    found = slots.of(name, files)
    if not found:
        others = sorted(path for path in files if path.casefold().startswith(f"{slots.FOLDER}/".casefold()))
        raise Problem(f"{disk} has no image {name!r} in two slots", f"it has {', '.join(others) or 'none'}")
    if found[0].left is not None:
        raise Problem(f"{disk}: {found[0].version} has not proven itself yet", "start its machine first")
    sections = pe.sections(files[found[0].file].read(), what=found[0].file)
    return Running(found[0].version, sections.get(".cmdline", b"").rstrip(b"\0"))


def _boot_partition(disk: Path) -> Sparse:
    try:
        handle = os.open(disk, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            size, kind = os.lseek(handle, 0, os.SEEK_END), os.fstat(handle).st_mode
        finally:
            os.close(handle)
    except OSError as error:
        raise Problem(f"cannot write to {disk}: {error.strerror}") from error
    if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
        raise Problem(f"{disk} is no disk")
    whole = of_file(str(disk), size)
    try:
        parts = gpt.read(whole)
    except Problem as problem:
        raise Problem(f"{disk}: {problem.message}", "`imagekit convert` makes a raw disk of another one") from problem
    found = [part for part in parts if part.type == ESP]
    if len(found) != 1:
        raise Problem(f"{disk} has {len(found)} EFI system partitions, and an image in two slots has one")
    return whole.part(found[0].start, found[0].size)


def _place(to: str) -> tuple[list[str], str]:
    """The argument list of ssh for [USER@]HOST[:PORT], and how that is shown."""
    hint = "[USER@]HOST[:PORT]"
    url = urlsplit(f"ssh://{to}")
    try:
        port = url.port
    except ValueError:
        raise Problem(f"{ascii(to)[:80]}: its port is no number", hint) from None
    names = [name for name in (url.username, url.hostname) if name is not None]
    is_plain = to.isprintable() and not (url.path or url.query or url.fragment or url.password)
    if not is_plain or not url.hostname or not all(n and set(n) <= sftp.WORDS and n[0] not in "-." for n in names):
        raise Problem(f"{ascii(to)[:80]} is no machine", hint)
    at = "@".join(names)
    return ["ssh", *sftp.OPTIONS, *(["-p", str(port)] if port else []), "--", at, OVER_THERE], at


@contextmanager
def _telling(handle: int, size: int, what: str, say: Say) -> Iterator[None]:
    """Say how far whoever reads a file is: it reads at the place that this process sees, too."""
    is_over = Event()

    def tell() -> None:
        while not is_over.wait(PAUSE):
            say(f"{what}: {os.lseek(handle, 0, os.SEEK_CUR) * 100 // size}%")

    teller = Thread(target=tell)
    teller.start()
    try:
        yield
    finally:
        is_over.set()
        teller.join()
