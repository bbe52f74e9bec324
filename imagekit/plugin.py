"""pytest to library: options become parameters, fixtures become calls, facts become a report.

It is loaded in every run of whoever has imagekit installed, so it imports next to nothing before a definition is seen.
What is collected stands in collection.py, what a test may ask for in fixtures.py, what is reported in outcomes.py;
docs/testing.md shows how it is used.
"""

import argparse
import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imagekit import aftercare, collection, fixtures, outcomes, progress, testimony
from imagekit.bench import BENCH, DIMENSIONS, Bench, option, told
from imagekit.collection import PARAMS

PARTS = (collection, aftercare, outcomes, testimony)  # with hooks of their own

for _name, _scope in fixtures.SCOPES.items():
    globals()[_name] = pytest.fixture(scope=_scope, name=_name)(getattr(fixtures, _name))
for _name in PARAMS:
    globals()[_name] = pytest.fixture(scope="module", name=_name)(fixtures.param)
_imagekit = pytest.fixture(scope="session", name="_imagekit")(lambda pytestconfig: pytestconfig.stash[BENCH])
pytest.register_assert_rewrite("imagekit.checks")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Each can also be a variable (IMAGEKIT_ARCH) or stand in [tool.imagekit]; see options.py."""
    from imagekit import arch, plugs

    group = parser.getgroup("imagekit", "images: build, boot and judge them")

    def add(name: str, **how: Any) -> None:
        try:
            group.addoption(f"--{name}", dest=f"imagekit_{name}", **how)
        except (ValueError, argparse.ArgumentError):  # another plugin was first; ours must end nobody's run
            group.addoption(f"--imagekit-{name}", dest=f"imagekit_{name}", **how)

    known: list[Any] = [arch.ARCHES, plugs.own("formats"), plugs.own("targets")]
    for name, names in zip(DIMENSIONS, known, strict=True):
        shown = f"only this {name} (repeatable): {', '.join(sorted(names))}"
        add(name, action="append", metavar="NAME", help=shown)
    add("full", action="store_const", const="yes", help="tests that are marked with a sample run everywhere")
    add("tools", choices=("auto", "host", "tree"), help="where QEMU and its like come from (default: auto)")
    add("key", metavar="FILE", help="sign and verify with this key")
    add("boot-keys", metavar="DIR", help="keys of protected images (see docs/secure-boot.md)")
    add("accel", choices=("auto", "kvm", "tcg"), help="how machines run (default: auto, which asks a probe guest)")
    add("timeout-scale", metavar="N", help="multiply every time-out of a guest by N")
    add("on-failure", choices=outcomes.WAYS, help="keep the machine of a failed test, or open a shell in it")
    add("failures", metavar="DIR", help="where to keep what is known of failed tests (default: in the cache)")
    add("compare", metavar="REV", help="judge each image against the one of another revision: size, packages, boot")
    add("update-baseline", action="store_const", const="yes", help="put how images boot on record, beside them")
    add("attest", metavar="DIR", help="sign which tests each artifact passed, into a folder (see docs/proofs.md)")
    add("image-report", metavar="FILE", help="write what was measured as JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    """Judge names wherever they were given; let a worker of xdist end with its controller, even by kill -9."""
    for name in DIMENSIONS:
        option(config, name)
    with told(pytest.UsageError):
        fixtures.timeout_scale(option(config, "timeout-scale", 1.0))
    if boot_keys := option(config, "boot-keys", ""):
        os.environ["IMAGEKIT_BOOT_KEYS"] = str(Path(boot_keys).absolute())  # for builds, in processes that we start too
    report = Path(option(config, "image-report", "r")).absolute()
    if not report.parent.is_dir() or report.is_dir():
        raise pytest.UsageError(f"--image-report: {report} cannot be a file: make its folder, or name another")
    put, columns = _terminal(config)
    config.stash[BENCH] = Bench(partial(option, config), progress.Lines(put, columns=columns), {}, set(), set(), {})
    for part in PARTS:
        config.pluginmanager.register(part, part.__name__)
    if hasattr(config, "workerinput"):
        from imagekit import namespace

        namespace.die_with(os.getppid())


def _terminal(config: pytest.Config) -> tuple[Callable[[str], None], int]:
    """How to write past pytest's capture, and how wide a line may be; 0 where a line cannot be taken back."""
    worker = getattr(config, "workerinput", {}).get("workerid", "")

    def put(text: str) -> None:
        capture = config.pluginmanager.getplugin("capturemanager")
        reporter = config.pluginmanager.getplugin("terminalreporter")
        with capture.global_and_fixture_disabled() if capture else nullcontext():
            if reporter and not worker:
                reporter.ensure_newline()
                reporter.write(text, flush=True)
            elif worker:  # its stdout is xdist's own channel
                os.write(2, f"imagekit {worker}: {text}".encode())

    return put, os.get_terminal_size(1).columns if os.isatty(1) and not worker else 0


def pytest_report_header(config: pytest.Config) -> str:
    """One line: the version, and where tools come from."""
    import imagekit

    return f"imagekit: {imagekit.__version__}, tools: {option(config, 'tools', 'auto')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Plain -n keeps a definition's machines of one architecture on one worker; any --dist is obeyed as it is."""
    from imagekit import scheduler

    is_ours = config.getoption("dist") == "load" and scheduler.is_worth_it(config)
    return scheduler.MachineScheduling(config, log) if is_ours else None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of what was built and booted against its budgets, and the file that --image-report asks for."""
    path = option(config, "image-report")
    tests = [test for tests in terminalreporter.stats.values() for test in tests]
    for line in outcomes.summary(terminalreporter.stats):
        terminalreporter.write_line(line)
    _trim(terminalreporter, config)
    if not path and not any(getattr(test, "user_properties", ()) for test in tests):
        return
    from imagekit import report

    rows = report.rows(terminalreporter.stats)
    if path:
        Path(path).write_text(report.json_lines(rows), encoding="utf-8")
    if rows:
        terminalreporter.section("images")
        terminalreporter.write(
            "\n".join([*report.table(rows), *report.notes(rows), *report.charts(rows), *report.comparisons(rows), ""])
        )


def _trim(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Make the cache as small as the option cache-size says; its workers and machines have ended by now."""
    from imagekit import options

    if options.lookup("cache-size", folder=config.rootpath) is None:
        return
    from imagekit import room, stamp
    from imagekit.errors import Problem

    try:
        room.limit(Path(stamp.cache_location()), room.most(config.rootpath), say=terminalreporter.write_line)
    except Problem as problem:
        terminalreporter.write_line(f"cache-size: {problem}")
