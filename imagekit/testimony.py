"""What a run's tests said of each artifact, signed and laid beside it: `pytest --attest DIR`."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from imagekit.bench import BENCH, option, told
from imagekit.collection import image_of, point

if TYPE_CHECKING:  # at run time when something is attested: this file is loaded in every run of pytest
    from imagekit.key import Key
    from imagekit.tested import Results

OUTPUT = "imagekit_testimony"  # what a worker of xdist hands to its controller
WORST = ("failed", "warned", "skipped", "passed")


class Place(NamedTuple):
    """Where a test stands, and what it judges: with no arch or format, all of its definition's artifacts."""

    file: str
    arch: str
    format: str


@dataclass
class Ledger:
    """All that one process knows of its tests."""

    tests: dict[str, Place] = field(default_factory=dict)  # node id -> place; collected, and selected
    deselected: dict[str, Place] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)  # definition -> sha256, when it was collected
    made: dict[Place, str] = field(default_factory=dict)  # -> a manifest
    outcomes: dict[str, str] = field(default_factory=dict)  # node id -> one of WORST
    lines: list[str] = field(default_factory=list)

    def plain(self) -> list[list[list[str]]]:
        """What is told between processes."""
        tests = [[[name, *place] for name, place in kind.items()] for kind in (self.tests, self.deselected)]
        return [*tests, [list(pair) for pair in self.files.items()], [[*place, it] for place, it in self.made.items()]]

    def merge(self, plain: list[list[list[str]]]) -> None:
        """Take over what a worker knows."""
        tests, deselected, files, made = plain
        self.tests |= {name: Place(*place) for name, *place in tests}
        self.deselected |= {name: Place(*place) for name, *place in deselected}
        for name, digest in files:
            self.files[name] = digest
        self.made |= {Place(*place): manifest for *place, manifest in made}


LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    """Keep a ledger if one was asked for; who cannot sign learns it before the tests run."""
    if option(config, "attest"):
        with told(pytest.UsageError):
            _key(config)
        config.stash[LEDGER] = Ledger()


def pytest_deselected(items: list[pytest.Item]) -> None:
    """Tests that will not run; one that compares with another revision says nothing of an image by itself."""
    for item in items:
        is_about_change = "comparison" in getattr(item, "fixturenames", ()) and not option(item.config, "compare")
        if (ledger := item.config.stash.get(LEDGER, None)) and image_of(item) and not is_about_change:
            ledger.deselected[item.nodeid] = _place(item)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Tests that will."""
    ledger = session.config.stash.get(LEDGER, None)
    for item in session.items if ledger else ():
        if ledger and image_of(item):
            ledger.tests[item.nodeid] = _place(item)
            if item.nodeid.partition("::")[0] not in ledger.files:
                ledger.files[item.nodeid.partition("::")[0]] = sha256(item.path.read_bytes()).hexdigest()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """By now whatever a test wanted built is built."""
    if ledger := item.config.stash.get(LEDGER, None):
        for (path, arch, format), made in item.config.stash[BENCH].artifacts.items():
            ledger.made[Place(str(path), arch, format)] = str(made.path)


class Listener:
    """Hears the reports of a run, wherever its tests ran."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of its phases is what became of a test."""
        if report.outcome == "passed" and report.when != "call":
            return
        outcome = "warned" if hasattr(report, "wasxfail") or report.outcome not in WORST else report.outcome
        known = self._ledger.outcomes.get(report.nodeid, "passed")
        self._ledger.outcomes[report.nodeid] = min(known, outcome, key=WORST.index)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """A worker of xdist has ended."""
        if OUTPUT in getattr(node, "workeroutput", {}):
            self._ledger.merge(node.workeroutput[OUTPUT])


def pytest_sessionstart(session: pytest.Session) -> None:
    """Listen, where there is a ledger to write into."""
    if ledger := session.config.stash.get(LEDGER, None):
        session.config.pluginmanager.register(Listener(ledger), "imagekit.testimony.listener")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Sign; a statement that cannot be written fails the run."""
    config = session.config
    ledger = config.stash.get(LEDGER, None)
    if ledger and hasattr(config, "workeroutput"):
        config.workeroutput[OUTPUT] = ledger.plain()
    elif ledger:
        from imagekit.errors import Problem

        try:
            _sign(config, ledger)
        except Problem as problem:
            ledger.lines.append(f"not attested: {problem}")
            session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What was signed."""
    for line in config.stash.get(LEDGER, Ledger()).lines:
        terminalreporter.write_line(line)


def _sign(config: pytest.Config, ledger: Ledger) -> None:
    """One statement for each artifact that was made, of all tests of its definition that judge it."""
    from imagekit import artifact, proofs, tested

    key, folder = _key(config), Path(option(config, "attest"))
    if not ledger.made:
        ledger.lines.append("not attested: no test asked for an artifact")
    for place, manifest in sorted(ledger.made.items()):
        made = artifact.load(Path(manifest))
        made.verify_manifest(key)
        results = _results(config, ledger, place)
        names = [name for name in ledger.files if str(config.rootpath / name) == place.file]
        said = tested.predicate(results, {name: ledger.files[name] for name in names})
        where = proofs.path(made, tested.KIND, folder=folder)
        proofs.write(made, where, predicate_type=tested.PREDICATE, predicate=said, key=key)
        ledger.lines.append(f"attested: {where}: {results.verdict}: {results}")


def _results(config: pytest.Config, ledger: Ledger, place: Place) -> Results:
    """What became of the tests that judge one artifact."""
    from imagekit.tested import Results

    own = {name for name, at in ledger.tests.items() if _judges(at, place)}
    became = {word: tuple(sorted(n for n in own if ledger.outcomes.get(n) == word)) for word in WORST}
    asked = [word for word in config.args if "::" in word and _names(config, word, place)]
    return Results(
        **became,
        deselected=tuple(sorted(name for name, at in ledger.deselected.items() if _judges(at, place))),
        unfinished=tuple(sorted(own - ledger.outcomes.keys())),
        selection=tuple(f"{Path(place.file).name}::{word.partition('::')[2]}" for word in asked),
    )


def _judges(at: Place, place: Place) -> bool:
    return at.file == place.file and at.arch in ("", place.arch) and at.format in ("", place.format)


def _names(config: pytest.Config, word: str, place: Place) -> bool:
    return (config.invocation_params.dir / word.partition("::")[0]).resolve() == Path(place.file).resolve()


def _place(item: pytest.Item) -> Place:
    arch, format, _ = point(item)
    return Place(str(item.path), arch, format)


def _key(config: pytest.Config) -> Key:
    from imagekit import key

    found = key.read(Path(option(config, "key", key.default_path())))
    found.sign_bytes(b"")  # a public key says here that it cannot
    return found
