"""A disk with two slots as a file, updates for it, and the program of the guest that installs them, run on it."""

import random
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from uuid import UUID

from toy_program import program

from imagekit import early, key, slots
from imagekit.arch import host
from imagekit.disk import fat, fatfiles, gpt, pe, updatefile, verity
from imagekit.disk.sparse import Piece, Sparse, laid, of_file
from imagekit.key import Key

PROGRAM = Path(early.__file__).parent / "inside/bin" / f"slots.{host().name}"
MIB = 1 << 20
KEY, OTHER = key.from_seed(b"k" * 32), key.from_seed(b"o" * 32)
ESP, KIND = UUID("c12a7328-f81f-11d2-ba4b-00a0c93ec93b"), UUID("0fc63daf-8483-4772-8e79-3d69d8477de4")
SALT = bytes(range(32))
BOOT = "EFI/BOOT/BOOTX64.EFI"


@dataclass(frozen=True)
class Release:
    """A version of an image: what an update brings, and what a disk is shipped with."""

    version: str = "1"
    name: str = "web"
    arch: str = "x86_64"
    generation: int = 0
    blocks: int = 700  # of the root; 0 has it in the UKI
    uki_size: int = 3 * MIB + 77  # of its kernel

    def _bytes(self, what: str, size: int) -> bytes:
        return random.Random(f"{self.name} {self.version} {what}").randbytes(size)

    @cached_property
    def uki(self) -> bytes:
        """Arguments as the kernel gets them, and something large."""
        told = {".cmdline": self.arguments.encode(), ".linux": self._bytes("uki", self.uki_size)}
        return pe.uki(program(), {".osrel": b"", **told})

    @cached_property
    def arguments(self) -> str:
        """Of the kernel."""
        root_hash = self.hashes.root_hash.hex()
        found = f"imagekit.verity={SALT.hex()}:{self.blocks}:{root_hash}:restart" if root_hash else ""
        return f"console=ttyS0 {found} quiet"

    @cached_property
    def root(self) -> Sparse:
        return whole(self._bytes("root", self.blocks * verity.BLOCK))

    @cached_property
    def hashes(self) -> verity.Verity:
        return verity.tree(self.root, salt=SALT, uuid=UUID(int=1)) if self.blocks else verity.Verity(b"", b"")

    @property
    def said(self) -> updatefile.Said:
        made = self.hashes
        return updatefile.Said(
            self.name, self.version, self.arch, self.generation, made.root_hash.hex(),
            SALT.hex() if self.blocks else "", self.blocks * verity.BLOCK, len(made.device), len(self.uki),
        )  # fmt: skip

    def update(self, signer: Key = KEY) -> bytes:
        """The update file."""
        parts = updatefile.Parts(self.root, whole(self.hashes.device), whole(self.uki))
        return b"".join(updatefile.write(self.said, parts, key=signer))


def whole(data: bytes) -> Sparse:
    """These bytes as a disk."""
    return laid(len(data), [Piece(0, data)] if data else [])


def ship(path: Path, release: Release, *, esp: int = 12, others: Mapping[str, bytes] = {}) -> Path:
    """A disk with a release in slot a, as a format makes it."""
    files: dict[str, fat.Content] = {BOOT: b"systemd-boot", slots.LOADER: slots.LOADER_TEXT, **others}
    if not slots.of(release.name, others):
        files[slots.uki(release.name, release.version)] = release.uki
    volume = fat.volume(files, size=esp * MIB, label="BOOT", serial=7, start=2048)
    sizes = {"boot": esp, "root-a": 4, "root-a-verity": 1, "root-b": 4, "root-b-verity": 1, "data": 2}
    contents = {"boot": volume, "root-a": release.root, "root-a-verity": whole(release.hashes.device)}
    parts, pieces, at = [], list[Piece](), MIB
    for number, (name, size) in enumerate(sizes.items()):
        if release.blocks or "root" not in name:
            parts.append(gpt.Partition(name, ESP if name == "boot" else KIND, UUID(int=number + 1), at, size * MIB))
            inner = contents.get(name, whole(b"")).pieces
            pieces += [piece._replace(offset=at + piece.offset) for piece in inner]
            at += size * MIB
    size = at + MIB
    table = gpt.table(size, parts, guid=UUID(int=99))
    with open(path, "wb") as file:
        file.truncate(size)
        for piece in (*table, *pieces):
            file.seek(piece.offset)
            file.write(piece.read(0, piece.size))
    return path


def settings(folder: Path, release: Release, *keys: Key) -> Path:
    """What the running image says of itself, and the arguments that it was started with."""
    folder.mkdir(exist_ok=True)
    text = f"name {release.name}\nversion {release.version}\narchitecture {release.arch}\n"
    (folder / "slots").write_text(f"{text}generation {release.generation}\n")
    (folder / "update.pub").write_text("".join(one.public_text() for one in keys or (KEY,)))
    (folder / "cmdline").write_text(f"{release.arguments}\n")
    return folder


def install(disk: Path, update: bytes, folder: Path, *writes: int) -> "subprocess.CompletedProcess[bytes]":
    """Run the guest's program on a disk; it stops after so many writes, as a power cut would."""
    words = [PROGRAM, "imagekit-update", "-", disk, folder, folder / "cmdline", *map(str, writes)]
    return subprocess.run(words, input=update, capture_output=True, timeout=120, check=False)


def keep(disk: Path, folder: Path, *writes: int) -> "subprocess.CompletedProcess[bytes]":
    """Let the guest's program call the running image healthy."""
    words = [PROGRAM, "keep", disk, folder, folder / "cmdline", *map(str, writes)]
    return subprocess.run(words, capture_output=True, timeout=120, check=False)


def part(disk: Path, name: str) -> Sparse:
    """A partition."""
    opened = of_file(str(disk), disk.stat().st_size)
    found = next(one for one in gpt.read(opened) if one.name == name)
    return opened.part(found.start, found.size)


def files(disk: Path) -> dict[str, str]:
    """The files of the boot partition, by their sha256."""
    return {path: sha256(file.read()).hexdigest() for path, file in fatfiles.read(part(disk, "boot")).items()}


def ukis(disk: Path) -> list[str]:
    """Those that systemd-boot would start, as it prefers them."""
    return [one.file.rpartition("/")[2] for one in slots.of("web", files(disk))]


def holds(disk: Path, slot: str, release: Release) -> bool:
    """Whether a slot has all of a release, and its UKI is there, whatever tries it has left."""
    digest, said = sha256(release.uki).hexdigest(), release.said
    named = [path for path, found in files(disk).items() if found == digest and f"_{release.version}" in path]
    data = part(disk, f"root-{slot}").read(0, said.root), part(disk, f"root-{slot}-verity").read(0, said.hashes)
    return bool(named) and data == (release.root.read(0, said.root), release.hashes.device)


def newer(release: Release, **changes: object) -> Release:
    """Another version of it."""
    return replace(release, **{"version": "2", **changes})  # type: ignore[arg-type] # fields of Release
