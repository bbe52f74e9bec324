"""Comparison: an image against the same image of another revision; what grew, by how much, and whether that matters.

Both are built by the imagekit that runs now, from the definition and the lock that each revision has.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from statistics import mean

from imagekit import host
from imagekit.artifact import Artifact
from imagekit.boot import Boot
from imagekit.errors import Problem, RigProblem

SMALLEST = 0.02  # the share by which something must grow before it matters
PAIRS = 12  # of boots, where a single one is not exact: 4096 sums
CHANCE = 0.01  # a difference that would come this often by chance is none
MAX_ARCHIVE = 256 << 20  # bytes of a revision's folder


@dataclass(frozen=True)
class Comparison:
    """Two builds of one image, and their boots in pairs; a boot may be missing where no machine starts the format."""

    revision: str
    before: Artifact
    after: Artifact
    boots: tuple[tuple[Boot, Boot], ...] = field(default=(), repr=False)  # (before, after)

    @property
    def size_growth(self) -> float:
        """The share by which the artifact grew; negative when it shrank."""
        return self.after.size / self.before.size - 1

    @property
    def boot_growth(self) -> float:
        """The share by which the boot grew, as a mean of the pairs."""
        return mean(after.seconds / before.seconds - 1 for before, after in self.boots) if self.boots else 0.0

    @property
    def packages(self) -> list[str]:
        """What became of the packages, a line each: "+name version", "-name version", "name old -> new"."""
        old, new = (_versions(one.manifest["packages"]) for one in (self.before, self.after))
        lines = [f"-{name} {old[name]}" for name in sorted(old.keys() - new.keys())]
        lines += [f"+{name} {new[name]}" for name in sorted(new.keys() - old.keys())]
        return lines + [f"{n} {old[n]} -> {new[n]}" for n in sorted(old.keys() & new.keys()) if old[n] != new[n]]

    @property
    def worse(self) -> list[str]:
        """What grew by more than chance and by more than is worth a word; empty when nothing did."""
        found = []
        if self.size_growth > SMALLEST:
            found.append(f"its size grew by {self.size_growth:.1%}")
        if self.boots and self.boot_growth > SMALLEST and not self._may_be_chance():
            found.append(f"its boot grew by {self.boot_growth:.1%}")
        return found

    def table(self) -> str:
        """All of it for people."""
        lines = [f"{self.after.name} {self.after.arch} {self.after.format} against {self.revision}:",
                 f"  size  {self.before.size} -> {self.after.size} bytes ({self.size_growth:+.2%})"]  # fmt: skip
        lines += [f"  package  {line}" for line in self.packages] or ["  package  the same"]
        if self.boots:
            before, after = self.boots[0]
            pairs = f", {len(self.boots)} pairs" if len(self.boots) > 1 else ""
            lines.append(f"  boot  {before.seconds:.3f} -> {after.seconds:.3f} s ({self.boot_growth:+.2%}{pairs})")
            lines += [f"  {line}" for line in after.growth(before)[:10]]
        return "\n".join(lines)

    def _may_be_chance(self) -> bool:
        """Whether pairs that differ by chance alone would so often differ by as much: all signs of the differences."""
        if all(before.is_exact and after.is_exact for before, after in self.boots):
            return False
        return chance([after.seconds - before.seconds for before, after in self.boots]) >= CHANCE


def chance(differences: Sequence[float]) -> float:
    """How many of all ways to swap the members of pairs give a sum at least as large: an exact permutation test."""
    sums = [sum(sign * d for sign, d in zip(signs, differences, strict=True))
            for signs in product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(one >= sum(differences) - 1e-12 for one in sums) / len(sums)


def pairs(before: Callable[[], Boot], after: Callable[[], Boot]) -> tuple[tuple[Boot, Boot], ...]:
    """Measured boots of both in turn: one pair where the clock is exact, else as many as chance can be judged by."""
    first = before(), after()
    if all(boot.is_exact for boot in first):
        return (first,)
    return (first, *((before(), after()) for _ in range(PAIRS - 1)))


def checkout(definition: Path, revision: str, place: Path) -> Path:
    """The definition as it was, with its whole folder, below `place`; raises Problem when it was not there then."""
    if revision.startswith("-"):
        raise Problem(f"{revision!r} is no revision", "name a commit, a branch or a tag")
    top = Path(_git(definition.parent, "rev-parse", "--show-toplevel").text)
    commit = _git(top, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}", ok=(0, 1, 128)).text
    if not commit:
        raise Problem(f"{top} has no revision {revision!r}", "name a commit, a branch or a tag; `git log` lists them")
    folder = definition.parent.resolve().relative_to(top.resolve()).as_posix()
    file = f"{folder}/{definition.name}".removeprefix("./")
    if _git(top, "cat-file", "-e", f"{commit}:{file}", ok=(0, 1, 128)).code:
        raise Problem(f"{file} was not there in {revision}", "compare with a revision that has it")
    archive = _git(top, "archive", "--format=tar", commit, "--", folder).stdout
    if len(archive) > MAX_ARCHIVE:
        raise Problem(f"{folder} had {len(archive)} bytes in {revision}, more than {MAX_ARCHIVE}")
    _unpack(archive, place)
    return place / file


def _unpack(archive: bytes, place: Path) -> None:
    import tarfile
    from io import BytesIO

    try:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(place, filter="data")  # nothing leaves the folder (PEP 706)
    except (OSError, tarfile.TarError) as error:
        raise RigProblem(f"cannot unpack the other revision to {place}: {error}", "make room there") from error


def _git(folder: Path, *words: str, ok: Sequence[int] = (0,)) -> host.Done:
    if host.look_up("git") is None:
        raise RigProblem("--compare needs git, which is not on this machine", "install it")
    done = host.run(["git", "-C", folder, *words], env={"GIT_OPTIONAL_LOCKS": "0"}, timeout=60, ok=None)
    if done.code not in ok:
        said = host.printable(done.stderr[-500:]).strip()
        raise Problem(
            f"{folder} is not in a repository of git that can be asked: {said}", "--compare reads its history"
        )
    return done


def _versions(packages: Sequence[Mapping[str, object]]) -> dict[str, str]:
    return {str(package["name"]): str(package["version"]) for package in packages}
