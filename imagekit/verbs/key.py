"""Make a signing key, or show a key's public half."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import key
from imagekit.usage import Verb


def run(asked: Namespace) -> int:
    """Print the public half."""
    path = asked.path or key.default_path()
    if asked.what == "new":
        key.save(key.new(comment=asked.comment), path)
        print(f"secret key {path}\npublic key {path.with_suffix('.pub')}")
    print(key.read(path).public_text(), end="")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("what", choices=("new", "show"))
    verb.add_argument("path", type=Path, nargs="?", metavar="FILE", help="default: your own key")
    verb.add_argument("--comment", default="", help="stands in the key's file")


VERB = Verb(run, define, ("key new", "key show fixtures/keys/test.pub"))
