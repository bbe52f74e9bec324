"""RSA-2048 signatures (PKCS #1 v1.5 over SHA-256) and X.509 certificates: what UEFI and TPMs take.

What checks is arithmetic and needs nothing else; what holds a private key is `cryptography`'s, imported when it is
used. A `Signer` holds the private operation as a function, so that one who has the key elsewhere, in an HSM or on a
machine without a network, can stand in its place.
"""

from base64 import b64encode
from collections.abc import Callable
from datetime import datetime
from hashlib import sha256
from typing import Any, NamedTuple

from imagekit import der
from imagekit.errors import Problem, RigProblem

BITS, EXPONENT = 2048, 65537
SIZE = BITS // 8  # bytes of a signature
RSA, SHA256, SHA256_WITH_RSA = "1.2.840.113549.1.1.1", "2.16.840.1.101.3.4.2.1", "1.2.840.113549.1.1.11"
NULL = der.make(der.NULL)


class Public(NamedTuple):
    """A public key."""

    modulus: int
    exponent: int = EXPONENT

    @property
    def pkcs1(self) -> bytes:
        """RSAPublicKey (RFC 8017, A.1.1), the numbers alone."""
        return der.make(der.SEQUENCE, der.integer(self.modulus), der.integer(self.exponent))

    @property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo (RFC 5280, 4.1), as OpenSSL writes a public key."""
        kind = der.make(der.SEQUENCE, der.oid(RSA), NULL)
        return der.make(der.SEQUENCE, kind, der.make(der.BITS, b"\0", self.pkcs1))

    @property
    def pem(self) -> str:
        """The same as the text of a file (RFC 7468)."""
        return pem("PUBLIC KEY", self.der)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of `pkcs1`, by which systemd knows a key ("pkfp")."""
        return sha256(self.pkcs1).hexdigest()

    def verify(self, digest: bytes, signature: bytes) -> bool:
        """Whether this is the signature of what has this SHA-256 (RFC 8017, 8.2.2)."""
        if len(signature) != SIZE or len(digest) != 32:
            return False
        number = int.from_bytes(signature, "big")
        return number < self.modulus and pow(number, self.exponent, self.modulus) == int.from_bytes(_padded(digest))


class Signer(NamedTuple):
    """A private key as what it does: from the SHA-256 of something to its signature."""

    public: Public
    private: Callable[[bytes], bytes]
    is_blind: bool = False  # what it cannot sign gets a signature that is none

    def __repr__(self) -> str:
        return f"<Signer {self.public.fingerprint[:16]}>"

    def sign(self, digest: bytes) -> bytes:
        """The signature of what has this SHA-256; always the same. Raises Problem when it is another key's."""
        signature = self.private(digest)
        if not self.is_blind and not self.public.verify(digest, signature):
            raise Problem("the signature that came back is not one of the key that was asked for")
        return signature


class Certificate(NamedTuple):
    """A public key, with a name and an hour until which it may be used; `whole` is its DER."""

    whole: bytes
    public: Public
    issuer: bytes  # DER of the Name
    serial: bytes  # DER of the INTEGER
    begins: datetime
    ends: datetime
    name: str

    @property
    def pem(self) -> str:
        """The text of its file."""
        return pem("CERTIFICATE", self.whole)


class Pair(NamedTuple):
    """A certificate and who signs by it."""

    certificate: Certificate
    signer: Signer


def pem(label: str, data: bytes) -> str:
    """Bytes as a text of lines between labels (RFC 7468)."""
    text = b64encode(data).decode()
    lines = "\n".join(text[at : at + 64] for at in range(0, len(text), 64))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n"


def certificate(text: bytes, *, what: str = "the certificate") -> Certificate:
    """A certificate of PEM. Raises Problem when it is none, or has no key of RSA-2048."""
    x509 = _cryptography("x509")
    try:
        found = x509.load_pem_x509_certificate(text)
        key = found.public_key()
        begins, ends, name = found.not_valid_before_utc, found.not_valid_after_utc, found.subject.rfc4514_string()
        whole = text_of_pem(found)
        version, *fields = der.only(whole).parts()[0].parts()
    except Exception as error:  # the library has no one error for what it cannot read
        raise Problem(f"{what} is no X.509 certificate in PEM: {str(error)[:200] or type(error).__name__}") from error
    serial, _, issuer = fields[:3] if version.tag == 0xA0 else (version, *fields[:2])  # RFC 5280, 4.1: v1 does not say
    return Certificate(whole, _public(key, what), issuer.whole, serial.whole, begins, ends, name)


def signer(text: bytes, *, what: str = "the key") -> Signer:
    """The private key of PEM. Raises Problem when it is none, is encrypted or is not of RSA-2048."""
    serialization = _cryptography("hazmat.primitives.serialization")
    if b"ENCRYPTED" in text:
        raise Problem(f"{what} is encrypted", "builds ask nothing: `openssl pkey -in OLD -out NEW` takes it off")
    try:
        key = serialization.load_pem_private_key(text, None)
    except Exception as error:  # likewise
        raise Problem(f"{what} is no private key in PEM: {str(error)[:200] or type(error).__name__}") from error
    public = _public(key.public_key(), what)
    hashes, padding = _cryptography("hazmat.primitives.hashes"), _cryptography("hazmat.primitives.asymmetric.padding")
    utils = _cryptography("hazmat.primitives.asymmetric.utils")
    how = utils.Prehashed(hashes.SHA256())
    return Signer(public, lambda digest: bytes(key.sign(digest, padding.PKCS1v15(), how)))


def public(text: bytes, *, what: str = "the key") -> Public:
    """The public key of PEM. Raises Problem when it is none of RSA-2048."""
    serialization = _cryptography("hazmat.primitives.serialization")
    try:
        key = serialization.load_pem_public_key(text)
    except Exception as error:  # likewise
        raise Problem(f"{what} is no public key in PEM: {str(error)[:200] or type(error).__name__}") from error
    return _public(key, what)


def new() -> str:
    """A new private key as PEM (PKCS #8, not encrypted)."""
    serialization = _cryptography("hazmat.primitives.serialization")
    key = _cryptography("hazmat.primitives.asymmetric.rsa").generate_private_key(EXPONENT, BITS)
    form, none = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    return str(key.private_bytes(serialization.Encoding.PEM, form, none).decode())


def self_signed(by: Signer, *, name: str, begins: datetime, ends: datetime) -> bytes:
    """The DER of a certificate that a key makes of itself (RFC 5280, 4.1); the same at each time."""
    kind = der.make(der.SEQUENCE, der.oid(SHA256_WITH_RSA), NULL)
    common = der.make(der.SEQUENCE, der.oid("2.5.4.3"), der.make(0x0C, name.encode()))
    subject = der.make(der.SEQUENCE, der.set_of([common]))
    hours = der.make(der.SEQUENCE, *(der.make(0x18, f"{at:%Y%m%d%H%M%SZ}".encode()) for at in (begins, ends)))
    is_ca = der.make(der.SEQUENCE, der.make(0x01, b"\xff"))
    constraint = der.make(der.SEQUENCE, der.oid("2.5.29.19"), der.make(0x01, b"\xff"), der.make(der.OCTETS, is_ca))
    serial = int.from_bytes(sha256(by.public.der + name.encode()).digest()[:16], "big") >> 1 | 1
    body = der.make(
        der.SEQUENCE,
        *(der.make(0xA0, der.integer(2)), der.integer(serial), kind, subject, hours, subject, by.public.der),
        der.make(0xA3, der.make(der.SEQUENCE, constraint)),
    )
    signature = by.sign(sha256(body).digest())
    return der.make(der.SEQUENCE, body, kind, der.make(der.BITS, b"\0", signature))


def text_of_pem(found: Any) -> bytes:
    """The DER of one of the library's certificates."""
    return bytes(found.public_bytes(_cryptography("hazmat.primitives.serialization").Encoding.DER))


def _padded(digest: bytes) -> bytes:
    """EMSA-PKCS1-v1_5 (RFC 8017, 9.2)."""
    kind = der.make(der.SEQUENCE, der.oid(SHA256), NULL)
    told = der.make(der.SEQUENCE, kind, der.make(der.OCTETS, digest))
    return b"\0\1" + b"\xff" * (SIZE - len(told) - 3) + b"\0" + told


def _public(key: Any, what: str) -> Public:
    """The numbers of one of the library's public keys. Raises Problem when it is not of RSA-2048."""
    kind = type(key).__name__.removesuffix("PublicKey").removeprefix("_")
    if not hasattr(key, "public_numbers") or not hasattr(numbers := key.public_numbers(), "n"):
        raise Problem(f"{what} is a key of {kind}", f"firmware and TPMs take RSA-{BITS}")
    if key.key_size != BITS or numbers.e != EXPONENT:
        raise Problem(f"{what} is a key of RSA-{key.key_size}, exponent {numbers.e}", f"RSA-{BITS} and {EXPONENT}")
    return Public(numbers.n, numbers.e)


def _cryptography(module: str) -> Any:
    try:
        import importlib

        return importlib.import_module(f"cryptography.{module}")
    except ImportError as error:
        raise RigProblem(f"boot keys need the package cryptography: {error}", "pip install 'imagekit[uefi]'") from error
