"""Image: the definition of an operating-system image, a frozen value; complete without pytest.

Making one does no I/O; definition.py reads one from its file. Everything that can be judged without the archive is
judged here, so that a mistake is told before anything is fetched.
"""

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from imagekit.arch import ARCHES
from imagekit.errors import Problem, unknown
from imagekit.layout import Layout

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*\Z")
DOCS = (  # what an appliance has no reader for; the copyright files are kept
    "/usr/share/man",
    "/usr/share/info",
    "/usr/share/locale",
    "/usr/share/lintian",
    "/usr/share/bug",
    "/usr/share/doc-base",
    "/usr/share/bash-completion",
    "/usr/share/vim",
    "/usr/share/doc/*/changelog*",
    "/usr/share/doc/*/NEWS*",
    "/usr/share/doc/*/README*",
    "/usr/share/doc/*/examples",
)
RESTARTS = ("always", "on-failure", "never")
READY = re.compile(r"(tcp:\d{1,5}|http:\d{1,5}(/\S*)?|file:/\S+|command:.+)\Z", re.DOTALL)


@dataclass(frozen=True)
class File:
    """A file, or a folder with all below it, copied from beside the definition; owner by name or number."""

    source: str
    mode: int | None = None  # default: 0644, or 0755 where the source is executable
    owner: str | int = "root"
    group: str | int = "root"


@dataclass(frozen=True)
class Text:
    """A file whose content stands in the definition."""

    text: str
    mode: int = 0o644
    owner: str | int = "root"
    group: str | int = "root"


@dataclass(frozen=True)
class Symlink:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Directory:
    """An empty folder."""

    mode: int = 0o755
    owner: str | int = "root"
    group: str | int = "root"


@dataclass(frozen=True)
class User:
    """A user with a fixed id; its primary group has the same name and id unless `group` names another."""

    uid: int
    group: str = ""
    groups: tuple[str, ...] = ()  # further groups
    home: str = "/nonexistent"
    shell: str = "/usr/sbin/nologin"


@dataclass(frozen=True)
class Step:
    """A command that runs once, before the services (onboot) or after them (onshutdown)."""

    name: str
    command: str | tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 60.0  # seconds, then it has failed


@dataclass(frozen=True)
class Service:
    """A supervised program that stays in the foreground.

    ready: "tcp:80", "http:80/health", "file:/run/x" or "command:redis-cli ping", judged in the guest; "" means as soon
    as it runs.
    """

    name: str
    command: str | tuple[str, ...]
    user: str = "root"
    env: Mapping[str, str] = field(default_factory=dict)
    after: tuple[str, ...] = ()  # services that must be ready before it is started
    restart: str = "always"  # or "on-failure", "never"
    ready: str = ""
    stop_timeout: float = 10.0  # seconds between SIGTERM and SIGKILL


@dataclass(frozen=True)
class Static:
    """A fixed address: `address` with prefix length, as in "192.0.2.10/24"."""

    address: str
    gateway: str = ""
    dns: tuple[str, ...] = ()
    interface: str = "eth0"


@dataclass(frozen=True)
class Budget:
    """Limits that the image's own tests hold it to."""

    size: str | int = ""  # of the artifact: "40 MiB", or bytes
    boot: str | float = ""  # virtual seconds of the instruction clock until everything is ready: "3 s"

    @property
    def size_bytes(self) -> int | None:
        """The size limit in bytes; None without one."""
        return None if self.size == "" else int(_measure("size", self.size, _SIZES))

    @property
    def boot_seconds(self) -> float | None:
        """The boot limit in virtual seconds of the instruction clock; None without one."""
        return None if self.boot == "" else _measure("boot", self.boot, _TIMES)


@dataclass(frozen=True)
class Image:
    """What an operating-system image consists of. Every field but the name has a default."""

    name: str
    version: str = "0"
    packages: tuple[str, ...] = ()  # "debian:nginx-light"
    suite: str = "bookworm"  # of the Debian packages; its security archive is always included
    without: tuple[str, ...] = ()  # packages ("debconf") and paths ("/usr/share/doc") that are left out
    files: Mapping[str, File | Text | Symlink | Directory] = field(default_factory=dict)
    users: Mapping[str, User] = field(default_factory=dict)
    groups: Mapping[str, int] = field(default_factory=dict)
    kernel: str = ""  # "debian:linux-image-cloud"; "" makes an image that only runs in a namespace
    cmdline: str = "quiet panic=-1"  # of the kernel; the console of the machine is added by the target
    modules: tuple[str, ...] = ()  # kernel modules beyond those that the targets need
    network: str | Static = "dhcp"  # or "none"
    onboot: tuple[Step, ...] = ()
    services: tuple[Service, ...] = ()
    onshutdown: tuple[Step, ...] = ()
    formats: tuple[str, ...] = ("kernel_initrd", "tar")
    arches: tuple[str, ...] = ("x86_64", "aarch64")
    budget: Budget = Budget()
    disk: Layout = Layout()  # how it lies on a disk, in the formats that make one
    firmware: tuple[str, ...] = ()  # "debian:raspi-firmware": of non-free-firmware, whose licence you accept by this

    def __init__(self, name: str = "", **given: Any) -> None:
        known = {f.name: f for f in fields(Image)}
        for field_name in given:
            if field_name not in known:
                problem = unknown("field", field_name, known)
                raise Problem(f"image {name!r}: {problem.message}", problem.hint)
        object.__setattr__(self, "name", name)
        for field_name, f in list(known.items())[1:]:
            default = f.default_factory() if callable(f.default_factory) else f.default
            object.__setattr__(self, field_name, given.get(field_name, default))
        check(self)


def argv(command: str | tuple[str, ...]) -> tuple[str, ...]:
    """A command as its words; a string is split as a shell would split it, and no shell runs it."""
    return tuple(shlex.split(command)) if isinstance(command, str) else tuple(command)


def check(image: Image) -> None:
    """Raise a Problem that names the image and the field for anything that cannot be right."""
    for judge in (
        _check_types,
        _check_names,
        _check_packages,
        _check_files,
        _check_users,
        _check_services,
        _check_network,
        _check_budget,
    ):
        try:
            judge(image)
        except Problem as problem:
            raise type(problem)(f"image {image.name!r}: {problem.message}", problem.hint) from problem


def path_of(written: str) -> str:
    """The one form of a path in an image: no double or trailing slash; /bin, /sbin, /lib* where usrmerge has them."""
    parts = [part for part in written.split("/") if part not in ("", ".")]
    if parts and parts[0] in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        parts.insert(0, "usr")
    return "/" + "/".join(parts)


_TUPLES: Mapping[str, type] = {
    **dict.fromkeys(("packages", "without", "modules", "formats", "arches", "firmware"), str),
    "onboot": Step,
    "services": Service,
    "onshutdown": Step,
}
_VALUES: Mapping[str, type] = {
    **dict.fromkeys(("name", "version", "suite", "kernel", "cmdline"), str),
    "files": Mapping,
    "users": Mapping,
    "groups": Mapping,
    "budget": Budget,
    "disk": Layout,
}
_SIZES = {"": 1, "B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
_TIMES = {"": 1.0, "s": 1.0, "ms": 1e-3, "min": 60.0}


def _measure(what: str, value: str | float, units: Mapping[str, float]) -> float:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)", str(value))
    if not match or match[2] not in units:
        raise Problem(
            f"budget: {what} {value!r} is no measure", f"a number and one of {', '.join(filter(None, units))}"
        )
    return float(match[1]) * units[match[2]]


def _check_types(image: Image) -> None:
    for name, kind in _TUPLES.items():
        value = getattr(image, name)
        if not isinstance(value, tuple):
            raise Problem(
                f"{name} is a {type(value).__name__}, not a tuple", f"write {name}=({value!r},)" if value else ""
            )
        for item in value:
            if not isinstance(item, kind):
                raise Problem(f"{name}: {item!r} is not a {kind.__name__}")
    for name, kind in _VALUES.items():
        if not isinstance(getattr(image, name), kind):
            raise Problem(f"{name}: {getattr(image, name)!r} is not a {kind.__name__.lower()}")
    if image.network not in ("dhcp", "none") and not isinstance(image.network, Static):
        raise Problem(f"network: {image.network!r} is none of 'dhcp', 'none', Static(...)")


def _check_names(image: Image) -> None:
    if not NAME.match(image.name):
        raise Problem(f"name: {image.name!r} is no name", "lower-case letters, digits, '-', '.' and '+'")
    if not NAME.match(image.version.lower()):
        raise Problem(f"version: {image.version!r} is no version", "letters, digits, '-', '.' and '+'")
    for field_name in ("services", "onboot", "onshutdown"):
        seen: set[str] = set()
        for item in getattr(image, field_name):
            if not NAME.match(item.name):
                raise Problem(f"{field_name}: {item.name!r} is no name", "lower-case letters, digits, '-', '.' and '+'")
            if item.name in seen:
                raise Problem(f"{field_name}: {item.name!r} is given twice")
            seen.add(item.name)
    if not image.arches or not image.formats:
        raise Problem("arches and formats must each name at least one")
    for name in image.arches:
        if name not in ARCHES:
            raise unknown("architecture", name, ARCHES)


def _check_packages(image: Image) -> None:
    for name in (*image.packages, *image.firmware, *filter(None, (image.kernel,))):
        source, colon, package = name.partition(":")
        if not colon or not source or not package:
            raise Problem(f"packages: {name!r} names no source", f"write 'debian:{name}'")
    for field_name in ("packages", "without", "modules", "formats", "arches", "firmware"):
        value = getattr(image, field_name)
        for item in value:
            if value.count(item) > 1:
                raise Problem(f"{field_name}: {item!r} is given twice")


def _check_files(image: Image) -> None:
    check_files(image.files)
    for path in image.without:
        if "/" in path:
            _check_path("without", path)


def check_files(files: Mapping[str, File | Text | Symlink | Directory]) -> None:
    """Raise a Problem for files that no image could have."""
    seen: dict[str, str] = {}
    for written, content in files.items():
        _check_path("files", written)
        if not isinstance(content, (File, Text, Symlink, Directory)):
            raise Problem(
                f"files: {written}: {content!r} is none of File, Text, Symlink, Directory", f"write Text({content!r})"
            )
        path = path_of(written)
        if path in seen:
            raise Problem(f"files: {path} is given twice, as {seen[path]!r} and {written!r}")
        seen[path] = written
        if isinstance(content, File) and (content.source.startswith("/") or ".." in content.source.split("/")):
            raise Problem(
                f"files: {written}: {content.source!r} is not beside the definition",
                "name it relative to the definition's folder",
            )


def _check_path(field_name: str, path: str) -> None:
    if not path.startswith("/"):
        raise Problem(f"{field_name}: {path!r} is a relative path", f"write {'/' + path!r}")
    if ".." in path.split("/") or "\0" in path or "\n" in path or path_of(path) == "/":
        raise Problem(f"{field_name}: {path!r} is no path of an image")


def _check_users(image: Image) -> None:
    ids: dict[int, str] = {}
    for name, user in image.users.items():
        if (
            not isinstance(name, str)
            or not NAME.match(name)
            or not isinstance(user, User)
            or not 0 <= user.uid < 2**32 - 1
        ):
            raise Problem(f"users: {name!r} is no user", 'write users={"www": User(uid=900)}')
        if user.uid in ids:
            raise Problem(f"users: {name!r} and {ids[user.uid]!r} have the same id {user.uid}")
        ids[user.uid] = name
    for name, gid in image.groups.items():
        if not isinstance(name, str) or not NAME.match(name) or not isinstance(gid, int) or not 0 <= gid < 2**32 - 1:
            raise Problem(f"groups: {name!r}: {gid!r} is no group", 'write groups={"www": 900}')


def _check_services(image: Image) -> None:
    names = {service.name for service in image.services}
    runs: tuple[Step | Service, ...] = (*image.onboot, *image.services, *image.onshutdown)
    for step in runs:
        _check_command(step.name, step.command)
        seconds = step.timeout if isinstance(step, Step) else step.stop_timeout
        if not isinstance(seconds, int | float) or not 0 < seconds < 1e6:
            raise Problem(f"{step.name}: a timeout of {seconds!r} is no number of seconds")
    for service in image.services:
        if service.restart not in RESTARTS:
            problem = unknown("restart policy", service.restart, RESTARTS)
            raise Problem(f"services: {service.name}: {problem.message}", problem.hint)
        if service.ready and not _is_ready_condition(service.ready):
            hint = "tcp:80, http:80/path, file:/path or command:..."
            raise Problem(f"services: {service.name}: ready={service.ready!r} is no condition", hint)
        for other in service.after:
            if other not in names:
                problem = unknown("service", other, names - {service.name})
                raise Problem(f"services: {service.name}: after: {problem.message}", problem.hint)
    _check_order(image)


def _check_command(name: str, command: str | tuple[str, ...]) -> None:
    try:
        words = argv(command)
    except ValueError as error:  # of shlex: a quotation that does not end
        raise Problem(f"{name}: the command {command!r} does not split into words: {error}") from error
    if not words or not words[0].startswith("/"):
        raise Problem(f"{name}: the command {command!r} does not begin with an absolute path")


def _is_ready_condition(ready: str) -> bool:
    kind, _, rest = ready.partition(":")
    port = rest.partition("/")[0]
    return READY.match(ready) is not None and (kind not in ("tcp", "http") or 0 < int(port) < 65536)


def _check_order(image: Image) -> None:
    after = {service.name: set(service.after) for service in image.services}
    while startable := {name for name, waits in after.items() if not waits & after.keys()}:
        for name in startable:
            del after[name]
    if after:
        raise Problem(f"services: {', '.join(sorted(after))} wait for each other", "break the circle in after=(...)")


def _check_network(image: Image) -> None:
    if not isinstance(image.network, Static):
        return
    from ipaddress import ip_address, ip_interface

    static = image.network
    try:
        if "/" not in static.address:
            raise ValueError(f"{static.address!r} has no prefix length")
        _ = ip_interface(static.address), [ip_address(other) for other in (static.gateway, *static.dns) if other]
        if not re.fullmatch(r"[^\s/]{1,15}", static.interface):
            raise ValueError(f"{static.interface!r} is no name of an interface")
    except ValueError as error:
        raise Problem(f"network: {error}", 'write Static("192.0.2.10/24", gateway="192.0.2.1")') from error


def _check_budget(image: Image) -> None:
    _ = image.budget.size_bytes, image.budget.boot_seconds
