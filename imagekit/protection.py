"""Protection: what an appliance on a stranger's premises is guarded by; frozen values, part of the Layout.

Verity         the root is read-only, and every block of it is checked by a hash in the signed command line
SecureBoot     the firmware starts nothing that the owner's key did not sign
Seal           a disk is encrypted, and its key leaves the TPM only in the state that was built
"""

from dataclasses import dataclass

from imagekit.errors import Problem, unknown

CORRUPTED = ("restart", "panic", "error")
POLICIES = ("signed", "exact")
RECOVERIES = ("console", "none")
SIGNED_PCR = 11  # what systemd's stub measures of a UKI; the image's maker signs its value
PCRS = range(16)  # those that a boot extends and nothing resets before the next one
MAX_GENERATION = (1 << 32) - 1


@dataclass(frozen=True)
class Verity:
    """dm-verity for the root; and what the kernel does about a block that is not the one that was hashed."""

    root: bool = True
    corrupted: str = "restart"  # "panic"; "error": whoever reads the block gets an I/O error

    def __post_init__(self) -> None:
        if self.root is not True:
            raise Problem("disk: Verity(root=False) protects nothing", "leave verity= out")
        _check("Verity(corrupted=...)", self.corrupted, CORRUPTED)


@dataclass(frozen=True)
class SecureBoot:
    """The name of the key among the boot keys by which UEFI programs are signed."""

    key: str = "db"

    def __post_init__(self) -> None:
        _check_name("SecureBoot(key=...)", self.key)


@dataclass(frozen=True)
class Seal:
    """An encrypted partition (LUKS2), made at the first boot, whose key is sealed to the machine's TPM 2.0."""

    disk: str = "data"  # the partition's name
    mount: str = "/data"  # where it is mounted
    pcrs: tuple[int, ...] = (7, SIGNED_PCR)
    policy: str = "signed"  # PCR 11 as the image's maker signs it, others as they were at first boot; "exact": all so
    key: str = "pcr"  # the name of the key among the boot keys that signs PCR 11
    recovery: str = "console"  # a recovery key is shown once, at first boot; "none": what the TPM forgets is lost
    generation: int = 0  # once an image has come up, those of a lower generation no longer open the disk

    def __post_init__(self) -> None:
        _check("Seal(policy=...)", self.policy, POLICIES)
        _check("Seal(recovery=...)", self.recovery, RECOVERIES)
        _check_name("Seal(disk=...)", self.disk)
        _check_name("Seal(key=...)", self.key)
        if not isinstance(self.pcrs, tuple) or not self.pcrs or len(set(self.pcrs)) != len(self.pcrs):
            raise Problem(f"disk: Seal(pcrs={self.pcrs!r}) is no tuple of PCRs, each once", "as in pcrs=(7, 11)")
        for pcr in self.pcrs:
            if not isinstance(pcr, int) or pcr not in PCRS:
                raise Problem(f"disk: Seal(pcrs=...): {pcr!r} is no PCR of a boot", "0 to 15")
        if self.policy == "signed" and SIGNED_PCR not in self.pcrs:
            raise Problem(
                f'disk: Seal(policy="signed") signs PCR {SIGNED_PCR}, which pcrs={self.pcrs!r} lacks',
                f"add {SIGNED_PCR}, or write policy='exact'",
            )
        if not isinstance(self.generation, int) or not 0 <= self.generation <= MAX_GENERATION:
            raise Problem(f"disk: Seal(generation={self.generation!r}) is no number", f"0 to {MAX_GENERATION}")


def _check(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        problem = unknown(what, str(value), known)
        raise Problem(f"disk: {problem.message}", problem.hint)


def _check_name(what: str, value: str) -> None:
    if not (isinstance(value, str) and value.isascii() and value.replace("-", "").isalnum() and len(value) <= 32):
        raise Problem(f"disk: {what}: {value!r} is no name", "letters, digits and '-'")
