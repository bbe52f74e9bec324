"""Make one executable of a signed image, which runs where nothing is installed."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import bundle, usage
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Say what was written, and whom it trusts."""
    made = bundle.bundle(
        asked.image, asked.output, keys=_asked.keys(asked.key), arch=asked.arch or "", read_only=asked.read_only
    )
    said, key = made.image.said, made.image.number[::-1].hex().upper()
    print(f"{asked.output}: {said.name} {said.version}, runs on {made.arch}, {_asked.size(made.size)}; trusts {key}")
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("image", type=Path, metavar="IMAGE", help="a signed image file (`imagekit sign`)")
    verb.add_argument("-o", "--output", type=Path, required=True, metavar="APP", help="the executable to write")
    verb.add_argument("--arch", choices=bundle.ARCHES, help="of the launcher, if the image is for any architecture")
    verb.add_argument("--read-only", action="store_true",
                      help="the program can write to /tmp and /run only; root starts it faster")  # fmt: skip
    usage.key_option(verb, "key that must have signed the image, and that the executable will trust", action="append")


VERB = Verb(run, define, ("bundle web.tar.gz -o web --key web.pub", "bundle any.tar.gz -o app --arch riscv64"))
