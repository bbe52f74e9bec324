"""Write an update into the slot that does not run: of a machine by ssh, or of a disk whose machine is off."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import artifact, updating, usage
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """The update is verified here first, by the keys that are trusted."""
    if (asked.host is None) == (asked.disk is None):
        raise Problem("an update goes either to a machine or to a disk", "name HOST, or --disk DISK")
    keys, path = _asked.keys(asked.key), _file(asked.path)
    said = updating.verified(path, keys)
    if asked.disk:
        told = updating.on_disk(path, asked.disk, said=said, keys=keys)
    else:
        told = updating.by_ssh(path, asked.host, say=_asked.say)
    _asked.quiet()
    _asked.show(told)
    return 0


def _file(path: Path) -> Path:
    """The update itself, where the artifact's manifest was named."""
    if not path.name.endswith(artifact.MANIFEST_SUFFIX):
        return path
    made = artifact.load(path)
    found = [part.file for part in made.parts if part.role == "update"]
    if not found:
        raise Problem(f"{path}: {made.format} is no update", 'give the image "update" among its formats')
    return path.with_name(found[0])


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="UPDATE", help="an update, or its manifest")
    verb.add_argument("host", nargs="?", metavar="HOST", help="[USER@]HOST[:PORT], by your own ssh; root installs it")
    verb.add_argument(
        "--disk", type=Path, metavar="DISK", help="a raw disk, or a block device, that no machine runs from"
    )
    usage.key_option(verb, "key that must have signed", action="append")


VERB = Verb(
    run,
    define,
    ("update out/web_2_x86_64.update root@10.0.0.7", "update out/web_2_x86_64.update --disk web.img"),
)
