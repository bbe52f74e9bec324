"""Print what an artifact is made of: the CycloneDX document that its manifest names, or SPDX."""

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import artifact, host, sbom, usage
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Of a manifest that one of the keys signed."""
    made = artifact.load(asked.path)
    made.signer(_asked.keys(asked.key))
    try:
        kept = made.read_sbom() if asked.format == "cyclonedx" else b""
        document = kept or sbom.FORMATS[asked.format](made.manifest)
    except (LookupError, TypeError, AttributeError) as error:
        raise Problem(
            f"{made.path.name} does not list packages as it should: {type(error).__name__}: {error}"
        ) from error
    if asked.output:
        with host.draft(asked.output) as file:
            file.write(document)
    else:
        sys.stdout.write(document.decode())
    return 0


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("path", type=Path, metavar="ARTIFACT", help="a manifest, or any part of an artifact")
    verb.add_argument("--format", choices=tuple(sbom.FORMATS), default="cyclonedx", help="default: cyclonedx")
    verb.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    usage.key_option(verb, "key that must have signed", action="append")


VERB = Verb(
    run,
    define,
    ("sbom out/web_1_x86_64.img", "sbom out/web_1_x86_64.img --format spdx -o web.spdx.json"),
)
