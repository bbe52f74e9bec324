"""Offer: what the formats of an image ask for beside its root on one architecture, and what it is left without."""

from imagekit import repertoire
from imagekit.artifact import Format
from imagekit.image import Image, path_of


def formats(image: Image, arch: str) -> list[Format]:
    """The image's formats that exist for the architecture."""
    return [format for format in map(repertoire.format, image.formats) if arch in format.arches]


def assets(image: Image, arch: str) -> list[str]:
    """The names of what they need below /boot."""
    found = {asset for format in formats(image, arch) for asset in format.assets}
    return sorted(found | ({"loader"} if image.disk.slots > 1 else set()))


def modules(image: Image, arch: str) -> set[str]:
    """The kernel modules that they need."""
    return {module for format in formats(image, arch) for module in format.modules}


def drivers(image: Image, arch: str) -> tuple[str, ...]:
    """The drivers of the disks that the root lies on, or a partition that is opened."""
    found = formats(image, arch) if image.disk.seal else disks(image, arch)
    return tuple(sorted({module for format in found for module in format.drivers}))


def disks(image: Image, arch: str) -> list[Format]:
    """Those that write a disk which the root lies on."""
    return [f for f in formats(image, arch) if f.kind in ("disk", "update") and f.has_root_on_disk(image.disk)]


def left_out(image: Image) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`without`, as packages and as paths."""
    paths = tuple(path_of(item) for item in image.without if "/" in item)
    return tuple(item for item in image.without if "/" not in item), paths
