"""Which wheels an image needs: the closure of its requirements, for the Python and the architecture of the image.

The search is resolvelib's, which is pip's. Markers are judged for the image, not for this machine, and nothing of a
wheel is run; where only a source distribution exists there is nothing to take, for building it would run it.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from resolvelib import AbstractProvider, BaseReporter, ResolutionImpossible, ResolutionTooDeep, Resolver

from imagekit.errors import Problem
from imagekit.sources import _metadata, _python, _simple, _wheel

MAX_ROUNDS = 2000
Key = tuple[str, str]  # a project, and one of its extras: "" is the project itself


class Wheel(NamedTuple):
    """A wheel that could be taken."""

    project: str
    version: Version
    file: _simple.File
    rank: int  # how well it fits the image's Python, 0 is best


class Wish(NamedTuple):
    """A version that somebody wants."""

    key: Key
    specifier: SpecifierSet


class Choice(NamedTuple):
    """A version of a project, or of one of its extras."""

    key: Key
    wheel: Wheel


@dataclass(frozen=True)
class Index:
    """What a search asks: the files of a project, and what a wheel says of itself. Both are asked once each."""

    files: Callable[[str], list[_simple.File]]
    about: Callable[[_simple.File], _metadata.About]
    _files: dict[str, list[Wheel]] = field(default_factory=dict)
    _about: dict[str, _metadata.About] = field(default_factory=dict)

    def wheels(self, project: str, python: _python.Python) -> list[Wheel]:
        """The best wheel of each version that fits the Python, newest first; raises Problem if there is none."""
        if project not in self._files:
            self._files[project] = _fitting(project, self.files(project), python)
        return self._files[project]

    def told(self, wheel: Wheel) -> _metadata.About:
        """The wheel's metadata."""
        digest = wheel.file.sha256
        if digest not in self._about:
            self._about[digest] = self.about(wheel.file)
        return self._about[digest]


def requirement(text: str) -> Requirement:
    """A requirement as it is written in a definition; raises Problem for what is none, or could be any file."""
    try:
        found = Requirement(text)
    except InvalidRequirement as error:
        raise Problem(
            f"{text!r} is no requirement: {str(error).splitlines()[0]}", 'write it as in "wheel:fastapi>=0.115,<0.116"'
        ) from error
    if found.url:
        raise Problem(f"{text!r} names an address", "take such a wheel from beside the definition: wheel:vendor/x.whl")
    return found


def solve(
    requirements: Sequence[Requirement], python: _python.Python, index: Index, *, without: Iterable[str] = ()
) -> list[Wheel]:
    """The wheels, by name; raises Problem that says who wants what where nothing fits.

    without: projects that are taken as present, in whatever version.
    """
    provider = _Provider(python, index, frozenset(map(canonicalize_name, without)))
    wishes = [wish for one in requirements for wish in provider.wishes(one, [""])]
    resolver: Any = Resolver(provider, BaseReporter())
    try:
        found = resolver.resolve(wishes, max_rounds=MAX_ROUNDS)
    except ResolutionImpossible as conflict:
        raise Problem(
            f"no wheels fit together: {_conflict(conflict.causes)}", "loosen one of them, or name other versions"
        ) from conflict
    except ResolutionTooDeep as error:
        raise Problem(f"no wheels were found in {MAX_ROUNDS} steps", "name the versions of some of them") from error
    wheels = {choice.wheel.project: choice.wheel for choice in found.mapping.values()}
    return [wheels[name] for name in sorted(wheels)]


class _Provider(AbstractProvider):  # type: ignore[type-arg]  # resolvelib's own types need three parameters
    """What resolvelib asks: an extra is a project of its own, which needs the project itself in the same version."""

    def __init__(self, python: _python.Python, index: Index, without: frozenset[str]) -> None:
        self.python, self.index, self.without = python, index, without

    def identify(self, requirement_or_candidate: Wish | Choice) -> Key:
        """Whom a wish or a choice is of."""
        return requirement_or_candidate.key

    def get_preference(
        self, identifier: Key, resolutions: Any, candidates: Any, information: Mapping[Key, Iterator[Any]],
        backtrack_causes: Sequence[Any],
    ) -> tuple[bool, bool, Key]:  # fmt: skip
        """Who is chosen first: what conflicts, then what is pinned, then by name, so that the order is always one."""
        _ = resolutions, candidates  # to know how many there are, each project would have to be asked for
        wishes = [one.requirement for one in information[identifier]]
        is_cause = any(identifier == cause.requirement.key for cause in backtrack_causes)
        is_pinned = any(spec.operator == "==" for wish in wishes for spec in wish.specifier)
        return not is_cause, not is_pinned, identifier

    def find_matches(
        self,
        identifier: Key,
        requirements: Mapping[Key, Iterator[Wish]],
        incompatibilities: Mapping[Key, Iterator[Any]],
    ) -> list[Choice]:
        """The versions that all wishes allow, newest first."""
        wanted = SpecifierSet()
        for wish in requirements[identifier]:
            wanted &= wish.specifier
        bad = {choice.wheel.version for choice in incompatibilities[identifier]}
        known = self.index.wheels(identifier[0], self.python)
        is_exact = any(spec.operator in ("==", "===") for spec in wanted)
        known = [wheel for wheel in known if is_exact or not wheel.file.is_yanked]
        allowed = set(wanted.filter([wheel.version for wheel in known]))
        return [Choice(identifier, wheel) for wheel in known if wheel.version in allowed - bad]

    def is_satisfied_by(self, requirement: Wish, candidate: Choice) -> bool:
        """Whether a choice is what somebody wants."""
        return requirement.specifier.contains(candidate.wheel.version, prereleases=True)

    def get_dependencies(self, candidate: Choice) -> list[Wish]:
        """What a choice needs."""
        project, extra = candidate.key
        about = self.index.told(candidate.wheel)
        needed = [wish for one in about.requires for wish in self.wishes(one, [extra])]
        itself = Wish((project, ""), SpecifierSet(f"=={candidate.wheel.version}"))
        return [itself, *needed] if extra else needed

    def wishes(self, of: Requirement, extras: Sequence[str]) -> Iterator[Wish]:
        """What a requirement comes to on the image; nothing, where its marker says so."""
        environment = self.python.markers
        if of.marker and not any(of.marker.evaluate({**environment, "extra": extra}) for extra in extras):
            return
        project = canonicalize_name(of.name)
        if project in self.without:
            return
        if of.url:
            raise Problem(f"{of.name} is wanted from an address", "only what the index has is taken")
        for extra in ("", *sorted(map(canonicalize_name, of.extras))):
            yield Wish((project, extra), of.specifier)


def _fitting(project: str, files: Iterable[_simple.File], python: _python.Python) -> list[Wheel]:
    best: dict[Version, Wheel] = {}
    others: set[str] = set()
    for file in files:
        if not file.name.endswith(".whl"):
            others.add("source distributions")
            continue
        try:
            named = _wheel.name(file.name)
        except Problem:
            continue  # a name from before there were rules
        rank = named.rank(python)
        if named.name != project or rank is None or not _takes(file.requires_python, python):
            others |= {str(tag) for tag in named.tags}
            continue
        old = best.get(named.version)
        if old is None or (rank, named.build, file.name) < (old.rank, _wheel.name(old.file.name).build, old.file.name):
            best[named.version] = Wheel(project, named.version, file, rank)
    if not best:
        found = ", ".join(sorted(others)[-4:]) or "nothing"
        raise Problem(
            f"{project} has no wheel for CPython {python.version} on {python.arch} (glibc 2.{python.glibc}); "
            f"the index has: {found}",
            "build one and lay it beside the definition, wheel:vendor/NAME.whl, or take the Debian package",
        )
    return sorted(best.values(), key=attrgetter("version"), reverse=True)


def _takes(requires: str, python: _python.Python) -> bool:
    """Whether a file is for this Python; the third number of a version is not known, and taken as high."""
    try:
        return not requires or SpecifierSet(requires).contains(f"{python.version}.99")
    except InvalidSpecifier:
        return False


def _conflict(causes: Iterable[Any]) -> str:
    found = []
    for cause in causes:
        (project, extra), wanted = cause.requirement.key, cause.requirement.specifier
        who = f"{cause.parent.wheel.project} {cause.parent.wheel.version}" if cause.parent else "the definition"
        found.append(f"{who} wants {project}{f'[{extra}]' if extra else ''}{wanted or ' in any version'}")
    return "; ".join(sorted(set(found))[:6])
