"""What is done about machines around a test: they are looked at before and after, and a broken one is replaced."""

import sys
from collections.abc import Iterable, Iterator, Set
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imagekit import fixtures
from imagekit.bench import BENCH, told
from imagekit.collection import point

ALLOWS = "allows(name, ..., match=REGEX): the test may leave this damage (checks/damage.py has the names)"
SNOOZE = "snooze(until='YYYY-MM-DD', reason='...'): until then a failure is expected; afterwards it fails"
SNOOZED = "snoozed until "
HINT = "a test that changes its machine asks for `fresh` or `boot`; @pytest.mark.allows states an exception"


class Began(NamedTuple):
    """How the machines of a test were when it began."""

    looks: dict[int, Any]  # id of the guest -> damage.Look
    events: dict[int, int]  # id of the guest -> how many it had told
    at: float  # seconds of CLOCK_REALTIME


LAST = pytest.StashKey[dict[int, Any]]()  # id of the guest -> its last look
BEGAN, BROKEN, MOUNTS = pytest.StashKey[Began](), pytest.StashKey[bool](), pytest.StashKey[Set[str]]()


def is_topology(value: object) -> bool:
    """Whether a fixture's value is several machines."""
    return _is(value, "topology", "Topology")


def _is(value: object, module: str, name: str) -> bool:
    """Whether a value is of a class of ours; nothing is loaded to find out: who made it has loaded it."""
    loaded = sys.modules.get(f"imagekit.{module}")
    return loaded is not None and isinstance(value, getattr(loaded, name))


def machines(item: pytest.Item) -> dict[str, Any]:
    """The guests that a test uses, by words for them; those of a topology, too."""
    found: dict[str, Any] = {}
    if "_imagekit_target" not in getattr(item, "fixturenames", ()):
        return found  # whoever makes a guest otherwise looks after it
    for name, value in getattr(item, "funcargs", {}).items():
        if name in ("guest", "fresh") and _is(value, "guest", "Guest"):  # others have arguments of that name
            found[name] = value
        elif isinstance(value, fixtures.Boots):
            found |= {f"{name}-{n}": guest for n, guest in enumerate(value.started, 1)}
        elif is_topology(value):  # by whatever name a fixture gives it
            found |= {f"{name}.{node}": guest for node, guest in value.guests.items()}
    return found


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest know our markers."""
    for line in (ALLOWS, SNOOZE):
        config.addinivalue_line("markers", line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Judge markers before anything runs: a typo, a bad date."""
    with told(pytest.Collector.CollectError):
        for _ in _allowed(metafunc.definition, ()):
            pass
        for mark in metafunc.definition.iter_markers("snooze"):
            _until(metafunc.definition, mark)


def pytest_itemcollected(item: pytest.Item) -> None:
    """A snoozed test may fail until its day; a marker that says nothing is told when the test runs."""
    for mark in list(item.iter_markers("snooze")):
        day = mark.kwargs.get("until")
        with suppress(ValueError):
            day = day if isinstance(day, date) else date.fromisoformat(str(day))
            if date.today() <= day:
                reason = f"{SNOOZED}{day}: {mark.kwargs.get('reason')}"
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False), append=False)


def _until(item: pytest.Item, mark: pytest.Mark) -> date:
    """The last day of a snooze; raises Problem for one that has none, or no reason."""
    from imagekit.errors import Problem

    until, reason = mark.kwargs.get("until"), mark.kwargs.get("reason")
    with suppress(ValueError):
        day = until if isinstance(until, date) else date.fromisoformat(str(until))
        if not mark.args and set(mark.kwargs) == {"until", "reason"} and str(reason).strip():
            return day
    raise Problem(f"{item.nodeid}: {mark!r} is no snooze", "@pytest.mark." + SNOOZE.partition(":")[0])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Note what is mounted on this machine."""
    session.config.stash[MOUNTS] = _mounts()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A machine or a mount that outlives the run is a failure of the rig, whatever the tests said."""
    if not session.config.stash[BENCH].facts:
        return
    lost = [f"a mount was left: {place}" for place in sorted(_mounts() - session.config.stash[MOUNTS])]
    lost += [f"process {pid} still runs: {words}" for pid, words in _children() if "qemu-system-" in words]
    for line in lost:
        session.config.stash[BENCH].say(f"LEAKED: {line}")
    if lost and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _mounts() -> Set[str]:
    return {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}


def _children() -> Iterator[tuple[int, str]]:
    """Our own processes: (pid, the beginning of its command line)."""
    for task in Path("/proc/self/task").iterdir():
        for pid in (task / "children").read_text().split():
            with suppress(OSError):  # it has ended meanwhile
                yield (
                    int(pid),
                    Path(f"/proc/{pid}/cmdline").read_bytes()[:300].replace(b"\0", b" ").decode(errors="replace"),
                )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A test that leaves a machine damaged has failed, and the next test gets a clean one."""
    _check_snoozes(item)
    shared = machines(item)
    if not shared and not any(isinstance(value, fixtures.Boots) for value in getattr(item, "funcargs", {}).values()):
        return (yield)
    from time import time

    from imagekit.checks import damage

    looks = {id(guest): damage.look(guest) for guest in shared.values()}
    item.stash[LAST] = dict(looks)
    item.stash[BEGAN] = Began(looks, {id(guest): len(guest.events()) for guest in shared.values()}, time())
    try:
        result = yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        if said := _damage(item):
            item.add_report_section("call", "stdout damage", said)
        raise
    if said := _damage(item):
        from imagekit.errors import GuestProblem

        raise GuestProblem(f"{item.name} left damage behind\n{said}", HINT)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Any:
    """Take a damaged machine away from the tests that follow: the fixture starts another one when it is asked for."""
    try:
        result = yield
        if said := _late_damage(item):
            from imagekit.errors import GuestProblem

            raise GuestProblem(f"{item.name}: tearing down its fixtures left damage behind\n{said}", HINT)
        return result
    finally:
        if item.stash.get(BROKEN, False):
            info: Any = getattr(item, "_fixtureinfo", None)
            for definition in info.name2fixturedefs.get("guest", ())[:1]:  # the first is ours: others rest on it
                item.config.stash[BENCH].damaged.add((item.path, *point(item)))
                definition.finish(item._request)  # type: ignore[attr-defined]


def _check_snoozes(item: pytest.Item) -> None:
    """A snooze that is over is a failure: what it put off has not been done."""
    for mark in item.iter_markers("snooze"):
        if date.today() > (day := _until(item, mark)):
            pytest.fail(f"snoozed until {day}, which is over: {mark.kwargs['reason']}", pytrace=False)


def _damage(item: pytest.Item) -> str:
    """What the test broke and has no leave to break, a line each."""
    from imagekit.checks import damage

    lines: list[str] = []
    boots = [value for value in getattr(item, "funcargs", {}).values() if isinstance(value, fixtures.Boots)]
    awaited = [guest for value in boots for guest in value.awaited]
    for name, guest in machines(item).items():
        if any(guest is one for one in awaited):
            continue
        before = item.stash[LAST].get(id(guest), damage.Look(0, None))
        found, item.stash[LAST][id(guest)] = damage.since(before, guest)
        if name == "guest" and (found or not guest.is_alive()):
            item.stash[BROKEN] = True  # allowed or not: nobody else shall have it
        if name != "guest":  # the test's own, to be used up; only kernels may not break, and services of a topology
            judged = damage.OF_THE_KERNEL | ({"service"} if "." in name else set())
            found = [broken for broken in found if broken.name in judged]
        allowed = list(_allowed(item, found))
        lines += [f"  {name}: {broken}" for broken in found if broken not in allowed]
    return "\n".join(lines)


def _late_damage(item: pytest.Item) -> str:
    """What became of the shared machine since the test's own part was over."""
    if BEGAN not in item.stash or item.stash.get(BROKEN, False):
        return ""
    guest = machines(item).get("guest")
    return _damage(item) if guest is not None and guest.is_alive() else ""


def _allowed(item: pytest.Item, found: Iterable[Any]) -> Iterable[Any]:
    """The damage that markers allow; raises Problem for a marker that says nothing."""
    import re

    from imagekit.checks import damage
    from imagekit.errors import Problem, unknown

    for mark in item.iter_markers("allows"):
        if not mark.args or set(mark.kwargs) - {"match"}:
            raise Problem(f"{item.nodeid}: {mark!r} allows nothing", "@pytest.mark." + ALLOWS.partition(":")[0])
        for name in mark.args:
            if name not in damage.KNOWN:
                problem = unknown("damage", str(name), damage.KNOWN)
                raise Problem(f"{item.nodeid}: @pytest.mark.allows: {problem.message}", problem.hint)
        try:
            pattern = re.compile(mark.kwargs.get("match", ""))
        except (re.error, TypeError) as error:
            raise Problem(f"{item.nodeid}: @pytest.mark.allows: match: {error}", "Python's `re` says how") from None
        yield from (broken for broken in found if broken.name in mark.args and pattern.search(broken.words))
