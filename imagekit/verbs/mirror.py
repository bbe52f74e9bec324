"""Keep the Debian packages that locks pin in a depot, for builds whose mirror has dropped them (IMAGEKIT_DEPOT)."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import lock, site, usage
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """All that the locks pin, for all their architectures; only what the depot lacks moves."""
    from imagekit.depot import mirroring

    place = site.at(asked.place)
    pins = [pin for path in asked.lock for some in lock.read(path).pins.values() for pin in some]
    kept = mirroring.mirror(pins, place, _asked.store(), say=_asked.say)
    _asked.quiet()
    print(f"{kept.files} packages in {place.place}, of which {kept.new} are new: {_asked.size(kept.size)}")
    if kept.passed:
        print(f"{kept.passed} of other sources than debian: were passed over")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("lock", nargs="+", type=Path, metavar="LOCK", help="what `imagekit lock` wrote")
    verb.add_argument(
        "--to", dest="place", required=True, metavar="DEPOT", help="the depot's directory, here or ssh://HOST/PATH"
    )
    usage.mirror(verb)


VERB = usage.Verb(run, define, ("mirror images/web.lock --to /srv/depot",))
