"""What pytest collects and selects: definitions by any file name, the matrix, an order that starts machines once."""

from pathlib import Path
from typing import Any

import pytest

from imagekit import fixtures
from imagekit.bench import DIMENSIONS, option, told

PARAMS = ("_imagekit_arch", "_imagekit_format", "_imagekit_target", "_imagekit_sandbox", "_imagekit_shipped")
LIVES = {"_imagekit_target": "guest", "_imagekit_sandbox": "sandbox", "_imagekit_shipped": "shipped"}  # of matrix.LIVES
SAMPLE = "sample(name, ...): of all formats and machines only these, unless --full, --format or --target is given"


class Definition(pytest.Module):
    """A module that defines an image, imported by its path: images/http.py hides no other http."""

    def _getobj(self) -> Any:
        from imagekit import definition

        hook: Any = self.config.pluginmanager.rewrite_hook
        with told(self.CollectError):
            module = definition.load_module(self.path, loader=hook if hasattr(hook, "exec_module") else None)
        self.config.pluginmanager.consider_module(module)
        if self.config.pluginmanager.hasplugin("pytest11.testinfra") and not hasattr(module, "host"):
            vars(module)["host"] = pytest.fixture(scope="module", name="host")(fixtures.host)  # hides testinfra's own
        return module


def pytest_configure(config: pytest.Config) -> None:
    """Let pytest know our marker."""
    config.addinivalue_line("markers", SAMPLE)


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
    with told(pytest.Collector.CollectError):
        for mark in metafunc.definition.iter_markers("sample"):
            _check_sample(mark, metafunc.function.__name__)
    names = [name for name in PARAMS if name in metafunc.fixturenames]
    if not names:
        return
    from imagekit import matrix

    columns = [min(PARAMS.index(name), 2) for name in names]
    lives = [LIVES[name] for name in names if name in LIVES]
    if len(lives) > 1:
        which = " or ".join(lives)
        raise pytest.Collector.CollectError(f"{metafunc.function.__name__}: a test asks for {which}, not both")
    with told(pytest.Collector.CollectError):
        points = matrix.places(
            _image_in(metafunc.module) or matrix.UNNAMED,
            depth=columns[-1] + 1,
            lives=("guest", "sandbox") if "system" in metafunc.fixturenames else lives,
        )
    points = points or [matrix.NOWHERE]  # is deselected; an empty parametrisation would be a skipped test
    rows = [[point[column] for column in columns] for point in points]
    metafunc.parametrize(names, rows, indirect=True, ids=["-".join(filter(None, point)) for point in points])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what was not asked for, and order the rest so that every machine starts once."""
    images = {item: image_of(item) for item in items}
    if not any(images.values()):
        return
    from imagekit import matrix

    idle = {item for item in items if "comparison" in getattr(item, "fixturenames", ())}
    idle = (set() if option(config, "compare") else idle) | _beyond_samples(config, items)
    items[:] = [item for item in items if item not in idle]
    config.hook.pytest_deselected(items=sorted(idle, key=lambda item: item.nodeid))
    with told(pytest.UsageError):
        placed = [matrix.Placed(item, item.path, images[item], matrix.Point(*point(item))) for item in items]
        items[:], left = matrix.arranged(placed, matrix.Selection(*(option(config, name, ()) for name in DIMENSIONS)))
    config.hook.pytest_deselected(items=left)


def _beyond_samples(config: pytest.Config, items: list[pytest.Item]) -> set[pytest.Item]:
    """The tests that are left to a full run: their format and machine are none of the sample's."""
    if option(config, "full") or option(config, "format") or option(config, "target"):
        return set()
    marked = [(item, mark) for item in items if (mark := item.get_closest_marker("sample"))]
    return {item for item, mark in marked if not set(point(item)[1:]) & set(mark.args)}


def _check_sample(mark: pytest.Mark, function: str) -> None:
    """Raise Problem when a marker names nothing, or what is neither a format nor a machine."""
    from imagekit import matrix
    from imagekit.errors import Problem, unknown

    known = (*matrix.known("format"), *matrix.known("target"))
    if not mark.args or mark.kwargs:
        raise Problem(f"{function}: a sample names no format and no machine", "@pytest.mark.sample('raw_efi')")
    for name in mark.args:
        if name not in known:
            problem = unknown("format or target", str(name), known)
            raise Problem(f"{function}: sample: {problem.message}", problem.hint)


def _image_in(module: Any) -> Any:
    from imagekit.image import Image

    found = getattr(module, "image", None)
    return found if isinstance(found, Image) else None


def image_of(item: pytest.Item) -> Any:
    """The image that a test judges: the matrix filled something in, or it stands in a definition; None for others."""
    module = item.getparent(pytest.Module if any(point(item)) else Definition)
    if module is None:
        return None
    from imagekit import matrix

    return _image_in(module.obj) or (matrix.UNNAMED if any(point(item)) else None)


def point(item: pytest.Item) -> tuple[str, str, str]:
    """Where in the matrix a test runs: arch, format, target; what it does not need is empty."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    arch, format, *machine = (params.get(name, "") for name in PARAMS)
    return arch, format, next(filter(None, machine), "")
