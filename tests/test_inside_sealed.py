"""A sealed disk's key in a TPM: real ones by software, asked by what runs in guests; tpm2-tools says what they hold."""

import base64
import json
import os
import re
from collections.abc import Callable, Mapping
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from sealed_rig import KEYS, UNMEASURED, between, boot, compiled, extend, settle, started
from tpm_tools import Tpm

from imagekit import rsa, tpm
from imagekit.disk import pcrsign

NAME = pcrsign.name(KEYS.public("pcr"))
LEFT = tpm.extended(UNMEASURED, sha256(b"leave-initrd").digest())  # PCR 11 when the initrd is over
OTHER = rsa.signer(rsa.new().encode())

pytestmark = pytest.mark.skipif(
    find_spec("ziglang") is None and not os.environ.get("CI"), reason="the compiler is not installed"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("sealed"))


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of a short name, for sockets, and with what an image brings along."""
    made = tmp_path_factory.mktemp("t")
    settle(made)
    return made


def test_the_first_boot_makes_a_key_and_others_get_it_once(program: Path, folder: Path) -> None:
    with started(folder):
        assert boot(program, folder) == "new"
    with started(folder) as asked:
        assert boot(program, folder) == "open"
        assert boot(program, folder) == "sealed: the TPM was not reset"
        read = tpm.policy_pcr(tpm.policy_authorize(NAME), {7: UNMEASURED})
        told = asked("nvreadpublic")
        assert policies(told) == {"1800a00": read, "1800a01": b"", "1800a02": b""}
        assert attributes(told, "1800a00") == (
            "policywrite|writelocked|writedefine|policyread|no_da|readlocked|written|read_stclear"
        )
        assert bytes.fromhex(name_of(told, "1800a01")) == tpm.generation_name()
        for verb, *words in (("nvread", "-C", "o"), ("nvread",), ("nvundefine", "-C", "o"), ("nvwritelock", "-C", "o")):
            assert asked.ask(verb, "0x1800a00", *words).returncode != 0, verb
        assert asked.ask("nvwrite", "0x1800a01", "-C", "o", "-i", "seal").returncode != 0
        assert {"ownerAuthSet": "1", "lockoutAuthSet": "1"}.items() <= properties(asked).items()
        asked("pcrread", "sha256:11", "-o", "eleven")
        assert asked.read("eleven") == tpm.extended(LEFT, sha256(b"leave-initrd").digest())


def policies(told: str) -> dict[str, bytes]:
    """What `tpm2 nvreadpublic` says of who may use the indices."""
    found = re.findall(r"0x(\w+):\n(.*?)(?=\n0x|\Z)", told, re.DOTALL)
    texts = {index: re.search(r"authorization policy: (\w+)", text) for index, text in found}
    return {index: bytes.fromhex(text[1]) if text else b"" for index, text in texts.items()}


def attributes(told: str, index: str) -> str:
    found = re.search(rf"0x{index}:.*?attributes:\s+friendly: ([\w|]+)", told, re.DOTALL)
    assert found, told
    return found[1]


def name_of(told: str, index: str) -> str:
    found = re.search(rf"0x{index}:\n  name: (\w+)", told)
    assert found, told
    return found[1]


def properties(asked: Tpm) -> dict[str, str]:
    return dict(re.findall(r"(\w+): +(\d)", asked("getcap", "properties-variable")))


def test_the_makers_next_image_opens_it_and_then_no_earlier_one(program: Path, folder: Path) -> None:
    with started(folder):
        assert boot(program, folder) == "new"
    settle(folder, value=tpm.replayed([sha256(b"next").digest()]), generation=4)
    with started(folder) as asked:
        extend(asked, 11, b"next")
        assert boot(program, folder) == "open"
    settle(folder)
    with started(folder):
        assert boot(program, folder) == "sealed: generation"


def test_nobody_lowers_the_generation_in_another_system(program: Path, folder: Path) -> None:
    """What is signed for PCR 11 is on the boot partition, and any system can bring PCR 11 there: it opens nothing."""
    with started(folder):
        assert boot(program, folder) == "new"
    said = json.loads((folder / "signatures").read_text())["sha256"][0]
    public = tpm.rsa_public(KEYS.public("pcr").modulus.to_bytes(256, "big"))
    (folder / "public").write_bytes(len(public).to_bytes(2, "big") + public)
    (folder / "signature").write_bytes(base64.b64decode(said["sig"]))
    (folder / "ours").write_bytes((3).to_bytes(8, "big"))
    (folder / "lowest").write_bytes(bytes(8))
    with started(folder) as asked:
        asked("loadexternal", "-C", "o", "-u", "public", "-c", "key.ctx", "-n", "name")
        asked("startauthsession", "--policy-session", "-S", "s.ctx")
        asked("policypcr", "-S", "s.ctx", "-l", "sha256:11")
        asked("policynv", "-S", "s.ctx", "-i", "ours", "-L", "approved", "0x1800a01", "ule")
        digest = ("-g", "sha256", "-m", "approved", "-f", "rsassa", "-s", "signature", "-t", "ticket")
        asked("verifysignature", "-c", "key.ctx", *digest)
        asked("policyauthorize", "-S", "s.ctx", "-i", "approved", "-n", "name", "-t", "ticket", "-L", "all")
        assert (asked.read("approved").hex(), asked.read("all")) == (said["pol"], tpm.policy_authorize(NAME))
        assert asked.ask("nvwrite", "0x1800a01", "-P", "session:s.ctx", "-i", "lowest").returncode != 0


class Refused(NamedTuple):
    words: str
    measured: tuple[int, ...] = ()  # PCRs that get something more
    settings: Mapping[str, object] = MappingProxyType({})
    first: Mapping[str, object] = MappingProxyType({})  # settings of the first boot
    spoil: Callable[[Path], object] = lambda _: None


def drop_signature(folder: Path) -> None:
    (folder / "signatures").unlink()


def replace_signature(folder: Path) -> None:
    """By one of another key, over the right policy."""
    policy = pcrsign.policy(UNMEASURED, generation=3)
    text = pcrsign.signature(UNMEASURED, pcrsign.Approval(OTHER, 3)).decode()
    (folder / "signatures").write_text(re.sub('"pol":"[0-9a-f]+"', f'"pol":"{policy.hex()}"', text))


def cut_signature(folder: Path) -> None:
    text = (folder / "signatures").read_text()
    (folder / "signatures").write_text(text.replace('=="', '"'))


EXACT = {"policy": "exact"}
REFUSED = {
    "something-else-was-measured": Refused("state: PCR 7", measured=(7,)),
    "another-image": Refused("state: PCR 11", measured=(11,)),
    "both": Refused("state: PCR 7,11", measured=(7, 11)),
    "no-signature": Refused("signature", spoil=drop_signature),
    "anybodys-signature": Refused("signature", spoil=replace_signature),
    "half-a-signature": Refused("signature", spoil=cut_signature),
    "anybodys-image": Refused("policy", settings={"signer": OTHER}),
    "other-pcrs": Refused("policy", settings={"pcrs": "4,7,11"}),
    "signed-no-more": Refused("policy", settings=EXACT),
    "earlier": Refused("generation", settings={"generation": 2}),
    "exact": Refused("state: PCR 11", measured=(11,), first=EXACT, settings=EXACT),
    "exact-earlier": Refused("generation", first=EXACT, settings={**EXACT, "generation": 2}),
    "no-settings": Refused("settings", spoil=lambda folder: (folder / "seal").unlink()),
}  # fmt: skip


@pytest.mark.parametrize("row", REFUSED.values(), ids=REFUSED)
def test_the_key_stays_where_it_is(program: Path, folder: Path, row: Refused) -> None:
    settle(folder, **row.first)  # type: ignore[arg-type]
    with started(folder):
        assert boot(program, folder) == "new"
    settle(folder, **row.settings)  # type: ignore[arg-type]
    row.spoil(folder)
    with started(folder) as asked:
        for pcr in row.measured:
            extend(asked, pcr, b"something else")
        assert boot(program, folder) == f"sealed: {row.words}"
        assert not row.measured or boot(program, folder) != "open"


def test_an_exact_policy_opens_in_the_same_state(program: Path, folder: Path) -> None:
    settle(folder, **EXACT)  # type: ignore[arg-type]
    for words in ("new", "open"):
        with started(folder) as asked:
            extend(asked, 7, b"as always")
            assert boot(program, folder) == words


def test_a_tpm_that_somebody_owns_is_left_alone(program: Path, folder: Path) -> None:
    with started(folder) as asked:
        asked("changeauth", "-c", "owner", "secret")
        assert boot(program, folder) == "sealed: the TPM has an owner"


def test_a_policy_that_a_former_owner_left_is_gone(program: Path, folder: Path) -> None:
    with started(folder) as asked:
        asked("startauthsession", "-S", "trial.ctx")
        asked("policycommandcode", "-S", "trial.ctx", "-L", "any", "TPM2_CC_NV_UndefineSpace")
        asked("flushcontext", "trial.ctx")
        asked("setprimarypolicy", "-C", "o", "-L", "any", "-g", "sha256")
        assert boot(program, folder) == "new"
        asked("startauthsession", "--policy-session", "-S", "real.ctx")
        asked("policycommandcode", "-S", "real.ctx", "TPM2_CC_NV_UndefineSpace")
        assert asked.ask("nvundefine", "-C", "o", "-P", "session:real.ctx", "0x1800a01").returncode != 0


def test_wherever_the_power_is_cut_the_next_boots_open(program: Path, folder: Path) -> None:
    """What the disk has is what the TPM has, or both are made anew: the program compares them."""
    said = []
    for number in range(100):
        for name in folder.glob("tpm2-*"):
            name.unlink()
        with started(folder), between(folder, change=lambda n, reply, cut=number: None if n == cut else reply):
            cut = boot(program, folder, bus="bus")
        with started(folder):
            said.append(boot(program, folder))
        with started(folder):
            assert boot(program, folder) == "open", number
        if cut == "new":
            break
    assert said == sorted(said)  # "new" up to where the secret is kept, then "open"
    assert set(said) == {"new", "open"}
    assert len(said) > 20


# --- a hostile TPM ----------------------------------------------------------------------------------------------------


HOSTILE: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda _: b"",
    "half-a-header": lambda reply: reply[:7],
    "other-tag": lambda reply: b"\x12\x34" + reply[2:],
    "sessions-of-a-reply-without": lambda reply: bytes((0x80, 3 - reply[1])) + reply[2:],
    "no-parameters": lambda reply: reply[:2] + (10).to_bytes(4, "big") + reply[6:10],
    "a-byte-less": lambda reply: sized(reply[:-1]),
    "a-byte-more": lambda reply: sized(reply + b"x"),
    "more-than-it-says": lambda reply: reply + b"x",
    "less-than-a-header": lambda reply: reply[:2] + (9).to_bytes(4, "big") + reply[6:],
    "four-gigabytes": lambda reply: reply[:2] + b"\xff\xff\xff\xff" + reply[6:],
    "all-ones": lambda reply: reply[:10] + b"\xff" * (len(reply) - 10),
    "all-zeros": lambda reply: reply[:10] + bytes(len(reply) - 10),
    "no-code-of-a-tpm": lambda reply: reply[:6] + b"\xff\xff\xff\xff" + reply[10:],
}
HARMLESS = ("all-zeros", "all-ones")  # for replies without parameters, or with such as mean nothing to us


def sized(reply: bytes) -> bytes:
    return reply[:2] + len(reply).to_bytes(4, "big") + reply[6:]


@pytest.fixture(scope="module")
def recorded(program: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[bytes]]]:
    """What a TPM replied in a first boot and in another one, and the folder in which that was."""
    folder, found = tmp_path_factory.mktemp("t"), {}
    settle(folder)
    for words in ("new", "open"):
        with started(folder), between(folder, change=lambda _, reply: reply) as found[words]:
            assert boot(program, folder, bus="bus") == words
    return folder, found


@pytest.mark.parametrize("words", ["new", "open"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_reply_of_a_tpm_does_more_than_keep_the_disk_shut(
    program: Path, recorded: tuple[Path, dict[str, list[bytes]]], kind: str, words: str
) -> None:
    """Each of its replies is spoilt in turn; a crash of the program fails `boot`."""
    folder, replies, said, spoil = recorded[0], recorded[1][words], set(), HOSTILE[kind]
    for number in (n for n, reply in enumerate(replies) if spoil(reply) != reply):
        with between(folder, replies=replies, change=lambda n, r, at=number, to=spoil: to(r) if n == at else r):
            said.add(boot(program, folder, bus="bus"))
    assert said <= {"sealed: no TPM speaks like that"} or kind in HARMLESS, said


def test_a_tpm_that_is_busy_is_asked_again(program: Path, folder: Path) -> None:
    busy = iter(bytes.fromhex(f"80010000000a00000{code}") for code in ("922", "908", "90a") * 3)
    with started(folder), between(folder, change=lambda _, reply: next(busy, reply)):
        assert boot(program, folder, bus="bus") == "new"
