"""A bastion: ssh and nothing else; its host key is made when it first boots, and only a key opens it."""

from pathlib import Path

import pytest

from imagekit import DOCS, Budget, Directory, File, GuestProblem, Image, Service, Step, Text
from imagekit.checks.network import listening
from imagekit.checks.standard import *  # noqa: F403 - ready-made tests: within budget, signed, boots, rebuilds identically

HOST_KEY = "/etc/dropbear/dropbear_ed25519_host_key"
TEST_KEY = Path(__file__).parent.parent / "fixtures/keys/ssh_test"  # everybody has it, it protects nothing

image = Image(
    name="bastion",
    version="1",
    packages=("debian:dropbear-bin",),
    kernel="debian:linux-image-cloud",
    without=(
        *DOCS,
        "gcc-12-base",
        "/usr/lib/*/gconv",  # character set conversions
        "/usr/lib/*/libm.so.6",  # mathematics
        "/usr/lib/*/libmvec.so.1",
        "/usr/lib/*/libnsl.so.1",  # NIS
    ),
    files={
        "/root/.ssh/authorized_keys": File("bastion/authorized_keys", mode=0o600),  # put your own key there
        "/etc/dropbear": Directory(mode=0o700),
        "/etc/shells": Text("/bin/sh\n"),
    },
    onboot=(Step("host-key", f"/usr/bin/dropbearkey -t ed25519 -f {HOST_KEY}"),),
    services=(Service("dropbear", f"/usr/sbin/dropbear -F -E -s -r {HOST_KEY}", ready="tcp:22"),),
    formats=("kernel_initrd", "tar"),
    arches=("x86_64", "aarch64"),
    budget=Budget(size="40 MiB", boot="4.2 s"),  # virtual seconds, the same on any host
)


def test_a_key_opens_it(guest):
    with guest.ssh(key=TEST_KEY) as shell:
        assert shell.run("id -un").check().text == "root"
        assert shell.run(["cat"], input=b"\0\xff\n" * 20000).check().stdout == b"\0\xff\n" * 20000
        assert shell.run(["/bin/sh", "-c", "echo 'it is so' >&2; exit 3"]).code == 3


def test_its_host_key_is_its_own(guest):
    told = guest.run(f"dropbearkey -y -f {HOST_KEY}").check().text
    with guest.ssh(key=TEST_KEY, host_key=told):
        pass
    another = TEST_KEY.with_suffix(".pub").read_text()  # a key that is not the server's
    with pytest.raises(GuestProblem, match=r"the server's host key is ssh-ed25519 SHA256:.*, and should be"):
        guest.ssh(key=TEST_KEY, host_key=another)


def test_nothing_else_is_open(guest):
    assert listening(guest) == guest.ports() == {22}


def test_as_testinfra_sees_it(host):
    assert host.service("dropbear").is_running
    assert not host.service("telnetd").exists
    assert host.file("/root/.ssh/authorized_keys").mode == 0o600
    assert host.file(HOST_KEY).user == "root"
    assert host.process.get(comm="dropbear").user == "root"
    assert "-F -E -s" in host.process.get(comm="dropbear").args
    assert host.socket("tcp://22").is_listening
    assert host.run("dropbear -V").rc == 0
