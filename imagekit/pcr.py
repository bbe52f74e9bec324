"""Pcr: what a machine will measure that starts an image, told step by step, and compared with what one has measured."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from imagekit import options
from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.bootkeys import OPTION, BootKeys
from imagekit.disk import authenticode, containers, eventlog, loader, pe, prediction
from imagekit.disk.eventlog import Difference, Log
from imagekit.disk.prediction import Prediction
from imagekit.errors import Problem

MOST = 8 << 30  # bytes that a container may unpack to
LARGEST_UKI = 1 << 30
LARGEST_LOG = eventlog.MAX_SIZE
MEANINGS = {
    4: "the programs that firmware starts",
    7: "Secure Boot: the keys that are enrolled, and the one that was believed",
    9: "what the kernel takes over: arguments and initrd",
    11: "the sections of the UKI",
    12: "arguments from elsewhere than the UKI",
}
UNTOLD = {
    7: "nobody signed it, or not by a key of these boot keys: --boot-keys",
}
UNKNOWN = "how this kernel, or this stub of systemd, measures is not known"


def of_artifact(opened: Opened, *, keys: BootKeys | None) -> Prediction:
    """What a machine measures that starts an artifact. Raises Problem for one that UEFI does not start."""
    handles = opened.handles
    if "uki" in handles:
        return of_uki(opened.read("uki"), keys=keys)
    if "disk" in handles:
        return of_disk(Path(f"/proc/self/fd/{handles['disk']}"), keys=keys)
    raise Problem(
        f"{opened.artifact.format} is nothing that UEFI starts, which alone measures", "the formats uki and raw_efi are"
    )


def of_file(path: Path, *, keys: BootKeys | None) -> Prediction:
    """The same of a UKI, or of a disk in any container, whoever made it."""
    try:
        with open(path, "rb") as file:
            is_program = file.read(2) == b"MZ"
            data = b"MZ" + file.read(LARGEST_UKI) if is_program else b""
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error
    if len(data) > LARGEST_UKI:
        raise Problem(f"{path} is larger than the {LARGEST_UKI} bytes that are read of a UKI")
    return of_uki(data, keys=keys) if is_program else of_disk(path, keys=keys)


def of_uki(data: bytes, *, keys: BootKeys | None) -> Prediction:
    """The same of a UKI that the firmware starts by itself."""
    return _predicted({f"EFI/BOOT/BOOT{ARCHES[pe.machine(data, what='the UKI')].efi}.EFI": data}, keys)


def of_disk(path: Path, *, keys: BootKeys | None) -> Prediction:
    """The same of a disk."""
    with containers.opened(path, most=MOST) as (_, disk):
        programs = loader.programs(disk)
    return _predicted(programs, keys)


def _predicted(programs: Mapping[str, bytes], keys: BootKeys | None) -> Prediction:
    whole = {path: [data] for path, data in programs.items()}
    signer = _signer(list(programs.values()), keys) if keys else None
    if not keys or not signer:
        return prediction.of(whole)
    return prediction.of(whole, variables=prediction.enrolled(keys), signer=signer)


def _signer(programs: Sequence[bytes], keys: BootKeys) -> bytes | None:
    """The certificate of these keys that all of the programs are signed by, if there is one."""
    for certificate in keys.db:
        try:
            for data in programs:
                authenticode.verify(data, certificate)
        except Problem:
            continue
        return certificate.whole
    return None


def enrolled(given: Path | None) -> BootKeys | None:
    """The boot keys that the option names, if it names some."""
    found = options.lookup(OPTION, given)
    return BootKeys(Path(found)) if found else None


def log(path: Path) -> Log:
    """The event log of a file; the kernel's is /sys/kernel/security/tpm0/binary_bios_measurements."""
    try:
        with open(path, "rb") as file:
            return eventlog.parse(file.read(LARGEST_LOG + 1), what=str(path))
    except OSError as error:
        raise Problem(f"cannot read {path}: {error.strerror}") from error


def compare(told: Prediction, found: Log) -> list[Difference]:
    """What a machine measured otherwise than this image leads to, by the names of events; nothing when it runs."""
    return eventlog.differences(told.measurements, found.measurements(), pcrs=told.pcrs)


def lines(told: Prediction, found: Log | None = None) -> Iterator[str]:
    """A prediction for people, step by step; with a log, what there is else."""
    values, replayed = told.values(), found.replay() if found else {}
    differences = compare(told, found) if found else []
    for pcr, meaning in MEANINGS.items():
        if pcr not in values:
            yield f"PCR {pcr}: not told: {UNTOLD.get(pcr, UNKNOWN)}"
            continue
        same = (
            "" if not found else (", as in the log" if replayed.get(pcr, bytes(32)) == values[pcr] else ", DIFFERENT")
        )
        yield f"PCR {pcr}: {values[pcr].hex()}{same}: {meaning}"
        for each in told.of(pcr):
            yield f"    {each.digest.hex()[:16]}  {each.name}" + (f" ({each.content})" if each.content else "")
        for one in differences:
            if one.pcr == pcr:
                yield f"  ! {one.name}: {one.what}"


def fields(told: Prediction, found: Log | None = None) -> dict[str, Any]:
    """The same for programs."""
    steps = [
        {"pcr": each.pcr, "name": each.name, "digest": each.digest.hex(), "content": each.content}
        for each in told.measurements
    ]
    values = {str(pcr): value.hex() for pcr, value in told.values().items()}
    differences = [one._asdict() for one in compare(told, found)] if found else None
    return {"pcrs": values, "steps": steps, **({} if differences is None else {"differences": differences})}
