"""testinfra's `host` over a guest: `host.file("/etc/passwd").user`, `host.service("nginx").is_running`.

For definitions where pytest-testinfra is installed; everything it asks goes through the agent, in /bin/sh.
"""

from functools import cached_property
from typing import Any

from testinfra.backend.base import BaseBackend, CommandResult
from testinfra.host import Host
from testinfra.modules.process import Process
from testinfra.modules.service import Service

from imagekit.errors import unknown

SERVICES = "/etc/imagekit/services"  # early.py puts them there


class GuestBackend(BaseBackend):  # type: ignore[misc] # testinfra has no types
    """How testinfra reaches a guest."""

    NAME = "imagekit"

    def __init__(self, guest: Any) -> None:
        super().__init__(f"{guest.target}-{guest.arch}")
        self._guest, self._encoding = guest, "utf-8"

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Run a shell command in the guest."""
        _ = kwargs  # an encoding, which is always UTF-8 here
        line = self.get_command(command, *args)
        done = self._guest.run(["/bin/sh", "-c", line])
        return self.result(done.code, line.encode(), done.stdout, done.stderr)


class Supervised(Service):  # type: ignore[misc]
    """A service of imagekit's own early boot, under runit."""

    @property
    def exists(self) -> bool:
        """Whether there is such a service."""
        return bool(self._host.file(f"{SERVICES}/{self.name}").is_directory)

    @property
    def is_running(self) -> bool:
        """Whether its program runs."""
        return str(self.run("sv status %s", f"{SERVICES}/{self.name}").stdout).startswith("run:")

    @property
    def is_enabled(self) -> bool:
        """Whether it is started at boot: every service that exists is."""
        return self.exists

    @classmethod
    def get_module_class(cls, host: Host) -> type[Service]:
        """Itself where early boot is ours, else whatever testinfra finds."""
        return cls if host.file(SERVICES).is_directory else Service.get_module_class(host)


class Busybox(Process):  # type: ignore[misc]
    """Processes where ps is busybox's, whose Debian build knows no start time."""

    COLUMNS = ("pid", "ppid", "user", "group", "vsz", "rss", "stat", "comm")  # the last may have spaces

    def _get_processes(self, **filters: object) -> list[dict[str, Any]]:
        for name in filters:
            self._get_process_attribute_by_pid(0, name)
        found: dict[str, dict[str, Any]] = {}
        for line in self._lines(",".join(self.COLUMNS)):
            words = line.split(None, len(self.COLUMNS) - 1)
            row: dict[str, Any] = dict(zip(self.COLUMNS, words, strict=False))
            found[words[0]] = row | {"pid": int(row["pid"]), "ppid": int(row["ppid"]), "lstart": "", "args": ""}
        for line in self._lines("pid,args"):
            pid, _, arguments = line.strip().partition(" ")
            if pid in found:
                found[pid]["args"] = arguments.strip()
        return list(found.values())

    def _lines(self, columns: str) -> list[str]:
        return str(self.check_output("ps -A -o %s", columns)).splitlines()[1:]

    def _get_process_attribute_by_pid(self, pid: int, name: str) -> None:
        _ = pid  # all that there is was asked for at once
        if name not in (*self.COLUMNS, "args"):
            raise unknown("attribute of a process", name, (*self.COLUMNS, "args"))

    @classmethod
    def get_module_class(cls, host: Host) -> type[Process]:
        """Itself where ps is busybox's."""
        found = host.run("readlink -f /bin/ps").stdout.strip()
        return cls if found.endswith("/busybox") else Process.get_module_class(host)


class GuestHost(Host):  # type: ignore[misc]
    """testinfra's host, with nouns that know imagekit's early boot and busybox."""

    @cached_property
    def service(self) -> Any:
        """`host.service("nginx")`."""
        return Supervised.get_module(self)

    @cached_property
    def process(self) -> Any:
        """`host.process.get(comm="nginx")`."""
        return Busybox.get_module(self)


def host(guest: Any) -> Host:
    """testinfra's host over a guest."""
    return GuestHost(GuestBackend(guest))
