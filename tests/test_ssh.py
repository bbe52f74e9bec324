"""ssh into a guest: only to a server whose key is known beforehand, and whatever the server does is told in words."""

import os
import socket
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagekit import build, definition, key, plugs, ssh
from imagekit.errors import GuestProblem, Problem, RigProblem
from imagekit.guest import Finished, Guest, Rig
from imagekit.stores.directory import open_store

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    paramiko = pytest.importorskip("paramiko", reason="not installed: pip install 'imagekit[dev]'")

HOME = Path(__file__).parent.parent
TEST_KEY = HOME / "fixtures/keys/ssh_test"
OWN, OTHER = paramiko.PKey.from_path(TEST_KEY), paramiko.ECDSAKey.generate()
SERVER, SECOND = paramiko.ECDSAKey.generate(), paramiko.ECDSAKey.generate()


def public(private: Any) -> ssh.HostKey:
    return ssh.HostKey(private.get_name(), private.asbytes())


PRINT = public(SERVER).fingerprint


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (TEST_KEY.with_suffix(".pub").read_text(), 1),
        (f"Public key portion is:\nssh-ed25519 {OWN.get_base64()} root@x\nFingerprint: SHA256:abc\n", 1),
        (f"ssh-ed25519 {OWN.get_base64()}\r\necdsa-sha2-nistp256 {SERVER.get_base64()}\n", 2),
        (f"ecdsa-sha2-nistp256 {OWN.get_base64()}", 0),  # says what it is not
        ("ssh-ed25519", 0),
        ("ssh-ed25519 ~~~~", 0),
        ("ssh-ed25519 AAAA", 0),
        ("", 0),
    ],
)
def test_public_keys_in_a_text(text: str, found: int) -> None:
    assert len(ssh.host_keys(text)) == found


def test_a_fingerprint_is_openssh_s() -> None:
    assert public(OWN).fingerprint == f"ssh-ed25519 {OWN.fingerprint}"


# --- a server of our own


class Server(paramiko.ServerInterface):  # type: ignore[misc]
    """Lets the test key in, and does what a command's name says."""

    def check_auth_publickey(self, username: str, offered: Any) -> int:
        good = username == "root" and offered == OWN
        return int(paramiko.AUTH_SUCCESSFUL if good else paramiko.AUTH_FAILED)

    def get_allowed_auths(self, username: str) -> str:
        return "publickey" if username == "root" else "password"

    def check_channel_request(self, kind: str, chanid: int) -> int:  # noqa: ARG002
        return int(paramiko.OPEN_SUCCEEDED)

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        threading.Thread(target=self.run, args=(channel, command.decode()), daemon=True).start()
        return True

    def run(self, channel: Any, command: str) -> None:
        data = channel.recv(4096)  # what follows the answer to the request, which is sent after this was called
        match command.partition(" ")[0]:
            case "echo":
                channel.sendall(command.encode())
                channel.sendall_stderr(b"err")
                channel.send_exit_status(3)
            case "cat":
                while data:
                    channel.sendall(data)
                    data = channel.recv(4096)
                channel.send_exit_status(0)
            case "flood":
                try:
                    while True:
                        channel.sendall(bytes(30000))
                except OSError:
                    return
            case "hang":
                channel.sendall_stderr(b"thinking\x1b[2J")
                return
        channel.close()


def serve(end: socket.socket) -> None:
    transport = paramiko.Transport(end)
    transport.add_server_key(SERVER)
    transport.start_server(event=threading.Event(), server=Server())


@contextmanager
def served(serving: Callable[[socket.socket], None] = serve) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        serving(theirs)
        yield ours


def connect(end: socket.socket, *trusted: Any, user: str = "root", own: Any = TEST_KEY, timeout: float = 20) -> ssh.Ssh:
    keys = [public(each) for each in trusted or (SERVER,)]
    return ssh.connect(end, keys, user=user, key=own, finished=Finished, timeout=timeout)


def test_commands_run_with_streams_apart() -> None:
    with served() as end, connect(end) as shell:
        assert shell.run(["echo", "a b"]) == Finished(("echo", "a b"), 3, b"echo 'a b'", b"err")
        data = bytes(range(256)) * 4000
        assert shell.run("cat", input=data).check().stdout == data
        assert shell.run("cat").check().stdout == b""


def test_what_a_command_does_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "MAX_OUTPUT", 1 << 20)
    with served() as end, connect(end) as shell:
        with pytest.raises(GuestProblem, match="flood printed more than 1048576 bytes"):
            shell.run("flood")
        with pytest.raises(GuestProblem, match=r"hang did not end within 0\.3 s over ssh; it said: thinking\\x1b\[2J"):
            shell.run("hang", timeout=0.3)
        with pytest.raises(GuestProblem, match="leave: the ssh server closed the connection"):
            shell.run("leave")


def silent(_: socket.socket) -> None:
    pass


def rude(end: socket.socket) -> None:
    end.sendall(b"HTTP/1.0 400 go\x1b[2J away\r\n" * 300)


def gone(end: socket.socket) -> None:
    end.close()


BAD: list[tuple[str, Callable[[socket.socket], None], dict[str, Any], tuple[Any, ...], str]] = [
    ("another key", serve, {}, (SECOND,), f"host key is {PRINT}, and should be {public(SECOND).fingerprint}"),
    ("another kind of key", serve, {}, (OWN,), "its host key should be ssh-ed25519 SHA256:"),
    ("wrong user key", serve, {"own": OTHER}, (), "root is not let in with the key ecdsa-sha2-nistp256 SHA256:"),
    ("wrong user", serve, {"user": "nobody"}, (), "nobody may not log in by key, only by password"),
    ("silent", silent, {"timeout": 0.3}, (), "ssh: .*its host key should be"),
    ("no ssh", rude, {"timeout": 2}, (), "ssh: SSHException .*its host key should be"),
    ("gone", gone, {"timeout": 2}, (), "ssh: .*its host key should be"),
]  # fmt: skip


@pytest.mark.parametrize(("serving", "how", "trusted", "words"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_what_goes_wrong_is_told(
    serving: Callable[[socket.socket], None], how: dict[str, Any], trusted: tuple[Any, ...], words: str
) -> None:
    with served(serving) as end, pytest.raises(GuestProblem) as caught:
        connect(end, *trusted, **how)
    assert words.partition(".*")[0] in str(caught.value)
    assert words.rpartition(".*")[2] in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("path", ["ssh_test.pub", "none", "."])
def test_a_key_that_is_none(path: str) -> None:
    with served() as end, pytest.raises(Problem, match="cannot be read as a private key"):
        connect(end, own=TEST_KEY.parent / path)


def test_without_paramiko_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "paramiko", None)
    with served() as end, pytest.raises(RigProblem, match=r"pip install 'imagekit\[ssh\]'"):
        connect(end)


# --- a real guest: images/bastion.py is the other half


def boot(**how: Any) -> Guest:
    path, store, signer = HOME / "images/bastion.py", open_store(), key.read(HOME / "fixtures/keys/test.key")
    made = build.artifact(definition.load(path), folder=path.parent, lock=build.read_lock(path), arch="aarch64",
                          format="kernel_initrd", key=signer, store=store)  # fmt: skip
    with made.opened(signer) as opened:
        rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), **how)
        return plugs.load("targets", "qemu_aarch64").start(opened, rig=rig, store=store)


def test_an_untouched_artifact_is_entered_where_the_caller_knows_its_key() -> None:
    with boot(channel=False) as guest:
        with guest.ssh(key=TEST_KEY, host_key=guest.console.text) as shell:  # it prints the key that it makes
            assert shell.run("hostname").check().text == "bastion"
            assert shell.run(["/bin/sh", "-c", "ls -d /.imagekit"]).code != 0
        with pytest.raises(GuestProblem, match="without a channel"):
            guest.ssh(key=TEST_KEY)
        with pytest.raises(Problem, match="'hello' is no public key"):
            guest.ssh(key=TEST_KEY, host_key="hello")


def test_a_guest_refuses_another_key_and_has_one_server() -> None:
    with boot() as guest:
        with pytest.raises(GuestProblem, match="root is not let in with the key ecdsa-sha2-nistp256"):
            guest.ssh(key=OTHER)
        with pytest.raises(GuestProblem, match="nobody listens on port 2222 of the guest"):
            guest.ssh(key=TEST_KEY, port=2222)
        guest.run("rm -r /etc/dropbear").check()
        with pytest.raises(GuestProblem, match="the guest has no ssh host key"):
            guest.ssh(key=TEST_KEY)
