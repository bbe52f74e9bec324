"""Prediction: what PCRs will be, from the programs that firmware starts alone, with each step by the name that the
firmware's log will have for it.

    PCR 4    the programs: boot loader, UKI; and the kernel in it, where Secure Boot is off
    PCR 7    Secure Boot: the keys that are enrolled, and the one that was believed
    PCR 9    what the kernel takes over from the stub: its arguments, and the initrd with what the stub adds to it
    PCR 11   the sections of the UKI
    PCR 12   arguments that came from elsewhere than the UKI, or through systemd-boot

As OVMF and AAVMF (edk2 2025.02), systemd-boot and systemd-stub 252 and 257 and Linux 6.1 and 6.12 measure, seen in logs
of real boots (fixtures/eventlogs). Of an older kernel PCR 9 is not told, and never what belongs to a machine: its
firmware (0, 2), settings and tables (1), partitions (5).
"""

import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple
from uuid import UUID

from imagekit import tpm
from imagekit.bootkeys import BootKeys
from imagekit.disk import authenticode, pe, stub
from imagekit.disk.eventwords import COUNTER
from imagekit.errors import Problem
from imagekit.store import Stored, flow, size_of
from imagekit.tpm import Measurement

Pieces = Sequence[bytes | Stored]
OLDEST_KERNEL = (6, 1)  # which measures arguments and initrd into PCR 9
LARGEST_SECTION = 4 << 20  # bytes, of those that are neither kernel nor initrd
LARGEST_KERNEL = 256 << 20
STUB = 1 << 20  # bytes in which the stub lies, which is the beginning
CALLING, SEPARATOR = b"Calling EFI Application from Boot Option", bytes(4)
FROM_MEMORY = "program from memory, by systemd-stub"
GLOBAL, SECURITY = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c"), UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
X509, SHA256 = UUID("a5c059a1-94e4-4aa7-87b5-ab155c2bf072"), UUID("c1c41626-504c-4092-aca9-41f936934328")
# virt-firmware forbids one program that nobody has, because some firmware wants a dbx: SHA-256 of nothing
NOBODY, NOTHING = UUID("a0baa8a3-041d-48a8-bc87-c36d121b5e3d"), sha256(b"").digest()
SIGNED = ((stub.SIGNATURE, "tpm2-pcr-signature.json"), (stub.PUBLIC_KEY, "tpm2-pcr-public-key.pem"))
HANDED = {252: SIGNED, 257: (*SIGNED, (".osrel", "os-release"))}  # to the initrd, as files, by the stub's version
MEASURING_LOADERS = (252,)  # systemd-boot hands the arguments of a UKI over and measures them; later it does neither
INITRD = ".initrd"
TRAILER = b"070701" + b"0" * 32 + b"00000001" + b"0" * 48 + b"0000000B" + b"0" * 8 + b"TRAILER!!!\0" + bytes(3)


class Prediction(NamedTuple):
    """What will be measured, and into which PCRs nothing else."""

    pcrs: tuple[int, ...]
    measurements: tuple[Measurement, ...]

    def values(self) -> dict[int, bytes]:
        """The PCRs."""
        return {pcr: tpm.replayed(each.digest for each in self.of(pcr)) for pcr in self.pcrs}

    def of(self, pcr: int) -> list[Measurement]:
        """The steps of a PCR, in order."""
        return [each for each in self.measurements if each.pcr == pcr]


class Variables(NamedTuple):
    """What is enrolled in the firmware of a machine with Secure Boot: certificates in DER, and whose they are."""

    owner: UUID
    pk: bytes
    kek: bytes
    db: tuple[bytes, ...]


def enrolled(keys: BootKeys) -> Variables | None:
    """As the boot keys of a folder are enrolled; None where the certificates of PK and KEK do not lie there."""
    if not all((keys.folder / f"{name}.crt").exists() for name in ("PK", "KEK")):
        return None
    pk, kek = (keys.certificate(name).whole for name in ("PK", "KEK"))
    return Variables(UUID(keys.owner), pk, kek, tuple(each.whole for each in keys.db))


class _Uki(NamedTuple):
    """A program, read once."""

    contents: Mapping[str, bytes]  # of the sections that are measured, less the initrd, which may be large
    digests: dict[str, bytes]  # of all of them
    initrd: bytes  # SHA-256 of the initrd with what the stub adds to it
    initrd_size: int
    version: int  # of systemd's stub
    is_signed: bool


def of(programs: Mapping[str, Pieces], *, variables: Variables | None = None, signer: bytes = b"") -> Prediction:
    """What a machine will measure that starts these programs, the last of which is a UKI.

    programs: by their paths on the disk, in the order in which they are started; one that is signed is taken to be
    started with Secure Boot, one that is not without. variables: what is enrolled; without them PCR 7 is not told.
    signer: the certificate in db that the programs are signed by, the first if not named.
    """
    whole = [(path.replace("/", "\\"), list(pieces)) for path, pieces in programs.items()]
    uki = _uki(whole[-1][1])
    steps = {stub.PCR: stub.measured(uki.digests, version=uki.version)}
    steps[4] = [*_programs(whole), *([] if uki.is_signed else [_kernel(uki)])]
    loaders = [stub.version(b"".join(flow(pieces)), of=stub.LOADER) for _, pieces in whole[:-1]]
    steps |= _arguments(uki, are_handed_over=any(loader in MEASURING_LOADERS for loader in loaders))
    if variables and uki.is_signed:
        steps[7] = _secure_boot(variables, signer or variables.db[0])
    return Prediction(tuple(sorted(steps)), tuple(each for pcr in sorted(steps) for each in steps[pcr]))


def _uki(pieces: Pieces) -> _Uki:
    """A program's sections. Raises Problem for what is no UKI."""
    head = _beginning(pieces)
    image = pe.read(head, what="the UKI", size=_size(pieces))
    measured = {name for names in stub.SECTIONS.values() for name in names} | {stub.SIGNATURE}
    places = {each.name: each for each in image.sections if each.name in measured}
    if ".linux" not in places:
        raise Problem("the program is no UKI: it has no section .linux")
    for each in places.values():
        limit = {".linux": LARGEST_KERNEL, INITRD: pe.MAX_SIZE}.get(each.name, LARGEST_SECTION)
        if each.size > each.raw_size or each.raw_size > limit:
            raise Problem(f"the UKI's section {each.name} has {each.size} bytes, and {each.raw_size} in the file")
    ranges = {name: (each.offset, each.offset + each.size) for name, each in places.items()} | {"": (0, STUB)}
    contents, initrd = _read(pieces, ranges)
    begin, end = ranges.pop(INITRD, (0, 0))
    version = stub.version(contents.pop(""))
    digests = {name: sha256(data).digest() for name, data in contents.items()}
    if end:
        digests[INITRD] = initrd.digest()
    initrd.update(bytes(-(end - begin) % 4))
    for section, name in HANDED[version]:
        if section in contents:
            initrd.update(archive(name, contents[section]))
    is_signed = any(struct.unpack_from("<II", head, image.optional + authenticode.SECURITY))
    return _Uki(contents, digests, initrd.digest(), end - begin, version, is_signed)


def _beginning(pieces: Pieces) -> bytes:
    head = b""
    for chunk in flow(pieces):
        head += chunk
        if len(head) >= pe.HEAD:
            break
    return head[: pe.HEAD]


def _read(pieces: Pieces, ranges: Mapping[str, tuple[int, int]]) -> tuple[dict[str, bytes], Any]:
    """What lies in these ranges, and of the initrd its SHA-256 only; all is read once, from first to last."""
    parts: dict[str, list[bytes]] = {name: [] for name in ranges if name != INITRD}
    initrd, at = sha256(), 0
    for chunk in flow(pieces):
        for name, (begin, end) in ranges.items():
            found = chunk[max(begin - at, 0) : max(end - at, 0)]
            if name == INITRD:
                initrd.update(found)
            elif found:
                parts[name].append(found)
        at += len(chunk)
    return {name: b"".join(found) for name, found in parts.items()}, initrd


def _programs(whole: Iterable[tuple[str, Pieces]]) -> Iterable[Measurement]:
    """Firmware measures that it begins, and then what it is asked to start (UEFI's LoadImage)."""
    yield _step(4, f"action: {CALLING.decode()}", CALLING)
    yield _step(4, "separator", SEPARATOR, SEPARATOR.hex())
    for path, pieces in whole:
        yield Measurement(
            4, f"program \\{COUNTER.sub('', path)}", authenticode.digest(pieces, what=path), f"{_size(pieces)} bytes"
        )


def _kernel(uki: _Uki) -> Measurement:
    """The stub asks the firmware to start the kernel; with Secure Boot it goes around it, and nothing is measured."""
    kernel = [uki.contents[".linux"]]
    return Measurement(4, FROM_MEMORY, authenticode.digest(kernel, what="the kernel"), f"{_size(kernel)} bytes")


def _arguments(uki: _Uki, *, are_handed_over: bool) -> dict[int, list[Measurement]]:
    """PCR 9 and 12. What systemd-boot hands over it measures, and so does the stub if it uses that: not with Secure
    Boot."""
    told = uki.contents.get(".cmdline", b"").rstrip(b"\0")
    try:
        wide = (told.decode() + "\0").encode("utf-16le")
    except UnicodeDecodeError:
        return {}  # what the stub makes of it is not known
    times = (1 if uki.is_signed else 2) if are_handed_over else 0
    found = {12: [_step(12, "kernel's arguments", wide, told.decode())] * times}
    if _release(uki) >= OLDEST_KERNEL:
        initrd = Measurement(9, "Linux initrd", uki.initrd, f"{uki.initrd_size} bytes, and what the stub adds")
        found[9] = [_step(9, "LOADED_IMAGE::LoadOptions", wide, told.decode()), initrd]
    return found


def _release(uki: _Uki) -> tuple[int, ...]:
    found = re.match(rb"([0-9]{1,4})\.([0-9]{1,4})\.", uki.contents.get(".uname", b""))
    return tuple(map(int, found.groups())) if found else ()


def archive(name: str, content: bytes) -> bytes:
    """The cpio of one file that systemd's stub makes (src/boot/efi/cpio.c), byte by byte."""
    folder = _entry(1, 0o040555, ".extra", b"")
    return folder + _entry(2, 0o100444, f".extra/{name}", content) + TRAILER


def _entry(number: int, mode: int, name: str, content: bytes) -> bytes:
    fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)


def _secure_boot(enrolled: Variables, signer: bytes) -> list[Measurement]:
    """What edk2's DxeTpm2MeasureBootLib and Tcg2Dxe measure (UEFI 2.10, 32.4.1: signature lists)."""
    owner = enrolled.owner
    found = {
        "SecureBoot": b"\1",
        "PK": _list(X509, owner, enrolled.pk),
        "KEK": _list(X509, owner, enrolled.kek),
        "db": b"".join(_list(X509, owner, each) for each in enrolled.db),
        "dbx": _list(SHA256, NOBODY, NOTHING),
    }
    steps = [_step(7, f"variable {name}", _variable(name, data), _told(data)) for name, data in found.items()]
    believed = _variable("db", owner.bytes_le + signer)
    return [
        *steps,
        _step(7, "separator", SEPARATOR, SEPARATOR.hex()),
        _step(7, "authority in db", believed, f"a key of {owner}, {len(signer) + 16} bytes"),
    ]


def _list(kind: UUID, owner: UUID, data: bytes) -> bytes:
    """An EFI_SIGNATURE_LIST with one signature."""
    return kind.bytes_le + struct.pack("<III", 44 + len(data), 0, 16 + len(data)) + owner.bytes_le + data


def _variable(name: str, data: bytes) -> bytes:
    """A UEFI_VARIABLE_DATA (TCG, "PC Client Platform Firmware Profile", 10.4.2)."""
    space = SECURITY if name in ("db", "dbx") else GLOBAL
    return space.bytes_le + struct.pack("<QQ", len(name), len(data)) + name.encode("utf-16le") + data


def _told(data: bytes) -> str:
    return f"{len(data)} bytes" if len(data) > 8 else data.hex()


def _size(pieces: Pieces) -> int:
    return sum(map(size_of, pieces))


def _step(pcr: int, name: str, data: bytes, content: str = "") -> Measurement:
    return Measurement(pcr, name, sha256(data).digest(), content)
