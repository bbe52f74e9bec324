"""A machine's TPM: a real swtpm, plugged into something that speaks as QEMU does, and into machines."""

import os
import signal
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imagekit import toolbox
from imagekit.errors import MachineProblem, Problem, RigProblem
from imagekit.guest import NO_CHIP, GuestProblem, Rig
from imagekit.rig import Tpm
from imagekit.stores.directory import open_store
from imagekit.targets import _qemu_plan, _qemu_tpm, _tpm, _tpm2
from tests.test_qemu_boot import boot, image

TOOLS = os.environ.get("IMAGEKIT_TOOLS", "auto")
MEASURED = sha256(b"measured").digest()
ZERO = bytes(32)
INIT = struct.pack(">II", _tpm.INIT, 0)


def extended(*digests: bytes) -> bytes:
    """What a PCR is after these."""
    value = ZERO
    for digest in digests:
        value = sha256(value + digest).digest()
    return value


class Plugged(NamedTuple):
    """What QEMU has of a TPM: both channels."""

    control: socket.socket
    commands: socket.socket

    def power_on(self) -> None:
        """As QEMU and then firmware begin."""
        self.control.sendall(INIT)
        assert self.control.recv(100) == _tpm.DONE
        assert _tpm2.code(self.ask(_tpm2.startup())) == 0

    def ask(self, command: bytes) -> bytes:
        """A response of the TPM."""
        self.commands.sendall(command)
        return self.commands.recv(_tpm2.MOST)

    def close(self) -> None:
        """As when QEMU is killed."""
        self.control.close()
        self.commands.close()


def plugged(chip: _tpm.Chip) -> Plugged:
    """Do what QEMU does when it starts."""
    with chip.plugged() as handle:
        control = socket.socket(fileno=os.dup(handle))
    ours, theirs = socket.socketpair()
    with theirs:
        socket.send_fds(control, [struct.pack(">I", _tpm.SET_DATAFD)], [theirs.fileno()])
    assert control.recv(100) == _tpm.DONE
    return Plugged(control, ours)


@pytest.fixture
def chips() -> Iterator[Callable[..., _tpm.Chip]]:
    """A factory of TPMs."""
    tools = toolbox.tools("swtpm", mode=TOOLS, store=open_store())
    made = []

    def start(**fields: Any) -> _tpm.Chip:
        made.append(_tpm.Chip(tools, Tpm(**fields)))
        made[-1].start()
        return made[-1]

    yield start
    for chip in made:
        chip.close()


def test_pcrs_outlive_the_machine_and_not_its_next_start(chips: Callable[..., _tpm.Chip]) -> None:
    chip = chips()
    machine = plugged(chip)
    machine.power_on()
    before = chip.pcrs()
    assert len(before) == 24
    assert before[4] == ZERO
    assert before[17] == b"\xff" * 32
    assert _tpm2.code(machine.ask(_tpm2.extend(4, MEASURED))) == 0
    assert chip.pcrs() == {**before, 4: extended(MEASURED)}
    machine.control.sendall(struct.pack(">I", _tpm.SHUTDOWN))  # as QEMU does when it ends well
    assert machine.control.recv(100) == _tpm.DONE
    machine.close()
    assert chip.pcrs() == {**before, 4: extended(MEASURED)}
    again = plugged(chip)
    again.power_on()
    assert chip.pcrs() == before
    again.close()


def test_a_new_tpm_has_one_bank_and_seeds_of_its_own(chips: Callable[..., _tpm.Chip]) -> None:
    first, second = chips(), chips()
    assert first.state() != second.state()
    machine = plugged(first)
    machine.power_on()
    sha1 = _tpm2.command("read", struct.pack(">IHB3s", 1, _tpm2.SHA1, 3, b"\xff\0\0"))
    answer = machine.ask(sha1)
    machine.close()
    with pytest.raises(RigProblem, match="other PCRs than were asked for"):
        _tpm2.values(answer)


def test_its_state_goes_on_in_another_process(chips: Callable[..., _tpm.Chip]) -> None:
    """An index of the TPM's memory, as an appliance keeps its disk's key in one."""
    first = chips()
    machine = plugged(first)
    machine.power_on()
    owner = struct.pack(">I", 0x40000001) + _tpm2.EMPTY_PASSWORD
    public = struct.pack(">IHIHH", 0x01800001, _tpm2.SHA256, 0x00020002, 0, 4)  # OWNERREAD, OWNERWRITE; 4 bytes
    define = owner + struct.pack(">HH", 0, len(public)) + public
    both = struct.pack(">II", 0x40000001, 0x01800001) + _tpm2.EMPTY_PASSWORD
    for code, body in ((0x12A, define), (0x137, both + struct.pack(">H4sH", 4, b"kept", 0))):
        whole = _tpm2.HEADER.pack(_tpm2.SESSIONS, 10 + len(body), code) + body
        assert _tpm2.code(machine.ask(whole)) == 0
    read = both + struct.pack(">HH", 4, 0)
    asked = _tpm2.HEADER.pack(_tpm2.SESSIONS, 10 + len(read), 0x14E) + read
    second = chips(state=first.state())
    machine.close()
    machine = plugged(second)
    machine.power_on()
    assert b"kept" in _tpm2.checked(machine.ask(asked))
    assert _tpm2.code(second.send(_tpm2.clear())) == 0  # from the bus: what the owner defined is gone
    assert _tpm2.code(machine.ask(asked)) != 0
    machine.close()
    machine = plugged(chips(state=first.state(), cleared=True))
    machine.power_on()
    assert _tpm2.code(machine.ask(asked)) != 0
    machine.close()


def test_a_pcr_is_extended_before_firmware_measures(chips: Callable[..., _tpm.Chip]) -> None:
    chip = chips(extend=((7, MEASURED),))
    for _ in range(2):  # at each start
        machine = plugged(chip)
        machine.power_on()
        assert chip.pcrs()[7] == extended(MEASURED)
        machine.close()


def test_pcrs_of_a_tpm_that_nobody_started(chips: Callable[..., _tpm.Chip]) -> None:
    chip = chips(state=chips().state())
    with pytest.raises(RigProblem, match="nobody has started the TPM yet"):
        chip.pcrs()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda state: state[:5], "is cut: it has 5 bytes"),
        (lambda state: state[:100], "is cut: it has 100 bytes"),
        (lambda state: state[:1000], "is cut: it has 1000 bytes, and one part ends at 2240"),
        (lambda state: b"x" * len(state), "that is no state of a TPM"),
        (lambda state: state[:8] + b"\2" + state[9:], "of another version of swtpm: 2, where 1 is known"),
        (lambda state: state[:10] + b"\xff" + state[11:], "of another version of swtpm"),
        (
            lambda state: state[:0xC1] + b"\x63" + state[0xC2:],
            "swtpm does not take the TPM's state: ",
        ),  # a newer blob's
        (lambda state: state[:0xE0] + b"\xff" * 32 + state[0x100:], "swtpm does not take the TPM's state: "),
    ],
)
def test_a_state_that_is_none(spoil: Callable[[bytes], bytes], words: str, chips: Callable[..., _tpm.Chip]) -> None:
    with pytest.raises(Problem, match=words) as told:
        chips(state=spoil(chips().state()))
    assert told.value.hint


def test_a_swtpm_that_ends_is_told_with_its_words(chips: Callable[..., _tpm.Chip]) -> None:
    chip, told = chips(), []
    machine = plugged(chip)
    chip.watch(told.append)
    machine.commands.sendall(_tpm2.HEADER.pack(_tpm2.NO_SESSIONS, 1 << 30, 0))  # nonsense costs the line, not the TPM
    assert machine.commands.recv(1) == b""
    machine.close()
    os.kill(child(), signal.SIGKILL)
    chip._thread.join()
    with pytest.raises(MachineProblem, match="the machine's TPM is gone: swtpm ended"):
        chip.state()
    assert told == [chip.ended]
    chip.watch(told.append)  # who asks later learns it too
    assert len(told) == 2


def child() -> int:
    """The process id of the swtpm below this process that was started last."""
    lists = Path("/proc/self/task").glob("*/children")
    found = [pid for children in lists for pid in children.read_text().split()]
    return max(int(pid) for pid in found if Path(f"/proc/{pid}/exe").readlink().name == "swtpm")


def test_without_swtpm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imagekit.host.look_up", lambda _: None)
    with pytest.raises(RigProblem, match="this machine has no swtpm") as told:
        toolbox.tools("swtpm", mode="host", store=open_store())
    assert "--tools=auto" in told.value.hint


@pytest.mark.parametrize("said", [b"", b"\x80\x01", _tpm2.HEADER.pack(0x8001, 99, 0)])
def test_what_is_no_response(said: bytes) -> None:
    with pytest.raises(RigProblem, match="that are no response"):
        _tpm2.code(said)


@pytest.mark.parametrize("size", range(10, 50, 7))
def test_a_response_that_is_cut(size: int) -> None:
    body = struct.pack(">IIHB3sI", 1, 1, _tpm2.SHA256, 3, b"\1\0\0", 1) + struct.pack(">H", 32) + bytes(32)
    whole = _tpm2.HEADER.pack(0x8001, 10 + len(body), 0) + body
    assert _tpm2.values(whole) == {0: bytes(32)}
    with pytest.raises(RigProblem, match="makes no sense"):
        _tpm2.values(_tpm2.HEADER.pack(0x8001, size, 0) + body[: size - 10])


def event(pcr: int, kind: int, digests: Mapping[int, bytes], told: bytes) -> bytes:
    """One of an event log, but for the first."""
    banks = b"".join(struct.pack("<H", bank) + digest for bank, digest in digests.items())
    return struct.pack("<III", pcr, kind, len(digests)) + banks + struct.pack("<I", len(told)) + told


FIRST = struct.pack("<II20sI", 0, 3, bytes(20), 33) + b"Spec ID Event03\0" + struct.pack(
    "<IBBBBIHHB", 0, 0, 2, 0, 2, 1, _tpm2.SHA256, 32, 0
)  # fmt: skip
LOG = FIRST + event(0, 8, {_tpm2.SHA256: MEASURED}, b"firmware") + event(7, 4, {_tpm2.SHA256: MEASURED}, bytes(4))


INITRD, LEFT = (event(pcr, 6, {_tpm2.SHA256: MEASURED}, told) for pcr, told in ((9, b"initrd"), (5, _qemu_tpm.LEAVING)))


def final(*events: bytes, count: int = 0) -> bytes:
    """The table of events after the kernel had copied the log, somewhere behind it."""
    return bytes(99) + struct.pack("<QQ", 1, count or len(events)) + b"".join(events) + bytes(1 << 14)


@pytest.mark.parametrize(
    ("memory", "found"),
    [
        (LOG + final(INITRD, LEFT), LOG + INITRD + LEFT),
        (LOG + INITRD + final(INITRD, LEFT), LOG + INITRD + LEFT),  # the copy has the first of them
        (LOG + INITRD + LEFT + final(INITRD, LEFT), LOG + INITRD + LEFT),  # firmware's own is there as well
        (LOG + final(INITRD), LOG),
        (LOG + final(INITRD, LEFT, count=3), LOG),
        (LOG + final(INITRD, LEFT, count=1 << 60), LOG),
        (bytes(1 << 20) + LOG + bytes(5000), LOG),
        (LOG[:-1] + bytes(1 << 20) + LOG, LOG),  # firmware's is shorter than the kernel's copy
        (FIRST + event(99, 8, {_tpm2.SHA256: MEASURED}, b"x"), FIRST),
        (FIRST + event(0, 8, {_tpm2.SHA1: bytes(20)}, b"x"), FIRST),  # a bank that the head does not tell of
        (FIRST + struct.pack("<III", 0, 8, 1 << 31), FIRST),
        (FIRST + event(0, 8, {_tpm2.SHA256: MEASURED}, b"")[:-4] + b"\xff" * 4, FIRST),  # an event of 4 GiB
    ],
)
def test_the_event_log_is_found_in_memory(memory: bytes, found: bytes) -> None:
    handle = os.memfd_create("ram")
    try:
        os.ftruncate(handle, 1 << 30)  # of which nearly all are holes
        os.pwrite(handle, memory, (1 << 24) - 40)  # its head lies across two pieces
        assert _qemu_tpm.log(handle) == found
    finally:
        os.close(handle)


@pytest.mark.parametrize(
    "memory", [b"", b"Spec ID Event03\0", FIRST[:40], FIRST[:56] + b"\xff" * 9, FIRST[:28] + bytes(99)]
)
def test_there_is_no_event_log(memory: bytes) -> None:
    handle = os.memfd_create("ram")
    try:
        os.pwrite(handle, memory, 0)
        with pytest.raises(GuestProblem, match="no event log in the machine's memory"):
            _qemu_tpm.log(handle)
    finally:
        os.close(handle)


def test_a_board_without_a_place_for_one() -> None:
    board = _qemu_plan.BOARDS["x86_64"]
    assert _qemu_tpm.wanted(Rig(), board._replace(tpm="")) == ()
    with pytest.raises(Problem, match="has no place for a TPM"):
        _qemu_tpm.wanted(Rig(tpm=Tpm()), board._replace(tpm=""))


def test_a_machine_ends_with_its_tpm_and_says_so() -> None:
    with boot(image(network="none"), "x86_64", tpm=Tpm(), wait="nothing") as guest:
        os.kill(child(), signal.SIGKILL)
        with pytest.raises(MachineProblem, match="the machine's TPM is gone: swtpm ended") as told:
            guest.wait_ready()
        assert "guest| " in told.value.message


def test_the_firmware_hands_words_over() -> None:
    board = _qemu_plan.BOARDS["aarch64"]
    command = _qemu_plan.Command(board, "", "", "", 256, "tcg", "", smbios=("key=a,b", "c"))
    words = command.arguments
    told = [words[place + 1] for place, word in enumerate(words) if word == "-smbios"]
    assert told == ["type=11,value=key=a,,b", "type=11,value=c"]


def test_a_guest_has_it_and_cannot_be_restored_with_it() -> None:
    with boot(image(network="none"), "aarch64", tpm=Tpm(), fresh=True) as guest:
        assert guest.facts["fresh"].startswith("booted: its TPM would not be the one")
        with pytest.raises(Problem, match="a machine with a TPM cannot be saved"):
            guest.save("/nowhere")
        state = guest.tpm.state()
        guest.power.cut()
        assert guest.tpm.state() == state


def test_a_machine_without_one() -> None:
    with pytest.raises(GuestProblem, match="this machine has no TPM") as told:
        NO_CHIP.pcrs()
    assert "tpm=Tpm()" in told.value.hint
