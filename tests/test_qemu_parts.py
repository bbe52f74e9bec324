"""The parts of a QEMU machine that need no QEMU: arguments, what a boot tells, ports, keys."""

from pathlib import Path

import pytest

from imagekit.errors import Problem, RigProblem
from imagekit.guest import GuestProblem
from imagekit.targets import _kvm, _qemu_plan, _qemu_ports, _qemu_start
from imagekit.targets._qemu_command import BOARDS, Command, Wiring, cmdline, network
from imagekit.targets._qemu_progress import CARRY, MAX_STAGES, ConsoleLines, Progress, boot_seconds
from imagekit.targets._qemu_terminal import Keys


@pytest.mark.parametrize(
    ("own", "more", "whole"),
    [
        (b"quiet\n", "", "quiet console=ttyS0 panic=-1 no_timer_check"),
        (b"", "a=b", "console=ttyS0 panic=-1 no_timer_check a=b"),
        (b"panic=9 x -- for init", "", "panic=9 x console=ttyS0 panic=-1 no_timer_check -- for init"),
    ],
)
def test_the_kernel_s_arguments(own: bytes, more: str, whole: str) -> None:
    assert cmdline(own, BOARDS["x86_64"], more=more) == whole


@pytest.mark.parametrize("own", [b"x" * 2048, b"a\0b", b"\xff"])
def test_kernel_arguments_that_cannot_be(own: bytes) -> None:
    with pytest.raises(Problem, match="command line"):
        cmdline(own, BOARDS["x86_64"])


@pytest.mark.parametrize(
    ("said", "options"),
    [
        (None, ""),
        ("dhcp", ""),
        ("none", ""),
        ("static eth0 192.0.2.10/24 192.0.2.1", ",net=192.0.2.0/24,host=192.0.2.1,dns=192.0.2.2,dhcpstart=192.0.2.10"),
        ("static eth0 192.0.2.1/24", ",net=192.0.2.0/24,host=192.0.2.2,dns=192.0.2.3,dhcpstart=192.0.2.1"),
    ],
)
def test_the_network_has_the_image_s_address(said: str | None, options: str) -> None:
    assert network({} if said is None else {"network": said}) == options


HEAD = "  sl  local_address rem_address   st\n"
ROUTE = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\neth0\t0\t0\t3\t0\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("text", "reachable", "inner", "has_network", "wants_network"),
    [
        ("", set(), set(), False, False),
        ("dhcp eth0\n" + HEAD, set(), set(), False, True),
        ("none\n" + HEAD + ROUTE, set(), set(), True, False),
        (HEAD + " 0: 0F02000A:1F90 00000000:0000 0A\n", {8080}, set(), False, False),
        (HEAD + " 0: 0100007F:0016 0:0 0A\n 1: 0100007F:0016 0:0 0A\n", set(), {22}, False, False),
        (HEAD + f" 0: {'0' * 24}01000000:0016 0:0 0A\n", set(), {22}, False, False),
        (HEAD + f" 0: {'0' * 16}FFFF00000100007F:0017 0:0 0A\n", set(), {23}, False, False),
        (HEAD + " 0: 00000000:0016 0:0 01\n 1: 00000000:ZZZZ 0:0 0A\n 2:\n\0\n", set(), set(), False, False),
    ],
)  # fmt: skip
def test_a_guest_s_tables_are_read(
    text: str, reachable: set[int], inner: set[int], has_network: bool, wants_network: bool
) -> None:
    assert _qemu_ports.parse(text) == (reachable, inner, has_network, wants_network)


def test_a_network_that_is_not_up_yet_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "dhcp eth0\n" + HEAD + " 0: 00000000:0050 0:0 0A\n"
    told = iter([wanted, wanted, wanted + ROUTE])
    refused = _qemu_ports.Ports("127.0.0.1", human=lambda _: "no", ask=lambda _: next(told).encode())
    with pytest.raises(RigProblem, match=r"cannot forward a port of .* to port 80 of the guest: no"):
        refused.connect(80)
    monkeypatch.setattr(_qemu_ports, "NETWORK_PATIENCE", 0.1)
    never = _qemu_ports.Ports("127.0.0.1", human=lambda _: "", ask=lambda _: wanted.encode())
    with pytest.raises(GuestProblem, match="cannot be reached: it has no network"):
        never.connect(80)


def test_each_lease_is_another_address() -> None:
    leases = [_qemu_ports.lease() for _ in range(50)]
    assert len({lease.address for lease in leases}) == 50
    for lease in leases:
        lease.guard.close()


def command(arch: str, accelerator: str = "tcg", wiring: Wiring | None = None) -> str:
    return " ".join(Command(BOARDS[arch], "/k", "/i", "a b", 256, accelerator, "", wiring).arguments)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (command("x86_64"), "-machine q35 -cpu max -accel tcg,thread=single"),
        (command("x86_64"), "-kernel /k -initrd /i -append a b"),
        (command("x86_64"), "-serial stdio"),
        (command("x86_64", "kvm"), "-cpu host -accel kvm"),
        (
            command("x86_64", wiring=Wiring(3, 4, 5)),
            "fd=4 -serial chardev:console -chardev socket,id=channel,fd=5 -serial",
        ),
        (command("aarch64", wiring=Wiring(3, 4, 5)), "id=channel,fd=5 -device pci-serial,chardev=channel"),
        (command("aarch64"), "-machine virt -cpu cortex-a53"),
        (command("aarch64"), "user,id=net,restrict=on"),
        (command("aarch64"), "spawn=deny"),
    ],
)
def test_qemu_s_arguments(line: str, words: str) -> None:
    assert words in line


def test_without_a_channel_there_is_no_second_line() -> None:
    assert "channel" not in command("x86_64", wiring=Wiring(3, 4, None))


def test_wires_take_the_place_of_the_user_network() -> None:
    wires = ((7, "52:54:00:00:01:0a"), (9, "52:54:00:00:02:0a"))
    line = command("aarch64", wiring=Wiring(3, 4, 5, wires))
    assert (
        "-netdev stream,id=w0,server=off,addr.type=fd,addr.str=7 "
        "-device virtio-net-pci,netdev=w0,mac=52:54:00:00:01:0a,romfile= "
        "-netdev stream,id=w1,server=off,addr.type=fd,addr.str=9 "
        "-device virtio-net-pci,netdev=w1,mac=52:54:00:00:02:0a,romfile= "
    ) in line
    assert "user," not in line


# --- accelerators


ACCELERATORS = [
    ("auto", "x86_64", True, ("kvm", "a guest ran")),
    ("auto", "x86_64", False, ("tcg", "kvm: it hung")),
    ("auto", "aarch64", True, ("tcg", "kvm: a machine of x86_64 emulates aarch64")),
    ("tcg", "x86_64", True, ("tcg", "asked for")),
    ("kvm", "x86_64", True, ("kvm", "a guest ran")),
    ("kvm", "x86_64", False, "KVM was asked for and cannot be used: it hung"),
    ("kvm", "aarch64", True, "a machine of x86_64 emulates aarch64"),
    ("hvf", "x86_64", True, "unknown accelerator 'hvf'"),
]


@pytest.mark.parametrize(("asked", "guest", "works", "found"), ACCELERATORS)
def test_the_accelerator_and_why(
    monkeypatch: pytest.MonkeyPatch, asked: str, guest: str, works: bool, found: tuple[str, str] | str
) -> None:
    monkeypatch.setattr(_kvm, "probe", lambda *_: _kvm.Probe(works, "a guest ran" if works else "it hung"))
    monkeypatch.setattr(_qemu_plan.os, "uname", lambda: type("", (), {"machine": "x86_64"}))
    if isinstance(found, tuple):
        assert _qemu_plan.accelerate(asked, guest, None, None) == found
    else:
        with pytest.raises(Problem, match=found):
            _qemu_plan.accelerate(asked, guest, None, None)


def test_an_agent_that_is_not_there_is_our_fault(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_qemu_start, "INSIDE", tmp_path)
    with pytest.raises(Problem, match=r"agent\.x86_64 is not there"):
        _qemu_start.agent("x86_64")


# --- what a boot tells


def told(*words: str) -> Progress:
    progress = Progress()
    for number, line in enumerate(words):
        progress.take(f"{number}.5 {line}")
    return progress


PROGRESS = [
    ((), "", "the first word of the image's init"),
    (("early",), "", "what follows `early`"),
    (("onboot start a", "onboot done a", "onboot start b"), "", "the onboot step b"),
    (("service start a", "service start b", "service ready b"), "", "ready: a"),
    (("onboot failed a 137", "shutdown"), "the onboot step a failed with 137", "what follows `shutdown`"),
    (
        ("service failed a died twice",),
        "the service a failed: died twice",
        "what follows `service failed a died twice`",
    ),
    (("service exit a 1", "service exit b 1", "service exit a 2"), "", "what follows `service exit a 2`"),
    (("shutdown",), "the guest shut down before it was ready", "what follows `shutdown`"),
    (("onboot", "service failed", "service exit", "onboot failed x"), "", "what follows `onboot failed x`"),
]


@pytest.mark.parametrize(("words", "failure", "awaited"), PROGRESS)
def test_what_is_awaited_and_what_failed(words: tuple[str, ...], failure: str, awaited: str) -> None:
    progress = told(*words)
    assert (progress.failure, progress.awaited, progress.is_ready) == (failure, awaited, False)


def test_ready_ends_the_stages() -> None:
    progress = told("early", "service ready a b", "ready", "service failed a late", "shutdown", "onshutdown done x")
    assert progress.is_ready
    assert progress.failure == ""
    assert boot_seconds(progress.stages) == 2.5
    assert progress.services == {"a": 1.5}
    assert progress.shutdown == [(4.5, "shutdown"), (5.5, "onshutdown done x")]


@pytest.mark.parametrize(
    "line", ["", "ready", "1 ready", "1. ready", "x.5 ready", "1.5ready", "1.5  ", "-1.5 ready", "nan ready"]
)
def test_lines_that_make_no_sense_are_nothing(line: str) -> None:
    progress = Progress()
    assert not progress.take(line)
    assert not progress.stages


def test_a_talkative_guest_fills_no_memory() -> None:
    progress = told(*["early"] * (MAX_STAGES + 100), "x" * 100_000)
    assert len(progress.stages) == MAX_STAGES
    progress.take("9.5 ready")
    for _ in range(MAX_STAGES + 100):
        progress.take("9.5 \x1b[31m" + "x" * 1000)
    assert progress.is_ready
    assert len(progress.later) <= MAX_STAGES + 1
    assert progress.later[0][1].startswith("\\x1b[31mxxx")
    assert len(progress.later[0][1]) <= 400


PANIC = "Kernel panic - not syncing: VFS"
CONSOLES = [
    ([f"[    1.5] {PANIC}\r\n"], PANIC),
    ([f"[    1.5][    T1] {PANIC}\r\n"], PANIC),
    ([f"{PANIC}\n"], PANIC),
    (["[    1.5] Kern", "el panic - not sync", "ing: VFS\r", "\nmore"], PANIC),
    (["x" * 100_000, f"\n{PANIC}\n"], PANIC),
    ([f"echo {PANIC}\n"], ""),
    (["Kernel panic - not syncing: VFS"], ""),  # its line has not ended
    (["[    1.5] not Kernel panic\n"], ""),
]


@pytest.mark.parametrize(("pieces", "panic"), CONSOLES)
def test_a_panic_is_seen_on_the_console(pieces: list[str], panic: str) -> None:
    progress = Progress()
    lines = ConsoleLines(progress, take_events=False)
    for piece in pieces:
        lines.feed(piece.encode())
    assert progress.panic == panic


def test_events_on_the_console_count_where_there_is_no_agent() -> None:
    text = b"[    1.250000] imagekit: early\r\nls: imagekit: no\r\n[    2.5] imagekit: ready\r\n"
    for take_events, stages in ((True, [(1.25, "early"), (2.5, "ready")]), (False, [])):
        progress = Progress()
        lines = ConsoleLines(progress, take_events=take_events)
        for place in range(0, len(text), 7):
            lines.feed(text[place : place + 7])
        assert progress.stages == stages


def test_a_line_without_an_end_fills_no_memory() -> None:
    lines = ConsoleLines(Progress(), take_events=True)
    for _ in range(100):
        lines.feed(b"x" * 100_000)
    assert len(lines._rest) == CARRY


# --- keys


@pytest.mark.parametrize(
    ("typed", "sent", "is_leaving"),
    [
        ([b"ls\r"], b"ls\r", False),
        ([b"\x03\x1a\x04\x1b[A"], b"\x03\x1a\x04\x1b[A", False),
        ([b"a\x1d"], b"", True),
        ([b"a", b"\x01", b"x"], b"a", True),
        ([b"\x01\x01"], b"\x01", False),
        ([b"\x01a"], b"\x01a", False),
        ([b"\x01", b"\x01", b"x"], b"\x01x", False),
    ],
)
def test_keys_that_leave_and_keys_that_do_not(typed: list[bytes], sent: bytes, is_leaving: bool) -> None:
    keys = Keys()
    assert b"".join(keys.feed(piece) for piece in typed) == sent
    assert keys.is_leaving is is_leaving


def test_an_event_behind_a_prompt_is_heard() -> None:
    progress = Progress()
    ConsoleLines(progress, take_events=True).feed(b"~ # \x1b[6n[    2.5] imagekit: ready\r\n~ # imagekit: early\r\n")
    assert progress.stages == [(2.5, "ready")]
