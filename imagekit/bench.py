"""What the parts of the plugin share: the options of one run, its progress line, and what was measured in it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from imagekit.progress import Lines

DIMENSIONS = ("arch", "format", "target")


class Bench(NamedTuple):
    """What the fixtures of one process share."""

    option: Callable[[str, Any], Any]  # (name, default) -> value
    lines: Lines
    facts: dict[tuple[Path, str, str, str], dict[str, Any]]  # (definition, arch, format, target) -> measured
    told: set[tuple[Path, str, str, str]]  # the places whose facts travel with a report already
    damaged: set[tuple[Path, str, str, str]]  # the places whose machine was taken away
    artifacts: dict[tuple[Path, str, str], Any]  # (definition, arch, format) -> Artifact

    @property
    def say(self) -> Callable[[str], None]:
        """Show a progress line."""
        return self.lines.say


BENCH = pytest.StashKey[Bench]()


def option(config: pytest.Config, name: str, default: Any = None) -> Any:
    """The value of an option of ours, wherever it was given; a name that is unknown there ends the run."""
    from imagekit import options

    given = config.getoption(f"imagekit_{name}", None)
    with told(pytest.UsageError):
        value = options.lookup(name, given, folder=config.rootpath, default=default)
        if value and name in DIMENSIONS:
            from imagekit import matrix

            return matrix.check(name, value)
    return value


def is_problem(error: BaseException | None) -> bool:
    """Whether an error is one to be shown as its message alone; a Defect keeps its traceback."""
    from imagekit import errors

    return isinstance(error, errors.Problem) and not isinstance(error, errors.Defect)


@contextmanager
def told(kind: type[BaseException]) -> Iterator[None]:
    """Problems in the block become pytest's own kind of error, without frames."""
    try:
        yield
    except Exception as error:
        if is_problem(error):
            raise kind(str(error)) from None
        raise
