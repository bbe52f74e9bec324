"""What a TPM 2.0 computes: PCRs, the names of its objects and the digests of its policies.

Source: TCG, "Trusted Platform Module Library", Part 1 (16 Names, 19.7 Enhanced Authorization), Part 2 (structures) and
Part 3 (commands). Everything with SHA-256, in the TPM's own byte order, which is big endian. Pure: no TPM is asked.
"""

import struct
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import NamedTuple

ALG_RSA, ALG_SHA256, ALG_NULL = 0x0001, 0x000B, 0x0010  # Part 2, 6.3
CC_POLICY_NV, CC_POLICY_AUTHORIZE, CC_POLICY_PCR = 0x149, 0x16A, 0x17F  # Part 2, 6.5.2
EO_UNSIGNED_LE = 0x0009  # Part 2, 6.8: what lies in NV is at most the operand
NO_POLICY = bytes(32)  # a policy session begins with it
NO_MEASUREMENT = bytes(32)  # a PCR after a reset, 0 to 15
SEALED_INDEX, GENERATION_INDEX = 0x01800A00, 0x01800A01  # of NV: in the owner's range
GENERATION_SIZE = 8  # bytes, the number big endian
# Part 2, 13.4: OWNERWRITE, AUTHREAD and NO_DA; once somebody wrote there, WRITTEN as well
GENERATION_ATTRIBUTES = 1 << 1 | 1 << 18 | 1 << 25
WRITTEN = 1 << 29
KEY_ATTRIBUTES = 1 << 6 | 1 << 17 | 1 << 18  # Part 2, 8.3: userWithAuth, decrypt, sign; as systemd loads such a key
RSA_BITS = 2048


class Measurement(NamedTuple):
    """One extension of a PCR, and what was measured, in words."""

    pcr: int
    name: str  # by which it is found again elsewhere
    digest: bytes
    content: str = ""


def extended(value: bytes, digest: bytes) -> bytes:
    """A PCR after it was extended (Part 3, 22.2)."""
    return sha256(value + digest).digest()


def replayed(digests: Iterable[bytes]) -> bytes:
    """A PCR after a reset and these extensions."""
    value = NO_MEASUREMENT
    for digest in digests:
        value = extended(value, digest)
    return value


def selection(pcrs: Iterable[int]) -> bytes:
    """A TPML_PCR_SELECTION of PCRs in the bank of SHA-256 (Part 2, 10.9.7): a bit for each of 24."""
    bits = sum(1 << pcr for pcr in pcrs)
    return struct.pack(">IHB", 1, ALG_SHA256, 3) + bits.to_bytes(3, "little")


def policy_pcr(policy: bytes, pcrs: Mapping[int, bytes]) -> bytes:
    """The policy and then PolicyPCR: these PCRs have these values (Part 3, 23.7)."""
    values = b"".join(pcrs[pcr] for pcr in sorted(pcrs))
    return _then(policy, CC_POLICY_PCR, selection(pcrs) + sha256(values).digest())


def policy_nv(policy: bytes, *, name: bytes, operand: bytes, operation: int = EO_UNSIGNED_LE) -> bytes:
    """The policy and then PolicyNV: what lies at the beginning of an index is as the operand says (Part 3, 23.9).

    name: of the index, see `nv_name`.
    """
    compared = sha256(operand + struct.pack(">HH", 0, operation)).digest()
    return _then(policy, CC_POLICY_NV, compared + name)


def policy_authorize(key: bytes, *, reference: bytes = b"") -> bytes:
    """PolicyAuthorize: any policy that the key of this name signed (Part 3, 23.16); what was before is forgotten."""
    return sha256(_then(NO_POLICY, CC_POLICY_AUTHORIZE, key) + reference).digest()


def authorized(policy: bytes, *, reference: bytes = b"") -> bytes:
    """The digest that a key signs so that PolicyAuthorize takes the policy (Part 3, 23.16: aHash)."""
    return sha256(policy + reference).digest()


def policy_generation(policy: bytes, *, generation: int) -> bytes:
    """The policy and then PolicyNV: the machine has seen no later generation than this one."""
    return policy_nv(policy, name=generation_name(), operand=generation.to_bytes(GENERATION_SIZE, "big"))


def generation_name() -> bytes:
    """The name of the index that holds the generation, once it was written: the TPM's owner writes it, nobody else."""
    return nv_name(GENERATION_INDEX, attributes=GENERATION_ATTRIBUTES | WRITTEN, policy=b"", size=GENERATION_SIZE)


def nv_name(index: int, *, attributes: int, policy: bytes, size: int) -> bytes:
    """The name of an NV index (Part 1, 16): its TPMS_NV_PUBLIC's digest; attributes as they are by then."""
    return _name(
        struct.pack(">IHI", index, ALG_SHA256, attributes) + struct.pack(">H", len(policy)) + policy + _u16(size)
    )


def rsa_public(modulus: bytes, *, attributes: int = KEY_ATTRIBUTES) -> bytes:
    """The TPMT_PUBLIC of an RSA-2048 key with the exponent 65537, as it is loaded from outside (Part 2, 12.2.4)."""
    if len(modulus) != RSA_BITS // 8:
        raise ValueError(f"a modulus of {len(modulus)} bytes")
    kind = struct.pack(">HHI", ALG_RSA, ALG_SHA256, attributes) + _u16(0)  # no policy of its own
    parameters = struct.pack(">HHHI", ALG_NULL, ALG_NULL, RSA_BITS, 0)  # 0: the exponent that every TPM knows
    return kind + parameters + _u16(len(modulus)) + modulus


def rsa_name(modulus: bytes, *, attributes: int = KEY_ATTRIBUTES) -> bytes:
    """The name of such a key (Part 1, 16)."""
    return _name(rsa_public(modulus, attributes=attributes))


def _then(policy: bytes, command: int, words: bytes) -> bytes:
    return sha256(policy + struct.pack(">I", command) + words).digest()


def _name(public: bytes) -> bytes:
    return _u16(ALG_SHA256) + sha256(public).digest()


def _u16(value: int) -> bytes:
    return struct.pack(">H", value)
