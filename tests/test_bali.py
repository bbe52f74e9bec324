"""Files of bali: identities as identitykit writes them, and files that were changed, cut or prolonged."""

import gzip as standard
import io
from base64 import b32decode
from pathlib import Path

import pytest
from signed_rig import KEY, OTHER, SMALL

from imagekit import key
from imagekit.disk import bali
from imagekit.errors import Problem

TOY = Path(__file__).parent.parent / "fixtures/bali/toy.tar.gz"
BY = key.from_seed(bytes([7] * 31 + [9]))
IDENTITIES = (  # from identitykit's own tests (go/identity_test.go, c/test/test.c) and bali's README
    "cDFXSA73D3H4MOM7HPVUYWUOABQI7D5ERUR7QXOQPJD2HOYYSJCIYFWY",
    "cDE4VMOBKDTYU2NE3AOQBFJ4PO4YRE3RUTTCLLT5YDMICQSXPZYHQJKQ",
    "cDFJ6F4W6XT2WGTLTJTDQAPE4GYXX2VVLSV43KWENB7W76FA57XAGZQA",
)


def signer(data: bytes, *publics: bytes) -> bytes:
    return bali.signer(io.BytesIO(data), publics or [BY.public])


@pytest.mark.parametrize("text", IDENTITIES)
def test_identities_are_read_and_written(text):
    assert bali.identity(bali.public_of(text)) == text
    assert bali.public_of("c" + text[1:].lower()) == bali.public_of(text)


def test_an_identity_belongs_to_its_secret():
    """The pair of identitykit's tests; the secret is written as identities are, with another first byte."""
    raw = b32decode("COMZM5Z2HHCSVE65EDABQYXZHFA4AFH7NCTFG2VJ6V5OX7OXI33PMUQ=")
    assert bali.identity(key.from_seed(raw[1:33]).public) == IDENTITIES[0]


@pytest.mark.parametrize(
    "text",
    ["", "c", "x" + IDENTITIES[0][1:], IDENTITIES[0][:-1], IDENTITIES[0] + "A", IDENTITIES[0].replace("X", "Y"),
     "cCOMZM5Z2HHCSVE65EDABQYXZHFA4AFH7NCTFG2VJ6V5OX7OXI33PMUQ", IDENTITIES[0][:-1] + "Z", "c" + "1" * 55, "é" * 56],
)  # fmt: skip
def test_what_is_no_identity_is_refused(text):
    with pytest.raises(Problem):
        bali.public_of(text)


def test_weak_keys_are_refused():
    with pytest.raises(Problem, match="cannot be trusted"):
        bali.public_of(bali.identity(b"\1" + bytes(31)))


def test_a_right_file_tells_its_signer():
    assert signer(TOY.read_bytes()) == BY.public
    assert signer(TOY.read_bytes(), OTHER.public, BY.public) == BY.public
    assert signer(standard.decompress(TOY.read_bytes())) == BY.public  # bali also makes files that are not packed
    with pytest.raises(Problem, match="none of the identities"):
        signer(TOY.read_bytes(), OTHER.public)


@pytest.mark.parametrize("size", [0, 1, 79, 80, 81, 512, (1 << 20) - 80, (1 << 20) - 8, 1 << 20, (1 << 20) + 79])
def test_what_is_signed_is_verified_whatever_its_length(size):
    data = b"".join(bali.packed([bytes(size // 2), bytes(size - size // 2)] if size else [], KEY))
    assert signer(data, KEY.public) == KEY.public


def test_every_bit_of_tar_and_signature_counts():
    plain = bytearray(standard.decompress(b"".join(bali.packed([SMALL[:300]], KEY))))
    for bit in range(len(plain) * 8):
        plain[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(Problem):
            signer(bytes(plain), KEY.public)
        plain[bit >> 3] ^= 1 << (bit & 7)
    assert signer(bytes(plain), KEY.public)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data[:100],
        lambda data: data + b"\0",
        lambda data: data + standard.compress(b"more"),  # Go's gzip would read on
        lambda data: standard.compress(b"") + data,
        lambda data: b"\0" + data,
        lambda data: standard.compress(standard.decompress(data) + bytes(512)),
        lambda data: standard.compress(standard.decompress(data)[:-80]),
        lambda data: standard.compress(standard.decompress(data)[:-80] * 2 + standard.decompress(data)[-80:]),
        lambda _: b"",
    ],
)
def test_what_was_cut_prolonged_or_repeated_is_refused(change):
    with pytest.raises(Problem):
        signer(change(TOY.read_bytes()))
