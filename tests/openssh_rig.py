"""OpenSSH's sshd on loopback, from Debian's package, for tests: as whoever runs them, in no folder of the system."""

import os
import re
import shlex
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from pwd import getpwuid

import pytest

from imagekit import arch, host, toolbox
from imagekit.disk.folder import write
from imagekit.errors import RigProblem
from imagekit.package import Request
from imagekit.sources.debian import SOURCE
from imagekit.stores.directory import open_store
from imagekit.tree import union

SERVER = """Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""
CLIENT = """Host far
HostName 127.0.0.1
Port {port}
User {user}
IdentityFile {folder}/user
IdentitiesOnly yes
UserKnownHostsFile {folder}/known
GlobalKnownHostsFile /dev/null
StrictHostKeyChecking yes
HostKeyAlgorithms ssh-ed25519
ControlMaster auto
ControlPath {folder}/c
ControlPersist 60
"""
AS_ROOT = """set -e  # in a mount namespace of its own: what Debian's package makes when it is installed
cp /etc/passwd {folder}/passwd
grep -q ^sshd: /etc/passwd || echo sshd:x:65533:65533::/run/sshd:/usr/sbin/nologin >> {folder}/passwd
mount --bind {folder}/passwd /etc/passwd
[ -d /run/sshd ] || {{ mount -t tmpfs -o mode=755 none /run; mkdir -m 755 /run/sshd; }}
exec {sshd}
"""
ABSENT = (*toolbox.ABSENT, "init-system-helpers", "libpam-modules", "libpam-runtime", "lsb-base", "openssh-client",
          "openssh-sftp-server", "procps", "runit-helper", "ucf")  # fmt: skip


def program(folder: Path) -> list[str]:
    """How to start the sshd of Debian's openssh-server, fetched as any package of an image is, by its own loader."""
    usual = Request(("openssh-server",), kernel="", init=(), without=ABSENT, suite="bookworm", arch=arch.host().name)
    store = open_store()
    try:
        pins = SOURCE.resolve([usual], store)[0].pins
        packages = SOURCE.packages(pins, store, lambda *_: None)
    except RigProblem as problem:
        pytest.skip(f"no Debian mirror to take an sshd from: {problem.message}")
    kept = re.compile("/usr(/(sbin|lib)(/.*)?)?")
    whole = union([one.tree.filter(lambda path: kept.fullmatch(path) is not None) for one in packages])
    paths = sorted(whole.paths, key=lambda path: whole[path].kind == "hardlink")
    write(((path, whole[path]) for path in paths), folder)
    loader, libraries = next(folder.glob("usr/lib/*/ld-linux*.so.*")), {path.parent for path in folder.rglob("*.so.*")}
    where = ":".join(map(str, sorted(libraries)))
    return [str(loader), "--library-path", where, str(folder / "usr/sbin/sshd"), "-r", "-D", "-e"]


@contextmanager
def running(sshd: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """OpenSSH's sshd on loopback, known to an ssh with a configuration of its own: the folder of their keys."""
    client = host.look_up("ssh")
    if not (client and host.look_up("ssh-keygen")):
        pytest.skip("OpenSSH's client is not on this machine: apt install openssh-client")
    if os.getuid() == 0 and host.run(["unshare", "-m", "true"], ok=None).code:
        pytest.skip("this root may make no mount namespace, and its sshd wants a user of its own in /etc/passwd")
    if getpwuid(os.getuid()).pw_shell.endswith(("nologin", "false")):
        pytest.skip("this user's shell lets nobody in")
    argv = [*sshd, "-f", str(tmp_path / "ssh" / "sshd.conf")]
    folder = tmp_path / "ssh"
    folder.mkdir()
    for name in ("host", "user"):
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name])
    with socket.create_server(("127.0.0.1", 0)) as free:
        words = {
            "port": free.getsockname()[1],
            "folder": folder,
            "user": getpwuid(os.getuid()).pw_name,
            "sshd": shlex.join(argv),
        }
    (folder / "sshd.conf").write_text(SERVER.format(**words))
    (folder / "config").write_text(CLIENT.format(**words))
    (folder / "known").write_text(f"[127.0.0.1]:{words['port']} {(folder / 'host.pub').read_text()}")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(f'#!/bin/sh\nexec {client} -F {folder}/config "$@"\n')
    (tmp_path / "bin" / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    server = host.launch(
        argv if os.getuid() else ["unshare", "-m", "sh", "-c", AS_ROOT.format(**words)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    try:
        said = b""
        while b"listening" not in said:
            line = server.stderr.readline() if server.stderr else b""
            assert line, f"sshd did not start: {said.decode()}"
            said += line
        yield folder
    finally:
        host.end(server)
