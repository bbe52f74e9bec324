"""Make the keys by which firmware and TPMs believe your appliances (Secure Boot, sealed disks)."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import bootkeys
from imagekit.usage import Verb


def run(asked: Namespace) -> int:
    """Print what each is for, and which of them to carry away."""
    made = bootkeys.make(asked.folder, name=asked.name)
    for name, (beside, what, is_offline) in bootkeys.ROLES.items():
        place = "keep it OFFLINE: no build needs it" if is_offline else "builds need it (--boot-keys)"
        print(f"{asked.folder / name}.key, {beside}  {what}; {place}")
    print(f"{asked.folder / 'owner'}  {made.owner}, by which firmware tells whose keys these are")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("folder", type=Path, metavar="DIR", help="a folder that is made for them")
    verb.add_argument("--name", default="", help="whose they are, in the certificates that firmware shows")


VERB = Verb(run, define, ("boot-keys keys/boot --name Example",))
