"""The kernel's arguments, as far as they are put together here.

Source: Documentation/admin-guide/kernel-parameters.rst of the Linux kernel: what stands behind "--" is for init.
"""

from collections.abc import Iterable

from imagekit.tree import Tree

CMDLINE = "/boot/cmdline"


def arguments(tree: Tree, words: Iterable[str] = ()) -> str:
    """The image's own arguments, and these words: before what is for init."""
    own = " ".join(tree.read(CMDLINE).decode("utf-8", "surrogateescape").split())
    kernel, dashes, init = f" {own} ".partition(" -- ")
    return " ".join((*kernel.split(), *words)) + (dashes + init).rstrip()


def names_console(tree: Tree) -> bool:
    """Whether the image says itself where its console is."""
    return "console=" in tree.read(CMDLINE).decode("utf-8", "surrogateescape")
