"""Run a program of an image in a mount namespace: it takes the place of this process."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import usage
from imagekit.targets import _namespace
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Nothing comes back: the exit status is the program's."""
    store, key = _asked.store(), _asked.key(asked)[0]
    made = _asked.artifact(asked, key, store, kinds=("root",))
    with made.opened(key) as opened:
        _asked.quiet()
        return int(_namespace.execute(opened, asked.command or ["/bin/sh"], store=store))


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="PATH", help="a definition, or an artifact's manifest")
    verb.add_argument("command", nargs="*", metavar="COMMAND", help="after --; default: /bin/sh")
    verb.set_defaults(arch=None, tools=None)
    usage.key_option(verb, "key to verify with")


VERB = Verb(run, define, ("run images/web.py -- /usr/sbin/nginx -V",))
