"""ECDSA over P-256 by the package cryptography, imported when it is used: the signatures that a TPM makes."""

from imagekit.errors import RigProblem

COORDINATE = 32  # bytes of x, y, r and s: FIPS 186-5, P-256


def verify_p256(point: tuple[bytes, bytes], signature: tuple[bytes, bytes], signed: bytes) -> bool:
    """Whether (r, s) is the signature over the SHA-256 of `signed` by the key whose point is (x, y).

    Never for numbers of the wrong size or a point that is not on the curve.
    """
    if any(len(number) != COORDINATE for number in (*point, *signature)):
        return False
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec, utils
        from cryptography.hazmat.primitives.hashes import SHA256
    except ImportError:
        raise RigProblem("signatures of TPMs need the package cryptography", "pip install cryptography") from None
    x, y, r, s = (int.from_bytes(number) for number in (*point, *signature))
    try:
        key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
        key.verify(utils.encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))
    except (ValueError, InvalidSignature):
        return False
    return True
