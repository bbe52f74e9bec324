"""List the images of a depot, as its verified index names them."""

from argparse import ArgumentParser, Namespace

from imagekit import site, usage
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """One image a line; the versions of one in the order in which they were published."""
    from imagekit.depot import pulling, trust

    place = site.at(asked.place)
    if asked.root:
        trust.adopt(place, asked.root)
    for image in pulling.images(trust.refresh(place).targets):
        print(f"{image.name}:{image.version} {image.arch} {image.format}  {_asked.size(image.size)}")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("place", metavar="PLACE", help="a directory, or http(s):// or ssh://HOST/PATH")
    verb.add_argument("--root", metavar="ROOT", help="trust the depot by this root.json, or sha256:DIGEST of it")


VERB = usage.Verb(run, define, ("ls https://host.example/depot",))
