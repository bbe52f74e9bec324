"""Take the signature off a signed image: what is left is the .tar.gz, or the EROFS, that was signed, byte by byte."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import signing
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Every chunk is what the table says; nobody's key is asked for, since nothing signed comes out."""
    found = signing.strip(asked.path, asked.output)
    _asked.show(f"{asked.output}: {_asked.size(found.said.body)}, sha256:{found.said.content} unpacked")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="FILE", help="a signed image")
    verb.add_argument("-o", "--output", type=Path, metavar="OUT", required=True, help="what to write")


VERB = Verb(run, define, ("strip web.tar.gz -o plain.tar.gz",))
