"""Updates of an appliance that is switched off, as values for `sealed`: a newer image in its other slot, and back."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from imagekit import slots, updating
from imagekit.artifact import Artifact
from imagekit.checks.tamper import FIRMWARE, Parts, Tamper
from imagekit.disk import fat, fatfiles, reworked
from imagekit.disk.altered import CLUSTER, Altered
from imagekit.disk.discoverable import ESP
from imagekit.disk.gpt import read as partitions
from imagekit.disk.sparse import SECTOR, Sparse, of_file
from imagekit.errors import Problem
from imagekit.key import Key


def updated(release: Artifact, key: Key) -> Tamper:
    """An update is installed, as `imagekit update --disk` does; it opens the disk, and proves itself."""
    name = f"{release.name}_{release.manifest['version']}"

    def change(parts: Parts) -> Parts:
        return replace(parts, disk=_installed(release, key, parts.disk))

    return Tamper(f"updated-{name}", change, "", opens=f"imagekit: slot kept {name}")


def updated_by_stranger(release: Artifact, key: Key) -> Tamper:
    """The same, and then its UKI is one that somebody else signed: as by who has the key of updates alone."""
    name = f"{release.name}_{release.manifest['version']}"

    def change(parts: Parts) -> Parts:
        parts = updated(release, key).change(parts)
        found = reworked.files(parts.disk, parts.boot)
        newest = slots.of(release.name, found)[0].file
        return parts.with_files({newest: reworked.signed(found[newest], parts.stranger)})

    return Tamper(f"updated-{name}-by-stranger", change, FIRMWARE)


def withdrawn(name: str, version: str) -> Tamper:
    """The UKI of a version is deleted, so that the other one starts, as who wants an old image back would do it."""

    def change(parts: Parts) -> Parts:
        return replace(parts, disk=_without(parts.disk, slots.uki(name, version)))

    return Tamper(f"withdrawn-{name}_{version}", change, ": generation")


def _installed(release: Artifact, key: Key, disk: Altered) -> Altered:
    """The disk as the program that installs updates leaves it, which wants a file."""
    (part,) = release.parts
    update = release.path.parent / part.file
    with TemporaryDirectory(prefix="imagekit-updated-") as folder:
        file = Path(folder) / "disk"
        _lay(disk.disk(), file)
        updating.on_disk(update, file, said=updating.verified(update, [key]), keys=[key])
        return _taken(disk, of_file(str(file), disk.size))


def _without(disk: Altered, path: str) -> Altered:
    """The disk with one file less on its boot partition, which is written anew."""
    esp = next(part for part in partitions(disk.disk()) if part.type == ESP)
    files, head = reworked.files(disk, esp), fatfiles.head(disk.disk().part(esp.start, esp.size))
    if path not in files:
        raise Problem(f"the boot partition has no {path}", f"it has {', '.join(sorted(files))}")
    kept: dict[str, fat.Content] = {name: data for name, data in files.items() if name != path}
    start = esp.start // SECTOR
    made = fat.volume(kept, size=esp.size, label=head.label, serial=head.serial, start=start)
    return _taken(disk, made, at=esp.start)


def _taken(disk: Altered, made: Sparse, at: int = 0) -> Altered:
    """The disk with these bytes from an offset on; what is as it was takes no room."""
    for offset, data in made.blocks(CLUSTER):
        size = min(CLUSTER, made.size - offset)
        found = data or bytes(size)
        if disk.read(at + offset, size) != found:
            disk = disk.write(at + offset, found)
    return disk


def _lay(disk: Sparse, to: Path) -> None:
    with to.open("wb") as file:
        file.truncate(disk.size)
        for offset, data in disk.filled(CLUSTER):
            file.seek(offset)
            file.write(data)
