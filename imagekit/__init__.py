"""An image flows through five values, and each arrow between two of them is a folder with one file per kind.

    Image --sources/--> Package* --compose--> Tree --formats/--> Artifact --targets/--> Guest --checks/--> Report

docs/house.md shows the whole house. The names below are all that a definition needs, most to least important; they are
looked up when first used, so that `import imagekit` costs nothing.
"""

TYPE_CHECKING = False  # typing's own would cost a third of the CLI's start

if TYPE_CHECKING:
    from imagekit.errors import GuestProblem as GuestProblem
    from imagekit.errors import Problem as Problem
    from imagekit.image import DOCS as DOCS
    from imagekit.image import Budget as Budget
    from imagekit.image import Directory as Directory
    from imagekit.image import File as File
    from imagekit.image import Image as Image
    from imagekit.image import Service as Service
    from imagekit.image import Static as Static
    from imagekit.image import Step as Step
    from imagekit.image import Symlink as Symlink
    from imagekit.image import Text as Text
    from imagekit.image import User as User
    from imagekit.layout import Layout as Layout
    from imagekit.protection import Seal as Seal
    from imagekit.protection import SecureBoot as SecureBoot
    from imagekit.protection import Verity as Verity
    from imagekit.rig import Disk as Disk
    from imagekit.rig import Node as Node

__all__ = (  # noqa: RUF022 - most to least important, not sorted
    "Image",
    "File",
    "Service",
    "Budget",
    "Step",
    "Text",
    "Symlink",
    "Directory",
    "User",
    "Static",
    "Layout",
    "Verity",
    "SecureBoot",
    "Seal",
    "DOCS",
    "Node",
    "Disk",
    "Problem",
    "GuestProblem",
)
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'imagekit' has no attribute {name!r}; it has {', '.join(__all__)}")
    from imagekit import errors

    if hasattr(errors, name):  # without loading the rest
        return getattr(errors, name)
    from imagekit import image, layout

    if found := next((module for module in (layout, image) if hasattr(module, name)), None):
        return getattr(found, name)
    from imagekit import protection, rig  # what most builds have no use for

    return getattr(protection if hasattr(protection, name) else rig, name)
