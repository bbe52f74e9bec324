"""Pcrsign: the maker's signature over what PCR 11 will be, which a machine's TPM takes for the value itself.

Written into a UKI as systemd writes and reads it (systemd-measure(1), systemd-stub(7)): `.pcrsig` is JSON on one line,
`.pcrpkey` the public key as PEM. The stub hands both over to the initrd. What is signed here is stricter than what
systemd-measure signs: PolicyPCR(11) and then PolicyNV, by which the machine has seen no later generation. So a TPM that
has seen one refuses the earlier image, whoever signed it.
"""

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from imagekit import rsa, tpm
from imagekit.disk import stub
from imagekit.store import Stored

Parts = Mapping[str, Sequence[bytes | Stored]]  # of a UKI, by the names of its sections


class Approval(NamedTuple):
    """Who signs, and as which generation."""

    signer: rsa.Signer
    generation: int = 0

    @property
    def name(self) -> bytes:
        """The name that a TPM has for the key."""
        return name(self.signer.public)


def name(key: rsa.Public) -> bytes:
    """The name that a TPM has for a key of RSA-2048."""
    return tpm.rsa_name(key.modulus.to_bytes(rsa.SIZE, "big"))


def sections(parts: Parts, *, of: bytes, approval: Approval) -> dict[str, list[bytes | Stored]]:
    """The two sections that are to be added to these, all that the program will have; of: the stub that measures."""
    public: list[bytes | Stored] = [approval.signer.public.pem.encode()]
    value = stub.value(stub.measured(stub.digests({**parts, stub.PUBLIC_KEY: public}), version=stub.version(of)))
    return {stub.PUBLIC_KEY: public, stub.SIGNATURE: [signature(value, approval)]}


def policy(value: bytes, *, generation: int) -> bytes:
    """The digest of the policy that is signed: PCR 11 has this value, and no later generation was seen."""
    measured = tpm.policy_pcr(tpm.NO_POLICY, {stub.PCR: value})
    return tpm.policy_generation(measured, generation=generation)


def signature(value: bytes, approval: Approval) -> bytes:
    """The text of .pcrsig, for this value of PCR 11: its keys in systemd's order, without a space."""
    digest = policy(value, generation=approval.generation)
    one = {
        "pcrs": [stub.PCR],
        "pkfp": approval.signer.public.fingerprint,
        "pol": digest.hex(),
        "sig": b64encode(approval.signer.sign(tpm.authorized(digest))).decode(),
    }
    return json.dumps({"sha256": [one]}, separators=(",", ":")).encode() + b"\n"
