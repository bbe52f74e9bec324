"""Statements: another reader accepts what we sign and we what it signs; everything else is refused in its own words."""

import json
from base64 import b64encode, urlsafe_b64encode

import pytest

from imagekit import key as keys
from imagekit import statement
from imagekit.errors import Problem

A, B, C = (keys.from_seed(bytes([n]) * 32) for n in (1, 2, 3))
WEAK = keys.Key(bytes(8), bytes(32))  # a point of order 4: lax verifiers take zeros as its signature of anything
FILE, OTHER = "1" * 64, "2" * 64
KIND = "https://in-toto.io/attestation/test-result/v0.1"
SAID = {"result": "PASSED", "names": ["grüße"]}
SIGNED = statement.sign({"web.img": FILE}, predicate_type=KIND, predicate=SAID, key=A)


def read(envelope, *trusted, **options):
    """The predicate of an envelope that is of FILE."""
    return statement.verify(envelope, trusted or [A], **{"subject": FILE, "predicate_type": KIND, **options})


def changed(**fields):
    """The good envelope with other fields."""
    return json.dumps({**json.loads(SIGNED), **fields}).encode()


def enveloped(payload, *signers, kind=statement.PAYLOAD):
    """An envelope with whatever somebody chose to sign, made without the code under test."""
    body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    signed = b"DSSEv1 " + f"{len(kind)} {kind} {len(body)} ".encode() + body
    made = [{"keyid": one.id, "sig": b64encode(one.sign_bytes(signed)).decode()} for one in signers]
    return json.dumps({"payload": b64encode(body).decode(), "payloadType": kind, "signatures": made}).encode()


def said(**fields):
    """A good statement with other fields."""
    subject = [{"name": "web.img", "digest": {"sha256": FILE}}]
    return {"_type": statement.STATEMENT, "subject": subject, "predicateType": KIND, "predicate": SAID, **fields}


OWN = json.loads(SIGNED)["signatures"][0]
ENVELOPES = [
    (b"x" * ((8 << 20) + 1), "the envelope is larger than"),
    (b"[]", "the envelope is no JSON object"),
    (SIGNED[:-20], "the envelope is not JSON"),
    (b'{"payload": "", ' + SIGNED[1:], "the envelope is not strict JSON: key 'payload' is given twice"),
    (b'{"a": ' + b"[" * 200_000, "the envelope is nested deeper than"),
    (changed(more=float("nan")), "the envelope is not strict JSON: NaN"),
    (changed(payloadType="application/json"), "is of type 'application/json'"),
    (changed(payloadType=None), "is of type None"),
    (changed(payload="%%%"), "payload is not base64"),
    (changed(payload=None), "payload is not base64: it is None"),
    (changed(signatures=[]), "is signed by nobody"),
    (changed(signatures={"sig": 1}), "is signed by nobody"),
    (changed(signatures=["x"]), "a signature of the envelope is malformed"),
    (changed(signatures=[{**OWN, "keyid": 1}]), "a signature of the envelope is malformed"),
    (changed(signatures=[{"keyid": A.id}]), "signature is not base64: it is None"),
    (changed(signatures=[OWN] * 17), "17 signatures, more than 16"),
    (changed(signatures=[{**OWN, "sig": ""}]), "signed by a trusted key, and is by none"),
    (changed(signatures=[{**OWN, "sig": "AAAA"}]), "signed by a trusted key, and is by none"),
    (changed(signatures=[{**OWN, "sig": b64encode(bytes(64)).decode()}]), "signed by a trusted key, and is by none"),
    (changed(payload=b64encode(json.dumps(said()).encode()).decode()), "signed by a trusted key, and is by none"),
    (enveloped(said(), B), "signed by a trusted key, and is by none"),
    (enveloped(said(), A, kind="application/vnd.in-toto+jso"), "is of type 'application/vnd.in-toto+jso'"),
]
STATEMENTS = [
    (b"{", "the statement is not JSON"),
    (b'{"a": 1, "a": 2}', "the statement is not strict JSON: key 'a' is given twice"),
    (b'{"a": Infinity}', "the statement is not strict JSON: Infinity"),
    (b'{"a":' * 200_000, "the statement is nested deeper than"),
    (said(_type="https://in-toto.io/Statement/v0.1"), "not a statement of in-toto v1: its type is"),
    (said(predicateType="https://slsa.dev/provenance/v1"), "the statement is a 'https://slsa.dev/provenance/v1', not"),
    (said(predicateType="\x1b[2J"), r"the statement is a '\x1b[2J', not a"),
    (
        said(subject=[{"name": "web.img", "digest": {"sha256": OTHER}}]),
        "the statement is of another file: of 'web.img'",
    ),
    (said(subject=[]), "it has no subject"),
    (said(subject=FILE), "it has no subject"),
    (said(subject=[FILE]), "subjects are malformed"),
    (said(subject=[{"name": "web.img", "digest": {"sha512": FILE}}]), "subjects are malformed"),
    (said(subject=[{"name": "a", "digest": {"sha256": FILE}}] * 2), "subjects are malformed"),
    (said(predicate=None), "it has no predicate"),
    (said(predicate=[SAID]), "it has no predicate"),
]


@pytest.mark.parametrize(("envelope", "words"), ENVELOPES, ids=range(len(ENVELOPES)))
def test_what_is_no_envelope_of_ours_is_refused(envelope, words):
    with pytest.raises(Problem) as refused:
        read(envelope)
    assert words in str(refused.value)


@pytest.mark.parametrize(("payload", "words"), STATEMENTS, ids=range(len(STATEMENTS)))
def test_what_is_signed_and_says_something_else_is_refused(payload, words):
    with pytest.raises(Problem) as refused:
        read(enveloped(payload, A))
    assert words in str(refused.value)


def test_what_was_signed_is_read():
    found = read(SIGNED, B, A)
    assert (found.predicate, found.subjects, found.keys) == (SAID, {"web.img": FILE}, (A,))
    assert read(enveloped(said(), A)).predicate == SAID
    assert statement.sign({"web.img": FILE}, predicate_type=KIND, predicate=SAID, key=A) == SIGNED


def test_no_changed_byte_changes_what_is_read():
    """Every byte once, to one of several others: refused with a Problem, or a hint changed and nothing else."""
    read_on = 0
    for at in range(len(SIGNED)):
        for other in (SIGNED[at] ^ 1, SIGNED[at] ^ 0x20, 0, 0xFF):
            envelope = SIGNED[:at] + bytes([other]) + SIGNED[at + 1 :]
            try:
                assert read(envelope).predicate == SAID
                read_on += 1
            except Problem:
                pass
    assert read_on < len(SIGNED) / 4


def test_both_alphabets_of_base64_are_read():
    body = json.dumps(said(more="\N{GRINNING FACE}>?\x7f" * 20), ensure_ascii=False).encode()
    plain = enveloped(body, A)
    web = json.dumps({**json.loads(plain), "payload": urlsafe_b64encode(body).decode()}).encode()
    assert plain != web
    assert read(plain) == read(web)


def test_the_hint_decides_nothing():
    """A key is trusted because the caller says so: not by its number, nor for being named in the envelope."""
    assert read(changed(signatures=[{**OWN, "keyid": B.id}])).keys == (A,)
    assert read(changed(signatures=[{"sig": OWN["sig"]}])).keys == (A,)
    namesake = keys.Key(A.number, B.public, B.seed)
    with pytest.raises(Problem, match="by none of them"):
        read(SIGNED, namesake)
    with pytest.raises(Problem, match="by none of them"):
        read(changed(signatures=[{"keyid": WEAK.id, "sig": b64encode(bytes(64)).decode()}]), WEAK)


BOTH = statement.countersign(SIGNED, key=B)
THRESHOLDS = [  # envelope, trusted keys, how many, words
    (BOTH, (A, B, C), 3, "signed by 3 of the trusted keys, and is only by"),
    (BOTH, (A, C), 2, f"and is only by {A.id}"),
    (statement.countersign(SIGNED, key=A), (A, B), 2, f"and is only by {A.id}"),
    (changed(signatures=[OWN, {**OWN, "keyid": B.id}, {"sig": OWN["sig"]}]), (A, B), 2, f"and is only by {A.id}"),
    (BOTH, (A, A), 2, "2 signatures are wanted, and 1 keys are trusted"),
    (BOTH, (A, keys.Key(b"12345678", A.public)), 2, "2 signatures are wanted, and 1 keys are trusted"),
    (BOTH, (A, B), 0, "0 signatures are wanted"),
    (BOTH, (A, B), -1, "-1 signatures are wanted"),
]


@pytest.mark.parametrize(("envelope", "trusted", "threshold", "words"), THRESHOLDS, ids=range(len(THRESHOLDS)))
def test_a_key_counts_once(envelope, trusted, threshold, words):
    with pytest.raises(Problem) as refused:
        read(envelope, *trusted, threshold=threshold)
    assert words in str(refused.value)


def test_two_of_three_keys():
    assert read(BOTH, A, B, C, threshold=2).keys == (A, B)
    with pytest.raises(Problem, match="1 signatures are wanted, and 0 keys are trusted"):
        statement.verify(SIGNED, [], subject=FILE, predicate_type=KIND)


def test_a_statement_is_no_signature_of_a_manifest_and_a_public_key_signs_none():
    signature = keys.from_seed(bytes([1]) * 32).sign(b"{}", comment="x").splitlines()[1]
    assert OWN["sig"] not in signature
    with pytest.raises(Problem, match="cannot sign"):
        statement.sign({"a": FILE}, predicate_type=KIND, predicate={}, key=keys.parse(A.public_text()))


def test_securesystemslib_reads_ours_and_we_read_its():
    from securesystemslib import dsse
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import CryptoSigner, SSlibKey

    public = SSlibKey(A.id, "ed25519", "ed25519", {"public": A.public.hex()})
    theirs = dsse.Envelope.from_dict(json.loads(SIGNED))
    assert list(theirs.verify([public], 1)) == [A.id]
    assert json.loads(theirs.payload)["predicate"] == SAID
    other = SSlibKey(A.id, "ed25519", "ed25519", {"public": B.public.hex()})
    with pytest.raises(VerificationError):
        dsse.Envelope.from_dict(json.loads(SIGNED)).verify([other], 1)

    signer = CryptoSigner.generate_ed25519()
    made = dsse.Envelope(json.dumps(said()).encode(), statement.PAYLOAD, {})
    made.sign(signer)
    signed = keys.Key(bytes(8), bytes.fromhex(signer.public_key.keyval["public"]))
    assert read(json.dumps(made.to_dict()).encode(), signed).keys == (signed,)
