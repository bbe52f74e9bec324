"""Files of a running guest, read and written through the agent's built-in commands: whatever programs the image has.

`run` is a guest's `run_argv`. What comes back is a guest's word: bounded, parsed strictly, and digests are compared.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, BinaryIO

from imagekit.console import WIDTH, escape
from imagekit.errors import GuestProblem

Run = Callable[..., Any]  # (argv, *, input, env, timeout) -> Finished
CHUNK = 8 << 20  # bytes that are read at a time
LIMIT = 64 << 20  # bytes of a file that is read into memory
PATIENCE, SLOWEST = 30.0, 20_000  # seconds for anything, and bytes a second: what a slow serial line carries


@dataclass(frozen=True)
class Stat:
    """What a guest's file is; a symlink is not followed."""

    kind: str  # "file", "directory", "symlink", "fifo", "socket", "block" or "char"
    size: int  # bytes
    mode: int  # permission bits, as 0o644
    uid: int
    gid: int
    mtime: float  # seconds since 1970
    sha256: str = ""  # of a file's contents, where that was asked for
    target: str = ""  # where a symlink points


def read(run: Run, path: str, *, limit: int = LIMIT) -> bytes:
    """A file's contents; raises GuestProblem when it cannot be read, or has more than `limit` bytes."""
    kept = bytearray()
    for chunk in _chunks(run, path, limit + 1):
        kept += chunk
    if len(kept) > limit:
        raise GuestProblem(f"{path} has more than {limit} bytes", "read_to(path, file) takes any size; or raise limit=")
    return bytes(kept)


def read_to(run: Run, path: str, file: BinaryIO) -> str:
    """Copy a file of any size into an open one of the host's; returns the digest of what was copied."""
    digest = sha256()
    for chunk in _chunks(run, path, 1 << 62):
        digest.update(chunk)
        file.write(chunk)
    return digest.hexdigest()


def write(run: Run, path: str, data: bytes, *, mode: int = 0o644) -> str:
    """Put a file in a guest, whole or not at all; returns its digest, which both sides agree on."""
    told = _ask(run, ("@write", path, f"{mode:o}"), input=data, size=len(data))
    digest = sha256(data).hexdigest()
    if told != f"{digest} {len(data)}\n".encode():
        raise GuestProblem(f"{path}: the guest stored something else than it was given: {escape(told)[:WIDTH]}")
    return digest


def stat(run: Run, path: str, *, digest: bool = False) -> Stat:
    """What a path is in the guest; raises GuestProblem when nothing is there."""
    told = _ask(run, ("@stat", path, *(["sha256"] if digest else [])), size=LIMIT if digest else 0)
    found = _STAT.fullmatch(told)
    if not found:
        raise GuestProblem(f"{path}: the guest's answer makes no sense: {escape(told)[:WIDTH]}")
    words = [word.decode("utf-8", "surrogateescape") for word in found.groups()]
    kind, size, mode, uid, gid, mtime, sum_, target = words
    return Stat(kind, int(size), int(mode, 8), int(uid), int(gid), float(mtime), sum_.strip("-"), target)


def _chunks(run: Run, path: str, limit: int) -> Any:
    offset = 0
    while offset < limit:
        size = min(CHUNK, limit - offset)
        chunk = _ask(run, ("@read", path, str(offset), str(size)), size=size)
        if len(chunk) > size:
            raise GuestProblem(f"{path}: the guest sent {len(chunk)} bytes, {size} were asked for")
        yield chunk
        offset += len(chunk)
        if len(chunk) < size:
            return


def _ask(run: Run, argv: tuple[str, ...], *, input: bytes = b"", size: int = 0) -> bytes:
    """What a built-in command says; raises GuestProblem with its complaint."""
    done = run(argv, input=input, env={}, timeout=PATIENCE + size / SLOWEST)
    if done.code:
        raise GuestProblem(f"{argv[0][1:]}: {escape(done.stderr).strip()[:WIDTH] or f'ended with {done.code}'}")
    told: bytes = done.stdout
    return told


_KINDS = rb"(file|directory|symlink|fifo|socket|block|char)"
_STAT = re.compile(
    _KINDS + rb" (\d{1,19}) ([0-7]{1,4}) (\d{1,10}) (\d{1,10}) (-?\d{1,19}\.\d{9}) ([0-9a-f]{64}|-) (.{0,4096})\n",
    re.DOTALL,
)
