"""The Python of an image, as wheels ask for one: its tags (PEP 425, PEP 600) and its markers (PEP 508).

It is Debian's CPython, whatever Python imagekit runs on: nothing is asked of the machine that resolves.
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

from packaging.tags import Tag, compatible_tags, cpython_tags

from imagekit.errors import Problem

GLIBC = {"bullseye": 31, "bookworm": 36, "trixie": 41}  # the 36 of 2.36, by Debian's suite
NEWEST = max(GLIBC.values())  # what testing and sid have is no older
FIRST = {"x86_64": 5, "aarch64": 17}  # the oldest that a manylinux tag names
NAMED = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}  # before PEP 600
VERSION = re.compile(r"3\.[0-9]{1,2}\Z")


class Python(NamedTuple):
    """A version of CPython for an architecture, over a glibc that is this old or newer."""

    version: str  # "3.11"
    arch: str
    glibc: int = NEWEST

    @property
    def markers(self) -> dict[str, str]:
        """What dependencies are judged by; the third number of the version, which updates change, counts as 0."""
        return {
            "implementation_name": "cpython",
            "implementation_version": f"{self.version}.0",
            "os_name": "posix",
            "platform_machine": self.arch,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": f"{self.version}.0",
            "python_version": self.version,
            "sys_platform": "linux",
        }


def of(version: str, arch: str, suite: str) -> Python:
    """The Python of an image; raises Problem for an image without one."""
    if not VERSION.match(version):
        raise Problem(
            "wheels need a Python, and the image has none",
            "name one beside them: packages=('debian:python3', ...)",
        )
    return Python(version, arch, GLIBC.get(suite, NEWEST))


@cache
def tags(python: Python) -> Mapping[Tag, int]:
    """The tags of wheels that it takes, with their rank: 0 is taken before all others."""
    major, minor = map(int, python.version.split("."))
    interpreter, platforms = f"cp{major}{minor}", _platforms(python)
    known = [
        *cpython_tags((major, minor), abis=[interpreter], platforms=platforms),
        *compatible_tags((major, minor), interpreter, platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(known)))}


def _platforms(python: Python) -> list[str]:
    """The platform tags, newest glibc first."""
    found = []
    for minor in range(python.glibc, FIRST[python.arch] - 1, -1):
        found.append(f"manylinux_2_{minor}_{python.arch}")
        if minor in NAMED:
            found.append(f"{NAMED[minor]}_{python.arch}")
    return [*found, f"linux_{python.arch}"]
