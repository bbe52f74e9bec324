"""One table: every name that an architecture goes by."""

from dataclasses import dataclass

from imagekit.errors import unknown


@dataclass(frozen=True)
class Arch:
    """An architecture under each of its names; `name` is the one that users type."""

    name: str
    debian: str
    oci: str
    efi: str  # the suffix of EFI/BOOT/BOOT*.EFI (UEFI 2.10, section 3.5.1.1)
    kernel: str  # ARCH= of a kernel build
    qemu: str  # qemu-system-*
    machine: str  # -machine
    cpu: str  # -cpu: emulated, with a hardware random number generator where one is cheap
    triplet: str  # Debian's multiarch directory
    elf: int  # e_machine (ELF specification, figure 4-3)
    interpreter: str  # the dynamic loader's path


ARCHES = {
    arch.name: arch
    for arch in (
        Arch(
            name="x86_64",
            debian="amd64",
            oci="amd64",
            efi="X64",
            kernel="x86",
            qemu="x86_64",
            machine="q35",
            cpu="max",
            triplet="x86_64-linux-gnu",
            elf=62,
            interpreter="/lib64/ld-linux-x86-64.so.2",
        ),
        Arch(
            name="aarch64",
            debian="arm64",
            oci="arm64",
            efi="AA64",
            kernel="arm64",
            qemu="aarch64",
            machine="virt",
            cpu="cortex-a53",
            triplet="aarch64-linux-gnu",
            elf=183,
            interpreter="/lib/ld-linux-aarch64.so.1",
        ),
    )
}


def arch(name: str) -> Arch:
    """The architecture called `name` (also Debian's name for it); an unknown one is a Problem that lists the known."""
    for known in ARCHES.values():
        if name in (known.name, known.debian):
            return known
    raise unknown("architecture", name, ARCHES)


def host() -> Arch:
    """The architecture that this Python runs on."""
    import os

    return arch(os.uname().machine)
