"""QEMU's command line, as a function of values; each flag that surprises has its reason here."""

from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Any, NamedTuple

from imagekit.arch import ARCHES
from imagekit.channel import arguments
from imagekit.errors import Problem
from imagekit.targets._qemu_ports import NETDEV

MAX_CMDLINE = 2048  # COMMAND_LINE_SIZE of arch/x86 and arch/arm64
TCG = "tcg,thread=single,tb-size=32"  # one CPU needs one thread; MiB of translated code: a boot fills any
# Frames are sent by a timer of the guest's clock and by nobody else: else the host's threads decided when an answer
# comes, and so what the guest does meanwhile.
SYNCHRONOUS = ",ioeventfd=off,tx=timer"
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


class Board(NamedTuple):
    """What differs between the machines of two architectures."""

    arch: str
    console: str  # the kernel's argument; "" leaves it where the image has it
    channel: str  # the guest's name of the agent's line
    second_line: tuple[str, ...]  # a second UART, on the chardev "channel"
    ram: str  # QEMU's name of the memory, which a saved state knows it by
    loader: tuple[str, ...] = ()  # what `-kernel` brings along, for a machine that goes on without it
    words: str = ""  # further arguments of the kernel
    fixed: str = ""  # what makes the machine the same at each start, added to its name
    first_line: tuple[str, ...] = ("-serial", "chardev:console")
    machine: str = ""  # where it is not the one that its architecture has
    cpu: str = ""  # likewise
    cpus: int = 1
    memory: int = 0  # MiB that it has whatever is asked for
    tcg: str = TCG
    card: str = (
        "virtio-net-pci,netdev={netdev},romfile={synchronous}"  # of the network, without a boot ROM: nobody runs it
    )
    tpm: str = ""  # QEMU's device for one; "": the machine has no place for it
    has_slots: bool = True  # whether disks, cards and displays can be plugged in

    @property
    def machine_name(self) -> str:
        """QEMU's name of the machine."""
        return self.machine or ARCHES[self.arch].machine

    @property
    def cpu_name(self) -> str:
        """QEMU's name of the processor that it emulates."""
        return self.cpu or ARCHES[self.arch].cpu


X86_64 = Board("x86_64", "ttyS0", "ttyS1", ("-serial", "chardev:channel"), "pc.ram",
               ("-option-rom", "linuxboot_dma.bin"),
               # The kernel counts timer interrupts during a short loop, and panics where a busy host let none through.
               words="no_timer_check", tpm="tpm-crb")  # fmt: skip
AARCH64 = Board(  # virt has one PL011
    "aarch64", "ttyAMA0,115200", "ttyS0", ("-device", "pci-serial,chardev=channel"), "mach-virt.ram",
    fixed=",dtb-randomness=off", tpm="tpm-tis-device",
)  # fmt: skip
BOARDS = {board.arch: board for board in (X86_64, AARCH64)}


class Wiring(NamedTuple):
    """Descriptors that QEMU inherits; a `channel` of None leaves the second UART out."""

    monitor: int
    console: int
    channel: int | None
    wires: tuple[tuple[int, str], ...] = ()  # (descriptor, MAC address) of each network card on a private switch
    tpm: int | None = None  # the control channel of a TPM


class Ram(NamedTuple):
    """A guest's memory as a file: shared, so that the file becomes what the guest makes of it, or a private copy."""

    path: str
    is_shared: bool


class Command(NamedTuple):
    """One boot of a kernel with an initrd, or a machine that goes on from a saved state."""

    board: Board
    kernel: str  # a path, such as /proc/self/fd/7; "" where firmware starts a disk
    initrd: str
    cmdline: str
    memory: int  # MiB
    accelerator: str  # "kvm" or "tcg"
    network: str  # options of the user network
    wiring: Wiring | None = None  # None: the console on this terminal, as a person starts it by hand
    ram: Ram | None = None  # None: memory of QEMU's own
    is_incoming: bool = False  # wait for a saved state; kernel and initrd are in there
    clock: tuple[str, ...] = ()  # flags of the instruction clock, for a boot that is measured
    smbios: tuple[str, ...] = ()  # OEM strings
    device_tree: str = ""  # a path; "" for a machine that makes its own or has none

    @property
    def arguments(self) -> list[str]:
        """QEMU's arguments, without its name."""
        return [*self._machine(), *self._memory(), *self._boot(), *self._network(), *self._lines()]

    def _machine(self) -> list[str]:
        board, is_kvm = self.board, self.accelerator == "kvm"
        return [
            *("-nodefaults", "-no-user-config"),
            *("-display", "none"),
            "-no-reboot",  # a panic (panic=-1) and a reboot end QEMU, as a power-off does
            *("-sandbox", SANDBOX),
            *("-machine", board.machine_name + (board.fixed if self.clock else "")),
            *("-cpu", "host" if is_kvm else board.cpu_name),
            *("-accel", "kvm" if is_kvm else board.tcg),
            *("-smp", str(board.cpus)),
            *("-m", str(self.memory)),
            *(word for text in self.smbios for word in ("-smbios", f"type=11,value={text.replace(',', ',,')}")),
            *self.clock,
        ]

    def _memory(self) -> list[str]:
        if self.ram is None:
            return []
        where = f"size={self.memory}M,mem-path={self.ram.path},share={'on' if self.ram.is_shared else 'off'}"
        name = self.board.ram
        return ["-object", f"memory-backend-file,id={name},{where}", "-machine", f"memory-backend={name}"]

    def _boot(self) -> list[str]:
        if self.is_incoming:
            return ["-incoming", "defer", *self.board.loader]
        if not self.kernel:
            return []
        tree = ("-dtb", self.device_tree) if self.device_tree else ()
        initrd = ("-initrd", self.initrd) if self.initrd else ()
        return [*("-kernel", self.kernel), *initrd, *("-append", self.cmdline), *tree]

    def _network(self) -> list[str]:
        """Cards on private switches; else a user network without a way out or in, but for forwards."""
        if self.wiring and self.wiring.wires:
            return [word for number, wire in enumerate(self.wiring.wires) for word in _wire(number, *wire)]
        card = self.board.card.format(netdev=NETDEV, synchronous=SYNCHRONOUS if self.clock else "")
        return [*("-netdev", f"user,id={NETDEV},restrict=on,ipv6=off{self.network}"), *("-device", card)]

    def _lines(self) -> list[str]:
        if self.wiring is None:
            return ["-serial", "stdio"]
        monitor, console, channel, _, tpm = self.wiring
        # Where the clock counts, a console that is read late must not make the 16550's driver wait: QEMU writes a log
        # by blocking, while no instruction is executed; a socket takes 300 characters and then holds up the guest.
        logged = f"null,id=console,logfile=/proc/self/fd/{console},logappend=on"
        return [
            *("-chardev", f"socket,id=monitor,fd={monitor}"),
            *("-mon", "chardev=monitor,mode=control"),
            *("-chardev", logged if self.clock else f"socket,id=console,fd={console}"),
            *self.board.first_line,
            *(() if channel is None else ("-chardev", f"socket,id=channel,fd={channel}", *self.board.second_line)),
            *(
                ()
                if tpm is None
                else (
                    "-chardev",
                    f"socket,id=tpm,fd={tpm}",
                    "-tpmdev",
                    "emulator,id=tpm0,chardev=tpm",
                    "-device",
                    f"{self.board.tpm},tpmdev=tpm0",
                )
            ),
        ]


def _wire(number: int, handle: int, mac: str) -> tuple[str, ...]:
    """A card whose frames travel on a socket, each behind its length (net/stream.c, QEMU 7.2 and later)."""
    socket = f"stream,id=w{number},server=off,addr.type=fd,addr.str={handle}"
    return "-netdev", socket, "-device", f"virtio-net-pci,netdev=w{number},mac={mac},romfile="


def cmdline(written: bytes, board: Board, *, nonce: str = "", more: str = "") -> str:
    """The kernel's arguments: the artifact's own, then the machine's, which win; `nonce` starts the agent.

    What stands after " -- " is for init (kernel-parameters.rst) and stays there.
    """
    own, dashes, for_init = " ".join(written.decode("utf-8", "surrogateescape").split()).partition(" -- ")
    machine = f"console={board.console} panic=-1 {board.words}".strip() if board.console else board.words
    agent = arguments(board.channel, nonce) if nonce else ""
    whole = " ".join(filter(None, (own, machine, agent, more))) + dashes + for_init
    if len(whole) >= MAX_CMDLINE or not whole.isascii() or not whole.isprintable():
        raise Problem(
            f"the kernel's command line has {len(whole)} characters, or one that is not ASCII",
            f"the kernel reads {MAX_CMDLINE - 1}: shorten the image's cmdline",
        )
    return whole


def network(manifest: Mapping[str, Any]) -> str:
    """Options of the user network for the address that the image has: QEMU's own one where it asks by DHCP."""
    words = str(manifest.get("network", "")).split()
    if words[:1] != ["static"]:
        return ""
    own = ip_interface(words[2])
    taken = [own.ip, *(ip_interface(word).ip for word in words[3:4])]
    gateway = taken[1] if len(taken) > 1 else _free_host(own.network.hosts(), taken)
    name_server = _free_host(own.network.hosts(), [*taken, gateway])  # slirp wants one of the same network
    return f",net={own.network},host={gateway},dns={name_server},dhcpstart={own.ip}"


def _free_host(hosts: Any, taken: Sequence[object]) -> object:
    return next(address for address in hosts if address not in taken)
