"""What a protected image must not have: ways in, policies that never open or always do, formats that ignore it all."""

import shlex

import pytest

from imagekit import (
    Image,
    Layout,
    Problem,
    Seal,
    SecureBoot,
    Service,
    Step,
    Verity,
    hardened,
    offer,
    plugs,
    repertoire,
    shells,
)
from imagekit.channel import AGENT
from imagekit.early import program
from imagekit.tree import Tree, file

GUARDED = {"root": "erofs", "verity": Verity(), "secure_boot": SecureBoot(), "seal": Seal()}
ABLE = ("raw_efi",)


def image(*, disk=GUARDED, **given):
    given = {"kernel": "debian:linux-image-cloud", "formats": ABLE, **given}
    return Image("vault", disk=Layout(**disk), **given)


def seal(*, slots=1, is_signed=True, **given):
    return {**GUARDED, "seal": Seal(**given), "slots": slots, "secure_boot": SecureBoot() if is_signed else None}


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (image(kernel=""), "needs a kernel"),
        *(
            (image(cmdline=f"quiet {word}"), f"not started with '{word}'")
            for word in (
                "init=/bin/sh", "rdinit=/bin/sh", "initrd=/evil", "root=/dev/sda1", "imagekit.verity=none",
                "single", "S", "1", "emergency", "rescue", "systemd.debug_shell", "systemd.debug-shell=1",
                "systemd.unit=rescue.target",
                "rd.break", "rd.shell=1", "break=mount", "kgdboc=ttyS0", "sysrq-always-enabled", "module.sig_enforce=0",
                "sysctl.kernel.sysrq=1",
            )
        ),
        (image(cmdline="quiet -- single"), "not started with 'single'"),
        (image(services=(Service("login", "/usr/sbin/getty 9600 ttyS0"),)), "service 'login'"),
        (image(onboot=(Step("look", "/bin/sh"),)), "onboot 'look'"),
        (image(onshutdown=(Step("look", "/bin/sh -i"),)), "onshutdown 'look'"),
        (image(disk=seal(pcrs=(5, 7, 11))), "could never open"),
        (image(disk=seal(pcrs=(4, 7, 11), slots=2)), "no update could ever open"),
        (image(disk=seal(pcrs=(7, 11), policy="exact", slots=2)), "no update could ever open"),
        (image(disk=seal(pcrs=(11,))), "would open for whoever starts a program of their own"),
        (image(disk=seal(pcrs=(7, 11), is_signed=False)), "would open for whoever"),
        (image(disk=seal(pcrs=(0, 7), policy="exact")), "would open for whoever"),
        (image(disk=seal(pcrs=(4, 7, 11), is_signed=False)), "would open for whoever"),
        (image(disk=seal(pcrs=(4, 11))), "would open for whoever"),
        (image(disk=seal(pcrs=(4, 11, 12), is_signed=False)), "would open for whoever"),
        (image(disk=seal(pcrs=(2, 4, 11), is_signed=False)), "would open for whoever"),
        (image(disk=seal(pcrs=(7, 11, 12), slots=2)), "no update could ever open"),
        (image(disk=seal(disk="root-b")), "another partition has this name"),
        *((image(disk=seal(mount=path)), "mount=") for path in ("data", "/", "/etc/data", "/a/../b", "/a b", "/a/")),
    ],
)  # fmt: skip
def test_what_would_leave_a_way_in_or_none_is_refused(made, words):
    with pytest.raises(Problem) as told:
        hardened.check(made)
    assert words in str(told.value)
    assert "vault" in told.value.message


LAYOUTS = {  # each with one field that protects, and what that takes
    "verity": {"root": "squashfs", "verity": Verity()},
    "secure_boot": {"secure_boot": SecureBoot()},
    "seal": {"seal": Seal(pcrs=(2, 4, 11, 12))},
    "slots": {"slots": 2},
}


@pytest.mark.parametrize("field", LAYOUTS)
def test_a_format_honours_protection_or_refuses_it(field):
    for name in plugs.own("formats"):
        made = image(disk=LAYOUTS[field], formats=(name,))
        if field in repertoire.format(name).protects:
            hardened.check(made)
            continue
        with pytest.raises(Problem, match=f"format {name} cannot honour {field}="):
            hardened.check(made)


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("/usr/sbin/nginx -g 'daemon off;'", ""),
        ("/bin/sh", "sh"),
        ("/bin/bash --login", "bash"),
        ("/bin/sh -i /etc/profile", "sh"),
        ("/bin/sh /etc/start.sh", ""),
        ("/bin/sh -c 'exec nginx'", ""),
        ("/bin/sh -ec 'nginx; exec sh </dev/ttyS0'", "sh"),
        ("/bin/sh -c 'if true; then bash; fi'", "bash"),
        ("/usr/bin/busybox ash", "ash"),
        ("setsid cttyhack sh", "sh"),
        ("env TERM=linux /bin/sh", "sh"),
        ("env SHELL=/bin/sh nginx", ""),
        ("chroot /mnt /bin/sh", "sh"),
        ("/sbin/agetty ttyS0", "agetty"),
        ("nc -l -p 23 -e /bin/sh", "sh"),
        ("socat TCP-LISTEN:23 EXEC:/bin/sh,pty", "sh"),
        ("su www -c nginx", ""),
    ],
)
def test_a_shell_for_whoever_comes_by_is_found(command, found):
    assert next(shells.started(shlex.split(command)), "") == found


def test_a_protected_tree_has_neither_passwords_nor_the_test_channel():
    layout = Layout(**GUARDED)
    hardened.check_tree(Tree({"/etc/shadow": file(b"root:*:::::::\n\nwww:!:::::::\n")}), layout)
    for entries, words in (
        ({"/etc/shadow": file(b"root:$6$salt$hash:::::::\n")}, "'root'"),
        ({"/etc/shadow": file(b"root::::::::\n")}, "'root'"),
        (
            {"/etc/passwd": file(b"www:x:33:33::/:/bin/false\nroot::0:0::/root:/bin/sh\n")},
            "/etc/passwd has one for 'root'",
        ),
        ({"/etc/passwd": file(b"root:xy:0:0::/root:/bin/sh\n")}, "/etc/passwd has one for 'root'"),
        ({AGENT: file(b"")}, AGENT),
        ({"/usr/bin/helper": program("agent", "aarch64")}, "/usr/bin/helper"),
    ):
        hardened.check_tree(Tree(entries), Layout())
        with pytest.raises(Problem) as told:
            hardened.check_tree(Tree(entries), layout)
        assert words in str(told.value)


@pytest.mark.parametrize("format", ["raw_efi", "uki"])
def test_a_sealed_disk_is_opened_by_drivers_also_where_the_root_is_in_memory(format):
    with_seal = image(disk={"secure_boot": SecureBoot(), "seal": Seal()}, formats=(format,))
    assert {"virtio_pci", "virtio_blk"} <= set(offer.drivers(with_seal, "x86_64"))
    assert not offer.drivers(image(disk={"secure_boot": SecureBoot()}, formats=(format,)), "x86_64")
