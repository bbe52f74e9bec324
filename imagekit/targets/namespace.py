"""Run commands in an image's tree, without a kernel of its own: a mount namespace, milliseconds, root or not."""

import os

from imagekit.arch import ARCHES
from imagekit.artifact import Opened
from imagekit.guest import Guest, Rig, Target
from imagekit.store import Store


def start(opened: Opened, *, rig: Rig, store: Store) -> Guest:
    """The tree, unpacked once per digest; raises RigProblem when this machine allows no such namespace."""
    from imagekit.targets import _namespace  # what it needs takes longer to load than a build with nothing to do

    return _namespace.start(opened, rig=rig, store=store)


TARGET = Target(
    start,
    arches=tuple(name for name in ARCHES if name == os.uname().machine),
    kinds=("root",),
    boots=False,
)
