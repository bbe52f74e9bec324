"""What is signed of PCR 11: as systemd-measure computes and signs it, and as a TPM takes it."""

import json
import subprocess
from base64 import b64decode
from hashlib import sha256
from pathlib import Path

import pytest
from tpm_tools import new_tpm

from imagekit import rsa, toolbox, tpm
from imagekit.bootkeys import BootKeys
from imagekit.disk import pcrsign, pe, stub
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

KEYS = BootKeys(Path(__file__).parents[1] / "fixtures/keys/boot")
SECTIONS = {
    ".linux": b"MZ a kernel" * 999,
    ".osrel": b"ID=toy\n",
    ".cmdline": b"quiet",
    ".initrd": b"an archive" * 99,
    ".uname": b"6.1",
    ".sbat": b"sbat,1\n",
    stub.PUBLIC_KEY: KEYS.public().pem.encode(),
}
GENERATION = f"{tpm.GENERATION_INDEX:#010x}"
SEALED = "0x01800a0f"


def program(version: int) -> bytes:
    """What a stub of systemd has in its data."""
    return b"MZ" + "\0systemd-stub ".encode("utf-16le") + f"{version}.1-1~deb\0".encode("utf-16le")


def digests(sections):
    return stub.digests(parts(sections))


def parts(sections):
    return {name: [content[:3], content[3:]] for name, content in sections.items()}


@pytest.fixture(scope="module")
def systemd(tmp_path_factory):
    """systemd-measure, asked for all sections, without the phases of systemd's own boot."""
    tools, folder = toolbox.tools("systemd-measure", mode="tree", store=open_store()), tmp_path_factory.mktemp("uki")
    for name, content in SECTIONS.items():
        (folder / name).write_bytes(content)
    files = [f"--{name[1:]}={folder / name}" for name in SECTIONS]

    def run(verb, *words):
        command = tools.argv("systemd-measure", verb, "--bank=sha256", "--phase=", "--json=short", *files, *words)
        done = subprocess.run(command, env=tools.env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)["sha256"][0]

    return run


def test_pcr_11_is_what_systemd_computes(systemd):
    ours = stub.value(stub.measured(digests(SECTIONS), version=257))
    assert ours.hex() == systemd("calculate")["hash"]


def test_the_signature_is_in_systemds_form(systemd):
    theirs = systemd("sign", f"--private-key={KEYS.folder / 'pcr.key'}", f"--public-key={KEYS.folder / 'pcr.pub'}")
    value = stub.value(stub.measured(digests(SECTIONS), version=257))
    text = pcrsign.signature(value, pcrsign.Approval(KEYS.signer()))
    ours = json.loads(text)["sha256"][0]
    assert list(ours) == list(theirs)
    assert (ours["pcrs"], ours["pkfp"]) == (theirs["pcrs"], theirs["pkfp"])
    alone = tpm.policy_pcr(tpm.NO_POLICY, {11: value})  # what systemd signs: no generation
    assert theirs["pol"] == alone.hex()
    assert b64decode(theirs["sig"]) == KEYS.signer().sign(tpm.authorized(alone))
    assert text.count(b"\n") == 1
    assert b" " not in text


def test_a_stub_measures_what_its_version_did():
    old, new = (
        {each.name for each in stub.measured(digests(SECTIONS), version=stub.version(program(number)))}
        for number in (252, 257)
    )
    assert new - old == {f"{what} of {name}" for what in ("name", "content") for name in (".uname", ".sbat")}


@pytest.mark.parametrize(
    ("data", "said"), [(b"MZ", "is no systemd-stub"), (program(253), "what systemd-stub 253 measures is not known")]
)
def test_of_other_stubs_nothing_is_said(data, said):
    with pytest.raises(Problem, match=said):
        stub.version(data)


@pytest.fixture(scope="module")
def machine(tmp_path_factory):
    """A TPM after the boot of these sections, with an index that only what the key signs can read; generation 5."""
    with new_tpm(tmp_path_factory.mktemp("tpm")) as made:
        for each in stub.measured(digests(SECTIONS), version=257):
            made("pcrextend", f"11:sha256={each.digest.hex()}")
        whole = tpm.rsa_public(KEYS.public().modulus.to_bytes(rsa.SIZE, "big"))
        write = lambda name, data: (made.folder / name).write_bytes(data)  # noqa: E731
        write("key", len(whole).to_bytes(2, "big") + whole)
        write("policy", tpm.policy_authorize(pcrsign.name(KEYS.public())))
        write("secret", b"the key of a disk")
        write("number", (5).to_bytes(8, "big"))
        made("loadexternal", "-C", "o", "-u", "key", "-c", "key.ctx", "-n", "key.name")
        made("nvdefine", GENERATION, "-C", "o", "-s", "8", "-a", "ownerwrite|authread|no_da")
        made("nvwrite", GENERATION, "-C", "o", "-i", "number")
        made("nvdefine", SEALED, "-C", "o", "-s", "17", "-a", "ownerwrite|policyread", "-L", "policy")
        made("nvwrite", SEALED, "-C", "o", "-i", "secret")
        yield made


def opened(machine, *, sections, generation):
    """What the TPM gives out when it is shown what is signed of these sections, or what it says against it."""
    value = stub.value(stub.measured(digests(sections), version=257))
    one = json.loads(pcrsign.signature(value, pcrsign.Approval(KEYS.signer(), generation)))["sha256"][0]
    for name, data in {
        "approved": bytes.fromhex(one["pol"]),
        "signature": b64decode(one["sig"]),
        "operand": generation.to_bytes(8, "big"),
    }.items():
        (machine.folder / name).write_bytes(data)
    machine("verifysignature", "-c", "key.ctx", "-m", "approved", "-s", "signature", "-f", "rsassa", "-t", "ticket")
    machine("startauthsession", "-S", "now", "--policy-session")
    try:
        for words in (
            ("policypcr", "-S", "now", "-l", "sha256:11"),
            ("policynv", "-S", "now", "-C", GENERATION, "-i", "operand", GENERATION, "ule"),
            ("policyauthorize", "-S", "now", "-i", "approved", "-n", "key.name", "-t", "ticket"),
            ("nvread", SEALED, "-C", SEALED, "-P", "session:now"),
        ):
            done = machine.ask(*words)
            if done.returncode:
                return words[0]
        return done.stdout
    finally:
        machine("flushcontext", "now")
        machine("flushcontext", "-t")


@pytest.mark.parametrize(
    ("changed", "generation", "said"),
    [
        ({}, 5, "the key of a disk"),
        ({}, 6, "the key of a disk"),
        ({}, 4, "policynv"),
        ({".cmdline": b"debug"}, 5, "policyauthorize"),
    ],
    ids=["as signed", "later", "earlier", "another image"],
)
def test_a_tpm_gives_the_secret_to_what_was_signed_and_not_to_an_earlier_one(machine, changed, generation, said):
    assert opened(machine, sections={**SECTIONS, **changed}, generation=generation) == said


def test_the_sections_are_added_and_agree_with_what_is_measured():
    approval = pcrsign.Approval(KEYS.signer(), 3)
    bare = {name: data for name, data in parts(SECTIONS).items() if name != stub.PUBLIC_KEY}
    added = pcrsign.sections(bare, of=program(252), approval=approval)
    assert added.keys() == {stub.PUBLIC_KEY, stub.SIGNATURE} <= set(pe.ORDER)
    value = stub.value(stub.measured(stub.digests({**bare, **added}), version=252))
    one = json.loads(b"".join(added[stub.SIGNATURE]))["sha256"][0]
    assert one["pol"] == pcrsign.policy(value, generation=3).hex()
    assert sha256(value).digest() != sha256(stub.value([])).digest()
    assert KEYS.public().verify(tpm.authorized(bytes.fromhex(one["pol"])), b64decode(one["sig"]))
