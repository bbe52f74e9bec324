"""Pull an image from a depot: only what is not here yet moves, and all of it is verified before it gets its names."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import site, usage
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """By the depot's index, and by the key that signed the image."""
    from imagekit.depot import pulling, trust

    place, key = site.at(asked.place), _asked.key(asked)[0]
    if asked.root:
        trust.adopt(place, asked.root)
    seen = trust.refresh(place)
    name, _, version = asked.name.partition(":")
    chosen = pulling.choose(pulling.images(seen.targets), name, version=version, arch=asked.arch, format=asked.format)
    pulled = pulling.pull(chosen, seen, place, out=asked.output, key=key, store=_asked.store(), say=_asked.say)
    _asked.quiet()
    size, moved = _asked.size(pulled.artifact.size), _asked.size(pulled.size)
    print(f"{' '.join(chosen[:4])}  {size}, of which {moved} moved  {pulled.artifact.path}")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("name", metavar="NAME[:VERSION]", help="default: the version that was published last")
    verb.add_argument(
        "--from", dest="place", required=True, metavar="PLACE", help="a directory, or http(s):// or ssh://HOST/PATH"
    )
    verb.add_argument("--arch", default="", help="where the depot has several")
    verb.add_argument("--format", default="", help="where the depot has several")
    verb.add_argument("--root", metavar="ROOT", help="trust the depot by this root.json, or sha256:DIGEST of it")
    verb.add_argument("-o", "--output", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    usage.key_option(verb, "key that must have signed the image")


VERB = usage.Verb(
    run,
    define,
    ("pull web --from https://host.example/depot --root root.json", "pull web:1 --from /srv/depot --arch aarch64"),
)
