"""ed25519 by libsodium, which refuses the weak keys and signatures that other libraries accept (RFC 8032).

Small, and libsodium itself by PyNaCl's own door: what starts a signed image waits for this, and PyNaCl's public modules
take ten times as long to load.
"""

ORDER = 2**252 + 27742317777372353535851937790883648493  # of the group: RFC 8032, 5.1
SIGNATURE, PUBLIC, SEED = 64, 32, 32  # bytes


def verify(public: bytes, data: bytes, signature: bytes) -> bool:
    """Whether this is the signature of that key over `data`; never for a key or a signature of the wrong form."""
    from nacl._sodium import ffi, lib

    if len(public) != PUBLIC or len(signature) != SIGNATURE:
        return False
    whole = signature + data
    opened = ffi.new("unsigned char[]", len(whole))
    length = ffi.new("unsigned long long *")
    return bool(lib.crypto_sign_open(opened, length, whole, len(whole), public) == 0)


def sign(seed: bytes, data: bytes) -> bytes:
    """The signature over `data` by the key of a seed."""
    from nacl._sodium import ffi, lib

    _, secret = _pair(seed)
    signed = ffi.new("unsigned char[]", SIGNATURE + len(data))
    length = ffi.new("unsigned long long *")
    _done(lib.crypto_sign(signed, length, data, len(data), secret))
    return bytes(ffi.buffer(signed, SIGNATURE))


def public_of(seed: bytes) -> bytes:
    """The public key of a seed."""
    return _pair(seed)[0]


def is_strong(public: bytes) -> bool:
    """Whether this is a public key, in the one form that it has, under which not anybody's signature may fit."""
    from nacl._sodium import lib

    return len(public) == PUBLIC and lib.crypto_core_ed25519_is_valid_point(public) == 1


def verify_prehashed(public: bytes, digest: bytes, signature: bytes, *, context: bytes) -> bool:
    """Whether this is a signature of Ed25519ph over what has this SHA-512, in this context (RFC 8032, 5.1.7)."""
    from nacl._sodium import ffi, lib

    if len(digest) != 64 or len(signature) != SIGNATURE or not is_strong(public):
        return False
    if int.from_bytes(signature[32:], "little") >= ORDER:
        return False
    left, right, point = (ffi.new("unsigned char[]", 32) for _ in range(3))
    hashed = _hashed(context, signature[:32], public, digest)
    is_done = (
        lib.crypto_scalarmult_ed25519_base_noclamp(left, signature[32:]) == 0
        and lib.crypto_scalarmult_ed25519_noclamp(right, hashed, public) == 0
        and lib.crypto_core_ed25519_sub(point, left, right) == 0
    )
    return is_done and bytes(ffi.buffer(point)) == signature[:32]


def sign_prehashed(seed: bytes, digest: bytes, *, context: bytes) -> bytes:
    """The signature of Ed25519ph over what has this SHA-512, in a context (RFC 8032, 5.1.6)."""
    from hashlib import sha512

    from nacl._sodium import ffi, lib

    assert len(digest) == 64
    halves = sha512(seed).digest()
    scalar = bytes([halves[0] & 248, *halves[1:31], halves[31] & 127 | 64])
    once = _hashed(context, halves[32:], digest)
    point, product, response = (ffi.new("unsigned char[]", 32) for _ in range(3))
    _done(lib.crypto_scalarmult_ed25519_base_noclamp(point, once))
    first = bytes(ffi.buffer(point))
    lib.crypto_core_ed25519_scalar_mul(product, _hashed(context, first, public_of(seed), digest), scalar)
    lib.crypto_core_ed25519_scalar_add(response, once, product)
    return first + bytes(ffi.buffer(response))


def _hashed(context: bytes, *parts: bytes) -> bytes:
    """SHA-512 of dom2(1, context) and the parts, as a scalar (RFC 8032, 5.1 and 2)."""
    from hashlib import sha512

    from nacl._sodium import ffi, lib

    assert len(context) < 256
    whole = b"SigEd25519 no Ed25519 collisions\x01" + bytes([len(context)]) + context + b"".join(parts)
    reduced = ffi.new("unsigned char[]", 32)
    lib.crypto_core_ed25519_scalar_reduce(reduced, sha512(whole).digest())
    return bytes(ffi.buffer(reduced))


def _pair(seed: bytes) -> tuple[bytes, bytes]:
    from nacl._sodium import ffi, lib

    assert len(seed) == SEED
    public, secret = ffi.new("unsigned char[]", PUBLIC), ffi.new("unsigned char[]", 64)
    _done(lib.crypto_sign_seed_keypair(public, secret, seed))
    return bytes(ffi.buffer(public)), bytes(ffi.buffer(secret))


def _done(code: int) -> None:
    if code:
        raise ValueError("libsodium refuses what it was given")
