"""Stub: what systemd-stub measures of the unified kernel image that it is the beginning of.

Source: systemd's src/fundamental/tpm-pcr.h (252) and uki.h (later), whose order "PLEASE DO NOT REORDER" fixes, and
src/boot/efi/stub.c: for every section that the image has, its name with a NUL and then its content go into PCR 11.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256

from imagekit import tpm
from imagekit.errors import Problem
from imagekit.store import Stored, flow
from imagekit.tpm import Measurement

PCR, ARGUMENTS_PCR = 11, 12
SIGNATURE, PUBLIC_KEY = ".pcrsig", ".pcrpkey"  # what is signed of PCR 11, and by whom; the first is not measured
SECTIONS = {  # by systemd's version: what its stub measures, in that order
    252: (".linux", ".osrel", ".cmdline", ".initrd", ".splash", ".dtb", PUBLIC_KEY),
    257: (
        *(".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".uname", ".sbat", PUBLIC_KEY),
        *(".profile", ".dtbauto", ".hwids"),
    ),
}
STUB, LOADER = "systemd-stub", "systemd-boot"  # what they call themselves, in UTF-16, and then their version


class Unknown(Problem):
    """Nobody knows what a program measures."""


def version(program: bytes, *, of: str = STUB) -> int:
    """The version of systemd whose stub this is, or is the beginning of this. Raises Problem when it is no such one.

    It is there as it is handed over to the system that is started: the variable StubInfo, or LoaderInfo.
    """
    found = re.search(f"{of} ".encode("utf-16le") + b"((?:[0-9]\0){3})", program)
    if not found:
        raise Unknown(f"the program is no {of}, so that nobody knows what it measures")
    number = int(found[1].decode("utf-16le"))
    if number not in SECTIONS:
        known = ", ".join(map(str, SECTIONS))
        raise Unknown(f"what {of} {number} measures is not known", f"known: {known}")
    return number


def check_arguments(program: bytes, *, pcrs: Collection[int]) -> None:
    """Raise a Problem when arguments could be added that a seal to these PCRs does not notice.

    From systemd 254 on the stub takes such from SMBIOS (an OEM string, systemd-stub(7)), with Secure Boot as without,
    and measures them into PCR 12 and nowhere else.
    """
    number = version(program)
    if number >= 254 and ARGUMENTS_PCR not in pcrs:
        raise Problem(
            f"disk: the stub of systemd {number} takes more arguments from a machine's SMBIOS, whoever wrote them, and "
            f"measures them into PCR {ARGUMENTS_PCR}, which Seal(pcrs={tuple(pcrs)}) lacks",
            f'add {ARGUMENTS_PCR}, which takes slots=1; or suite="bookworm", whose stub takes none',
        )


def measured(digests: Mapping[str, bytes], *, version: int) -> list[Measurement]:
    """What the stub extends PCR 11 with; two extensions a section. digests: of the sections' contents (SHA-256)."""
    found = []
    for name in SECTIONS[version]:
        if name in digests:
            found += [
                Measurement(PCR, f"name of {name}", sha256(name.encode() + b"\0").digest()),
                Measurement(PCR, f"content of {name}", digests[name]),
            ]
    return found


def digests(sections: Mapping[str, Sequence[bytes | Stored]]) -> dict[str, bytes]:
    """The digests of contents, which may be large."""
    found = {}
    for name, pieces in sections.items():
        content = sha256()
        for chunk in flow(pieces):
            content.update(chunk)
        found[name] = content.digest()
    return found


def value(measurements: Sequence[Measurement]) -> bytes:
    """The PCR that these extensions leave behind."""
    return tpm.replayed(each.digest for each in measurements)
