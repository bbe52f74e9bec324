"""Take the signature off a signed image: what is left is the .tar.gz, or the EROFS, that was signed, byte by byte."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import host, signing
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Every chunk is what the table says; nobody's key is asked for, since nothing signed comes out."""
    if asked.bali:
        return _bali(asked)
    found = signing.strip(asked.path, asked.output)
    _asked.show(f"{asked.output}: {_asked.size(found.said.body)}, sha256:{found.said.content} unpacked")
    return 0


def _bali(asked: Namespace) -> int:
    """The tar of a file of bali, packed anew: its signature lies behind the tar, inside of what is packed."""
    from imagekit.disk import bali, gzip

    publics = [bali.public_of(text) for text in asked.bali]
    signing.check_place(asked.output)
    with signing.opened(asked.path) as file, host.draft(asked.output, is_large=True) as draft:
        for piece in gzip.member(gzip.runs(bali.tar(file, publics))):
            draft.write(piece)
    _asked.show(f"{asked.output}: the tar of a file of bali, whose signature fits")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="FILE", help="a signed image")
    verb.add_argument("-o", "--output", type=Path, metavar="OUT", required=True, help="what to write")
    verb.add_argument("--bali", action="append", metavar="IDENTITY",
                      help="FILE is one of bali, signed by this identity (repeatable)")  # fmt: skip


VERB = Verb(run, define, ("strip web.tar.gz -o plain.tar.gz", "strip old.tar.gz --bali cDFX... -o plain.tar.gz"))
