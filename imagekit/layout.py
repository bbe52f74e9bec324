"""Layout: how an image lies on a disk; a frozen value, part of the Image.

Formats that make disks read it: raw_*, qcow2_*, vhd*, vmdk, the clouds' and the Raspberry Pi's.
"""

import re
from dataclasses import dataclass

from imagekit.errors import Problem, unknown

TYPE_CHECKING = False  # most images are not protected: their builds load nothing of it

if TYPE_CHECKING:
    from imagekit.protection import Seal, SecureBoot, Verity

ROOTS = ("initrd", "squashfs", "erofs", "ext4")
CHANGES = ("tmpfs", "disk")
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)")
UNITS = {"": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30, "TiB": 2**40}


@dataclass(frozen=True)
class Layout:
    """Where the root lies, what becomes of what is written to it, and how large the disk is."""

    root: str = "initrd"  # in memory whole; "squashfs", "erofs", "ext4": a read-only partition, found by its UUID
    changes: str = "tmpfs"  # gone with the power; "disk": kept on a partition that grows with the disk at first boot
    size: str | int = ""  # of the whole disk, as in "2 GiB"; "" makes it as small as its content and format allow
    boot_size: str | int = ""  # of the partition that the firmware reads; "" makes it as small as its content allows
    verity: "Verity | None" = None  # the root's blocks are checked while they are read
    secure_boot: "SecureBoot | None" = None  # the firmware's
    seal: "Seal | None" = None  # an encrypted partition beside the root
    slots: int = 1  # 2: an update is written beside what runs, which stays until the update has proven itself

    def __post_init__(self) -> None:
        for what, name, known in (("root", self.root, ROOTS), ("changes", self.changes, CHANGES)):
            if name not in known:
                problem = unknown(f"disk {what}", str(name), known)
                raise Problem(f"disk: {problem.message}", problem.hint)
        if self.root == "initrd" and self.changes == "disk":
            raise Problem(
                'disk: changes="disk" needs a root on the disk', 'write Layout(root="squashfs", changes="disk")'
            )
        for field, kind in (("verity", "Verity"), ("secure_boot", "SecureBoot"), ("seal", "Seal")):
            value = getattr(self, field)
            if value is not None and type(value).__name__ != kind:
                raise Problem(f"disk: {field}={value!r} is no {kind}", f"write {field}={kind}()")
        self._check_protection()
        _ = self.size_bytes, self.boot_bytes

    def _check_protection(self) -> None:
        if self.verity and self.root not in ("squashfs", "erofs"):
            raise Problem(
                f"disk: dm-verity needs a read-only root on the disk, and root is {self.root!r}",
                'write Layout(root="erofs", verity=Verity())',
            )
        if self.verity and self.changes == "disk":
            raise Problem(
                'disk: changes="disk" would lay what nobody checked over a root that is checked',
                "keep data on a sealed disk: seal=Seal()",
            )
        if self.seal and self.root != "initrd" and not self.verity:
            raise Problem(
                "disk: a sealed disk would be opened for a root that nobody checks",
                'write verity=Verity(), or root="initrd"',
            )
        if self.slots not in (1, 2):
            raise Problem(f"disk: slots={self.slots!r} is neither 1 nor 2")
        if self.slots == 2 and self.root != "initrd" and not self.verity:
            raise Problem(
                "disk: with slots=2 a root is found by its hashes, in whichever slot it lies",
                'write verity=Verity(), or root="initrd"',
            )

    @property
    def guards(self) -> tuple[str, ...]:
        """The fields that protect something, of those that are set."""
        found = [name for name in ("verity", "secure_boot", "seal") if getattr(self, name)]
        return (*found, *(["slots"] if self.slots > 1 else []))

    @property
    def is_signed(self) -> bool:
        """Whether it cannot be written without boot keys."""
        return bool(self.signing)

    @property
    def signing(self) -> tuple[str, ...]:
        """The names of the boot keys that sign something of it."""
        seal = self.seal if self.seal and self.seal.policy == "signed" else None
        return tuple(value.key for value in (self.secure_boot, seal) if value)

    @property
    def size_bytes(self) -> int:
        """The size of the disk in bytes; 0 where the content decides."""
        return _bytes("size", self.size)

    @property
    def boot_bytes(self) -> int:
        """The size of the boot partition in bytes; 0 where the content decides."""
        return _bytes("boot_size", self.boot_size)


def _bytes(what: str, written: str | int) -> int:
    found = SIZE.fullmatch(str(written or 0))
    if not found or found[2] not in UNITS:
        raise Problem(f"disk: {what} {written!r} is no size", 'as in "2 GiB"')
    return int(float(found[1]) * UNITS[found[2]])
