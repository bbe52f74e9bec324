"""A folder of another machine, by the system's ssh: to publish to, and to read from.

`ssh://USER@HOST:PORT/PATH` (`/~/PATH` from the home). It is the user's own ssh: ~/.ssh/config, known_hosts and the
agent count, and it asks for nothing: a host that is not known, or a key with a passphrase and no agent, is an error.
The other side needs a POSIX shell with tar, flock and the usual small programs, and is believed nothing that it says.
"""

import io
import os
import re
import shlex
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from math import inf
from threading import Timer
from time import monotonic
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from imagekit import download, host
from imagekit.errors import Problem, RigProblem
from imagekit.site import Beat, Blob, Missing, Site
from imagekit.store import Store

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}\Z")  # of a user, a host: never what ssh takes for an option
OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ForwardAgent=no", "-o", "LogLevel=ERROR")
ABSENT = 44  # what our scripts end with when there is no such file; ssh's own faults are 255
WAIT = 600.0  # seconds for another publisher, and for a host that says nothing
HINT = "try `ssh {host}` first: its host key must be known, and a key or an agent must let you in"
# Names are words of the site's own alphabet, which needs no quoting in a list of lines.
READ = "cd {root} 2>/dev/null && [ -f {path} ] || exit 44; exec head -c {limit} < {path}"
BRING = 'cd {root} 2>/dev/null || exit 44; while read -r p; do [ -f "$p" ] || exit 44; cat "$p" || exit 1; done'
LACKS = (
    "cd {root} 2>/dev/null || exit 44; while read -r size p; do "
    '[ -f "$p" ] && [ "$(wc -c < "$p")" -eq "$size" ] || echo "$p"; done'
)
WRITE = (  # a folder of drafts that is whole before the first file gets its name; then in the order of the list
    'set -e; umask 022; mkdir -p {root}/.drafts; cd {root}; d=.drafts/{draft}; mkdir $d; trap "rm -rf $d" EXIT; '
    'tar -xf - -C $d; [ "$(wc -l < $d/.list)" -gt 1 ] || sync; '
    'while read -r p; do mkdir -p "$(dirname "$p")"; mv -f "$d/$p" "$p"; done < $d/.list'
)
LOCK = (
    "set -e; mkdir -p {root}/.drafts; cd {root}; "
    "exec flock -w {wait} .drafts/{name} sh -c 'echo locked; exec cat > /dev/null'"
)


class Place(NamedTuple):
    """Where a depot lies."""

    ssh: tuple[str, ...]  # the argument list, less the command
    shown: str
    root: str  # quoted for a shell


def open_site(place: str) -> Site:
    """The depot in a folder of another machine."""
    at = _place(urlsplit(place))
    return Site(
        place=at.shown,
        read=lambda path, limit: _read(at, path, limit),
        bring=lambda blobs, store, beat, until: _bring(at, blobs, store, beat, until),
        lacks=lambda sizes: _lacks(at, sizes),
        write=lambda files: _write(at, files),
        settle=lambda: _settle(at),
        lock=lambda: _lock(at),
    )


def _place(url: SplitResult) -> Place:
    hint = "ssh://USER@HOST/PATH"
    try:
        port = url.port
    except ValueError:
        raise Problem("the port of the ssh address is no number", hint) from None
    path = unquote(url.path).rstrip("/")
    names = [name for name in (url.username, url.hostname) if name is not None]
    if not url.hostname or not path or url.query or url.fragment or not path.isprintable():
        raise Problem("addresses of depots by ssh look like ssh://USER@HOST/PATH", hint)
    if url.password is not None:
        raise Problem("an ssh address holds no password", "let a key or an agent let you in")
    if not all(NAME.match(name) for name in names):
        raise Problem(f"{ascii('@'.join(names))[:80]} is no user and host", hint)
    to = "@".join(names)
    root = shlex.quote(path) if not path.startswith("/~/") else f'"$HOME"/{shlex.quote(path[3:])}'
    shown = f"ssh://{to}{f':{port}' if port else ''}{path}"
    return Place(("ssh", *OPTIONS, *(("-p", str(port)) if port else ()), "--", to), shown, root)


def _command(at: Place, script: str, **words: object) -> list[str]:
    """The whole argument list; whatever the user's shell over there is, sh runs the script."""
    return [*at.ssh, f"exec sh -c {shlex.quote(script.format(root=at.root, **words))}"]


def _environment() -> dict[str, str]:
    return {name: os.environ[name] for name in ("SSH_AUTH_SOCK",) if name in os.environ}


def _done(at: Place, script: str, given: str | bytes, *, size: int, until: float = inf, **words: object) -> host.Done:
    """Run a script over there, which prints at most so many bytes."""
    from subprocess import PIPE

    data = given.encode() if isinstance(given, str) else given
    left = min(download.PATIENCE.deadline(size + len(data)), until) - monotonic()
    argv = _command(at, script, **words)
    process = host.launch(argv, env=_environment(), stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        done = host.converse(process, input=data, timeout=max(0.1, left), limit=size + (1 << 16))
    except TimeoutError:
        raise RigProblem(f"{at.shown} is too slow", "try again") from None
    if done.code not in (0, ABSENT):
        said = host.printable(done.stderr[-500:]).strip()
        raise RigProblem(f"{at.shown}: ssh ended with {done.code}: {said}", HINT.format(host=at.ssh[-1]))
    return done


def _read(at: Place, path: str, limit: int) -> bytes:
    done = _done(at, READ, "", size=limit + 1, path=shlex.quote(path), limit=limit + 1)
    if done.code == ABSENT:
        raise Missing(f"{path} is not in {at.shown}")
    if len(done.stdout) > limit:
        raise RigProblem(f"{at.shown}: {path} is larger than the {limit} bytes that it may have")
    return done.stdout


def _bring(at: Place, blobs: Sequence[Blob], store: Store, beat: Beat, until: float) -> None:
    names = "".join(f"{blob.path}\n" for blob in blobs)
    done = _done(at, BRING, names, size=sum(blob.size for blob in blobs), until=until)
    start = 0
    for blob in blobs:
        data = done.stdout[start : start + blob.size]
        start += blob.size
        if len(data) < blob.size and done.code == ABSENT:
            raise Missing(f"{blob.path} is not in {at.shown}")
        if sha256(data).hexdigest() != blob.digest:
            raise RigProblem(f"{at.shown}: {blob.path} has bytes that are not those which it is named after")
        store.write([data])
        beat(len(data))


def _lacks(at: Place, sizes: Mapping[str, int]) -> list[str]:
    asked = "".join(f"{size} {path}\n" for path, size in sizes.items())
    done = _done(at, LACKS, asked, size=len(asked))
    said = set(sizes) if done.code == ABSENT else set(done.text.split("\n"))
    return [path for path in sizes if path in said]


def _write(at: Place, files: Sequence[tuple[str, bytes]]) -> None:
    packed = io.BytesIO()
    names = "".join(f"{path}\n" for path, _ in files).encode()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as out:
        for name, data in ((".list", names), *files):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            out.addfile(member, io.BytesIO(data))
    _done(at, WRITE, packed.getvalue(), size=0, draft=f"ssh-{os.urandom(8).hex()}")


def _settle(at: Place) -> None:
    _done(at, "sync", "", size=0)


@contextmanager
def _lock(at: Place) -> Iterator[None]:
    """Alone among publishers, those on that machine too, for as long as the connection lasts."""
    from subprocess import PIPE, TimeoutExpired

    argv = _command(at, LOCK, wait=int(WAIT * 0.9), name="publishing.lock")
    process = host.launch(argv, env=_environment(), stdin=PIPE, stdout=PIPE, stderr=PIPE)
    try:
        assert process.stdout
        assert process.stderr
        silence = Timer(WAIT, host.kill, [process])
        silence.start()
        try:
            answer = process.stdout.readline(100)
        finally:
            silence.cancel()
        if answer != b"locked\n":
            said = host.printable(process.stderr.read(500)).strip()
            raise RigProblem(f"{at.shown} cannot be locked: {said}", HINT.format(host=at.ssh[-1]))
        yield
        if process.poll() is not None:
            raise RigProblem(f"the connection that held {at.shown} ended", "look whether all is there, and try again")
    finally:
        try:
            if process.stdin:
                process.stdin.close()
            process.wait(10)
        except (OSError, TimeoutExpired):
            pass
        host.end(process)


SITE = open_site
