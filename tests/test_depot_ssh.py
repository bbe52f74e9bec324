"""A depot behind ssh: what ssh runs over there is run for real; what it says, and how it ends, is not believed."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from pwd import getpwuid

import pytest
from depot_rig import IMAGE_KEY, KEYS, ONLINE, Reader, made, noise

from imagekit import arch, download, host, site, toolbox
from imagekit.artifact import Artifact
from imagekit.depot import index, publishing, trust
from imagekit.disk.folder import write
from imagekit.errors import Problem, RigProblem
from imagekit.package import Request
from imagekit.site import Missing, Site
from imagekit.sites import ssh
from imagekit.sources.debian import SOURCE
from imagekit.stores.directory import open_store
from imagekit.tree import union

SSH = """#!/bin/sh
while [ "$1" != -- ]; do shift; done
shift 2
{before}
sh -c "$*" {after}
"""


class Far:
    """Another machine: an ssh that runs what it is told in a shell of this one."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.place = folder, folder / "far away" / "depot"
        (folder / "bin").mkdir()
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
        self.says()

    def says(self, before: str = "", after: str = "") -> None:
        """What it does before and after."""
        program = self.folder / "bin" / "ssh"
        program.write_text(SSH.format(before=before, after=after))
        program.chmod(0o755)

    @property
    def site(self) -> Site:
        return site.at(f"ssh://me@far{self.place}")

    def create(self) -> bytes:
        root = index.create(self.site, KEYS, thresholds={"root": 2}, days={})
        trust.adopt(self.site, root, home=self.folder / "keeper")
        return root

    def publish(self, artifact: Artifact) -> publishing.Moved:
        return publishing.publish([artifact], self.site, key=IMAGE_KEY, keys=ONLINE, home=self.folder / "keeper")


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Far:
    if not shutil.which("flock"):
        pytest.skip("flock is not on this machine")
    return Far(tmp_path, monkeypatch)


def test_what_was_published_by_ssh_is_pulled(far: Far, tmp_path: Path) -> None:
    root = far.create()
    assert far.publish(made(tmp_path / "1")).blobs
    changed = {"kernel": noise(1, 300_000) + noise(7, 50_000), "initrd": b"initrd " * 40_000}
    moved = far.publish(made(tmp_path / "2", version="2", parts=changed))
    assert moved.size < 200_000  # the rest was there
    for number, place in enumerate((far.site, site.at(str(far.place)))):  # and it is a depot as any other
        reader = Reader(place, tmp_path / f"reader{number}").trusts(root)
        assert reader.pull(version="2").artifact.verified(IMAGE_KEY)
    assert [path.name for path in (far.place / ".drafts").iterdir()] == ["publishing.lock"]


def test_a_reader_there_is_told_what_is_missing(far: Far, tmp_path: Path) -> None:
    with pytest.raises(Missing):
        far.site.read("metadata/timestamp.json", 100)
    assert far.site.lacks({"blobs/aa/x": 1}) == ["blobs/aa/x"]
    root = far.create()
    with pytest.raises(Problem, match="is a depot already"):
        index.create(far.site, KEYS, thresholds={}, days={})
    far.publish(made(tmp_path / "1"))
    for blob in (far.place / "blobs").rglob("??????*"):
        blob.unlink()
    with pytest.raises(Missing):
        Reader(far.site, tmp_path / "reader").trusts(root).pull()


def test_publishers_here_and_there_take_turns(far: Far) -> None:
    import fcntl

    with far.site.lock():
        handle = os.open(far.place / ".drafts" / "publishing.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(handle, fcntl.LOCK_EX)  # it ends with the block
    os.close(handle)


def test_a_host_that_never_locks_is_waited_for_so_long(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh, "WAIT", 0.5)
    far.says(before="sleep 20")
    with pytest.raises(RigProblem, match="cannot be locked"), far.site.lock():
        pass


def test_files_are_whole_and_in_order_or_not_there(far: Far) -> None:
    """The connection ends in the middle: nothing of it has a name, and nothing lies about."""
    far.site.write([("metadata/a", b"old")])
    far.says(before='exec 3<&0; head -c 2000 | sh -c "$*"; exit 255')
    with pytest.raises(RigProblem, match="ended with 255"):
        far.site.write([("metadata/a", b"new" * 999), ("metadata/b", b"b")])
    assert (far.place / "metadata" / "a").read_bytes() == b"old"
    assert [path.name for path in far.place.rglob("*") if path.is_file()] == ["a"]


MISDEEDS = {
    "unreachable": ("echo 'Host key verification failed.' >&2; exit 255", "", "Host key verification failed"),
    "endless": ("exec cat /dev/zero", "", "printed more than|larger than"),
    "slow": ("sleep 20", "", "too slow"),
    "garbled": ("", "| tr '0-9' '1-90'", "not what its keys signed|malformed|is not|cannot be read|signed"),
}


@pytest.mark.parametrize("misdeed", MISDEEDS)
def test_a_host_that_misbehaves_is_told_soon(
    far: Far, tmp_path: Path, misdeed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = far.create()
    far.publish(made(tmp_path / "1"))
    before, after, words = MISDEEDS[misdeed]
    reader = Reader(far.site, tmp_path / "reader").trusts(root)
    if misdeed == "slow":
        monkeypatch.setattr(download, "PATIENCE", download.Patience(start=0.5, slowest=1e9))
    far.says(before, after)
    with pytest.raises(Problem, match=words):
        reader.pull()
    assert not reader.out.exists() or not list(reader.out.iterdir())


@pytest.mark.parametrize(
    "place",
    [
        "ssh://-oProxyCommand=x/depot",
        "ssh://-x@host/depot",
        "ssh://me:word@host/depot",
        "ssh://host",
        "ssh://host/",
        "ssh://ho$(id)st/depot",
        "ssh://host:x/depot",
        "ssh://host/a%0ab",
        "ssh://host/depot?x",
        "ssh:///depot",
    ],
)
def test_what_is_no_place(place: str) -> None:
    with pytest.raises(Problem):
        site.at(place)


def test_a_path_is_one_word_over_there(far: Far) -> None:
    """Blanks, quotes and what a shell would run."""
    far.place = far.folder / "a b'; touch hacked; '$(touch hacked)"
    far.create()
    assert (far.place / "metadata" / "timestamp.json").is_file()
    assert not list(far.folder.rglob("hacked"))


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


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to start the sshd of Debian's openssh-server, fetched as any package of an image is, by its own loader."""
    usual = Request(("openssh-server",), kernel="", init=(), without=ABSENT, suite="bookworm", arch=arch.host().name)
    store, folder = open_store(), tmp_path_factory.mktemp("sshd") / "tree"
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


@pytest.fixture
def openssh(sshd: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
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


def test_by_openssh(openssh: Path, tmp_path: Path) -> None:
    """The real programs: a depot is made, published to, pulled from; a host with another key is told nothing."""
    place = site.at(f"ssh://far{tmp_path}/depot")
    root = index.create(place, KEYS, thresholds={"root": 2}, days={})
    trust.adopt(place, root, home=tmp_path / "keeper")
    artifact = made(tmp_path / "made")
    assert publishing.publish([artifact], place, key=IMAGE_KEY, keys=ONLINE, home=tmp_path / "keeper").blobs
    assert Reader(place, tmp_path / "reader").trusts(root).pull().artifact.digest == artifact.digest
    host.run(["ssh", "-O", "exit", "far"])  # or the connection that is there would do
    known = openssh / "known"
    known.write_text(known.read_text().replace((openssh / "host.pub").read_text(), (openssh / "user.pub").read_text()))
    with pytest.raises(RigProblem, match="Host key verification failed"):
        Reader(place, tmp_path / "reader").pull()
