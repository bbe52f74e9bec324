"""Look after the cache: what lies in it, whether that is still what was put there, and what nobody used for long."""

from argparse import ArgumentParser, ArgumentTypeError, Namespace
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

from imagekit import care, clearing, inuse, room
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked

SHOWN = 10  # images, of those with the largest artifacts


def run(asked: Namespace) -> int:
    """Whichever of the three was typed."""
    return {"ls": _ls, "verify": _verify, "gc": _gc}[asked.what](Path(_asked.store().location), asked)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    each = verb.add_subparsers(dest="what", metavar="ls|verify|gc", required=True)
    for name, text in (
        ("ls", "what kinds of things lie in the cache: how many, how large on the disk, how old"),
        ("verify", "hash every object and note, set the bad ones aside, tell what others own or can write to"),
        ("gc", "remove what was not used for long, and what killed processes left; nothing while others use the cache"),
    ):
        made = each.add_parser(name, help=text, description=text)
    much = made.add_mutually_exclusive_group()
    much.add_argument("--older-than", type=_days, metavar="DAYS", help=f"what was not used for so long ({room.DAYS:g})")
    much.add_argument("--keep", type=_size, metavar="SIZE", help="the longest unused, until the cache has so much")
    made.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    made.add_argument("--wait", action="store_true", help="wait while others use the cache")


def _days(text: str) -> float:
    days = float(text)
    if not 0 <= days < 1e6:
        raise ValueError(text)
    return days


def _size(text: str) -> int:
    try:
        return clearing.size_of(text)
    except Problem as problem:
        raise ArgumentTypeError(f"{problem.message}: {problem.hint}") from problem


def _ls(root: Path, _: Namespace) -> int:
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


def _verify(root: Path, _: Namespace) -> int:
    looked_at, faults = care.verify(root, say=_asked.say)
    _asked.quiet()
    for fault in faults:
        print(fault)
    print(f"{root}: {looked_at} objects and notes hashed, {len(faults)} faults")
    return int(bool(faults))


def _gc(root: Path, asked: Namespace) -> int:
    days = room.DAYS if asked.older_than is None and asked.keep is None else asked.older_than
    with nullcontext() if asked.dry_run else inuse.alone(root, wait=asked.wait, say=_asked.say):
        _asked.quiet()
        done = clearing.clear(root, keep=asked.keep, days=days, dry_run=asked.dry_run)
    verb = "would remove" if asked.dry_run else "removed"
    for kind, count in sorted(done.counts.items()):
        print(f"{verb} {count} {kind if count > 1 or kind == 'bad' else kind.removesuffix('s')}")
    for line in (*done.strange, *done.failures):
        _asked.show(line)
    freed, left = _asked.size(done.freed), _asked.size(done.left)
    print(f"{root}: {freed} {'would be freed' if asked.dry_run else 'freed'}, {left} left")
    return int(bool(done.failures))


VERB = Verb(run, define, ("store ls", "store verify", "store gc --keep 20G", "store gc --older-than 7 --dry-run"))
