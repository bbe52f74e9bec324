"""Attestation: whether the TPM of a guest vouches for the image that it was started from."""

from typing import TYPE_CHECKING

from imagekit.artifact import Artifact

if TYPE_CHECKING:
    from imagekit.guest import Guest


def unattested(guest: "Guest", artifact: Artifact, *, port: int) -> list[str]:
    """What a guest's TPM does not vouch for: `assert unattested(guest, artifact, port=8410) == []`.

    port: where its `imagekit-attest --serve` answers. The first link that does not hold, or every PCR that differs.
    """
    from os import urandom  # here: every definition imports this module, also where nothing is tested

    from imagekit import attestation
    from imagekit.errors import Problem

    nonce = urandom(32)
    answer = guest.http.get(f"/attest?nonce={nonce.hex()}", port=port)
    if answer.status != 200:
        return [f"it gives no attestation: {answer.status} {ascii(answer.text.strip())[:120]}"]
    try:
        proved = attestation.prove(attestation.parse(answer.body), nonce=nonce, device=None)
        return attestation.different(proved, artifact.manifest)
    except Problem as problem:
        return [problem.message]
