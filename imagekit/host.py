"""The one door to other programs: run them, launch them, look them up, and hold a lock while something is made once.

Programs get argument lists, never a shell, and an environment that does not depend on who calls. They start through
namespace.py, which makes them die with us: neither kill -9 nor a crash leaves one behind.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from imagekit.errors import RigProblem

if TYPE_CHECKING:
    from subprocess import Popen  # at run time only when a program is started: it costs more than a warm build

PYTHON = (sys.executable, "-I", "-S")
LAUNCHER = (  # namespace.py, imported: it is compiled once, where a script is each time
    *PYTHON, "-c", f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import namespace; "
    "del sys.path[0]; sys.exit(namespace.main(sys.argv[1:]))",
)  # fmt: skip
SYSTEM_FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/sbin")  # mkfs lies there, and no ordinary user's PATH names them
MAX_OUTPUT = 256 << 20  # bytes of each stream that are kept in memory
PATIENCE = 2.0  # seconds until a wait for a lock is told


class Done(NamedTuple):
    """How a program ended."""

    code: int  # exit status; 128 + signal where a signal ended it
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """stdout as text, without the last line end."""
        return self.stdout.decode("utf-8", "backslashreplace").removesuffix("\n")


def run(
    argv: Sequence[str | Path],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    ok: Iterable[int] | None = (0,),
) -> Done:
    """Run a program to its end. Raises RigProblem when it is missing, too slow, or ends with a code that is not `ok`.

    `env` is added to the clean environment; `ok=None` takes every code.
    """
    import subprocess

    pipe = subprocess.PIPE
    stdin = subprocess.DEVNULL if input is None else pipe
    process = launch(argv, env=env, cwd=cwd, stdin=stdin, stdout=pipe, stderr=pipe)
    try:
        done = converse(process, input=input or b"", timeout=timeout)
    except TimeoutError:
        raise RigProblem(f"{_name(argv)} did not end within {timeout:g} s", _line(argv)) from None
    if ok is not None and done.code not in ok:
        raise RigProblem(f"{_name(argv)} ended with {done.code}: {printable(done.stderr[-2000:]).strip()}", _line(argv))
    return done


def launch(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    usr: Path | None = None,
    pass_fds: Sequence[int] = (),
    **streams: Any,
) -> "Popen[bytes]":
    """Start a program in a session of its own; it is killed when the thread that calls this ends.

    `usr` is a tools tree's usr, put over /usr for this program alone. `streams` are subprocess.Popen's stdin, stdout
    and stderr. Stop it with `end`.
    """
    import subprocess
    from logging import getLogger

    full = launcher(argv, usr=usr)
    getLogger("imagekit.host").debug("%s", _line(argv))
    try:
        return subprocess.Popen(
            full, env={**environment(), **(env or {})}, cwd=cwd, pass_fds=pass_fds, start_new_session=True, **streams
        )
    except OSError as error:
        raise RigProblem(f"cannot start {_name(argv)}: {error.strerror}", _line(argv)) from error


def launcher(argv: Sequence[str | Path], *, usr: Path | None = None) -> list[str]:
    """The argument list that starts `argv` as a child that dies with this process; one that does so already stays."""
    words = [os.fspath(word) for word in argv]
    if tuple(words[: len(LAUNCHER)]) == LAUNCHER:
        return words
    if usr is None and "/" not in words[0]:
        words[0] = str(_found(words[0]))
    tree = ["--usr", str(usr)] if usr else []
    return [*LAUNCHER, "--die-with", str(os.getpid()), *tree, "--", *words]


def converse(
    process: "Popen[bytes]",
    *,
    input: bytes = b"",
    timeout: float | None = None,
    limit: int = MAX_OUTPUT,
) -> Done:
    """Feed a program and read both its streams to their end. However this ends, the program has ended.

    Raises TimeoutError when it is too slow, RigProblem when it prints more than `limit` bytes on a stream.
    """
    from subprocess import TimeoutExpired
    from time import monotonic

    deadline = None if timeout is None else monotonic() + timeout
    try:
        streams = _exchange(process, input, deadline, limit)
        code = process.wait(None if deadline is None else max(0.0, deadline - monotonic()))
        return Done(128 - code if code < 0 else code, *streams)
    except TimeoutExpired as error:
        raise TimeoutError from error
    finally:
        end(process)


def kill(process: "Popen[bytes]") -> None:
    """Kill a launched program and its session's processes; for a thread other than the one that talks with it."""
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, 9)


def end(process: "Popen[bytes]") -> None:
    """Kill a launched program and its session's processes, reap it and close its pipes; twice is once."""
    if process.returncode is None:
        kill(process)
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            with suppress(OSError):
                stream.close()


def look_up(name: str) -> Path | None:
    """Where the host has a program, also in the folders that only root's PATH names."""
    for folder in (*os.environ.get("PATH", os.defpath).split(":"), *SYSTEM_FOLDERS):
        path = Path(folder or ".") / name
        if os.access(path, os.X_OK) and path.is_file():  # in this order: a folder of PATH may be closed to us
            return path
    return None


def environment() -> dict[str, str]:
    """What every program gets: the same words, bytes and clock zone wherever it runs."""
    inherited = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
    path = ":".join(dict.fromkeys((*os.environ.get("PATH", os.defpath).split(":"), *SYSTEM_FOLDERS)))
    return {"PATH": path, "LC_ALL": "C.UTF-8", "TZ": "UTC", **inherited}


def powers() -> tuple[str, ...]:
    """What decides what the kernel lets us do: this boot, this user, and what a container's engine took away.

    A cache may be shared between a machine and its containers, which have the same boot id and the same user id.
    """
    status = Path("/proc/self/status").read_text().splitlines()
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    own = [line for line in status if line.startswith(("Uid:", "CapEff:", "CapBnd:", "Seccomp:", "NoNewPrivs:"))]
    return (boot, str(Path("/proc/self/ns/user").readlink()), *own)


def printable(data: bytes) -> str:
    """A program's words as text that cannot steer a terminal."""
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c in "\n\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


@contextmanager
def once(folder: Path, name: str, *, say: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold the lock `name`: of all processes and threads that ask for it, one at a time goes on.

    The kernel frees it with the holder's last descriptor, so kill -9 frees it at once. A wait of two seconds is told.
    """
    import fcntl

    handle = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not _locked_soon(handle):
            holder = os.pread(handle, 20, 0).decode(errors="replace").strip()
            (say or _tell)(f"waiting for process {holder}, which is making {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(OSError):  # only words for those who wait; a full disk must not stop us here
            os.pwrite(handle, b"%-20d" % os.getpid(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def draft(final: Path, *, is_large: bool = False) -> Iterator[BinaryIO]:
    """A new file that takes the name `final` when the block ends well, and is removed when it does not.

    is_large: a file of that name goes first, for a moment in which there is none: where one replaces another, ext4
    writes all of it to the disk at once (ext4(5), auto_da_alloc), which takes longer than making it.
    A draft whose writer was killed is removed by the next one. Raises RigProblem when it cannot be written.
    """
    try:
        for old in final.parent.glob(f".{final.name}.*.draft"):
            remove_abandoned(old)
        with open_draft(final.with_name(f".{final.name}.{os.getpid()}-{os.urandom(4).hex()}.draft")) as file:
            try:
                yield file
                file.flush()
                if is_large:
                    final.unlink(missing_ok=True)
                Path(file.name).replace(final)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        raise RigProblem(f"cannot write {final}: {error.strerror}", "make room, or write elsewhere") from error


def open_draft(path: Path) -> BinaryIO:
    """A new file, locked as long as it is open: the kernel frees a lock with its holder."""
    import fcntl

    while True:
        file = open(path, "xb")  # noqa: SIM115 - the caller's to close
        fcntl.flock(file, fcntl.LOCK_EX)
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # somebody took it for abandoned before it was locked


def remove_abandoned(path: Path) -> None:
    """Remove a draft that nobody holds locked any more."""
    import fcntl

    with suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


def _locked_soon(handle: int) -> bool:
    import fcntl
    from time import monotonic, sleep

    until = monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if monotonic() > until:
                return False
            sleep(0.02)
        else:
            return True


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _found(name: str) -> Path:
    path = look_up(name)
    if path is None:
        raise RigProblem(f"the program {name} is not on this machine", "`imagekit doctor` tells what is missing")
    return path


def _exchange(process: "Popen[bytes]", data: bytes, deadline: float | None, limit: int) -> tuple[bytes, bytes]:
    """Both streams to their end, while `data` goes in as it is taken."""
    from selectors import EVENT_READ, EVENT_WRITE, DefaultSelector
    from time import monotonic

    kept = {process.stdout: bytearray(), process.stderr: bytearray()}
    rest = memoryview(data)
    with DefaultSelector() as waiting:
        for stream in (s for s in kept if s):
            waiting.register(stream, EVENT_READ)
        if process.stdin:
            os.set_blocking(process.stdin.fileno(), False)
            waiting.register(process.stdin, EVENT_WRITE)
        while waiting.get_map():
            left = None if deadline is None else deadline - monotonic()
            if left is not None and left <= 0:
                raise TimeoutError
            for key, _ in waiting.select(left):
                if key.fileobj is process.stdin:
                    rest = _fed(process.stdin, rest)
                    more = bool(rest)
                else:
                    more = _drained(key.fd, kept[key.fileobj], limit)  # type: ignore[index]
                if not more:
                    waiting.unregister(key.fileobj)
                    key.fileobj.close()  # type: ignore[union-attr]
    return bytes(kept[process.stdout]), bytes(kept[process.stderr])


def _fed(stream: Any, rest: memoryview) -> memoryview:
    try:
        return rest[os.write(stream.fileno(), rest[:65536]) :] if rest else rest
    except BlockingIOError:
        return rest
    except BrokenPipeError:  # it did not want all of it
        return rest[:0]


def _drained(handle: int, kept: bytearray, limit: int) -> bool:
    data = os.read(handle, 1 << 16)
    kept += data
    if len(kept) > limit:
        raise RigProblem(f"a program printed more than {limit} bytes", "its output is not kept in memory beyond that")
    return bool(data)


def _name(argv: Sequence[str | Path]) -> str:
    words = [os.fspath(word) for word in argv]
    return Path((words[words.index("--") + 1 :] if tuple(words[: len(LAUNCHER)]) == LAUNCHER else words)[0]).name


def _line(argv: Sequence[str | Path]) -> str:
    from shlex import join

    return "$ " + join([os.fspath(word) for word in argv])
