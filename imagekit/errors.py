"""The one error that a user sees: what is wrong, and what to do about it.

Three kinds, because they are mended by three different people: a `Problem` is in the image (its author mends it),
a `RigProblem` is in the machine that builds or boots it, a `Defect` is in imagekit itself.
"""

TYPE_CHECKING = False  # collections would be a third of what starting a signed image loads

if TYPE_CHECKING:
    from collections.abc import Iterable


class Problem(Exception):
    """The image, its lock or what was asked for is wrong: one message with its cause, and a hint."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[type["Problem"], tuple[str, str]]:
        return type(self), (self.message, self.hint)  # travels between xdist workers whole


class RigProblem(Problem):
    """The machine that builds or boots is wrong: a tool, a mirror, the disk, QEMU; not the image."""


class Defect(Problem):
    """imagekit is wrong."""


class GuestProblem(Problem):
    """The guest did not do what was asked: the message carries its console's end and what was seen last."""


class MachineProblem(GuestProblem, RigProblem):
    """The machine below the guest failed: QEMU died, hangs or was stopped. The rig is to blame, the guest is gone."""


def unknown(what: str, name: str, known: "Iterable[str]") -> Problem:
    """Say that `name` is unknown, and list the known ones; the nearest first, if one is near."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return Problem(f"unknown {what} {name!r}", f"{hint}known: {', '.join(names) or 'none'}")
