"""What became of a test, as it is reported: facts, problems without frames, and what its machines had to say."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagekit.aftercare import BEGAN, SNOOZED, Began, is_topology, machines
from imagekit.bench import BENCH, is_problem, option
from imagekit.collection import image_of, point

WAYS = ("shell", "keep")  # of --on-failure
KEPT = "imagekit.kept"  # a property: the folder of a failure


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Facts travel with the report; a Problem is shown without frames, beside what its machines said."""
    bench = item.config.stash[BENCH]
    bench.lines.clear()
    if call.when == "setup" and (image := image_of(item)):
        from imagekit import report

        item.user_properties += report.told(image.name, (item.path, *point(item)), bench.facts, bench.told)
    found = machines(item)
    if call.when == "call" and found:
        from imagekit import report

        item.user_properties += report.not_restored(found)
        if "guest" in found:
            item.user_properties += report.booted(found["guest"].facts)
        if compared := getattr(item, "funcargs", {}).get("comparison"):
            item.user_properties.append((report.COMPARED, compared.table()))
    if call.excinfo and not isinstance(call.excinfo.value, pytest.skip.Exception):
        is_expected = call.when == "call" and item.get_closest_marker("xfail") is not None
        if call.when != "teardown" and not is_expected and image_of(item):
            _describe(item, call, found)
        if is_problem(call.excinfo.value):
            failure = pytest.fail.Exception(str(call.excinfo.value), pytrace=False)
            call.excinfo = pytest.ExceptionInfo.from_exception(failure.with_traceback(call.excinfo.tb))
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: Any, call: pytest.CallInfo[Any]) -> None:
    """--on-failure=shell: into the machine as it is, before anything is taken down."""
    if not isinstance(node, pytest.Item) or call.when != "call" or _way(node.config) != "shell":
        return
    with _own_terminal(node.config) as is_terminal:
        if is_terminal:
            from imagekit import attach

            for name, guest in machines(node).items():
                if guest.is_alive():
                    attach.shell(guest, f"{node.nodeid}: {name}")


def pytest_configure(config: pytest.Config) -> None:
    """Let a guest's words reach a JUnit file whatever junit_logging says of other tests' output."""
    config.pluginmanager.register(_Junit(config), "imagekit.junit")


class _Junit:
    """Stands around pytest's own writer of JUnit files, whose `logging` decides what of a report it takes."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Any:
        """A failed test of machines is told with their consoles."""
        writers: list[Any] = [p for p in self._config.pluginmanager.get_plugins() if type(p).__name__ == "LogXML"]
        quiet = [writer for writer in writers if writer.logging == "no" and any(map(_is_guests, report.sections))]
        for writer in quiet:
            writer.logging = "system-out"
        try:
            return (yield)
        finally:
            for writer in quiet:
                writer.logging = "no"


def _is_guests(section: tuple[str, str]) -> bool:
    return any(
        f" {word} " in section[0] for word in ("console", "events", "logs")
    )  # "Captured stdout guest console call"


def _describe(item: pytest.Item, call: pytest.CallInfo[None], found: Mapping[str, Any]) -> None:
    """Add to the report what the machines say, and keep it in a folder."""
    from imagekit import failure
    from imagekit.errors import Problem

    began = item.stash.get(BEGAN, Began({}, {}, call.start))
    seen = []
    for name, guest in found.items():
        look = began.looks.get(id(guest))
        seen.append(failure.Seen(name, guest, look.console if look else 0, began.events.get(id(guest), 0), began.at))
        for title, text in failure.sections(seen[-1]):
            item.add_report_section(str(call.when), f"stdout {title}", text)
    if isinstance(call.excinfo and call.excinfo.value, pytest.xfail.Exception) or not _has_words(call, seen):
        return
    try:
        lines = _kept(item, call, seen)
    except Problem as problem:
        lines = [str(problem)]
    item.add_report_section(str(call.when), "stdout kept", "\n".join(lines))


def _has_words(call: pytest.CallInfo[None], seen: Sequence[Any]) -> bool:
    """Whether there is a machine to tell of, or one that never became ready, whose Problem tells how it starts."""
    return bool(seen) or "\nguest| " in str(call.excinfo and call.excinfo.value)


def _kept(item: pytest.Item, call: pytest.CallInfo[None], seen: Sequence[Any]) -> list[str]:
    """Keep the machines of a failed test as files; where they are, for the report."""
    from imagekit import failure

    way = _way(item.config)
    with _own_terminal(item.config) as is_terminal:
        with_machine = way == "keep" or (way == "shell" and not is_terminal)
    folder = failure.open_folder(failures(item.config), item.nodeid)
    missing = [failure.keep(folder, one, machine=with_machine) for one in seen]
    for net in getattr(item, "funcargs", {}).values():
        for name, network in getattr(net, "networks", {}).items() if is_topology(net) else ():
            (folder / f"{name}.pcap").write_bytes(network.capture.pcap())  # for tcpdump and Wireshark
    said = "; ".join(filter(None, missing))
    if not seen and call.excinfo:
        failure.keep_start(folder, call.excinfo.value)
    failure.describe(folder, item.nodeid, {one.name: one.guest.target for one in seen}, said)
    item.user_properties.append((KEPT, str(folder)))
    lines = [str(folder)]
    if with_machine and way == "shell":
        lines.append("no shell: this run has no terminal of its own, so the machine was kept")
    if with_machine and any((folder / f"{one.name}.machine").is_dir() for one in seen):
        lines.append(f"imagekit attach '{item.nodeid}'")
    return [*lines, *filter(None, [said])]


def failures(config: pytest.Config) -> Path:
    """Where failures are kept."""
    from imagekit.stores.directory import open_store

    given = option(config, "failures")
    return Path(given).absolute() if given else open_store().folder("failures")


def summary(stats: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """Lines for the end of the run: what is snoozed, and until when."""
    words = [str(getattr(test, "wasxfail", "")) for name in ("xfailed", "xpassed") for test in stats.get(name, ())]
    until = sorted(word.removeprefix(SNOOZED).partition(":")[0] for word in words if word.startswith(SNOOZED))
    if until:
        yield f"snoozed: {len(until)}, the first until {until[0]}"


def _way(config: pytest.Config) -> str:
    return str(option(config, "on-failure", ""))


@contextmanager
def _own_terminal(config: pytest.Config) -> Iterator[bool]:
    """The user's own stdin and stdout while it lasts; False where nobody can type: a worker of xdist, a pipeline."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    if capture:
        capture.suspend(in_=True)
    try:
        yield not hasattr(config, "workerinput") and os.isatty(0) and os.isatty(1)
    finally:
        if capture:
            capture.resume()
