"""What a wish for packages comes to: the set that apt would install without recommends, on an empty machine.

Greedy and depth-first like apt: of alternatives the first that can be had; a real package before those that provide
its name; of providers the essential one, then the one of higher priority. One suite is consistent in itself, so there
is nothing to backtrack for; where packages exclude each other, both are named, and why each is wanted.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

from imagekit.errors import Problem, unknown
from imagekit.sources import _version
from imagekit.sources._index import Candidate, Index, Relation, relations

PRIORITIES = ("required", "important", "standard", "optional", "extra")
_cached_relations = cache(relations)


class Choice(NamedTuple):
    """A package that was taken, and on whose account: the name of another, or "" when it was asked for."""

    candidate: Candidate
    wanted_by: str


class Universe:
    """Every package of several suites; of each name the highest version counts, of equal ones the first suite's."""

    def __init__(self, indices: Sequence[Index], suite: str) -> None:
        self._indices = indices
        self.suite = suite
        self.candidate: Callable[[str], Candidate | None] = cache(self._candidate)
        self.providers: Callable[[str], tuple[tuple[Candidate, str], ...]] = cache(self._providers)

    def names(self) -> Iterator[str]:
        """Every name that can be asked for."""
        for index in self._indices:
            yield from index.lines
            yield from index.providers

    def known(self, name: str) -> Candidate:
        """The package of this name, or the only one that provides it; raises Problem when that is none, or a choice."""
        real = self.candidate(name)
        found = [real] if real else [provider for provider, _ in self.providers(name)]
        if not found:
            raise self.no_such(name)
        if len(found) > 1:
            names = ", ".join(sorted(provider.name for provider in found))
            raise Problem(f"{name!r} is no package but a name that several provide", f"name one of them: {names}")
        return found[0]

    def no_such(self, name: str) -> Problem:
        """That there is no package of this name, with a few that look like it."""
        from difflib import get_close_matches

        near = get_close_matches(name, set(self.names()), n=5, cutoff=0.7)
        hint = f"near: {', '.join(near)}" if near else "`apt-cache search` on a Debian machine finds packages by words"
        return Problem(f"{self.suite} has no package {name!r}", hint)

    def satisfiers(self, relation: Relation) -> Iterator[Candidate]:
        """What could meet a relation, best first."""
        real = self.candidate(relation.name)
        if real and _version.fulfils(real.version, relation.operator, relation.version):
            yield real
        for provider, version in self.providers(relation.name):
            if provider is not real and _provided(relation, version):
                yield provider

    def _candidate(self, name: str) -> Candidate | None:
        best: Candidate | None = None
        for index in self._indices:
            for other in index.candidates(name):
                if best is None or _version.key(other.version) > _version.key(best.version):
                    best = other
        return best

    def _providers(self, name: str) -> tuple[tuple[Candidate, str], ...]:
        """(package, the version it provides or "") of everything that provides a name, best first."""
        names = dict.fromkeys(package for index in self._indices for package in index.providers.get(name, ()))
        found = []
        for candidate in filter(None, map(self.candidate, names)):
            versions = [version for provided, version in _provides(candidate) if provided == name]
            found += [(candidate, version) for version in versions[:1]]
        return tuple(sorted(found, key=lambda pair: _rank(pair[0])))


class Choices:
    """A set of packages in the making."""

    def __init__(self, universe: Universe, without: Iterable[str]) -> None:
        self.universe = universe
        self.taken: dict[str, Choice] = {}
        self._provided: dict[str, list[tuple[Choice, str]]] = {}  # name -> who of those taken provides it, and how
        self._excluding: dict[str, list[tuple[Choice, Relation]]] = {}  # name -> who of those taken excludes it
        self._present = self._names_of(without)

    def take(self, candidate: Candidate, wanted_by: str) -> None:
        """Add a package; raises Problem when it and one that was taken exclude each other."""
        if candidate.name in self.taken:
            return
        other = self.rival(candidate)
        if other:
            raise self._excluded(Choice(candidate, wanted_by), other)
        choice = self.taken[candidate.name] = Choice(candidate, wanted_by)
        for name, version in _provides(candidate):
            self._provided.setdefault(name, []).append((choice, version))
        for relation in _conflicts(candidate):
            self._excluding.setdefault(relation.name, []).append((choice, relation))

    def complete(self) -> None:
        """Add what those that were taken depend on, and what that depends on, depth first."""
        asked = [choice.candidate for choice in self.taken.values()]
        stack = [(candidate, iter(_cached_relations(candidate.depends))) for candidate in reversed(asked)]
        while stack:
            candidate, groups = stack[-1]
            group = next(groups, None)
            if group is None:
                stack.pop()
            elif not any(map(self._is_met, group)):
                chosen = self._chosen(candidate, group)
                self.take(chosen, candidate.name)
                stack.append((chosen, iter(_cached_relations(chosen.depends))))

    def rival(self, candidate: Candidate) -> Choice | None:
        """One of those taken that excludes the candidate, or is excluded by it; nothing excludes itself."""
        found = (*self._excluded_by(candidate), *self._excluders_of(candidate))
        return next((choice for choice in found if choice.candidate.name != candidate.name), None)

    def _excluded_by(self, candidate: Candidate) -> Iterator[Choice]:
        for relation in _conflicts(candidate):
            choice = self.taken.get(relation.name)
            if choice and _version.fulfils(choice.candidate.version, relation.operator, relation.version):
                yield choice
            yield from (c for c, version in self._provided.get(relation.name, ()) if _provided(relation, version))

    def _excluders_of(self, candidate: Candidate) -> Iterator[Choice]:
        for choice, relation in self._excluding.get(candidate.name, ()):
            if _version.fulfils(candidate.version, relation.operator, relation.version):
                yield choice
        for name, version in _provides(candidate):
            yield from (c for c, relation in self._excluding.get(name, ()) if _provided(relation, version))

    def why(self, name: str) -> str:
        """The chain of wishes that led to a package: "libc6, for nginx"."""
        chain = [name]
        while (choice := self.taken.get(chain[-1])) and choice.wanted_by:
            chain.append(choice.wanted_by)
        return ", for ".join(chain) + (" (asked for)" if len(chain) == 1 else "")

    def _is_met(self, relation: Relation) -> bool:
        choice = self.taken.get(relation.name)
        if choice and _version.fulfils(choice.candidate.version, relation.operator, relation.version):
            return True
        if relation.name in self._present:
            return True
        return any(_provided(relation, version) for _, version in self._provided.get(relation.name, ()))

    def _chosen(self, candidate: Candidate, group: tuple[Relation, ...]) -> Candidate:
        """The first package that meets a group and that nothing taken excludes."""
        excluded: Candidate | None = None
        for relation in group:
            for found in self.universe.satisfiers(relation):
                if not self.rival(found):
                    return found
                excluded = excluded or found
        if excluded and (other := self.rival(excluded)):
            raise self._excluded(Choice(excluded, candidate.name), other)
        wanted = " | ".join(map(str, group))
        raise Problem(
            f"{candidate.name} needs {wanted}, which {self.universe.suite} does not have",
            f"wanted: {self.why(candidate.name)}; without=({group[0].name!r},) would take it as present",
        )

    def _excluded(self, choice: Choice, other: Choice) -> Problem:
        name, rival = choice.candidate.name, other.candidate.name
        wanted = f"{name}, for {self.why(choice.wanted_by)}" if choice.wanted_by else f"{name} (asked for)"
        return Problem(
            f"{name} and {rival} exclude each other",
            f"wanted: {wanted}; and {self.why(rival)}; leave one out, or take it as present with without=(...)",
        )

    def _names_of(self, without: Iterable[str]) -> frozenset[str]:
        """The names of packages that are taken as present, and all that they provide."""
        names: set[str] = set()
        for name in without:
            candidate = self.universe.candidate(name)
            if candidate is None and not self.universe.providers(name):
                raise self.universe.no_such(name)
            names |= {name, *(provided for provided, _ in (_provides(candidate) if candidate else ()))}
        return frozenset(names)


def solve(universe: Universe, names: Sequence[str], without: Sequence[str] = ()) -> dict[str, Choice]:
    """The packages that these names come to; raises Problem for a name that is unknown, or for a set that cannot be."""
    for name in names:
        if name in without:
            raise Problem(
                f"the package {name!r} is both asked for and left out", "take it out of packages or of without"
            )
    choices = Choices(universe, without)
    for name in names:
        choices.take(universe.known(name), "")
    choices.complete()
    return choices.taken


def kernel(universe: Universe, name: str, debian_arch: str) -> Candidate:
    """The package with the kernel that a name or a metapackage leads to: linux-image-cloud -> linux-image-6.1.0-..."""
    found = universe.candidate(name) or universe.candidate(f"{name}-{debian_arch}")
    if found is None:
        stems = (known.removesuffix(f"-{debian_arch}") for known in universe.names() if known.endswith(debian_arch))
        known = {stem for stem in stems if re.fullmatch(r"linux-image(-[a-z]+)*", stem)}
        raise unknown(f"kernel package of {universe.suite}", name, known)
    for group in _cached_relations(found.depends):
        if group[0].name.startswith("linux-image-"):
            return next(universe.satisfiers(group[0]), found)
    return found


def _rank(candidate: Candidate) -> tuple[bool, int]:
    known = candidate.priority in PRIORITIES
    return not candidate.is_essential, PRIORITIES.index(candidate.priority) if known else len(PRIORITIES)


def _provides(candidate: Candidate) -> Iterator[tuple[str, str]]:
    for group in _cached_relations(candidate.provides):
        yield group[0].name, group[0].version


def _conflicts(candidate: Candidate) -> Iterator[Relation]:
    for group in _cached_relations(candidate.conflicts):
        yield group[0]


def _provided(relation: Relation, version: str) -> bool:
    """Whether a provided name meets a relation: one without a version meets none that asks for a version."""
    return not relation.operator or bool(version and _version.fulfils(version, relation.operator, relation.version))
