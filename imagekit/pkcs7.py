"""PKCS #7 signed data (RFC 2315, 9) by one RSA key: what UEFI takes for programs and for updates of its variables."""

from collections.abc import Sequence
from hashlib import sha256

from imagekit import der, rsa
from imagekit.rsa import Pair

DATA, SIGNED_DATA = "1.2.840.113549.1.7.1", "1.2.840.113549.1.7.2"
CONTENT_TYPE, MESSAGE_DIGEST, SIGNING_TIME = (f"1.2.840.113549.1.9.{number}" for number in (3, 4, 5))
ALGORITHM = der.make(der.SEQUENCE, der.oid(rsa.SHA256), rsa.NULL)


def signed_data(
    pair: Pair, content: bytes, *, kind: str, more: Sequence[bytes] = (), is_detached: bool = False
) -> bytes:
    """A SignedData over the bytes of a content of some kind; the same at each time.

    more: attributes beyond the two that there must be (9.2); is_detached: the content lies elsewhere.
    """
    certificate = pair.certificate
    attributes = [
        attribute(CONTENT_TYPE, der.oid(kind)),
        attribute(MESSAGE_DIGEST, der.make(der.OCTETS, sha256(content).digest())),
        *more,
    ]
    signer = der.make(
        der.SEQUENCE,
        der.integer(1),
        der.make(der.SEQUENCE, certificate.issuer, certificate.serial),
        ALGORITHM,
        der.set_of(attributes, tag=0xA0),
        der.make(der.SEQUENCE, der.oid(rsa.RSA), rsa.NULL),
        der.make(der.OCTETS, pair.signer.sign(sha256(der.set_of(attributes)).digest())),
    )
    inside = b"" if is_detached else der.make(0xA0, der.make(der.SEQUENCE, content))
    return der.make(
        der.SEQUENCE,
        der.integer(1),
        der.make(der.SET, ALGORITHM),
        der.make(der.SEQUENCE, der.oid(kind), inside),
        der.make(0xA0, certificate.whole),
        der.make(der.SET, signer),
    )


def attribute(kind: str, value: bytes) -> bytes:
    """An attribute with one value."""
    return der.make(der.SEQUENCE, der.oid(kind), der.make(der.SET, value))
