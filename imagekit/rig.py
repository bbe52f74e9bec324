"""Rig: how machines are to be started; the options that every target reads. Also what can be plugged into one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Disk:
    """A disk of a machine: a blank one of `size`, or a private overlay over the file `source`, which stays as it is."""

    name: str  # its serial number, and so its name in the guest: /dev/disk/by-id/virtio-NAME
    size: str | int = ""  # "64 MiB", or bytes
    source: Path | None = None  # a raw image


@dataclass(frozen=True)
class Wire:
    """A network card on a private switch, in the place of the user network."""

    mac: str
    plug: Callable[[], Any] = field(repr=False)  # a new socket that carries frames, each behind its length (4 bytes)


@dataclass(frozen=True)
class Tpm:
    """A TPM 2.0 of a machine: a new one, or one that goes on from what `guest.tpm.state()` gave; PCRs of SHA-256."""

    state: bytes = field(default=b"", repr=False)
    extend: tuple[tuple[int, bytes], ...] = ()  # (PCR, SHA-256 digest) by another's hand, before firmware measures
    cleared: bool = False  # TPM2_Clear while it was switched off: what its owner had put into it is gone


@dataclass(frozen=True)
class Kept:
    """What is left of a machine without its power; `rig(of=...)` is one that goes on from it."""

    altered: Mapping[int, bytes] = field(repr=False)  # of its own disk: number -> the 64 KiB that were written
    tpm: bytes = field(default=b"", repr=False)
    variables: bytes = field(default=b"", repr=False)  # UEFI's: that flash memory, less the zeros at its end

    def rig(self, of: "Rig") -> "Rig":
        """The rig of a machine that goes on from it."""
        return replace(of, altered=self.altered, tpm=Tpm(self.tpm) if self.tpm else None, variables=self.variables)


@dataclass(frozen=True)
class Node:
    """A machine of a topology: an image, and the private networks that it is on, by its eth0, eth1 and so on."""

    definition: str = ""  # a file beside the module; "": the module's own image
    networks: tuple[str, ...] = ("lan",)


def say_nothing(line: str) -> None:
    """The progress line of whoever wants none."""
    _ = line


@dataclass(frozen=True)
class Rig:
    """How machines are to be started."""

    tools: str = "auto"  # "auto", "host" or "tree": where QEMU and firmware come from
    memory: int = 256  # MiB
    accelerator: str = "auto"  # "auto", "kvm" or "tcg"
    ready_timeout: float = 120.0  # seconds that the guest may work, or be idle, until it must be ready
    timeout_scale: float = 1.0  # every time-out is multiplied by it
    say: Callable[[str], None] = field(default=say_nothing, repr=False)  # a progress line
    channel: bool = True  # add the agent's initrd at boot; without it the artifact boots untouched, console only
    cmdline: str = ""  # appended to the kernel's command line of this boot
    firmware: str = "direct"  # "direct": the kernel is started as fast as can be; "bios", "uefi": by firmware
    media: str = ""  # how a disk image is plugged in: "disk", "cd" or "usb"; "" takes an ISO for a disc
    image_size: str | int = ""  # of the image's own disk: "8 GiB", larger than it was written; "" leaves it as it is
    disks: tuple[Disk, ...] = ()
    wires: tuple[Wire, ...] = ()  # empty: the closed user network
    display: bool = False  # a graphics card, so that there is something to take a picture of
    secure: str = ""  # Secure Boot: "on", "off" with keys enrolled, "setup" with none; "": on for images signed for it
    boot_keys: Path | None = None  # whose keys the firmware believes; None: those of the option
    variables: bytes = field(default=b"", repr=False)  # UEFI's, in place of all that: a flash memory, or its beginning
    wait: str = "ready"  # what start() waits for: "ready", "shutdown", "nothing", or "console:REGEX"
    tpm: Tpm | None = None  # None: the machine has none
    smbios: tuple[str, ...] = ()  # OEM strings (type 11), by which a firmware hands words over to what it starts
    altered: Mapping[int, bytes] = field(default_factory=dict, repr=False)  # of its own disk: number -> 64 KiB
    fresh: bool = False  # restore the booted state from a template where that can be; facts["fresh"] says how it went
