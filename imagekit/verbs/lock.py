"""Pin every package of the images, for all their architectures, in a lock beside each definition."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import build, usage
from imagekit.errors import Problem
from imagekit.image import Image
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when a lock is behind its definition."""
    store = _asked.store()
    if asked.tools:
        from imagekit import toolbox

        toolbox.write_locks(store, _asked.say)
        return 0
    behind = 0
    for path, image in _asked.definitions(asked.path):
        if asked.check:
            behind += _lock_is_behind(path, image)
        else:
            written = build.write_lock(image, path.with_suffix(".lock"), store=store, say=_asked.say, tell=print)
            for arch, pins in sorted(written.pins.items()):
                size = sum(pin.size for pin in pins)
                print(f"{path.with_suffix('.lock')}: {arch}: {len(pins)} packages, {_asked.size(size)} to fetch")
            print("".join(f"{line}\n" for line in build.licences(written, store=store, say=_asked.say)), end="")
    return min(behind, 1)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    usage.paths(verb, "definitions, or folders of them (default: images)", default="images")
    verb.add_argument("--check", action="store_true", help="only say which locks are behind their definitions")
    verb.add_argument("--tools", action="store_true", help="pin imagekit's own tools instead (for its maintainers)")
    usage.mirror(verb)


def _lock_is_behind(path: Path, image: Image) -> bool:
    try:
        build.check_lock(image, build.read_lock(path))
    except Problem as problem:
        print(f"{path}: {problem}")
        return True
    print(f"{path}: the lock is up to date with its definition")
    return False


VERB = Verb(run, define, ("lock images/", "lock --check images/web.py"))
