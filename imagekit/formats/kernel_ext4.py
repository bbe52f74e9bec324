"""The root as an ext4, which every program knows, with kernel, initrd and command line."""

from functools import partial

from imagekit.artifact import Format
from imagekit.disk import apart

FORMAT = Format(
    partial(apart.write, kind="ext4"),
    suffixes=apart.suffixes("ext4"),
    kind="kernel",
    modules=apart.modules("ext4"),
)
