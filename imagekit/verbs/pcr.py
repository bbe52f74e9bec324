"""Predict what a machine's TPM will hold after it has started an image, and compare that with its event log."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from imagekit import artifact, pcr, usage
from imagekit.disk.prediction import Prediction
from imagekit.errors import Problem
from imagekit.usage import Verb
from imagekit.verbs import _asked


def run(asked: Namespace) -> int:
    """Exit status 1 when the log tells of anything else."""
    told = _predicted(asked)
    found = pcr.log(asked.log) if asked.log else None
    if asked.json:
        import json

        print(json.dumps(pcr.fields(told, found), indent=1))
    else:
        for line in pcr.lines(told, found):
            _asked.show(line)
    return int(bool(found and pcr.compare(told, found)))


def _predicted(asked: Namespace) -> Prediction:
    """Of the bytes that a manifest's signature answers for, where there is one; else of the file as it is."""
    keys = pcr.enrolled(asked.boot_keys)
    if not _has_manifest(asked.image):
        if asked.key:
            raise Problem(f"{asked.image} is signed by nobody: there is no manifest for it", "leave --key out")
        _asked.note(f"{asked.image}: no manifest of imagekit answers for it; it is taken as it is")
        return pcr.of_file(asked.image, keys=keys)
    made = artifact.load(asked.image)
    with made.opened(made.signer(_asked.keys(asked.key))) as opened:
        return pcr.of_artifact(opened, keys=keys)


def _has_manifest(path: Path) -> bool:
    if not path.exists():
        raise Problem(f"there is no {path}")
    try:
        artifact.manifest_of(path)
    except Problem:
        return False
    return True


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument("image", type=Path, metavar="IMAGE", help="an artifact; or a UKI or a disk, whoever made it")
    verb.add_argument("--log", type=Path, metavar="FILE", help="the event log of a machine that has started it")
    verb.add_argument("--json", action="store_true", help="for programs")
    usage.boot_keys(verb)
    usage.key_option(verb, "key that must have signed it", action="append")


VERB = Verb(run, define, ("pcr out/web_1_x86_64.efi", "pcr disk.img --log binary_bios_measurements"))
