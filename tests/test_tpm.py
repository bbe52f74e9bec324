"""What we compute of policies and names is what a TPM computes, asked by tpm2-tools."""

import re
from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from tpm_tools import new_tpm

from imagekit import tpm as ours

GENERATION = f"{ours.GENERATION_INDEX:#010x}"
WRITABLE = "ownerwrite|authread|no_da"
PCR11 = sha256(b"something measured").digest()
APPROVED = [  # policies in the order in which they are asserted, and ours of the same
    ("pcr", lambda _: ours.policy_pcr(ours.NO_POLICY, {11: ours.replayed([PCR11])})),
    ("generation", lambda key: ours.policy_generation(APPROVED[0][1](key), generation=7)),
    ("authorized", lambda key: ours.policy_authorize(key)),
    ("others", lambda key: ours.policy_pcr(APPROVED[2][1](key), {7: bytes(32), 15: bytes(32)})),
]


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    """A TPM in which a key and the index of the generation are, and PCR 11 was extended."""
    with new_tpm(tmp_path_factory.mktemp("tpm")) as made:
        pair = rsa.generate_private_key(65537, 2048)
        made.pair = pair
        made.modulus = pair.public_key().public_numbers().n.to_bytes(256, "big")
        made("pcrextend", f"11:sha256={PCR11.hex()}")
        whole = ours.rsa_public(made.modulus)
        (made.folder / "key.public").write_bytes(len(whole).to_bytes(2, "big") + whole)
        made("loadexternal", "-C", "o", "-u", "key.public", "-c", "key.ctx", "-n", "key.name")
        made("nvdefine", GENERATION, "-C", "o", "-s", "8", "-a", WRITABLE)
        (made.folder / "seven").write_bytes((7).to_bytes(8, "big"))
        made("nvwrite", GENERATION, "-C", "o", "-i", "seven")
        yield made


@pytest.fixture(scope="module")
def policies(tpm):
    """Digests of a trial session, policy by policy."""
    key = ours.rsa_name(tpm.modulus)
    tpm("startauthsession", "-S", "trial.ctx")
    tpm("policypcr", "-S", "trial.ctx", "-l", "sha256:11", "-L", "pcr")
    tpm("policynv", "-S", "trial.ctx", "-C", GENERATION, "-i", "seven", "-L", "generation", GENERATION, "ule")
    tpm("policyauthorize", "-S", "trial.ctx", "-i", "generation", "-n", "key.name", "-L", "authorized")
    tpm("policypcr", "-S", "trial.ctx", "-l", "sha256:7,15", "-L", "others")
    return key


@pytest.mark.parametrize(("name", "policy"), APPROVED, ids=lambda value: value if isinstance(value, str) else "")
def test_policies_have_the_digests_that_the_tpm_gives_them(tpm, policies, name, policy):
    assert policy(policies).hex() == tpm.read(name).hex()


def test_names_are_those_that_the_tpm_gives(tpm):
    assert ours.rsa_name(tpm.modulus).hex() == tpm.read("key.name").hex()
    assert "exponent: 65537" in tpm("readpublic", "-c", "key.ctx")
    said = tpm("nvreadpublic", GENERATION)
    assert re.search(r"name: (\w+)", said).group(1) == ours.generation_name().hex()


def test_extensions_give_the_pcr_that_the_tpm_has(tpm):
    said = tpm("pcrread", "sha256:11")
    assert ours.replayed([PCR11]).hex().upper() in said


def test_a_modulus_of_another_size_has_no_name():
    with pytest.raises(ValueError, match="a modulus of 255 bytes"):
        ours.rsa_name(bytes(255))
