"""The root as an erofs, which is the fastest to read, with kernel, initrd and command line."""

from functools import partial

from imagekit.artifact import Format
from imagekit.disk import apart

FORMAT = Format(
    partial(apart.write, kind="erofs"),
    suffixes=apart.suffixes("erofs"),
    kind="kernel",
    modules=apart.modules("erofs"),
)
