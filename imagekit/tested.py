"""Tested: which tests an artifact passed, as a signed statement: in-toto's predicate test-result, v0.1.

https://github.com/in-toto/attestation/blob/main/spec/predicates/test-result.md. A test that did not run proves nothing,
so skipped, deselected and unfinished ones are named beside the passed and the failed.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from imagekit import proofs
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.key import Key

PREDICATE = "https://in-toto.io/attestation/test-result/v0.1"
KIND = "tests"


class Results(NamedTuple):
    """What became of the tests of one artifact, by their names."""

    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()  # failed as they were expected to, or passed though they were not
    skipped: tuple[str, ...] = ()
    deselected: tuple[str, ...] = ()
    unfinished: tuple[str, ...] = ()  # the run ended before them
    selection: tuple[str, ...] = ()  # the tests that were asked for by name: their files may have others

    @property
    def verdict(self) -> str:
        """PASSED for tests that all passed; WARNED if something is left open; FAILED if one failed, or none passed."""
        if self.failed or not self.passed:
            return "FAILED"
        return "WARNED" if any(getattr(self, name) for name in OPEN) else "PASSED"

    def __str__(self) -> str:
        counts = [f"{len(getattr(self, name))} {name}" for name in FIELDS if name in LISTED or getattr(self, name)]
        return ", ".join(counts) + ("; only tests that were asked for by name" if self.selection else "")


LISTED = ("passed", "failed")  # told even where there are none
OPEN = ("warned", "skipped", "deselected", "unfinished", "selection")
FIELDS = ("passed", "failed", "warned", "skipped", "deselected", "unfinished")  # passedTests, ... of the predicate


def predicate(results: Results, configuration: Mapping[str, str]) -> dict[str, Any]:
    """What is said of a run; `configuration` names the files that the tests stand in: name -> sha256."""
    files = [{"name": name, "digest": {"sha256": configuration[name]}} for name in sorted(configuration)]
    lists = {f"{name}Tests": sorted(getattr(results, name)) for name in FIELDS}
    return {"result": results.verdict, "configuration": files, **lists, "selection": list(results.selection)}


def parse(predicate: Mapping[str, Any]) -> Results:
    """What a predicate says; raises Problem when it contradicts itself."""
    lists = {name: tuple(proofs.names(predicate, f"{name}Tests")) for name in FIELDS}
    results = Results(**lists, selection=tuple(proofs.names(predicate, "selection")))
    every = [name for names in lists.values() for name in names]
    if len(every) != len(set(every)):
        raise Problem("the statement names a test twice")
    if predicate.get("result") != results.verdict:
        raise Problem(
            f"the statement says {ascii(predicate.get('result'))[:40]}, and what it names is {results.verdict}"
        )
    return results


def check(made: Artifact, keys: Iterable[Key]) -> str:
    """What the tests said of an artifact, in a line; raises Problem when one failed, none passed, or nobody signed."""
    where = proofs.path(made, KIND)
    found = proofs.read(made, where, keys=keys, predicate_type=PREDICATE)
    try:
        results = parse(found.predicate)
    except Problem as problem:
        raise Problem(f"{where.name}: {problem.message}") from problem
    if results.verdict == "FAILED":
        first = f", first {results.failed[0]!a}" if results.failed else ""
        raise Problem(f"{where.name}: it did not pass its tests: {results}{first}, says {found.keys[0].id}")
    return f"tested: {results.verdict.lower()}: {results}, says {found.keys[0].id}"
