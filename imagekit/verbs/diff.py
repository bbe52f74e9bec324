"""Tell what two artifacts differ in: packages, files, sizes, then bytes."""

import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import artifact, changes, usage
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 0 when they are the same, 1 when not."""
    keys = _asked.keys(asked.key)
    one, other = (artifact.load(path) for path in (asked.one, asked.other))
    for made in (one, other):
        made.verify(made.signer(keys))
    found = changes.between(one, other)
    if asked.json:
        print(json.dumps(found.json(), indent=1))
    else:
        print("\n".join(found.lines()) if not found.same else "the same")
    return int(not found.same)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    for name in ("one", "other"):
        verb.add_argument(name, type=Path, metavar="ARTIFACT", help="a manifest, or any part of an artifact")
    verb.add_argument("--json", action="store_true", help="for programs")
    usage.key_option(verb, "key that must have signed them", action="append")


VERB = Verb(run, define, ("diff old/web_1_x86_64.img new/web_2_x86_64.img",))
