"""The smallest bootable image: a kernel, busybox, and a way to ask it things."""

from imagekit import DOCS, Budget, Disk, Image, Service, Text
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
    modules=("virtio_blk",),  # for whoever gives it a disk
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


def test_a_special_boot_and_a_power_cut(boot):
    guest = boot(memory=512, cmdline="panic=7", disks=(Disk("notes", size="16 MiB"),))
    assert "panic=7" in guest.run("cat /proc/cmdline").text.split()
    total = next(line for line in guest.run("cat /proc/meminfo").text.splitlines() if line.startswith("MemTotal"))
    assert 400_000 < int(total.split()[1]) < 512 * 1024
    guest.run(["dd", "of=/dev/vda", "conv=fsync"], input=b"written before the cut\n").check()
    guest.power.cut()
    guest.power.on()
    guest.wait_ready()
    assert guest.run("head -n 1 /dev/vda").check().text == "written before the cut"


def test_boots_with_nothing_added(boot):
    guest = boot(channel=False, wait="console:imagekit: .*service ready shell")
    assert "imagekit: early" in guest.console.text


def test_starts_by_uefi_and_shows_a_picture(boot):
    guest = boot(firmware="uefi", display=True)
    assert guest.screenshot().startswith(b"\x89PNG")
    assert "early" in [words for _, words in guest.facts["stages"]]
