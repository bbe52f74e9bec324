"""Ask a machine's TPM what was measured, and compare it with what a signed image leads to."""

import os
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from imagekit import artifact, attestation, device, usage
from imagekit.artifact import Artifact
from imagekit.attestation import Proved, Reply
from imagekit.device import Device
from imagekit.errors import Problem
from imagekit.key import Key
from imagekit.quote import NONCE
from imagekit.usage import Verb
from imagekit.verbs import _asked

Named = Callable[[], list[str]]
SECONDS = 60.0  # a slow TPM takes one for a key, and others may be asking


def run(asked: Namespace) -> int:
    """Say what the machine runs; whatever is not proved, or not as the image leads to, is a Problem."""
    made = artifact.load(asked.image)
    signer = made.signer(_asked.keys(asked.key))
    wanted = attestation.predicted(made.manifest)
    known = device.read(asked.device) or Device()
    _check(asked, known)
    if asked.challenge:
        return _challenge(asked.device, known)
    nonce, data = _reply(asked, known)
    reply = attestation.parse(data)
    proved = attestation.prove(reply, nonce=nonce, device=known if known.key else None)
    _compare(proved, made, reply=reply, by=lambda: _by_name(proved, made, signer, asked))
    device.write(asked.device, device.seen(known, reply.key, proved.quote, proved.pcrs))
    for line in _told(proved, made, known, wanted):
        _asked.show(line)
    _asked.show(f"{asked.device}: runs {made.name} {made.manifest['version']} {made.arch}, signed by {signer.id}")
    return 0


def _check(asked: Namespace, known: Device) -> None:
    if asked.enroll and known.key:
        raise Problem(
            f"{asked.device} has a key already: this device is enrolled", "leave --enroll away, or name another file"
        )
    if not known.key and not asked.enroll:
        raise Problem(
            f"{asked.device}: nothing is known of this device", "--enroll believes it this once, for ever after"
        )


def _challenge(path: Path, known: Device) -> int:
    """A nonce that the device's file waits for: who answers it later has answered now or later, and once."""
    from dataclasses import replace

    nonce = os.urandom(NONCE).hex()
    device.write(path, replace(known, nonce=nonce))
    print(nonce)
    return 0


def _reply(asked: Namespace, known: Device) -> tuple[bytes, bytes]:
    """Our nonce, and what was answered to it."""
    if not asked.reply:
        nonce = os.urandom(NONCE)
        return nonce, _fetched(asked.host, nonce.hex())
    if not known.nonce:
        raise Problem(
            f"{asked.device} waits for no reply: each nonce is good for one", "ask with a new one: --challenge"
        )
    try:
        with open(asked.reply, "rb") as file:
            return bytes.fromhex(known.nonce), file.read(attestation.MAX_REPLY + 1)
    except OSError as error:
        raise Problem(f"cannot read {asked.reply}: {error.strerror}") from error


def _fetched(url: str, nonce: str) -> bytes:
    """The answer of imagekit-attest --serve; it needs no secrecy, and proves itself."""
    from socket import create_connection

    from imagekit.http import Http

    where = _address(url)
    http = Http(lambda port: create_connection((where[0], port), timeout=SECONDS))
    answer = http.request("GET", f"/attest?nonce={nonce}", port=where[1], timeout=SECONDS)
    if answer.status != 200:
        raise Problem(f"{url} gives no attestation: {answer.status} {ascii(answer.text.strip())[:120]}")
    return answer.body


def _address(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        where = parts.hostname, parts.port or 80
    except ValueError:
        where = None, 0
    if where[0] is None or parts.scheme != "http" or parts.path.strip("/") or parts.query or parts.username:
        raise Problem(f"--host {url} is no address", "as in http://192.0.2.7:8410")
    return where[0], where[1]


def _compare(proved: Proved, made: Artifact, *, reply: Reply, by: Named) -> None:
    """Raise Problem with every difference, by the names of events where the image itself is here to tell them."""
    found = attestation.different(proved, made.manifest)
    if found:
        raise Problem("\n  ".join((f"the machine does not run {made.name} {made.manifest['version']}:", *found, *by())),
                      f"it says that it runs {reply.name} {reply.version}, which nothing proves")  # fmt: skip


def _by_name(proved: Proved, made: Artifact, signer: Key, asked: Namespace) -> list[str]:
    """What was measured otherwise; nothing when only the manifest is here."""
    from imagekit import pcr

    if not all(made.path.parent.joinpath(part.file).exists() for part in made.parts):
        return []
    with made.opened(signer) as opened:
        told = pcr.of_artifact(opened, keys=pcr.enrolled(asked.boot_keys))
    attestation.check_fits(made.manifest, told.values())
    return [str(one) for one in pcr.compare(told, proved.log)]


def _told(proved: Proved, made: Artifact, known: Device, wanted: Mapping[int, bytes]) -> Iterator[str]:
    said = proved.quote
    if not known.key:
        yield (f"TRUSTED AT FIRST SIGHT: nothing but this answer says that TPM {proved.key.name.hex()[4:20]} is in the "
               "machine that you mean; compare it with what the machine itself shows")  # fmt: skip
    yield f"key {proved.key.name.hex()[4:]}, quoted for our nonce, start {said.resets} of this TPM"
    yield f"PCR {', '.join(map(str, wanted))} as the image leads to, by a log of {len(proved.log.events)} events"
    if missing := [str(pcr) for pcr in attestation.COMPARED if pcr not in wanted]:
        yield f"PCR {', '.join(missing)} not compared: the manifest of {made.path.name} predicts none"


def define(verb: ArgumentParser) -> None:
    """What it takes."""
    verb.add_argument(
        "image", type=Path, metavar="IMAGE", help="what should run: a manifest, or any part of an artifact"
    )
    verb.add_argument(
        "--device", type=Path, metavar="FILE", required=True, help="what is known of this machine: a file of yours"
    )
    verb.add_argument(
        "--enroll", action="store_true", help="it is met for the first time: believe its key, and note it"
    )
    how = verb.add_mutually_exclusive_group(required=True)
    how.add_argument("--host", metavar="URL", help="ask it: where its imagekit-attest --serve answers")
    how.add_argument(
        "--challenge", action="store_true", help="print a nonce, to be answered by `imagekit-attest NONCE`"
    )
    how.add_argument("--reply", type=Path, metavar="FILE", help="what it answered to the last --challenge")
    usage.boot_keys(verb)
    usage.key_option(verb, "key that must have signed the image", action="append")


VERB = Verb(
    run,
    define,
    (
        "attest out/app_1_x86_64.img --device fleet/17.json --host http://192.0.2.17:8410 --enroll",
        "attest out/app_1_x86_64.img --device fleet/17.json --host http://192.0.2.17:8410",
        "attest out/app_1_x86_64.img --device fleet/17.json --challenge",
        "attest out/app_1_x86_64.img --device fleet/17.json --reply answer.txt",
    ),
)
