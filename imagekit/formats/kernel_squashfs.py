"""The root as a squashfs, the smallest that a kernel reads as it is, with kernel, initrd and command line."""

from functools import partial

from imagekit.artifact import Format
from imagekit.disk import apart

FORMAT = Format(
    partial(apart.write, kind="squashfs"),
    suffixes=apart.suffixes("squashfs"),
    kind="kernel",
    modules=apart.modules("squashfs"),
)
