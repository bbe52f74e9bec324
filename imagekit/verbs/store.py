"""Look after the cache: what lies in it, and whether that is still what was put there."""

from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path

from imagekit import care
from imagekit.usage import Verb
from imagekit.verbs import _asked

SHOWN = 10  # images, of those with the largest artifacts


def run(asked: Namespace) -> int:
    """Whichever of the two was typed."""
    return {"ls": _ls, "verify": _verify}[asked.what](Path(_asked.store().location))


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    each = verb.add_subparsers(dest="what", metavar="ls|verify", required=True)
    for name, text in (
        ("ls", "what kinds of things lie in the cache: how many, how large on the disk, how old"),
        ("verify", "hash every object and note, set the bad ones aside, tell what others own or can write to"),
    ):
        each.add_parser(name, help=text, description=text)


def _ls(root: Path) -> int:
    rows = care.kinds(root)
    print(root)
    _print(rows)
    print(f"{_asked.size(sum(row.bytes for row in rows))} in all")
    if largest := care.images(root)[:SHOWN]:
        print("\nartifacts by image, with the bytes that they share with objects")
        _print(largest)
    return 0


def _print(rows: list[care.Kind]) -> None:
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        since = datetime.fromtimestamp(row.oldest, UTC).strftime("since %Y-%m-%d") if row.oldest else ""
        print(f"  {row.name:{width}}  {row.count:6}  {_asked.size(row.bytes):>10}  {since}".rstrip())


def _verify(root: Path) -> int:
    looked_at, faults = care.verify(root, say=_asked.say)
    _asked.quiet()
    for fault in faults:
        print(fault)
    print(f"{root}: {looked_at} objects and notes hashed, {len(faults)} faults")
    return int(bool(faults))


VERB = Verb(run, define, ("store ls", "store verify"))
