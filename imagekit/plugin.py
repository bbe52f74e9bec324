"""pytest to library: options become parameters, fixtures become calls, facts become a report.

It is loaded in every run of whoever has imagekit installed, so it imports next to nothing before a definition is seen.
What a test may ask for stands in fixtures.py; docs/testing.md shows how it is used.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from imagekit import fixtures, progress

DIMENSIONS = ("arch", "format", "target")
PARAMS = ("_imagekit_arch", "_imagekit_format", "_imagekit_target", "_imagekit_sandbox")  # what the matrix fills in
BENCH, LINES = pytest.StashKey[fixtures.Bench](), pytest.StashKey[progress.Lines]()

for _name, _scope in fixtures.SCOPES.items():
    globals()[_name] = pytest.fixture(scope=_scope, name=_name)(getattr(fixtures, _name))
for _name in PARAMS:
    globals()[_name] = pytest.fixture(scope="module", name=_name)(fixtures.param)
_imagekit = pytest.fixture(scope="session", name="_imagekit")(lambda pytestconfig: pytestconfig.stash[BENCH])
pytest.register_assert_rewrite("imagekit.checks")


def _is_problem(error: BaseException | None) -> bool:
    """Whether an error is one to be shown as its message alone; a Defect keeps its traceback."""
    from imagekit import errors

    return isinstance(error, errors.Problem) and not isinstance(error, errors.Defect)


@contextmanager
def _told(kind: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if _is_problem(error):
            raise kind(str(error)) from None
        raise


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
    add("tools", choices=("auto", "host", "tree"), help="where QEMU and its like come from (default: auto)")
    add("key", metavar="FILE", help="sign and verify with this key")
    add("image-report", metavar="FILE", help="write what was measured as JSON lines")


def pytest_configure(config: pytest.Config) -> None:
    """Judge names wherever they were given; let a worker of xdist end with its controller, even by kill -9."""
    for name in DIMENSIONS:
        _option(config, name)
    report = Path(_option(config, "image-report", "r")).absolute()
    if not report.parent.is_dir() or report.is_dir():
        raise pytest.UsageError(f"--image-report: {report} cannot be a file: make its folder, or name another")
    put, columns = _terminal(config)
    config.stash[LINES] = progress.Lines(put, columns=columns)
    config.stash[BENCH] = fixtures.Bench(partial(_option, config), config.stash[LINES].say, {}, set())
    if hasattr(config, "workerinput"):
        from imagekit import namespace

        namespace.die_with(os.getppid())


def _option(config: pytest.Config, name: str, default: Any = None) -> Any:
    from imagekit import options

    given = config.getoption(f"imagekit_{name}", None)
    with _told(pytest.UsageError):
        value = options.lookup(name, given, folder=config.rootpath, default=default)
        if value and name in DIMENSIONS:
            from imagekit import matrix

            return matrix.check(name, value)
    return value


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

    return f"imagekit: {imagekit.__version__}, tools: {_option(config, 'tools', 'auto')}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Plain -n keeps a definition's machines of one architecture on one worker; any --dist is obeyed as it is."""
    from imagekit import scheduler

    is_ours = config.getoption("dist") == "load" and scheduler.is_worth_it(config)
    return scheduler.MachineScheduling(config, log) if is_ours else None


class Definition(pytest.Module):
    """A module that defines an image, imported by its path: images/http.py hides no other http."""

    def _getobj(self) -> Any:
        from imagekit import definition

        hook: Any = self.config.pluginmanager.rewrite_hook
        with _told(self.CollectError):
            module = definition.load_module(self.path, loader=hook if hasattr(hook, "exec_module") else None)
        self.config.pluginmanager.consider_module(module)
        return module


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Any:
    """A definition is one by any name: named on the command line, or test_*.py."""
    from imagekit import definition

    is_one = module_path.name != "conftest.py" and definition.looks_like_one(module_path)
    return Definition.from_parent(parent, path=module_path) if is_one else None


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> Any:
    """Collect every definition, whatever its file is called; what pytest collects anyway is not collected twice."""
    found = yield
    if file_path.suffix == ".py" and not any(isinstance(collector, pytest.Module) for collector in found):
        found = [*found, *filter(None, [pytest_pycollect_makemodule(file_path, parent)])]
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Which fixtures a test needs decides how far its image is built, and so in which places of the matrix it runs."""
    names = [name for name in PARAMS if name in metafunc.fixturenames]
    if not names:
        return
    from imagekit import matrix

    columns = [min(PARAMS.index(name), 2) for name in names]
    if columns.count(2) == 2:
        raise pytest.Collector.CollectError(f"{metafunc.function.__name__}: a test asks for guest or sandbox, not both")
    with _told(pytest.Collector.CollectError):
        points = matrix.places(
            _image_in(metafunc.module) or matrix.UNNAMED, depth=columns[-1] + 1, boots=PARAMS[2] in names
        )
    points = points or [matrix.NOWHERE]  # is deselected; an empty parametrisation would be a skipped test
    rows = [[point[column] for column in columns] for point in points]
    metafunc.parametrize(names, rows, indirect=True, ids=["-".join(filter(None, point)) for point in points])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what was not asked for, and order the rest so that every machine starts once."""
    images = {item: _image_of(item) for item in items}
    if not any(images.values()):
        return
    from imagekit import matrix

    with _told(pytest.UsageError):
        placed = [matrix.Placed(item, item.path, images[item], matrix.Point(*_point(item))) for item in items]
        items[:], left = matrix.arranged(placed, matrix.Selection(*(_option(config, name, ()) for name in DIMENSIONS)))
    config.hook.pytest_deselected(items=left)


def _image_in(module: Any) -> Any:
    from imagekit.image import Image

    found = getattr(module, "image", None)
    return found if isinstance(found, Image) else None


def _image_of(item: pytest.Item) -> Any:
    """The image that a test judges: the matrix filled something in, or it stands in a definition; None for others."""
    module = item.getparent(pytest.Module if any(_point(item)) else Definition)
    if module is None:
        return None
    from imagekit import matrix

    return _image_in(module.obj) or (matrix.UNNAMED if any(_point(item)) else None)


def _point(item: pytest.Item) -> tuple[str, str, str]:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    arch, format, target, sandbox = (params.get(name, "") for name in PARAMS)
    return arch, format, target or sandbox


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Facts travel with the report; a Problem is shown without frames, and a guest's console beside what failed."""
    item.config.stash[LINES].clear()
    if call.when == "setup" and (image := _image_of(item)):
        from imagekit import report

        bench = item.config.stash[BENCH]
        item.user_properties += report.told(image.name, (item.path, *_point(item)), bench.facts, bench.told)
    if call.excinfo and not isinstance(call.excinfo.value, pytest.skip.Exception):
        console = getattr(getattr(item, "funcargs", {}).get("guest"), "console", None)
        if console and call.when:
            item.add_report_section(call.when, "stdout guest console", console.end(60))
        if _is_problem(call.excinfo.value):
            failure = pytest.fail.Exception(str(call.excinfo.value), pytrace=False)
            call.excinfo = pytest.ExceptionInfo.from_exception(failure.with_traceback(call.excinfo.tb))
    return (yield)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The table of what was built and booted against its budgets, and the file that --image-report asks for."""
    path = _option(config, "image-report")
    told = (test for tests in terminalreporter.stats.values() for test in tests)
    if not path and not any(getattr(test, "user_properties", ()) for test in told):
        return
    from imagekit import report

    rows = report.rows(terminalreporter.stats)
    if path:
        Path(path).write_text(report.json_lines(rows), encoding="utf-8")
    if rows:
        terminalreporter.section("images")
        terminalreporter.write("\n".join([*report.table(rows), *report.notes(rows), ""]))
