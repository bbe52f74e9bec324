"""Is an image the same wherever it is built? Build it again elsewhere, from the packages alone, and compare."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from imagekit import artifact as artifacts
from imagekit import difference, elsewhere, host, plugs
from imagekit import key as keys
from imagekit.artifact import Artifact
from imagekit.errors import Problem
from imagekit.store import Store
from imagekit.stores import directory

LENT = ("locks", "tools")  # folders: whoever makes a tools tree must hold the one lock, and it is no image's
INHERITED = "time zone, language, variables, hash seed, temporary folder, cache"
PATIENCE = 3600.0  # seconds: everything is derived anew, on one processor


class Again(NamedTuple):
    """What a second build wrote, and what was otherwise while it ran."""

    artifacts: tuple[Artifact, ...]
    varied: str


@contextmanager
def built(
    path: Path, *, arches: Sequence[str], formats: Sequence[str], store: Store, place: str,
    say: Callable[[str], None], tools: str | None = None, key_text: str = "", boot_keys: Path | None = None,
) -> Iterator[Again]:  # fmt: skip
    """The images of a definition, built elsewhere with nothing remembered but the packages.

    place: a name for the folder of the cache that they lie in while the block runs. key_text: a key's file, in place of
    a new one's; boot_keys: in place of the option's. Raises Problem when that build fails where the first did not.
    """
    folder = store.folder("rebuilt") / place
    with host.once(store.folder("locks"), f"rebuilt-{place}", say=say):
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
        try:
            directory.lend(Path(store.location), folder / "cache", keep=_is_sources, folders=LENT)
            if key_text:
                (folder / "key").write_text(key_text)
            else:  # signatures of artifacts are not compared: nobody's own key has to go there
                keys.save(keys.new(), folder / "key")
            say(f"{path.name}: building it again, elsewhere")
            yield run(path, arches, formats, folder=folder, tools=tools, boot_keys=boot_keys)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def differences(one: Artifact, other: Artifact) -> list[str]:
    """What differs first in each part of two artifacts, and in their manifests if no part does; in words."""
    files = {part.role: one.path.parent / part.file for part in one.parts}
    others = {part.role: (part, other.path.parent / part.file) for part in other.parts}
    found = [f"{one.format}: there is no {role}" for role in sorted(files.keys() ^ others.keys())]
    digests = {part.role: part.sha256 for part in one.parts}
    for role in files:
        if role in others and others[role][0].sha256 != digests[role]:
            found.append(difference.first(files[role], others[role][1], what=f"{one.format}: {role}"))
    if not found and one.text != other.text:
        found.append(difference.of_bytes(one.text, other.text, what=f"{one.format}: manifest"))
    return found


def checked(
    path: Path, made: Sequence[Artifact], *, store: Store, say: Callable[[str], None], told: list[str],
    tools: str | None = None, key_text: str = "",
) -> bool:  # fmt: skip
    """Whether a second build gives all that a definition was built as; `told` gets the lines that say so, or not."""
    same = True
    arches, formats = (sorted({getattr(one, name) for one in made}) for name in ("arch", "format"))
    with built(path, arches=arches, formats=formats, store=store, place=f"check-{made[0].name}",
               say=say, tools=tools, key_text=key_text) as again:  # fmt: skip
        others = {(other.arch, other.format): other for other in again.artifacts}
        for one in made:
            found = differences(one, others[one.arch, one.format])
            same &= not found
            told += [f"{one.name} {one.arch} {line}" for line in found or [f"{one.format}  built twice, the same"]]
    told.append(f"otherwise in the second build: {again.varied}")
    return same


def run(
    path: Path, arches: Sequence[str], formats: Sequence[str], *, folder: Path, tools: str | None,
    boot_keys: Path | None = None,
) -> Again:  # fmt: skip
    """Build into a folder that has a cache, in a process that is elsewhere."""
    words = [str(path.absolute()), "--key", str(folder / "key"), "--output", str(folder / "out")]
    given = {"--arch": arches, "--format": formats, "--tools": filter(None, [tools])}
    for option, values in {**given, "--boot-keys": map(str, filter(None, [boot_keys]))}.items():
        words += [word for value in values for word in (option, value)]
    told = folder / "varied"
    argv = [sys.executable, "-m", elsewhere.__name__, str(told), "imagekit.cli", "build", *words]
    done = host.run(argv, env=_environment(folder), ok=None, timeout=PATIENCE)
    if done.code:
        error = host.printable(done.stderr).strip().rpartition("imagekit: ")[2]
        raise Problem(f"{path} builds here, and not elsewhere: {error}")
    made = tuple(artifacts.load(file) for file in sorted((folder / "out").glob(f"*{artifacts.MANIFEST_SUFFIX}")))
    return Again(made, ", ".join([*told.read_text().splitlines(), INHERITED]))


def _is_sources(kind: str) -> bool:
    return kind.startswith(plugs.names("sources"))


def _environment(folder: Path) -> dict[str, str]:
    """Variables that are otherwise, and whatever ours say of tools and mirrors."""
    home, temporary = folder / "home of another", folder / "temporary"
    for made in (home, temporary):
        made.mkdir()
    language = "C" if "UTF-8" in os.environ.get("LC_ALL", os.environ.get("LANG", "")) else "C.UTF-8"
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("XDG_", "LC_", "PYTEST"))},
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # kinds from outside are found there
        "PYTHONHASHSEED": "4321",
        "IMAGEKIT_CACHE": str(folder / "cache"),
        "TZ": "FAR-13:45",
        **dict.fromkeys(("LANG", "LC_ALL"), language),
        **dict.fromkeys(("USER", "LOGNAME", "USERNAME"), "another"),
        **dict.fromkeys(("TMPDIR", "TMP", "TEMP"), str(temporary)),
        "HOME": str(home),
        "HOSTNAME": "elsewhere",
        "SOURCE_DATE_EPOCH": "1234567890",
    }
