"""What was typed after `run`, what an image says of how it is run, and a root as a run enters it.

No dataclasses, and no module that Python has not loaded at its start: those would cost a third of that.
"""

# ruff: noqa: PTH100 - pathlib, too

import os

from imagekit import namespace

TYPE_CHECKING = False

if TYPE_CHECKING:
    from collections.abc import Sequence

LISTS = {"--trust": "trust", "--key": "trust", "--keyring": "trust", "-e": "env", "--env": "env"}
LISTS |= {"-v": "volumes", "--volume": "volumes"}
VALUES = {f"--{name}": name for name in ("workdir", "user", "memory", "cpus", "pids", "persist")}
NO_EROFS = "that takes root, Linux 6.12, and a file that is not in memory"
FLAGS = {f"--{name}": name for name in ("insecure", "explain", "ephemeral")}


class Asked:
    """What was typed, by the names of the options."""

    def __init__(self) -> None:
        self.image = ""
        self.command: list[str] = []
        self.trust: list[str] = []
        self.env: list[str] = []
        self.volumes: list[str] = []
        self.workdir = self.user = self.persist = ""
        self.memory = self.cpus = self.pids = ""
        self.insecure = self.explain = self.ephemeral = False


class Entry:
    """What an image says of how it is to be run."""

    def __init__(self, lines: "Sequence[str]" = ()) -> None:
        told = [line.partition(" ")[::2] for line in lines]
        self.argv = [value for name, value in told if name == "argument"]
        self.env = dict(value.partition("=")[::2] for name, value in told if name == "environment")
        self.user = next((value for name, value in told if name == "user"), "")
        self.workdir = next((value for name, value in told if name == "workdir"), "/")


class Tree:
    """A root that is a folder of this machine: it is covered by an overlay, and stays as it is."""

    def __init__(self, root: str, *, entry: Entry, why: "Sequence[str]") -> None:
        self.root, self.entry, self.why = root, entry, why

    def stage(self, kept: int) -> bool:
        """Stand in it, in a mount namespace of our own; whether it can be written to."""
        is_writable = namespace.stage(self.root, kept=kept)
        if kept >= 0 and not is_writable:
            raise OSError(0, "--persist: this kernel allows no overlay over that folder, nothing could be kept")
        return is_writable


class Mounted(Tree):
    """A root that is an EROFS file system in a file of ours, mounted as it lies there: nothing is unpacked."""

    def __init__(self, image: str, *, on: str, entry: Entry, why: "Sequence[str]") -> None:
        super().__init__(on, entry=entry, why=why)
        self.image = image

    def stage(self, kept: int) -> bool:
        """Mount it in a mount namespace of our own, and stand in it below an overlay."""
        mount_image(self.image, self.root)
        return super().stage(kept)


def mount_image(image: str, root: str) -> None:
    """Mount a file that holds an EROFS; Linux does so from version 6.12 on, and not in a user namespace."""
    try:
        namespace.mount(image, root, "erofs", flags=namespace.MS_RDONLY | namespace.MS_NODEV)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {NO_EROFS}") from None


def parse(words: "Sequence[str]") -> Asked | None:
    """What the words ask for; None when that is not plain."""
    asked, rest = Asked(), iter(words)
    for word in rest:
        name, equals, given = word.partition("=")
        if word == "--":
            asked.command = list(rest)
        elif word in FLAGS:
            setattr(asked, FLAGS[word], True)
        elif name in VALUES or name in LISTS:
            value = given if equals else next(rest, None)
            if value is None:
                return None
            if name in VALUES:
                setattr(asked, VALUES[name], value)
            else:
                getattr(asked, LISTS[name]).append(value)
        elif word.startswith("-") or asked.image:
            return None
        else:
            asked.image = word
    return asked if asked.image else None


def stamp_words(asked: Asked) -> list[str]:
    """What decides which root a run enters, beside the bytes of the files."""
    return ["run", os.path.abspath(asked.image), *map(os.path.abspath, asked.trust)]
