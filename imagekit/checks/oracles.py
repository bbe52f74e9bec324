"""Oracles: what independent programs say of an artifact: `assert complaints(artifact) == []`.

sfdisk and sgdisk of partition tables, fsck.fat, unsquashfs, fsck.erofs and e2fsck of what lies in the partitions,
sbverify of programs that are signed for Secure Boot, qemu-img of disks for virtual machines, xorriso of ISOs, skopeo
of container images, GNU tar and gzip of archives. None of them shares a line with what wrote the artifact; they come
from the toolbox, or are this machine's own.
"""

from imagekit.artifact import Artifact


def complaints(artifact: Artifact) -> list[str]:
    """What independent programs find wrong with the parts of an artifact, a line each."""
    from imagekit.checks import _oracles  # every definition imports this module, also where nothing is tested

    return _oracles.complaints(artifact)
