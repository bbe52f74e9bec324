"""Tamperings of a sealed appliance, as values: what is done to its parts while it is off, and who refuses then.

Each is a function from the parts of a machine to others; the parts themselves, and the image, stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from imagekit.disk import gpt
from imagekit.disk.altered import Altered
from imagekit.disk.gpt import Partition
from imagekit.errors import Problem
from imagekit.rig import Rig, Tpm

MIB = 1 << 20


@dataclass(frozen=True)
class Parts:
    """A machine that is switched off, taken apart."""

    disk: Altered
    tpm: Tpm | None
    variables: bytes = field(repr=False)  # UEFI's; b"": those that the rig says
    rig: Rig
    data: str  # the name of the sealed partition

    def partition(self, name: str) -> Partition:
        """A partition of its disk; raises Problem when there is none of that name."""
        found = gpt.read(self.disk.disk())
        for each in found:
            if each.name == name:
                return each
        raise Problem(f"the disk has no partition {name}", f"it has: {', '.join(each.name for each in found)}")


class Tamper(NamedTuple):
    """Something that is done to a machine."""

    name: str
    change: Callable[[Parts], Parts]
    words: str  # a regular expression: who refuses, and why; "": nobody, the disk is opened
    opens: str = ""  # what the console shows when it was not refused, where that comes later than the disk is open

    def __str__(self) -> str:
        return self.name


def other_tpm() -> Tamper:
    """The disk in another machine of the same kind."""
    return Tamper("other-tpm", lambda parts: replace(parts, tpm=Tpm()), ": another TPM")


def secure_boot(state: str) -> Tamper:
    """Secure Boot "off", by who has the firmware's menu, or "setup": its keys are deleted."""

    def change(parts: Parts) -> Parts:
        return replace(parts, variables=b"", rig=replace(parts.rig, secure=state))

    return Tamper(f"secure-boot-{state}", change, "the disk .*: state: PCR 7")


def blank_data() -> Tamper:
    """The data partition as it was shipped: does the machine make itself a new one?"""

    def change(parts: Parts) -> Parts:
        where = parts.partition(parts.data)
        return replace(parts, disk=parts.disk.write(where.start, bytes(min(where.size, 2 * MIB))))

    return Tamper("blank-data", change, ": another disk")


def extended(pcr: int = 7) -> Tamper:
    """A PCR is extended before firmware measures anything."""

    def change(parts: Parts) -> Parts:
        tpm = parts.tpm or Tpm()
        return replace(parts, tpm=replace(tpm, extend=(*tpm.extend, (pcr, b"x" * 32))))

    return Tamper(f"extended-{pcr}", change, rf": state: PCR {pcr}\b")


ALL = {each.name: each for each in (other_tpm(), secure_boot("off"), blank_data(), extended())}
