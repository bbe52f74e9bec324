"""The smallest bootable image: a kernel, busybox, and a way to ask it things."""

from imagekit import DOCS, Budget, Image, Service, Text
from imagekit.checks.standard import *  # noqa: F403 - ready-made tests: within budget, signed, boots, rebuilds identically

SHRC = """cd /root
# Busybox's own would ask an init that is not there.
alias poweroff=/usr/sbin/poweroff reboot=/usr/sbin/reboot halt=/usr/sbin/halt
"""

image = Image(
    name="shell",
    version="1",
    kernel="debian:linux-image-cloud",
    without=DOCS,
    files={"/root/.shrc": Text(SHRC)},
    services=(  # at the other end of `imagekit boot`
        Service("shell", "/usr/sbin/getty -n -l /bin/sh 0 console", env={"ENV": "/root/.shrc"}, stop_timeout=1),
    ),
    formats=("kernel_initrd", "tar"),
    arches=("x86_64", "aarch64"),
    budget=Budget(size="32 MiB", boot="4.2 s"),  # virtual seconds, the same on any host
)


def test_has_a_shell(guest):
    assert guest.run(["/bin/sh", "-c", "echo $((6 * 7))"]).text == "42"


def test_is_itself(guest, image, arch):
    assert guest.run("hostname").text == image.name
    assert guest.run("uname -m").text == arch


def test_files_go_in_and_out(guest):
    digest = guest.write("/root/notes", bytes(range(256)) * 64, mode=0o600)
    assert guest.read("/root/notes") == bytes(range(256)) * 64
    seen = guest.stat("/root/notes", digest=True)
    assert (seen.mode, seen.size, seen.sha256) == (0o600, 256 * 64, digest)


def test_a_log_is_followed(guest):
    guest.write("/root/log", b"old\n")
    with guest.follow("/root/log") as log:
        guest.run(["/bin/sh", "-c", "echo started >>/root/log"]).check()
        log.expect("^started$")


def test_shell_runs_without_a_machine(sandbox):
    assert sandbox.run(["/bin/sh", "-c", "echo hello"]).text == "hello"
