"""Statements: what somebody says of some files, signed: in-toto's Statement v1 in a DSSE envelope, by ed25519.

Envelope and signed bytes: https://github.com/secure-systems-lab/dsse, envelope.md and protocol.md; statement:
https://github.com/in-toto/attestation, spec/v1. What is signed begins with "DSSEv1", so no signature here can be taken
for one over a manifest, or the other way round. Which keys count is for the caller to say: the envelope's own word for
its key is a hint that decides nothing (protocol.md, "keyid"), and the algorithm follows from the key.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from imagekit import strict
from imagekit.errors import Problem
from imagekit.key import Key

STATEMENT = "https://in-toto.io/Statement/v1"
PAYLOAD = "application/vnd.in-toto+json"
MAX_ENVELOPE = 8 << 20  # bytes
MOST_SIGNATURES = 16  # each is tried with each trusted key


class Statement(NamedTuple):
    """A statement whose signatures were verified."""

    subjects: Mapping[str, str]  # name -> sha256
    predicate_type: str
    predicate: Mapping[str, Any]
    keys: tuple[Key, ...]  # of those that were trusted, the ones that signed it


def sign(subjects: Mapping[str, str], *, predicate_type: str, predicate: Mapping[str, Any], key: Key) -> bytes:
    """An envelope with a statement of some files (name -> sha256), signed by a key."""
    statement = {
        "_type": STATEMENT,
        "subject": [{"name": name, "digest": {"sha256": subjects[name]}} for name in sorted(subjects)],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return _envelope(_json(statement), [], key)


def countersign(envelope: bytes, *, key: Key) -> bytes:
    """The same envelope with one more signature; whoever signs should have verified what it says."""
    payload, signatures = _opened(envelope)
    return _envelope(payload, [{"keyid": hint, "sig": _base64(raw)} for hint, raw in signatures], key)


def verify(
    envelope: bytes, keys: Iterable[Key], *, subject: str, predicate_type: str, threshold: int = 1
) -> Statement:  # fmt: skip
    """What an envelope says of the file with this sha256, signed by so many of the keys; raises Problem if it is not.

    Nothing of the statement is read before the signatures are verified.
    """
    payload, signatures = _opened(envelope)
    signers = _signers(_pae(payload), [raw for _, raw in signatures], list(keys), threshold)
    statement = strict.parse(payload, what="the statement", limit=MAX_ENVELOPE)
    if statement.get("_type") != STATEMENT:
        raise Problem(f"not a statement of in-toto v1: its type is {_shown(statement.get('_type'))}")
    if statement.get("predicateType") != predicate_type:
        raise Problem(f"the statement is a {_shown(statement.get('predicateType'))}, not a {predicate_type}")
    subjects = _subjects(statement.get("subject"))
    if subject not in subjects.values():
        raise Problem(f"the statement is of another file: of {_shown(', '.join(subjects))}, and of none with sha256 "
                      f"{subject}")  # fmt: skip
    predicate = statement.get("predicate")
    if not isinstance(predicate, dict):
        raise Problem("the statement says nothing: it has no predicate")
    return Statement(subjects, predicate_type, predicate, signers)


def _pae(payload: bytes) -> bytes:
    """What is signed: DSSE's pre-authentication encoding of payload and its type."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)


def _envelope(payload: bytes, signatures: Sequence[Mapping[str, str]], key: Key) -> bytes:
    own = {"keyid": key.id, "sig": _base64(key.sign_bytes(_pae(payload)))}
    whole = {"payload": _base64(payload), "payloadType": PAYLOAD, "signatures": [*signatures, own]}
    return _json(whole) + b"\n"


def _opened(envelope: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """The payload, and the signatures with their hints; nothing of it is verified."""
    found = strict.parse(envelope, what="the envelope", limit=MAX_ENVELOPE)
    kind, signatures = found.get("payloadType"), found.get("signatures")
    if kind != PAYLOAD:
        raise Problem(f"the envelope holds no statement of in-toto: its payload is of type {_shown(kind)}")
    if not isinstance(signatures, list) or not signatures:
        raise Problem("the envelope is signed by nobody")
    if len(signatures) > MOST_SIGNATURES:
        raise Problem(f"the envelope has {len(signatures)} signatures, more than {MOST_SIGNATURES}")
    return _raw(found.get("payload"), "payload"), [_signature(one) for one in signatures]


def _signature(found: object) -> tuple[str, bytes]:
    hint = found.get("keyid", "") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(hint, str):
        raise Problem("a signature of the envelope is malformed")
    return hint, _raw(found.get("sig"), "signature")


def _signers(signed: bytes, signatures: Sequence[bytes], keys: Sequence[Key], threshold: int) -> tuple[Key, ...]:
    """Those of the keys that made one of the signatures, each once however often it signed or is named."""
    distinct = list({key.public: key for key in keys}.values())
    if not 0 < threshold <= len(distinct):
        raise Problem(
            f"{threshold} signatures are wanted, and {len(distinct)} keys are trusted", "name keys with --key"
        )
    found = tuple(key for key in distinct if any(_is_by(key, signed, raw) for raw in signatures))
    if len(found) < threshold:
        by = f"only by {', '.join(key.id for key in found)}" if found else "by none of them"
        wanted = f"{threshold} of the trusted keys" if threshold > 1 else "a trusted key"
        raise Problem(f"the statement must be signed by {wanted}, and is {by}", "name the signer's key with --key")
    return found


def _is_by(key: Key, signed: bytes, raw: bytes) -> bool:
    try:
        return key.verify_bytes(signed, raw) == signed
    except Problem:
        return False


def _subjects(found: object) -> dict[str, str]:
    """Name -> sha256; a subject without a sha256 is none that can be compared."""
    subjects: dict[str, str] = {}
    for one in found if isinstance(found, list) else ():
        name, digests = (one.get("name"), one.get("digest")) if isinstance(one, dict) else (None, None)
        digest = digests.get("sha256") if isinstance(digests, dict) else None
        if not isinstance(name, str) or not isinstance(digest, str) or name in subjects:
            raise Problem("the statement's subjects are malformed", "each has a name of its own and a sha256")
        subjects[name] = digest
    if not subjects:
        raise Problem("the statement is of no file: it has no subject")
    return subjects


def _raw(text: object, what: str) -> bytes:
    """Bytes of base64: the standard alphabet or the one for URLs, both of which envelope.md allows."""
    try:
        if not isinstance(text, str):
            raise ValueError(f"it is {_shown(text)}")
        return b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except ValueError as error:
        raise Problem(f"the envelope's {what} is not base64: {error}") from None


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def _base64(raw: bytes) -> str:
    return b64encode(raw).decode()


def _shown(value: object) -> str:
    """A word of a stranger, short and without what a terminal would obey."""
    return ascii(value)[:120]
