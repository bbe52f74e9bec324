"""Run a program of an image in a mount namespace: it takes the place of this process."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import runner
from imagekit.asked import Asked
from imagekit.usage import Verb
from imagekit.verbs import _asked

KEY = "a trusted key's file, or a folder of public keys (repeatable; else IMAGEKIT_KEY, [tool.imagekit], your own)"
LISTS = (
    (("-e", "--env"), "env", "NAME=VALUE", "a variable of the program (repeatable); it has yours as well"),
    (
        ("-v", "--volume"),
        "volumes",
        "SOURCE:PLACE[:ro]",
        "show a folder or file of yours in the image (repeatable)",
    ),
)
VALUES = (
    ("--workdir", "FOLDER", "where the program starts"),
    ("--user", "USER[:GROUP]", "who it runs as: a name of the image, or a number"),
    ("--memory", "SIZE", "the most memory that it and its children may have"),
    ("--cpus", "NUMBER", "the most processors' time, as 1.5"),
    ("--pids", "NUMBER", "the most processes"),
    ("--persist", "FOLDER", "keep what is written, in this folder"),
)


def run(asked: Namespace) -> int:
    """Nothing comes back: the exit status is the program's."""
    wanted = Asked()
    for name in vars(wanted):
        setattr(wanted, name, getattr(asked, name))
    if wanted.image.endswith(".py"):
        asked.path, asked.key = Path(wanted.image), next(map(Path, wanted.trust), None)
        signer, path = _asked.key(asked)
        made = _asked.artifact(asked, signer, _asked.store(), kinds=("root",))
        wanted.image, wanted.trust = str(made.path), [str(path)]
        _asked.quiet()
    return runner.start(wanted)


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument(
        "image",
        metavar="IMAGE",
        help="a signed image file or its address, an artifact's manifest, a definition, or a folder (--insecure)",
    )
    verb.add_argument("command", nargs="*", metavar="COMMAND", help="after --; default: the image's own, or /bin/sh")
    verb.add_argument("--trust", "--keyring", "--key", action="append", default=[], metavar="KEY", help=KEY)
    for names, kept, shown, text in LISTS:
        verb.add_argument(*names, dest=kept, action="append", default=[], metavar=shown, help=text)
    for name, shown, text in VALUES:
        verb.add_argument(name, default="", metavar=shown, help=text)
    verb.add_argument("--ephemeral", action="store_true", help="unpack into memory, not into the cache")
    verb.add_argument("--insecure", action="store_true", help="verify nothing")
    verb.add_argument("--explain", action="store_true", help="tell where the image's root comes to lie, and why")
    verb.set_defaults(arch=None, tools=None)


VERB = Verb(
    run,
    define,
    (
        "run web.tar.gz",
        "run --trust web.pub https://files.example/web.tar.gz",
        "run images/web.py -- /usr/sbin/nginx -V",
        "run --trust web.pub -v /srv/www:/srv/www:ro web.manifest.json -- /usr/sbin/nginx -g 'daemon off;'",
    ),
)
