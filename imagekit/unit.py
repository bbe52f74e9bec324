"""Unit: a service of an image as another machine's supervisor is to run it; what a definition or a signed file says.

Pure values: units/ has a file per supervisor, which writes its own language.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from imagekit.errors import Problem, unknown
from imagekit.image import Image, argv

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")  # what every supervisor takes as the name of one
URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
PORT = re.compile(r"(?:tcp|http):([0-9]+)")
SIZE = re.compile(r"([1-9][0-9]{0,14})([KMGT]?)\Z")
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Volume(NamedTuple):
    """A folder or file of the machine that the program finds in its root."""

    source: str
    target: str
    is_read_only: bool

    def __str__(self) -> str:
        return f"{self.source}:{self.target}" + ":ro" * self.is_read_only


@dataclass(frozen=True)
class Program:
    """One service of an image."""

    name: str  # of the unit
    image: str  # "web 1": for people
    arch: str
    file: str  # where the image lies on the machine, or its URL
    is_bundle: bool
    sha256: str  # of the file
    command: tuple[str, ...] = ()  # () is what the image starts by itself
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""  # of the image; "" is what the image says
    after: tuple[str, ...] = ()  # units that it comes after
    restart: str = "always"
    ready: str = ""
    stop_timeout: float = 10.0

    @property
    def port(self) -> int | None:
        """The port that its condition asks, if that is one of a port."""
        found = PORT.match(self.ready)
        return int(found[1]) if found else None

    @property
    def is_fetched(self) -> bool:
        """Whether the file comes over the network."""
        return URL.match(self.file) is not None


@dataclass(frozen=True)
class Wishes:
    """What the image says nothing of: how the machine is to run it."""

    key: str = ""  # the public key that signed, as the text of a .pub file
    trust: str = ""  # a file on the machine that has it; "" takes the key along
    imagekit: str = "imagekit"  # the program there
    listen: tuple[str, ...] = ()  # sockets that the supervisor opens and hands over
    volumes: tuple[Volume, ...] = ()
    credentials: tuple[tuple[str, str], ...] = ()  # name and file
    memory: int = 0  # bytes; 0 is no limit
    cpus: float = 0
    pids: int = 0
    unprivileged: bool = False  # as a user who is nobody, by a user namespace


@dataclass(frozen=True)
class Unit:
    """A kind of supervisor, as a value: how it is told."""

    write: Callable[[Sequence[Program], Wishes], Mapping[str, str]]  # -> file name -> text


def of_definition(image: Image, wanted: Sequence[str], *, file: Program) -> list[Program]:
    """The services of a definition, all or those wanted; `file` says what is known of the image's file."""
    names = {service.name for service in image.services}
    if not names:
        raise Problem(f"image {image.name!r} has no services", "a unit starts one: services=(Service(...),)")
    if missing := [name for name in wanted if name not in names]:
        raise unknown("service", missing[0], names)
    called = {name: f"{file.name}-{name}" if len(names) > 1 else file.name for name in names}
    chosen = [service for service in image.services if service.name in (wanted or names)]
    if file.is_bundle and (odd := [one.name for one in chosen if one.env or one.user != "root"]):
        raise Problem(f"{odd[0]} has variables or a user, which a bundle takes from its image alone",
                      "take the signed .tar.gz, which `imagekit run` starts")  # fmt: skip
    for name in (name for one in chosen for name in one.env if not VARIABLE.match(name)):
        raise Problem(f"services: {name!r} is no name of a variable", "letters, digits and '_'")
    return [
        replace(
            file, name=called[one.name], command=argv(one.command), env=dict(one.env),
            user="" if file.is_bundle else one.user,
            after=tuple(called[name] for name in one.after), restart=one.restart, ready=one.ready,
            stop_timeout=one.stop_timeout,
        )
        for one in chosen
    ]  # fmt: skip


def volume(text: str) -> Volume:
    """SOURCE:TARGET or SOURCE:TARGET:ro, both absolute."""
    source, target, *rest = [*text.split(":"), ""][:4]
    if rest not in ([""], ["ro", ""], ["ro"]) or not source.startswith("/") or not target.startswith("/"):
        raise Problem(f"{text!r} is no volume", "write /of/the/machine:/in/the/image, and :ro behind it to protect it")
    return Volume(source, target, "ro" in rest)


def credential(text: str) -> tuple[str, str]:
    """NAME:FILE."""
    name, _, path = text.partition(":")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", name) or not path.startswith("/"):
        raise Problem(f"{text!r} is no credential", "write NAME:/path/of/the/file")
    return name, path


def size(text: str) -> int:
    """Bytes, as 512M."""
    found = SIZE.match(text)
    if not found:
        raise Problem(f"{text!r} is no size", "a number, and K, M, G or T for powers of 1024: 512M")
    return int(found[1]) * UNITS[found[2]]
