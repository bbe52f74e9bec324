"""Tamperings of a sealed appliance, as values: what is done to its parts while it is off, and who refuses then.

Each is a function from the parts of a machine to others; the parts themselves, and the image, stay as they are. What
firmware would refuse anyway can be `signed` by the owner's own key, as by one who stole it: then the TPM has to refuse.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from imagekit import bootkeys
from imagekit.bootkeys import BootKeys
from imagekit.disk import cpio, gpt, reworked
from imagekit.disk.altered import Altered
from imagekit.disk.gpt import Partition
from imagekit.errors import Problem
from imagekit.rig import Kept, Rig, Tpm
from imagekit.tree import file

MIB = 1 << 20
UKI = re.compile(r"EFI/Linux/[^/]+\.efi|EFI/BOOT/BOOT[A-Z0-9]+\.EFI")  # in this order, and of two the first
FIRMWARE = "^the firmware: (Access [Dd]enied|Security Violation)"
STATE_11 = r": (signature|state: PCR 11)\b"
UNUSED = 0x28  # bytes of a kernel's first page that nobody reads: e_res2 of its DOS header
DEBUG = "debug init=/bin/sh"


@dataclass(frozen=True)
class Parts:
    """A machine that is switched off, taken apart."""

    disk: Altered
    tpm: Tpm | None
    variables: bytes = field(repr=False)  # UEFI's; b"": those that the rig says
    rig: Rig
    data: str  # the name of the sealed partition
    folder: Path = field(repr=False, default=Path())  # for what a tampering has to lay down somewhere
    another: Callable[[], Kept] | None = field(repr=False, default=None)  # boots another machine for the first time

    def partition(self, name: str) -> Partition:
        """A partition of its disk; raises Problem when there is none of that name."""
        found = gpt.read(self.disk.disk())
        for each in found:
            if each.name == name:
                return each
        raise Problem(f"the disk has no partition {name}", f"it has: {', '.join(each.name for each in found)}")

    @property
    def boot(self) -> Partition:
        """The partition that firmware starts from: the first."""
        return gpt.read(self.disk.disk())[0]

    @property
    def program(self) -> tuple[str, bytes]:
        """(path, bytes) of the UKI that is started; raises Problem when there is none."""
        files = reworked.files(self.disk, self.boot)
        found = sorted(
            (path for path in files if UKI.fullmatch(path)), key=lambda path: (not path.startswith("EFI/L"), path)
        )
        if not found:
            raise Problem("the boot partition has no UKI", f"it has: {', '.join(files)}")
        return found[0], files[found[0]]

    @property
    def keys(self) -> BootKeys:
        """The owner's boot keys."""
        return bootkeys.chosen(self.rig.boot_keys)

    @property
    def stranger(self) -> BootKeys:
        """Somebody else's."""
        folder = self.folder / "stranger"
        return BootKeys(folder) if folder.exists() else bootkeys.make(folder, name="stranger")

    def with_files(self, changed: dict[str, bytes]) -> "Parts":
        """The same machine with other files on the partition that firmware starts from."""
        return replace(self, disk=reworked.with_files(self.disk, self.boot, changed))


class Tamper(NamedTuple):
    """Something that is done to a machine."""

    name: str
    change: Callable[[Parts], Parts]
    words: str  # a regular expression: who refuses, and why; "": nobody, the disk is opened all the same
    opens: str = ""  # what the console shows when it was not refused, where that comes later than the disk is open

    def __str__(self) -> str:
        return self.name


# --- what is started -------------------------------------------------------------------------------------------------


def program(name: str, edit: Callable[[Parts, bytes], bytes], words: str, *, signed: bool = False) -> Tamper:
    """Another UKI in the place of the one that is started; `signed` by the owner's key."""

    def change(parts: Parts) -> Parts:
        path, data = parts.program
        made = edit(parts, data)
        return parts.with_files({path: reworked.signed(made, parts.keys) if signed else made})

    return Tamper(f"{name}{'-signed' if signed else ''}", change, words if signed else FIRMWARE)


def section(name: str, edit: Callable[[bytes], bytes], words: str, *, of: str, signed: bool = False) -> Tamper:
    """Another content of one section of the UKI."""

    def made(_parts: Parts, data: bytes) -> bytes:
        return reworked.with_sections(data, {of: edit(reworked.sections(data)[of])})

    return program(name, made, words, signed=signed)


def cmdline(more: str = DEBUG, *, signed: bool = False) -> Tamper:
    """More arguments of the kernel."""
    return section("cmdline", lambda old: old + b" " + more.encode(), STATE_11, of=".cmdline", signed=signed)


def kernel_bit(*, signed: bool = False) -> Tamper:
    """One bit of the kernel: where it costs nothing, so that it would run."""
    return program("kernel-bit", lambda _, data: reworked.flipped(data, ".linux", UNUSED), STATE_11, signed=signed)


def initrd(path: str = "/etc/more", content: bytes = b"more\n", *, signed: bool = False) -> Tamper:
    """One more file in the initrd, as an archive behind the others."""
    more = cpio.archive([(path, file(content))])
    return section("initrd", lambda old: old + bytes(-len(old) % 4) + more, STATE_11, of=".initrd", signed=signed)


def section_order() -> Tamper:
    """Two sections of the UKI change places in its table."""
    return program("section-order", lambda _, data: reworked.swapped(data, ".osrel", ".cmdline"), "")


def pcr_signature(*, signed: bool = True) -> Tamper:
    """The signature of PCR 11 is somebody else's: one bit of it is otherwise."""

    def other(old: bytes) -> bytes:
        at = old.index(b'"sig":"') + 20
        return old[:at] + (b"B" if old[at : at + 1] == b"A" else b"A") + old[at + 1 :]

    return section("pcr-signature", other, ": signature", of=".pcrsig", signed=signed)


def stranger() -> Tamper:
    """The same UKI, signed by a key that nobody has enrolled."""
    return program("stranger", lambda parts, data: reworked.signed(data, parts.stranger), "")


def enrolled_stranger() -> Tamper:
    """A stranger's certificate is enrolled beside the owner's, as by who knows the firmware's password."""

    def change(parts: Parts) -> Parts:
        folder = parts.folder / "both"
        folder.mkdir(mode=0o700, exist_ok=True)
        for path in parts.keys.folder.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "db-stranger.crt").write_bytes((parts.stranger.folder / "db.crt").read_bytes())
        return replace(parts, variables=b"", rig=replace(parts.rig, boot_keys=folder, secure="on"))

    return Tamper("enrolled-stranger", change, r": state: PCR 7\b")


def another_entry(name: str = "zzz_9.efi", more: str = DEBUG) -> Tamper:
    """A second UKI on the boot partition, which its loader likes better: with other arguments, and unsigned."""

    def change(parts: Parts) -> Parts:
        path, data = parts.program
        release = reworked.sections(data)[".osrel"].replace(b"IMAGE_VERSION=", b"IMAGE_VERSION=9")
        words = reworked.sections(data)[".cmdline"] + b" " + more.encode()
        made = reworked.with_sections(data, {".cmdline": words, ".osrel": release})
        where = f"{path.rpartition('/')[0]}/{name}" if path.startswith("EFI/Linux/") else path
        return parts.with_files({where: made})

    return Tamper("another-entry", change, FIRMWARE)


def another_initrd(more: str = DEBUG) -> Tamper:
    """An entry of the loader that starts the owner's UKI with an initrd of its own, and more arguments."""
    entry = f"title other\nsort-key 0\nversion 9\nlinux /{{}}\ninitrd /other.cpio\noptions {more}\n"

    def change(parts: Parts) -> Parts:
        path, _ = parts.program
        if not path.startswith("EFI/Linux/"):  # there is no loader
            return another_entry(more=more).change(parts)
        archive = cpio.archive([("/init", file(b"", mode=0o755))])
        return parts.with_files({"loader/entries/other.conf": entry.format(path).encode(), "other.cpio": archive})

    return Tamper("another-initrd", change, "^the loader: Error registering initrd|^the firmware: ")


def secure_boot(state: str) -> Tamper:
    """Secure Boot "off", by who has the firmware's menu, or "setup": its keys are deleted."""

    def change(parts: Parts) -> Parts:
        return replace(parts, variables=b"", rig=replace(parts.rig, secure=state))

    return Tamper(f"secure-boot-{state}", change, r": state: PCR 7\b")


def smbios(more: str = DEBUG, words: str = "") -> Tamper:
    """The firmware hands more arguments over: systemd's stub takes them from version 254 on, into PCR 12."""
    text = f"io.systemd.stub.kernel-cmdline-extra={more}"
    return Tamper("smbios", lambda parts: replace(parts, rig=replace(parts.rig, smbios=(text,))), words)


# --- the TPM ---------------------------------------------------------------------------------------------------------


def other_tpm() -> Tamper:
    """The disk in another machine of the same kind."""
    return Tamper("other-tpm", lambda parts: replace(parts, tpm=Tpm()), ": another TPM")


def no_tpm() -> Tamper:
    """The TPM is taken off the board."""
    return Tamper("no-tpm", lambda parts: replace(parts, tpm=None), ": no TPM")


def cleared_tpm() -> Tamper:
    """The TPM is cleared, as by who holds a jumper: its owner's things are gone."""

    def change(parts: Parts) -> Parts:
        return replace(parts, tpm=replace(parts.tpm or Tpm(), cleared=True))

    return Tamper("cleared-tpm", change, ": another TPM")


def extended(pcr: int = 7) -> Tamper:
    """A PCR is extended before firmware measures anything."""

    def change(parts: Parts) -> Parts:
        tpm = parts.tpm or Tpm()
        return replace(parts, tpm=replace(tpm, extend=(*tpm.extend, (pcr, b"x" * 32))))

    return Tamper(f"extended-{pcr}", change, rf": state: PCR {pcr}\b")


# --- the disk --------------------------------------------------------------------------------------------------------


def blank_data() -> Tamper:
    """The data partition as it was shipped: does the machine make itself a new one?"""

    def change(parts: Parts) -> Parts:
        where = parts.partition(parts.data)
        return replace(parts, disk=parts.disk.write(where.start, bytes(min(where.size, 2 * MIB))))

    return Tamper("blank-data", change, ": another disk")


def other_disk() -> Tamper:
    """The disk of another machine of the same kind, sealed to that one's TPM."""

    def change(parts: Parts) -> Parts:
        assert parts.another, "a machine of the fixture `sealed`"
        return replace(parts, disk=replace(parts.disk, clusters=parts.another().altered))

    return Tamper("other-disk", change, ": another disk")


def luks(name: str, old: bytes, new: bytes) -> Tamper:
    """Other words in the LUKS2 header, with checksums that fit."""

    def change(parts: Parts) -> Parts:
        return replace(parts, disk=reworked.with_header(parts.disk, parts.partition(parts.data), [(old, new)]))

    return Tamper(name, change, ": header")


def null_cipher() -> Tamper:
    """The header says that nothing is encrypted, so that any key opens it."""
    return luks("null-cipher", b'"aes-xts-plain64"', b'"cipher_null-ecb"')


def reencrypt() -> Tamper:
    """The header says that somebody has begun to encrypt it anew."""
    asked = b'"config":{"requirements":{"mandatory":["online-reencrypt-v2"]},'
    return luks("reencrypt", b'"config":{', asked)


def header_bit() -> Tamper:
    """One bit of the LUKS2 header's salt."""

    def change(parts: Parts) -> Parts:
        return replace(parts, disk=parts.disk.flip(parts.partition(parts.data).start + 110))

    return Tamper("header-bit", change, ": header")


def data_bit(at: int = MIB + 1024 + 0x38) -> Tamper:
    """One bit of what is encrypted: 16 bytes of it are noise then; here those with ext4's magic number."""

    def change(parts: Parts) -> Parts:
        return replace(parts, disk=parts.disk.flip(parts.partition(parts.data).start + at))

    return Tamper("data-bit", change, ": its files cannot be mounted")


def root_bit(at: int = 0) -> Tamper:
    """One bit of the root."""

    def change(parts: Parts) -> Parts:
        return replace(parts, disk=parts.disk.flip(parts.partition("root-a").start + at))

    return Tamper("root-bit", change, r"^the kernel: .* is corrupted", opens="imagekit: ready")


def other_root() -> Tamper:
    """The hashes of another root, which the signed arguments do not mean."""

    def change(parts: Parts) -> Parts:
        where = parts.partition("root-a-verity")
        return replace(parts, disk=parts.disk.write(where.start + 4096, b"x" * 4096))

    return Tamper("other-root", change, "^the root: ")


EVERY = (  # of those that differ in nothing but who made the UKI, one that firmware refuses stands for all
    *(kernel_bit(), kernel_bit(signed=True), cmdline(signed=True), initrd(signed=True), pcr_signature()),
    *(section_order(), stranger(), enrolled_stranger(), another_entry(), another_initrd()),
    *(
        secure_boot("off"),
        other_tpm(),
        no_tpm(),
        cleared_tpm(),
        extended(),
        blank_data(),
        other_disk(),
        null_cipher(),
        reencrypt(),
    ),
    *(header_bit(), data_bit(), root_bit(), other_root()),
)
ALL = {each.name: each for each in EVERY}
