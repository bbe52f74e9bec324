"""The resolver takes what apt would: a table of the hard rules on a made-up suite, and apt itself on the real one."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from imagekit import mirror
from imagekit.errors import Problem, RigProblem
from imagekit.sources import _index, _resolver, _version, debian
from imagekit.stores.directory import open_store

SHA = "ab" * 32


def stanza(text: str) -> str:
    """A stanza of a Packages file from "name version; Field: value; ..."."""
    head, *fields = (part.strip() for part in text.split(";"))
    name, version = head.split()
    about = [f"Package: {name}", f"Version: {version}", "Architecture: all", "Priority: optional", *fields]
    return "\n".join([*about, "Size: 5", f"SHA256: {SHA}", f"Filename: pool/{name}.deb"])


def index(*packages: str, archive: str = "debian") -> _index.Index:
    return _index._index("\n".join(_index._lines("\n\n".join(map(stanza, packages)))), archive)


def universe(*packages: str) -> _resolver.Universe:
    return _resolver.Universe([index(*packages)], "bookworm")


def solve(packages: list[str], names: str, without: str = "") -> set[str]:
    return set(_resolver.solve(universe(*packages), names.split(), without.split()))


RULES: dict[str, tuple[list[str], str, str, str]] = {  # packages, asked for, without, expected
    "a chain": (["a 1; Depends: b", "b 1; Depends: c", "c 1"], "a", "", "a b c"),
    "a circle": (["a 1; Depends: b", "b 1; Depends: a"], "a", "", "a b"),
    "Pre-Depends count": (["a 1; Pre-Depends: b", "b 1"], "a", "", "a b"),
    "Recommends do not": (["a 1; Recommends: b", "b 1"], "a", "", "a"),
    "Essential is not added": (["a 1", "b 1; Essential: yes"], "a", "", "a"),
    "the first alternative": (["a 1; Depends: c | b", "b 1", "c 1"], "a", "", "a c"),
    "the alternative that is asked for": (["a 1; Depends: c | b", "b 1", "c 1"], "a b", "", "a b"),
    "the alternative that is there already": (
        ["a 1; Depends: x, c | b", "x 1; Depends: b", "b 1", "c 1"], "a", "", "a b x"),
    "the alternative that exists": (["a 1; Depends: none | b", "b 1"], "a", "", "a b"),
    "the alternative that nothing excludes": (
        ["a 1; Depends: c | b", "b 1", "c 1; Conflicts: a"], "a", "", "a b"),
    "a version that suffices": (["a 1; Depends: b (>= 1.5~rc1)", "b 1.5"], "a", "", "a b"),
    "a version that does not": (["a 1; Depends: b (>= 2) | c", "b 1.5", "c 1"], "a", "", "a c"),
    "strictly earlier": (["a 1; Depends: b (<< 2), c (<< 2) | d", "b 1.9", "c 2", "d 1"], "a", "", "a b d"),
    "the highest version": (["a 1; Depends: b (= 2)", "b 1", "b 2", "b 1.5"], "a", "", "a b"),
    "a virtual package": (["a 1; Depends: mta", "m 1; Provides: mta"], "a", "", "a m"),
    "a real one before its providers": (["a 1; Depends: b", "c 1; Provides: b", "b 1"], "a", "", "a b"),
    "a provider that is there already": (
        ["a 1; Depends: n, mta", "m 1; Provides: mta", "n 1; Provides: mta"], "a", "", "a n"),
    "the essential provider": (
        ["a 1; Depends: awk", "g 1; Provides: awk", "m 1; Provides: awk; Essential: yes"], "a", "", "a m"),
    "the provider of higher priority": (
        ["a 1; Depends: awk", "g 1; Provides: awk", "m 1; Provides: awk; Priority: required"], "a", "", "a m"),
    "a provided version": (
        ["a 1; Depends: v (>= 2)", "m 1; Provides: v (= 1)", "n 1; Provides: v (= 2)"], "a", "", "a n"),
    "a provided name without a version meets no bound": (
        ["a 1; Depends: v (>= 1) | b", "m 1; Provides: v", "b 1"], "a", "", "a b"),
    "a provider is asked for by the virtual name": (["m 1; Provides: mta"], "mta", "", "m"),
    "qualifiers of architectures are passed over": (
        ["a 1; Depends: b:any, c:amd64 (>= 1)", "b 1", "c 1"], "a", "", "a b c"),
    "a folded field": (["a 1; Depends: b,\n c", "b 1", "c 1"], "a", "", "a b c"),
    "conflict with what it provides itself": (["a 1; Provides: mta; Conflicts: mta"], "a", "", "a"),
    "conflict with another version": (["a 1; Conflicts: b (<< 2)", "b 2"], "a b", "", "a b"),
    "without": (["a 1; Depends: b", "b 1; Depends: c", "c 1"], "a", "b", "a"),
    "without keeps what others need": (["a 1; Depends: b, c", "b 1; Depends: c", "c 1"], "a", "b", "a c"),
    "without meets what it provides": (
        ["a 1; Depends: v (>= 9)", "b 1; Provides: v", "c 9; Provides: v (= 9)"], "a", "b", "a"),
    "without excludes nothing": (["a 1; Depends: b; Conflicts: b", "b 1"], "a", "b", "a"),
    "nothing": (["a 1"], "", "", ""),
    "twice": (["a 1"], "a a", "", "a"),
}  # fmt: skip


@pytest.mark.parametrize(("packages", "names", "without", "expected"), RULES.values(), ids=RULES)
def test_the_rules(packages: list[str], names: str, without: str, expected: str) -> None:
    assert solve(packages, names, without) == set(expected.split())


PROBLEMS: dict[str, tuple[list[str], str, str, str, str]] = {  # ..., words of the message, words of the hint
    "an unknown name": (["nginx-light 1"], "nginx-lite", "", "no package 'nginx-lite'", "near: nginx-light"),
    "a name like no other": (["a 1"], "zzzzzz", "", "no package 'zzzzzz'", "apt-cache search"),
    "an unknown name left out": (["a 1", "debconf 1"], "a", "debcon", "no package 'debcon'", "near: debconf"),
    "asked for and left out": (["a 1"], "a", "a", "both asked for and left out", "packages or of without"),
    "a name that several provide": (["m 1; Provides: mta", "n 1; Provides: mta"], "mta", "", "several provide", "m, n"),
    "nothing meets it": (
        ["a 1; Depends: b", "b 1; Depends: c (>= 2) | d", "c 1"], "a", "", r"b needs c \(>= 2\) \| d", "b, for a"),
    "conflict of what is asked for": (["a 1; Conflicts: b", "b 1"], "a b", "", "b and a exclude each", "asked for"),
    "conflict the other way round": (["a 1; Conflicts: b", "b 1"], "b a", "", "a and b exclude each", "without="),
    "breaks": (["a 1; Breaks: b (<< 2)", "b 1"], "a b", "", "exclude each other", "asked for"),
    "conflict by a virtual name": (
        ["a 1; Conflicts: v", "m 1; Provides: v"], "a m", "", "m and a exclude", "asked for"),
    "conflict by a virtual name, the other way round": (
        ["a 1; Conflicts: v", "m 1; Provides: v"], "m a", "", "a and m exclude", "asked for"),
    "conflict far down": (
        ["a 1; Depends: b", "b 1; Depends: c", "c 1; Conflicts: y", "x 1; Depends: y", "y 1"],
        "x a", "", "c and y exclude each other", "c, for b, for a; and y, for x"),
}  # fmt: skip


@pytest.mark.parametrize(("packages", "names", "without", "words", "hint"), PROBLEMS.values(), ids=PROBLEMS)
def test_what_cannot_be_says_why(packages: list[str], names: str, without: str, words: str, hint: str) -> None:
    with pytest.raises(Problem, match=words) as caught:
        solve(packages, names, without)
    assert re.search(hint, caught.value.hint)


def test_of_several_suites_the_highest_version_counts() -> None:
    indices = [index("a 1", "b 2"), index("a 2", "b 2", archive="debian-security")]
    both = _resolver.Universe(indices, "bookworm")
    taken = _resolver.solve(both, ["a", "b"])
    assert [(c.candidate.version, c.candidate.archive) for c in taken.values()] == [
        ("2", "debian-security"),
        ("2", "debian"),
    ]


def test_a_deep_chain_needs_no_deep_stack() -> None:
    packages = [f"p{n} 1; Depends: p{n + 1}" for n in range(3000)]
    assert len(solve([*packages, "p3000 1"], "p0")) == 3001


KERNELS = [
    "linux-image-cloud-amd64 1; Depends: linux-image-6.1.0-9-cloud-amd64 (= 1)",
    "linux-image-6.1.0-9-cloud-amd64 1; Depends: kmod",
]


@pytest.mark.parametrize("name", ["linux-image-cloud", "linux-image-cloud-amd64", "linux-image-6.1.0-9-cloud-amd64"])
def test_a_kernels_metapackage_is_followed(name: str) -> None:
    assert _resolver.kernel(universe(*KERNELS), name, "amd64").name == "linux-image-6.1.0-9-cloud-amd64"


def test_an_unknown_kernel_lists_the_known() -> None:
    with pytest.raises(Problem, match="linux-image-clod") as caught:
        _resolver.kernel(universe(*KERNELS), "linux-image-clod", "amd64")
    assert "linux-image-cloud" in caught.value.hint


BROKEN = {
    "size": ("Size: 5", "Size: 0", "gives 'a' the Size '0'"),
    "no size": ("Size: 5\n", "", "the Size ''"),
    "digest": (SHA, SHA.upper(), "the SHA256"),
    "path up": ("pool/a.deb", "pool/../../a.deb", "the Filename"),
    "path up at the end": ("pool/a.deb", "pool/..", "the Filename"),
    "absolute path": ("pool/a.deb", "/etc/passwd", "the Filename"),
    "path with a blank": ("pool/a.deb", "pool/a b.deb", "the Filename"),
    "version": ("Version: 1", "Version: 1 2", "the Version"),
    "relation": ("Architecture: all", "Depends: b (>> )", r"the relation 'b \(>> \)'"),
}


@pytest.mark.parametrize(("old", "new", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_index_is_named(old: str, new: str, words: str) -> None:
    text = stanza("a 1")
    assert old in text
    condensed = "\n".join(_index._lines(text.replace(old, new)))
    broken = _resolver.Universe([_index._index(condensed, "debian")], "bookworm")
    with pytest.raises(Problem, match=words):
        _resolver.solve(broken, ["a"])


ORDER = """
    0~~ 0~ 0 0+ 0.1 0.2~rc1 0.2~rc1-1 0.2 0.2-0.1 0.2-1~bpo 0.2-1 0.2-1+b1 0.2-1+deb12u1 0.2a 0.2+dfsg 0.2.0 0.10 1 1a
    1+ 1.0-1-1
"""


@pytest.mark.parametrize("epoch", ["", "0:", "3:"])
def test_versions_are_in_dpkgs_order(epoch: str) -> None:
    versions = [epoch + version for version in ORDER.split()]
    keys = [_version.key(version) for version in versions]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert _version.key("1") == _version.key("0:1-0") == _version.key("01-00")
    assert _version.key("1:0") > _version.key("9")
    if shutil.which("dpkg"):
        for lower, higher in pairwise(versions):
            subprocess.run(["dpkg", "--compare-versions", lower, "lt", higher], check=True)


@pytest.mark.parametrize("version", ["", ":", "x:1", "-1", "1:-1"])
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(Problem, match="no version"):
        _version.key(version)


PACKAGES = (
    "nginx-light",
    "openssh-server",
    "redis-server",
    "python3-minimal",
    "apache2",
    "git",
    "samba",
    "default-mta",
)
CASES = [("amd64", name) for name in PACKAGES] + [("arm64", name) for name in PACKAGES[:4]]


@pytest.fixture(scope="module")
def real() -> Iterator[Callable[[str], tuple[_resolver.Universe, Path]]]:
    """For an architecture, the real suite as this resolver sees it, and as apt does in a folder of its own."""
    if not shutil.which("apt-get"):
        pytest.skip("apt-get is not on this machine: nothing to compare with")
    with TemporaryDirectory() as folder:
        yield cache(lambda arch: (_ours(arch, Path(folder)), _apts(arch, Path(folder))))


def _ours(arch: str, folder: Path) -> _resolver.Universe:
    try:
        wanted = debian.Wanted("bookworm", arch, "main")
        universes, _ = debian._metadata([wanted], open_store(folder / "cache"))
    except RigProblem as problem:
        pytest.skip(f"no Debian mirror to compare on: {problem.message}")
    return universes[wanted]


def _apts(arch: str, folder: Path) -> Path:
    """A configuration of apt with folders of its own, its lists brought up to date."""
    here, place = folder / arch, mirror.find()
    for name in ("state/lists/partial", "cache/archives/partial"):
        (here / name).mkdir(parents=True)
    (here / "status").touch()
    (here / "sources.list").write_text(
        f"deb [signed-by={mirror.SHIPPED}] {place.main} bookworm main\n"
        f"deb [signed-by={mirror.SHIPPED}] {place.main} bookworm-updates main\n"
        f"deb [signed-by={mirror.SHIPPED}] {place.security} bookworm-security main\n"
    )
    (here / "apt.conf").write_text(
        f'APT::Architecture "{arch}"; APT::Architectures {{ "{arch}"; }}; APT::Install-Recommends "false";\n'
        f'APT::Sandbox::User "root"; Acquire::Languages "none"; Acquire::Retries "3";\n'
        f'Dir::State "{here}/state"; Dir::Cache "{here}/cache";\n'
        f'Dir::State::status "{here}/status"; Dir::Etc::sourcelist "{here}/sources.list";\n'
        'Dir::Etc::sourceparts "/dev/null"; Dir::Etc::main "/dev/null"; Dir::Etc::parts "/dev/null";\n'
        'Dir::Etc::preferences "/dev/null"; Dir::Etc::preferencesparts "/dev/null"; Dir::Log "/dev/null";\n'
    )
    _apt(here, "update", "--quiet")
    return here


def _apt(here: Path, *argv: str) -> str:
    env = {**os.environ, "APT_CONFIG": str(here / "apt.conf"), "LC_ALL": "C"}
    return subprocess.run(["apt-get", *argv], env=env, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize(("arch", "name"), CASES, ids=map(":".join, CASES))
def test_apt_would_take_the_same(real: Callable[[str], tuple[_resolver.Universe, Path]], arch: str, name: str) -> None:
    ours, apts = real(arch)
    theirs = set(re.findall(r"^Inst (\S+) \((\S+)", _apt(apts, "install", "--simulate", name), re.MULTILINE))
    choices = _resolver.solve(ours, [name]).values()
    assert {(choice.candidate.name, choice.candidate.version) for choice in choices} == theirs
    assert len(theirs) > 1
