"""Publish artifacts to a depot: only what it lacks moves, and readers see all of it or nothing."""

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path

from imagekit import artifact, holdings, site, usage
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Of artifacts that your key signed."""
    from imagekit.depot import publishing, roles, trust

    place = site.at(asked.place)
    if asked.root:
        trust.adopt(place, asked.root)
    made = [artifact.load(path) for path in asked.path]
    store = _asked.store()
    moved = publishing.publish(made, place, key=_asked.key(asked)[0], keys=roles.read_keys(asked.keys), store=store,
                               replace=asked.replace, listing=partial(holdings.listing, store=store),
                               say=_asked.say)  # fmt: skip
    _asked.quiet()
    for path in moved.paths:
        print(path)
    print(f"{_asked.size(moved.size)} in {moved.blobs} new blobs to {place.place}")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", nargs="+", type=Path, metavar="ARTIFACT", help="a manifest, or any part of an artifact")
    verb.add_argument("place", metavar="PLACE", help="the depot's directory, here or ssh://HOST/PATH")
    verb.add_argument("--keys", nargs="+", type=Path, required=True, metavar="FILE", help="role keys, or their folder")
    verb.add_argument("--root", metavar="ROOT", help="trust the depot by this root.json, or sha256:DIGEST of it")
    verb.add_argument("--replace", action="store_true", help="publish other bytes for a version that is there already")
    usage.key_option(verb, "key that signed the artifacts")


VERB = usage.Verb(run, define, ("publish out/web_1_x86_64.manifest.json /srv/depot --keys depot-keys",))
