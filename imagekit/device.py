"""Device: what is known of a machine that attests itself: a file of yours for each, from the first meeting on.

Its key is what the machine is recognized by; PCR 0 and 2 hold the firmware's own code, which no image can predict and
on whose word everything else is measured; the counters never go back in a TPM that was not cleared. A nonce that was
given away and not answered yet is noted as well: it is good for one answer.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from imagekit import host, strict
from imagekit.errors import Problem
from imagekit.quote import NONCE, Quote

FIRMWARE = {0: "the firmware", 2: "a card's firmware"}
KIND = "imagekit device 1"
MAX_FILE = 16384  # bytes
ENROL_AGAIN = "when that was you: enrol it again, with --enroll and a new file"


@dataclass(frozen=True)
class Device:
    """A machine, as it was last seen."""

    key: bytes = b""  # TPMT_PUBLIC; none before the first meeting
    firmware: tuple[str, ...] = ()  # the values of FIRMWARE's PCRs
    resets: int = 0
    restarts: int = 0
    clock: int = 0
    nonce: str = ""  # that waits for its answer

    def check(self, said: Quote, pcrs: Mapping[int, bytes]) -> None:
        """Raise Problem when the TPM went back, or other firmware runs."""
        if said.resets < self.resets:
            raise Problem(f"the TPM counts {said.resets} starts, and counted {self.resets} before: it was cleared, or "
                          "an old state of it is back", ENROL_AGAIN)  # fmt: skip
        if (said.resets, said.restarts, said.clock) < (self.resets, self.restarts, self.clock):
            raise Problem("the TPM's clock went back within one start: an old state of it is back", ENROL_AGAIN)
        for (pcr, what), before in zip(FIRMWARE.items(), self.firmware, strict=True):
            if pcrs[pcr].hex() != before:
                raise Problem(f"PCR {pcr}: {what} is not what it was when this device was enrolled", ENROL_AGAIN)


def seen(before: Device, key: bytes, said: Quote, pcrs: Mapping[int, bytes]) -> Device:
    """The device after it proved itself; its nonce is used up."""
    firmware = before.firmware or tuple(pcrs[pcr].hex() for pcr in FIRMWARE)
    return replace(
        before, key=key, firmware=firmware, resets=said.resets, restarts=said.restarts, clock=said.clock, nonce=""
    )


def read(path: Path) -> Device | None:
    """The device of a file; None when there is no file. Raises Problem for a file that is of something else."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    try:
        return _device(strict.parse(data, what=str(path), limit=MAX_FILE))
    except (KeyError, ValueError, TypeError, AttributeError):
        raise Problem(f"{path} is no file of a device", "`imagekit attest --enroll` makes one") from None


def write(path: Path, device: Device) -> None:
    """Put it on record: all of it, or nothing."""
    said = {"kind": KIND, **asdict(device), "key": device.key.hex()}
    with host.draft(path) as file:
        file.write(json.dumps(said, indent=1, sort_keys=True).encode() + b"\n")


def _device(found: Mapping[str, Any]) -> Device:
    counters = {name: found[name] for name in ("resets", "restarts", "clock")}
    firmware, nonce, key = tuple(found["firmware"]), found["nonce"], bytes.fromhex(found["key"])
    if any(type(value) is not int or value < 0 for value in counters.values()) or found["kind"] != KIND:
        raise ValueError
    if len(firmware) != (len(FIRMWARE) if key else 0) or len(bytes.fromhex(nonce)) not in (0, NONCE):
        raise ValueError
    return Device(key, firmware, nonce=nonce, **counters)
