"""Ssh: commands and files over a guest's own ssh server. Its host key is known beforehand, or nothing is said to it.

paramiko speaks the protocol (`pip install imagekit[ssh]`). It is a way to test the server, and an image that boots
untouched; whatever else a test wants of a guest goes through the agent.
"""

import shlex
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

from imagekit.console import WIDTH, escape
from imagekit.errors import GuestProblem, Problem, RigProblem

ALGORITHMS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521", "ssh-rsa")
SIGNED_BY = {"ssh-rsa": ("rsa-sha2-512", "rsa-sha2-256")}  # what a key's owner signs with, where that is not its name
MAX_OUTPUT = 16 << 20  # bytes of each stream
PIECE, PAUSE = 32768, 0.005  # bytes, and seconds between two looks


class HostKey(NamedTuple):
    """A server's public key."""

    algorithm: str
    key: bytes

    @property
    def fingerprint(self) -> str:
        """As OpenSSH shows it."""
        return f"{self.algorithm} SHA256:{b64encode(sha256(self.key).digest()).decode().rstrip('=')}"


def host_keys(text: str) -> tuple[HostKey, ...]:
    """The public keys in a text: "ssh-ed25519 AAAA...", one a line, whatever else stands between them."""
    found = []
    for line in text.splitlines():
        algorithm, _, rest = line.strip().partition(" ")
        if algorithm in ALGORITHMS:
            try:
                key = b64decode(rest.split()[0], validate=True)
            except (ValueError, IndexError):
                continue
            if key[4 : 4 + len(algorithm)] == algorithm.encode():
                found.append(HostKey(algorithm, key))
    return tuple(found)


class Ssh:
    """A connection whose server has been identified, and which let us in; `with` closes it."""

    def __init__(self, transport: Any, finished: Callable[..., Any]) -> None:
        self._transport, self._finished = transport, finished

    def run(self, argv: Sequence[str] | str, *, input: bytes = b"", timeout: float = 60.0) -> Any:
        """Run a command as the user that was let in and wait for it; gives what `guest.run` gives."""
        words = tuple(shlex.split(argv) if isinstance(argv, str) else argv)
        try:
            with self._transport.open_session(timeout=timeout) as stream:
                stream.exec_command(shlex.join(words))
                out, err = _exchange(stream, input, words[0], timeout)
                code = stream.recv_exit_status()
        except (_paramiko().SSHException, EOFError, OSError) as error:
            raise GuestProblem(f"{words[0]}: the ssh server did not run it: {_words(error)}") from error
        if code < 0:
            raise GuestProblem(f"{words[0]}: the ssh server closed the connection before it ended")
        return self._finished(words, code, out, err)

    def open_sftp(self) -> Any:
        """paramiko's SFTPClient, where the server has sftp."""
        return self._transport.open_sftp_client()

    def close(self) -> None:
        """Close the connection; twice is once."""
        self._transport.close()

    def __enter__(self) -> "Ssh":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(
    socket: Any, trusted: Sequence[HostKey], *, user: str, key: Any, finished: Callable[..., Any], timeout: float = 30.0
) -> Ssh:
    """Speak ssh on a connected socket. Raises GuestProblem unless the server has one of the trusted keys."""
    paramiko = _paramiko()
    own = _own_key(paramiko, key)
    transport = paramiko.Transport(socket)
    transport.banner_timeout = transport.auth_timeout = transport.handshake_timeout = timeout
    try:
        _identify(paramiko, transport, trusted, timeout)
        _log_in(paramiko, transport, user, own)
    except BaseException:
        transport.close()
        raise
    return Ssh(transport, finished)


def _paramiko() -> Any:
    import warnings

    try:
        with warnings.catch_warnings():  # of cryptography, about what paramiko still offers to old servers
            warnings.simplefilter("ignore")
            import paramiko
    except ImportError as error:
        raise RigProblem("guest.ssh needs paramiko, which is not installed", "pip install 'imagekit[ssh]'") from error
    return paramiko


def _own_key(paramiko: Any, key: Any) -> Any:
    if not isinstance(key, str | Path):
        return key
    try:
        return paramiko.PKey.from_path(key)
    except (OSError, paramiko.SSHException, ValueError, paramiko.pkey.UnknownKeyType) as error:
        raise Problem(f"{key} cannot be read as a private key: {error}", "ssh-keygen -t ed25519 makes one") from error


def _identify(paramiko: Any, transport: Any, trusted: Sequence[HostKey], timeout: float) -> None:
    """Agree on a cipher, with a server that proves that it has a key which we know; ask for no other kind of key."""
    wanted = [way for key in trusted for way in SIGNED_BY.get(key.algorithm, (key.algorithm,))]
    transport.get_security_options().key_types = tuple(dict.fromkeys(wanted))
    try:
        transport.start_client(timeout=timeout)
        shown = transport.get_remote_server_key()  # none after a time-out
    except (paramiko.SSHException, EOFError, OSError) as error:
        known = ", ".join(key.fingerprint for key in trusted)
        raise GuestProblem(f"ssh: {_words(error)}; its host key should be {known}") from error
    found = HostKey(shown.get_name(), shown.asbytes())
    if found not in trusted:
        known = ", ".join(key.fingerprint for key in trusted)
        raise GuestProblem(f"ssh: the server's host key is {found.fingerprint}, and should be {known}")


def _log_in(paramiko: Any, transport: Any, user: str, own: Any) -> None:
    try:
        more = transport.auth_publickey(user, own)
    except paramiko.BadAuthenticationType as error:
        raise GuestProblem(f"ssh: {user} may not log in by key, only by {', '.join(error.allowed_types)}") from error
    except (paramiko.SSHException, EOFError, OSError) as error:
        name = f"{own.get_name()} {own.fingerprint}"
        raise GuestProblem(f"ssh: {user} is not let in with the key {name}: {_words(error)}") from error
    if more:
        raise GuestProblem(f"ssh: {user}'s key is not enough, the server also wants {', '.join(more)}")


def _exchange(stream: Any, data: bytes, name: str, timeout: float) -> tuple[bytes, bytes]:
    """Both streams to their end, while `data` goes in as it is taken."""
    deadline = monotonic() + timeout
    kept, rest, is_open = (bytearray(), bytearray()), memoryview(data), True
    while True:
        is_over = stream.exit_status_ready() and (stream.eof_received or stream.closed)  # asked before the last look
        moved = _take(stream, kept)
        if is_open and not rest:
            stream.shutdown_write()
            is_open = False
        elif is_open and stream.send_ready():
            rest, moved = rest[stream.send(rest[:PIECE]) :], True
        if is_over and not moved:
            return bytes(kept[0]), bytes(kept[1])
        if max(map(len, kept)) > MAX_OUTPUT:
            raise GuestProblem(f"{name} printed more than {MAX_OUTPUT} bytes on a stream over ssh")
        if monotonic() > deadline:
            said = escape(bytes(kept[1][-1000:] or kept[0][-1000:])).strip()
            raise GuestProblem(f"{name} did not end within {timeout:g} s over ssh; it said: {said or 'nothing'}")
        if not moved:
            sleep(PAUSE)


def _take(stream: Any, kept: tuple[bytearray, bytearray]) -> bool:
    moved = False
    if stream.recv_ready():
        kept[0].extend(stream.recv(PIECE))
        moved = True
    if stream.recv_stderr_ready():
        kept[1].extend(stream.recv_stderr(PIECE))
        moved = True
    return moved


def _words(error: BaseException) -> str:
    return escape(f"{type(error).__name__} {error}".strip().encode())[:WIDTH]
