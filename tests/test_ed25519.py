"""Signatures against the vectors of RFC 8032, and what must never verify."""

from hashlib import sha512

import pytest

from imagekit import ed25519

SEED = bytes.fromhex("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7")  # RFC 8032, 7.1, TEST 3
PUBLIC = bytes.fromhex("fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025")
MESSAGE = bytes.fromhex("af82")
SIGNATURE = bytes.fromhex(
    "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
    "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"
)
PH_SEED = bytes.fromhex("833fe62409237b9d62ec77587520911e9a759cec1d19755b7da901b96dca3d42")  # 7.3, TEST abc
PH_SIGNATURE = bytes.fromhex(
    "98a70222f0b8121aa9d30f813d683f809e462b469c7ff87639499bb94e6dae41"
    "31f85042463c2a355a2003d062adf5aaa10b8c61e636062aaad11c2a26083406"
)
ABC = sha512(b"abc").digest()
SMALL = [  # points of small order, as they are written (RFC 8032, 5.1.3; libsodium's own list)
    bytes(32),
    b"\x01" + bytes(31),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
]


def test_the_vectors_of_the_rfc():
    assert ed25519.public_of(SEED) == PUBLIC
    assert ed25519.sign(SEED, MESSAGE) == SIGNATURE
    assert ed25519.verify(PUBLIC, MESSAGE, SIGNATURE)
    assert ed25519.sign_prehashed(PH_SEED, ABC, context=b"") == PH_SIGNATURE
    assert ed25519.verify_prehashed(ed25519.public_of(PH_SEED), ABC, PH_SIGNATURE, context=b"")


def test_every_bit_of_a_signature_counts():
    public = ed25519.public_of(PH_SEED)
    for bit in range(512):
        flip = 1 << bit
        pure, prehashed = (
            (int.from_bytes(one, "little") ^ flip).to_bytes(64, "little") for one in (SIGNATURE, PH_SIGNATURE)
        )
        assert not ed25519.verify(PUBLIC, MESSAGE, pure)
        assert not ed25519.verify_prehashed(public, ABC, prehashed, context=b"")


@pytest.mark.parametrize(
    ("digest", "context"), [(ABC, b"bali"), (ABC, b"\0"), (sha512(b"abd").digest(), b""), (ABC[:32], b"")]
)
def test_another_digest_or_context_does_not_verify(digest, context):
    assert not ed25519.verify_prehashed(ed25519.public_of(PH_SEED), digest, PH_SIGNATURE, context=context)


def test_a_signature_that_is_shifted_by_the_order_of_the_group_does_not_verify():
    """S + L fits the same equation (RFC 8032, 8.4)."""
    for signature, check in (
        (SIGNATURE, lambda one: ed25519.verify(PUBLIC, MESSAGE, one)),
        (PH_SIGNATURE, lambda one: ed25519.verify_prehashed(ed25519.public_of(PH_SEED), ABC, one, context=b"")),
    ):
        shifted = int.from_bytes(signature[32:], "little") + ed25519.ORDER
        assert check(signature)
        assert not check(signature[:32] + shifted.to_bytes(32, "little"))


@pytest.mark.parametrize("public", [*SMALL, b"", b"\xff" * 32, PUBLIC[:31], PUBLIC + b"\0"])
def test_weak_and_malformed_keys_verify_nothing(public):
    """Under a key of small order R = identity, S = 0 fits every message."""
    nothing = b"\x01" + bytes(63)
    assert not ed25519.is_strong(public)
    for signature in (nothing, SIGNATURE, bytes(64), b""):
        assert not ed25519.verify(public, MESSAGE, signature)
        assert not ed25519.verify_prehashed(public, ABC, signature, context=b"")
