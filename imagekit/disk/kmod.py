"""Kernel modules: what they need, read from the modules themselves, of any architecture.

Source: the .modinfo section that MODULE_INFO() writes (include/linux/module.h of the Linux kernel), ELF-64 little
endian. Nothing is run: no depmod, no modinfo.
"""

import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from imagekit.errors import Problem, unknown
from imagekit.tree import Tree

MODULE = re.compile(r"/usr/lib/modules/([^/]+)/.*/([^/]+)\.ko\Z")
BUILTIN = re.compile(r"/usr/lib/modules/[^/]+/modules\.builtin\Z")


class Module(NamedTuple):
    """One module; names are in the kernel's own spelling, with underscores."""

    path: str  # in the tree
    depends: tuple[str, ...]
    soft: tuple[str, ...]  # to be loaded before it; names or aliases
    aliases: tuple[str, ...]  # without the alias patterns of devices


class Modules(NamedTuple):
    """All modules of one kernel."""

    modules: Mapping[str, Module]
    builtin: frozenset[str]

    def has(self, name: str) -> bool:
        """Whether this kernel has it, as a module or built in."""
        return _spelled(name) in self.modules or _spelled(name) in self.builtin

    def closure(self, names: Iterable[str]) -> tuple[str, ...]:
        """Paths in load order: every module asked for, after what it depends on; built-in ones need no file.

        Raises Problem for a name that this kernel does not have.
        """
        found: dict[str, None] = {}
        for name in names:
            self._add(_spelled(name), found, wanted_by="")
        return tuple(self.modules[name].path for name in found)

    def _add(self, name: str, found: dict[str, None], *, wanted_by: str) -> None:
        if name in found or name in self.builtin:
            return
        if name not in self.modules:
            by = f" (needed by {wanted_by})" if wanted_by else ""
            problem = unknown("kernel module", name + by, [n for n in self.modules if n[:3] == name[:3]])
            raise Problem(f"modules: {problem.message}", problem.hint)
        module = self.modules[name]
        for soft in module.soft:
            for real in self._soft(soft):
                self._add(real, found, wanted_by=name)
        for needed in module.depends:
            self._add(needed, found, wanted_by=name)
        found[name] = None

    def _soft(self, name: str) -> tuple[str, ...]:
        """What a soft dependency means: a module, or the portable implementation behind an alias such as crc32c."""
        if name in self.modules:
            return (name,)
        return tuple(n for n in sorted(self.modules) if name in self.modules[n].aliases and n.endswith("_generic"))


def scan(tree: Tree) -> Modules:
    """Read every module of a kernel package's tree; half a second, so its caller remembers the result."""
    modules, builtin = {}, frozenset[str]()
    for path, entry in tree.items():
        if match := MODULE.match(path):
            modules[_spelled(match[2])] = _module(path, entry.read())
        elif BUILTIN.match(path):
            lines = entry.read().decode().split()
            builtin = frozenset(_spelled(line.rpartition("/")[2].removesuffix(".ko")) for line in lines)
    return Modules(modules, builtin)


def to_json(found: Modules) -> object:
    """The result of a scan as JSON can keep it."""
    return [{name: list(module) for name, module in found.modules.items()}, sorted(found.builtin)]


def from_json(kept: Any) -> Modules:
    """The result of a scan, from what `to_json` gave."""
    modules, builtin = kept
    return Modules(
        {n: Module(m[0], tuple(m[1]), tuple(m[2]), tuple(m[3])) for n, m in modules.items()}, frozenset(builtin)
    )


def _module(path: str, data: bytes) -> Module:
    try:
        info = _modinfo(data)
    except struct.error as error:
        raise Problem(f"{path} is not a kernel module: {error}") from error
    depends = tuple(_spelled(name) for name in ",".join(info.get("depends", [])).split(",") if name)
    soft = tuple(_spelled(name) for text in info.get("softdep", []) for name in _before(text))
    aliases = tuple(_spelled(alias) for alias in info.get("alias", []) if ":" not in alias)
    return Module(path, depends, soft, aliases)


def _before(softdep: str) -> list[str]:
    """The `pre:` part of "pre: a b post: c"."""
    match = re.search(r"pre:\s*(.*?)(?:\s*post:|$)", softdep)
    return match[1].split() if match else []


def _modinfo(data: bytes) -> dict[str, list[str]]:
    """The key=value strings of the section .modinfo (ELF-64 object file format, section header table)."""
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count, names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQ", data, table + number * size) for number in range(count)]
    if names >= count:
        raise struct.error("no section names")
    for header in headers:
        name_at = headers[names][4] + header[0]
        if data[name_at : name_at + 9] == b".modinfo\0":
            strings = data[header[4] : header[4] + header[5]].split(b"\0")
            return _grouped(string.decode("latin-1") for string in strings)
    return {}


def _grouped(strings: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for string in strings:
        key, equals, value = string.partition("=")
        if equals:
            found.setdefault(key, []).append(value)
    return found


def _spelled(name: str) -> str:
    return name.replace("-", "_")
