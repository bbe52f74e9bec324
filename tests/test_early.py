"""Early boot as a part of the tree: what is rendered from an Image, to the letter."""

from pathlib import Path

import pytest

from imagekit import early
from imagekit.errors import Defect, Problem
from imagekit.image import Image, Service, Static, Step
from imagekit.layout import Layout
from imagekit.protection import SecureBoot
from imagekit.tree import Tree, below_symlink, file

MODULES = ("/usr/lib/modules/6.1/virtio.ko", "/usr/lib/modules/6.1/virtio_net.ko")


def tree(arch: str = "x86_64", modules: tuple[str, ...] = (), **fields: object) -> Tree:
    return early.tree(Image(name="t", **fields), arch, modules=modules)


def text(path: str, **fields: object) -> str:
    return tree(**fields).read(path).decode()


@pytest.mark.parametrize(
    ("path", "kept"),
    [
        ("/usr/bin/busybox", True),
        ("/usr/sbin/runit", True),
        ("/usr/bin/runsv", True),
        ("/usr/bin/runsvdir", True),
        ("/usr/bin/sv", True),
        ("/usr/bin/chpst", True),
        ("/usr/lib64/ld-linux-x86-64.so.2", True),
        ("/usr/lib/ld-linux-aarch64.so.1", True),
        ("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", True),
        ("/usr/lib/aarch64-linux-gnu/libc.so.6", True),
        ("/usr/share/doc/runit/copyright", True),
        ("/usr/lib/x86_64-linux-gnu/libm.so.6", False),
        ("/usr/lib/x86_64-linux-gnu/gconv/UTF-16.so", False),
        ("/usr/bin/svlogd", False),
        ("/usr/bin/busybox.old", False),
        ("/usr/lib/runit/runit-init", False),
        ("/etc/runit/1", False),
        ("/usr/share/doc/runit/README", False),
        ("/usr/share/man/man8/runit.8.gz", False),
    ],
)
def test_of_the_packages_only_programs_loader_and_licences_are_kept(path: str, kept: bool) -> None:
    assert early.keep(path) is kept


def test_the_smallest_image() -> None:
    made = tree(modules=MODULES)
    assert made.read("/etc/imagekit/modules").decode() == "".join(f"{path}\n" for path in MODULES)
    assert made.read("/etc/imagekit/table") == b""
    assert {made[path].kind for path in ("/etc/imagekit/onboot", "/etc/imagekit/onshutdown")} == {"dir"}
    for path in ("/init", "/etc/runit/1", "/etc/runit/2", "/etc/runit/3", "/etc/runit/ctrlaltdel", "/usr/sbin/reboot"):
        assert made[path].target == "/usr/lib/imagekit/boot"
    assert made["/usr/lib/imagekit/boot"].mode == 0o755
    assert {entry.owner for entry in made.values()} == {"imagekit"}
    assert below_symlink(made.complete()) is None


def test_a_protected_image_proves_itself() -> None:
    added = {*tree(disk=Layout(secure_boot=SecureBoot()))} - {*tree()}
    assert added == {"/usr/lib/imagekit/attest", "/usr/sbin/imagekit-attest"}


def test_an_initrd_for_a_root_on_a_disk_has_what_finds_it_and_nothing_else() -> None:
    files = {path: file(b"module") for path in (*MODULES, "/usr/lib/modules/6.1/other.ko", "/usr/bin/nginx")}
    whole = tree(modules=MODULES) | Tree(files)
    made = early.initrd(whole)
    assert {path for path in made if made[path].kind != "dir"} == {
        "/init", "/usr/lib/imagekit/boot", "/etc/imagekit/modules", "/etc/imagekit/initrd", *MODULES,
    }  # fmt: skip
    assert {"/proc", "/sys", "/dev", "/run", "/root"} <= set(made)
    assert all(made[path] == whole[path] for path in MODULES)
    assert early.initrd(whole | Tree({"/usr/bin/more": file(b"")})).digest == made.digest


@pytest.mark.parametrize(
    ("lost", "whole"),
    [
        ("/etc/imagekit/modules", Tree()),
        ("/usr/lib/modules/6.1/virtio.ko", tree(modules=MODULES)),
        ("/usr/lib/imagekit/boot", tree().without(("/usr/lib/imagekit/boot",))),
    ],
)
def test_an_initrd_needs_a_bootable_tree(lost: str, whole: Tree) -> None:
    with pytest.raises(Problem, match=f"{lost} is not in the tree"):
        early.initrd(whole)


def test_architectures_differ_in_one_program() -> None:
    x86, arm = tree("x86_64"), tree("aarch64")
    assert [path for path in x86 if x86[path] != arm[path]] == ["/usr/lib/imagekit/boot"]
    assert list(x86) == list(arm)


def test_a_missing_program_is_our_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(early, "_INSIDE", tmp_path)
    with pytest.raises(Defect, match=r"bin/boot\.x86_64 cannot be read"):
        tree()


@pytest.mark.parametrize(
    ("network", "words", "resolvers"),
    [
        ("none", "none\n", None),
        ("dhcp", "dhcp eth0\n", "-> /run/imagekit/resolv.conf"),
        (Static("192.0.2.10/24"), "static eth0 192.0.2.10/24\n", ""),
        (
            Static("192.0.2.10/24", gateway="192.0.2.1", dns=("192.0.2.2", "192.0.2.3"), interface="eth1"),
            "static eth1 192.0.2.10/24 192.0.2.1\n",
            "nameserver 192.0.2.2\nnameserver 192.0.2.3\n",
        ),
        (Static("2001:db8::2/64", gateway="2001:db8::1"), "static eth0 2001:db8::2/64 2001:db8::1\n", ""),
    ],
)
def test_networks(network: str | Static, words: str, resolvers: str | None) -> None:
    made = tree(network=network)
    assert made.read(early.NETWORK).decode() == words
    entry = made.get("/etc/resolv.conf")
    found = entry and (f"-> {entry.target}" if entry.kind == "symlink" else entry.read().decode())
    assert found == resolvers
    assert ("/usr/lib/imagekit/dhcp" in made) is (network == "dhcp")


def test_steps_are_named_in_their_order() -> None:
    steps = tuple(Step(name, "/bin/true") for name in ("b", "a", *(f"s{n}" for n in range(10))))
    made = tree(onboot=steps, onshutdown=steps[:1])
    names = [path for path in made.paths if path.startswith("/etc/imagekit/onboot/")]
    assert [path.partition("-")[2] for path in sorted(names)] == [step.name for step in steps]
    assert "/etc/imagekit/onshutdown/00-b" in made


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (Step("a", "/bin/sh -c 'echo \"x  y\"'"), ["timeout=60", "--", "/bin/sh", "-c", 'echo "x  y"']),
        (Step("a", ("/bin/a", ""), timeout=0.5), ["timeout=0.5", "--", "/bin/a", ""]),
        (
            Step("a", ("/bin/a", "one\ntwo", "\\n"), env={"A": "b\\", "C": " "}),
            ["timeout=60", "env=A=b\\\\", "env=C= ", "--", "/bin/a", "one\\ntwo", "\\\\n"],
        ),
    ],
)
def test_a_step_is_a_script_of_one_word_a_line(step: Step, words: list[str]) -> None:
    script = text("/etc/imagekit/onboot/00-a", onboot=(step,))
    assert script == "\n".join(["#!/usr/lib/imagekit/boot", "step", "onboot", "a", *words, ""])


def test_a_service() -> None:
    redis = Service("redis", "/usr/bin/redis-server")
    web = Service(
        "web",
        "/usr/sbin/nginx -g 'daemon off;'",
        user="www-data",
        env={"A": "1"},
        after=("redis",),
        restart="on-failure",
        ready="http:80/health?a=b",
        stop_timeout=0.5,
    )
    made = tree(services=(redis, web), network="none")
    folder = "/etc/imagekit/services/web"
    assert made.read(f"{folder}/run").decode().splitlines() == [
        "#!/usr/lib/imagekit/boot",
        *("start", "web", "user=www-data", "after=redis", "env=A=1"),
        *("--", "/usr/sbin/nginx", "-g", "daemon off;"),
    ]
    assert made.read(f"{folder}/finish").decode().splitlines()[1:] == ["end", "web", "on-failure"]
    assert made[f"{folder}/supervise"].target == "/run/imagekit/supervise/web"
    assert made[f"{folder}/run"].mode == made[f"{folder}/finish"].mode == 0o755
    assert made.read("/etc/imagekit/table").decode() == "redis 10000 - -\nweb 500 redis http:80/health?a=b\n"
    assert below_symlink(made.complete()) is None


@pytest.mark.parametrize(
    ("services", "words"),
    [
        ((Service("s", ("/bin/a", *["x"] * 520)),), "too many for early boot"),
        ((Service("s", ("/bin/a", "x" * 140_000)),), "too many for early boot"),
        ((Service("s", "/bin/a", ready="http:80/" + "x" * 1020),), "longer than 1024 bytes"),
        (tuple(Service(f"s{n}", "/bin/a") for n in range(257)), "257 are more than the 256"),
    ],
)
def test_what_early_boot_has_no_room_for_is_refused(services: tuple[Service, ...], words: str) -> None:
    with pytest.raises(Problem, match=words):
        tree(services=services)


def test_a_command_condition_is_a_script() -> None:
    ask = Service("redis", "/usr/bin/redis-server", ready="command:redis-cli -a 'x y' ping")
    made = tree(services=(ask,))
    assert made.read("/etc/imagekit/table").decode() == "redis 10000 - command:\n"
    script = made["/etc/imagekit/ready/redis"]
    assert script.read().decode() == "#!/bin/sh\nexec redis-cli -a 'x y' ping\n"
    assert script.mode == 0o755


def test_applets_leave_what_a_package_brings() -> None:
    ours = early.applets(Tree())
    theirs = Tree({"/usr/bin/ip": file(b""), "/usr/bin/ls": file(b""), "/usr/bin/vi.tiny": file(b"")})
    gone = set(ours) - set(early.applets(theirs))
    assert gone == {"/usr/sbin/ip", "/usr/bin/ls"}  # ip: /usr/sbin comes first in PATH and would hide theirs


def test_applets_are_links_to_busybox() -> None:
    ours = early.applets(Tree())
    assert ours["/usr/bin/sh"].target == "busybox"
    assert ours["/usr/sbin/ip"].target == "../bin/busybox"
    assert {entry.kind for entry in ours.values()} == {"symlink"}
    assert not set(ours) & set(tree())
    assert "/usr/sbin/modprobe" not in ours  # the kernel would call it while it boots


def test_the_agent_lies_in_a_folder_of_its_own() -> None:
    x86, arm = early.agent("x86_64"), early.agent("aarch64")
    assert list(x86) == ["/.imagekit", "/.imagekit/agent"]
    assert x86["/.imagekit/agent"].mode == 0o755
    assert x86.digest != arm.digest
    assert not set(x86) & set(tree())
