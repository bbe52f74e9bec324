"""Attestation: whether a machine runs what was built, by its TPM's word; nothing else that it says is believed.

A reply is what inside/attest.c prints. It is read strictly, then proved link by link: the key is the one that is known
of this device, the key signed the quote, the quote answers our nonce, the PCRs' values are the quoted ones, and the
firmware's event log leads to these values (but for IMA, which the kernel extends). Only then is the log worth comparing
with what an image measures.
"""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, NamedTuple

from imagekit import quote, tpm
from imagekit.device import Device
from imagekit.disk import eventlog
from imagekit.errors import Problem
from imagekit.quote import Key, Quote

PCRS = tuple(range(16))  # what a boot is measured into
IMA = 10  # the kernel's PCR, for its own list of files; at least for its digest of 0 to 9, when it finds the TPM early
STUB = 11  # the PCR of the UKI's sections
COMPARED = (4, 7, 11, 12)  # what an image may predict
LEFT = sha256(b"leave-initrd").digest()  # what the initrd extends STUB with before anything else runs
MAX_LOG = 262144  # bytes; inside/attest.h
MAX_REPLY = 2 * MAX_LOG + 8192
HEX = re.compile(r"(?:[0-9a-f]{2})+\Z")
NAME = re.compile(r"[A-Za-z0-9._+~:-]{1,255}\Z")
MANY = 2048  # bytes of a key, quote or signature
LINES = ("imagekit", "image", "key", "quote", "signature", *["pcr"] * len(PCRS), "log", "end")


class Reply(NamedTuple):
    """What a machine says of itself; nothing of it is proved."""

    name: str  # of the image
    version: str
    key: bytes
    quote: bytes
    signature: bytes
    pcrs: Mapping[int, bytes]
    log: bytes


class Proved(NamedTuple):
    """What a TPM vouches for."""

    key: Key
    quote: Quote
    pcrs: Mapping[int, bytes]  # as they were quoted
    log: eventlog.Log  # which leads to them
    has_left: bool  # STUB was extended by LEFT behind the log's end: the initrd is over


def parse(data: bytes) -> Reply:
    """The reply that these bytes are. Raises Problem unless they are one to the letter."""
    if len(data) > MAX_REPLY:
        raise Problem(f"the reply is larger than the {MAX_REPLY} bytes that one may have")
    try:
        lines = data.decode("ascii").split("\n")
    except UnicodeDecodeError:
        raise Problem("the reply is no text") from None
    if len(lines) != len(LINES) + 1 or lines[-1]:
        raise Problem(f"the reply has {len(lines) - 1} lines, not the {len(LINES)} of an attestation")
    rows = [_words(line, word) for line, word in zip(lines, LINES, strict=False)]
    if rows[0] != ["attestation", "1"] or rows[-1] != []:
        raise Problem("the reply is not of a version that is known here")
    name, version = _names(rows[1])
    key, quoted, signature = (_bytes(row, word, MANY) for row, word in zip(rows[2:5], LINES[2:5], strict=True))
    pcrs = {pcr: _pcr(row, pcr) for pcr, row in zip(PCRS, rows[5:-2], strict=True)}
    return Reply(name, version, key, quoted, signature, pcrs, _bytes(rows[-2], "log", MAX_LOG))


def prove(reply: Reply, *, nonce: bytes, device: Device | None) -> Proved:
    """What the TPM vouches for. Raises Problem that names the first link that does not hold.

    device: what is known of the machine; None when it is met for the first time, and any TPM's key counts.
    """
    key = quote.key(reply.key)
    if device and device.key != reply.key:
        raise Problem("the key is not the one that is known of this device: another machine answers, or another TPM is "
                      "in it", "when you put it there: enrol it again, into another file")  # fmt: skip
    said = quote.signed(key, reply.quote, reply.signature)
    if said.nonce != nonce:
        raise Problem("the quote answers another question than ours: it is a replay, or was asked for by somebody else")
    quote.check_pcrs(said, reply.pcrs, wanted=PCRS)
    log = eventlog.parse(reply.log)
    proved = Proved(key, said, reply.pcrs, log, _has_left(log, reply.pcrs))
    if device:
        device.check(said, reply.pcrs)
    return proved


def predicted(manifest: Mapping[str, Any]) -> Mapping[int, bytes]:
    """What a signed manifest says of the PCRs that its image leads to, before it leaves its initrd."""
    found = next((part["pcrs"] for part in manifest["parts"] if part.get("pcrs")), None)
    try:
        pcrs = {int(pcr): bytes.fromhex(value) for pcr, value in (found or {}).items()}
    except (ValueError, AttributeError, TypeError):
        raise Problem("the manifest's PCRs are none") from None
    if STUB not in pcrs or any(len(value) != quote.DIGEST for value in pcrs.values()):
        raise Problem("the image's manifest predicts no PCRs", "that of a sealed or signed image does")
    return {pcr: pcrs[pcr] for pcr in sorted(pcrs) if pcr in COMPARED}


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Whether the image has a sealed disk: its initrd extends STUB at its end."""
    return any("seal" in part for part in manifest["parts"])


def check_fits(manifest: Mapping[str, Any], told: Mapping[int, bytes]) -> None:
    """Raise Problem when a manifest predicts something else than what its own image leads to, by its bytes."""
    wanted = predicted(manifest)
    if odd := [pcr for pcr in wanted if told.get(pcr, wanted[pcr]) != wanted[pcr]]:
        raise Problem(f"the manifest does not fit its image, which leads to another PCR {', '.join(map(str, odd))}",
                      "build it again")  # fmt: skip


def different(proved: Proved, manifest: Mapping[str, Any]) -> list[str]:
    """What is not as the image of a signed manifest leads to; nothing when it runs."""
    replayed, wanted, sealed = proved.log.replay(), predicted(manifest), is_sealed(manifest)
    found = [f"PCR {pcr} is {replayed.get(pcr, tpm.NO_MEASUREMENT).hex()}, not {value.hex()}"
             for pcr, value in wanted.items() if replayed.get(pcr, tpm.NO_MEASUREMENT) != value]  # fmt: skip
    if sealed != proved.has_left:
        found.append("PCR 11 says that the initrd is not over: what opens its disk may still run" if sealed else
                     "PCR 11 was extended by leave-initrd, which this image does not do")  # fmt: skip
    return found


def _has_left(log: eventlog.Log, pcrs: Mapping[int, bytes]) -> bool:
    """Whether the initrd is over. Raises Problem when the log does not lead to the PCRs, but for that."""
    replayed = dict.fromkeys(PCRS, tpm.NO_MEASUREMENT) | log.replay()
    has_left = pcrs[STUB] == tpm.extended(replayed[STUB], LEFT)
    if has_left:
        replayed[STUB] = pcrs[STUB]
    if wrong := [pcr for pcr in PCRS if replayed[pcr] != pcrs[pcr] and pcr != IMA]:
        raise Problem(f"the event log does not lead to what PCR {', '.join(map(str, wrong))} was quoted with: the log "
                      "is forged or incomplete")  # fmt: skip
    return has_left


def _words(line: str, word: str) -> list[str]:
    first, *rest = line.split(" ")
    if first != word:
        raise Problem(f"the reply has a line {ascii(first)[:40]} where {word} should be")
    return rest


def _names(row: Sequence[str]) -> tuple[str, str]:
    if len(row) != 2 or not all(map(NAME.match, row)):
        raise Problem("the reply's line image is malformed")
    return row[0], row[1]


def _pcr(row: Sequence[str], pcr: int) -> bytes:
    value = _bytes(row[1:], f"pcr {pcr}", quote.DIGEST)
    if row[0] != str(pcr) or len(value) != quote.DIGEST:
        raise Problem(f"the reply's line pcr {pcr} is malformed")
    return value


def _bytes(row: Sequence[str], word: str, most: int) -> bytes:
    if len(row) != 1 or len(row[0]) > 2 * most or not HEX.match(row[0]):
        raise Problem(f"the reply's line {word} is malformed")
    return bytes.fromhex(row[0])
