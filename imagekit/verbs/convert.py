"""Write the disk of one file in another format, without composing it again."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import convert, usage
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Say what was written."""
    done = convert.convert(asked.source, asked.path, kind=asked.format or "", say=_asked.say)
    _asked.quiet()
    sizes = f"a disk of {_asked.size(done.disk)} from {done.source}: {_asked.size(done.size)}"
    print(f"{asked.path}: {done.kind}, {sizes}, sha256 {done.sha256}")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("source", type=Path, metavar="IN", help="a file that holds a disk, known by its content")
    verb.add_argument("path", type=Path, metavar="OUT", help="what to write; its suffix names the format")
    verb.add_argument("--format", metavar="NAME", help=f"else by OUT's suffix: {', '.join(usage.DISKS)}")


VERB = Verb(run, define, ("convert out/web_1_x86_64.img web.vmdk", "convert disk.vhdx disk.img --format raw"))
