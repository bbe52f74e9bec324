"""Attestation: a real firmware's log behind a TPM's quote is believed; whatever does not fit has its own message."""

import json
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import attest_rig
import pytest
from attest_rig import NONCE, PCRS
from test_prediction import uki
from tpm_tools import new_tpm

from imagekit import artifact, attestation, cli, device, key, pcr, quote, tpm
from imagekit.checks.attestation import unattested
from imagekit.disk import eventlog
from imagekit.errors import Problem
from imagekit.http import Response

HOME = Path(__file__).parents[1]
LOG = (HOME / "fixtures/eventlogs/x86_64.log").read_bytes()
EVENTS = eventlog.parse(LOG).events
BEFORE = dict.fromkeys(PCRS, bytes(32)) | eventlog.parse(LOG).replay()  # what the log leads to
VALUES = BEFORE | {11: tpm.extended(BEFORE[11], sha256(b"leave-initrd").digest())}  # and what is quoted
VALUES |= {10: b"\x10" * 32}  # by the kernel, which has a list of its own
WANTED = {number: BEFORE[number] for number in (4, 7, 11, 12)}


def manifest(**fields):
    """An artifact's manifest with a disk, and what it predicts."""
    pcrs = {str(number): value.hex() for number, value in WANTED.items()}
    part = {"role": "disk", "file": "web.img", "size": 0, "sha256": "0" * 64, "pcrs": pcrs, "seal": {}, **fields}
    return {"name": "web", "version": "1.2", "arch": "x86_64", "format": "raw_efi", "kind": "disk", "parts": [part]}


def answered(*, values=VALUES, told=None, log=LOG, by=attest_rig.PRIVATE, signed_by=None, image="web 1.2", **quoted):
    """A reply to our nonce, with anything in it otherwise than it should be."""
    signer = quote.key(attest_rig.public(by)).qualified_name
    said = attest_rig.attested(values, **{"signer": signer, **quoted})
    pcrs = "".join(f"pcr {number} {(told or values)[number].hex()}\n" for number in PCRS)
    parts = (attest_rig.public(by), said, attest_rig.signature(said, key=signed_by or by))
    named = "".join(f"{word} {part.hex()}\n" for word, part in zip(("key", "quote", "signature"), parts, strict=True))
    return f"imagekit attestation 1\nimage {image}\n{named}{pcrs}log {log.hex()}\nend\n".encode()


GOOD = answered()
KNOWN = device.Device(attest_rig.public(), (BEFORE[0].hex(), BEFORE[2].hex()), resets=3, restarts=1, clock=1000)
LINES = GOOD.splitlines(keepends=True)


def proved(reply=GOOD, known=KNOWN, nonce=NONCE):
    return attestation.prove(attestation.parse(reply), nonce=nonce, device=known)


@pytest.mark.parametrize("known", [None, KNOWN])
def test_a_right_reply_is_believed(known):
    found = proved(known=known)
    assert (found.quote.nonce, found.has_left, found.pcrs) == (NONCE, True, VALUES)
    assert attestation.different(found, manifest()) == []
    plain = {name: value for name, value in manifest()["parts"][0].items() if name != "seal"}
    assert attestation.different(proved(answered(values=BEFORE)), {"parts": [plain]}) == []
    said = ["PCR 11 was extended by leave-initrd, which this image does not do"]
    assert attestation.different(found, {"parts": [plain]}) == said


MALFORMED = [
    (b"", "the reply has 0 lines, not the 23 of an attestation"),
    (b"\xff" + GOOD, "the reply is no text"),
    (GOOD[:-1], "the reply has 22 lines"),
    (GOOD + b"end\n", "the reply has 24 lines"),
    (b"x" * 600_000, "is larger than the 532480 bytes"),
    (GOOD.replace(b"attestation 1", b"attestation 2"), "is not of a version that is known here"),
    (GOOD.replace(b"\nend\n", b"\nend x\n"), "is not of a version that is known here"),
    (GOOD.replace(b"\nkey ", b"\nkeys "), "a line 'keys' where key should be"),
    (GOOD.replace(b"\nkey ", b"\nkey  "), "line key is malformed"),
    (GOOD.replace(b"image web 1.2", b"image web"), "line image is malformed"),
    (GOOD.replace(b"image web 1.2", b"image web \x1b[2J"), "line image is malformed"),
    (GOOD.replace(b"\npcr 7 ", b"\npcr 8 "), "line pcr 7 is malformed"),
    (GOOD.replace(b"\npcr 7 ", b"\npcr 7 00"), "line pcr 7 is malformed"),
    (GOOD.replace(b"\npcr 7 ", b"\npcr 07 "), "line pcr 7 is malformed"),
    (GOOD.replace(b"\nlog ", b"\nlog 0"), "line log is malformed"),
    (GOOD.replace(b"\nlog ", b"\nlog G0"), "line log is malformed"),
    (b"".join((*LINES[:3], b"quote " + b"00" * 2049 + b"\n", *LINES[4:])), "line quote is malformed"),
    (b"".join((*LINES[:5], LINES[6], LINES[5], *LINES[7:])), "line pcr 0 is malformed"),
]


@pytest.mark.parametrize(("reply", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_a_reply_that_is_none_is_refused(reply, message):
    with pytest.raises(Problem, match=message):
        attestation.parse(reply)


def without(number):
    """The log less the first event of a PCR, cut out of its bytes."""
    gone = next(event for event in EVENTS if event.pcr == number)
    start = LOG.rindex(gone.pcr.to_bytes(4, "little") + gone.kind.to_bytes(4, "little"), 0, LOG.index(gone.digest))
    end = LOG.index(gone.data, start) + len(gone.data)
    return LOG[:start] + LOG[end:]


OTHER_BOOT = VALUES | {4: tpm.extended(VALUES[4], bytes(32))}
NOT_BELIEVED = [
    (answered(nonce=bytes(32)), "answers another question than ours: it is a replay"),
    (answered(by=attest_rig.OTHER), "the key is not the one that is known of this device"),
    (answered(signed_by=attest_rig.OTHER), "not signed by the attestation key: it is forged, or was altered"),
    (answered(signer=bytes(34)), "not one of the TPM's endorsement hierarchy"),
    (answered(bits=b"\x6f\xff\0"), "the quote leaves out PCR 4, 7"),
    (answered(told=OTHER_BOOT), "the PCRs' values are not those that were quoted"),
    (answered(values=OTHER_BOOT), "the event log does not lead to what PCR 4 was quoted with"),
    (answered(values=VALUES | {15: b"x" * 32}), "the event log does not lead to what PCR 15"),
    (answered(values=VALUES | {11: b"x" * 32}), "the event log does not lead to what PCR 11"),
    (answered(log=without(7)), "the event log does not lead to what PCR 7 was quoted with: the log is forged"),
    (answered(log=LOG[:-1]), "the event log ends in the middle of"),
    (answered(log=b"x"), "the event log"),
    (answered(resets=2), "the TPM counts 2 starts, and counted 3 before: it was cleared"),
    (answered(restarts=0), "the TPM's clock went back within one start"),
    (answered(clock=999), "the TPM's clock went back within one start"),
]


@pytest.mark.parametrize(("reply", "message"), NOT_BELIEVED, ids=[message for _, message in NOT_BELIEVED])
def test_a_reply_with_a_broken_link_is_refused(reply, message):
    with pytest.raises(Problem, match=message):
        proved(reply)


def test_no_changed_bit_is_believed():
    """One of each byte of key, quote, signature and PCRs."""
    reply = attestation.parse(GOOD)
    proofs = [(name, getattr(reply, name)) for name in ("key", "quote", "signature")]
    changes = [(name, data, place) for name, data in proofs for place in range(len(data))]
    believed = [(name, place) for name, data, place in changes if is_believed(reply, name, flipped(data, place))]
    for number, value in reply.pcrs.items():
        pcrs = [{**reply.pcrs, number: flipped(value, place)} for place in range(32)]
        believed += [(number, place) for place in range(32) if is_believed(reply, "pcrs", pcrs[place])]
    assert (len(changes), believed) == (88 + 145 + 72, [])


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1 :]


def is_believed(reply, name, value):
    try:
        attestation.prove(reply._replace(**{name: value}), nonce=NONCE, device=None)
    except Problem:
        return False
    return True


def test_later_starts_may_have_a_younger_clock():
    assert proved(answered(resets=4, restarts=0, clock=1)).quote.resets == 4


@pytest.mark.parametrize(
    ("number", "what"), [(0, "PCR 0: the firmware is not"), (1, "PCR 2: a card's firmware is not")]
)
def test_other_firmware_is_told(number, what):
    firmware = [*KNOWN.firmware]
    firmware[number] = "00" * 32
    with pytest.raises(Problem, match=what):
        proved(known=device.Device(KNOWN.key, tuple(firmware)))


OTHERS = [
    ({4: bytes(32)}, f"PCR 4 is {BEFORE[4].hex()}, not {'00' * 32}"),
    ({12: b"\1" * 32}, f"PCR 12 is {'00' * 32}, not {'01' * 32}"),
]


@pytest.mark.parametrize(("other", "message"), OTHERS, ids=["4", "12"])
def test_another_image_is_told(other, message):
    pcrs = {str(number): value.hex() for number, value in (WANTED | other).items()}
    assert attestation.different(proved(), manifest(pcrs=pcrs)) == [message]


def test_an_initrd_that_is_not_over_is_told():
    found = attestation.different(proved(answered(values=BEFORE)), manifest())
    assert found == ["PCR 11 says that the initrd is not over: what opens its disk may still run"]


def asked_of(guest, manifest):
    """What the check for images tells, of a guest that answers so."""
    http = SimpleNamespace(get=lambda path, **_: guest(bytes.fromhex(path.removeprefix("/attest?nonce="))))
    return unattested(SimpleNamespace(http=http), artifact.Artifact(Path("x"), b"", manifest), port=8410)


def test_the_check_for_images():
    assert asked_of(lambda nonce: Response(200, {}, answered(nonce=nonce)), manifest()) == []
    assert asked_of(lambda _: Response(200, {}, GOOD), manifest())[0].startswith("the quote answers another question")
    assert asked_of(lambda _: Response(503, {}, b"no\n"), manifest()) == ["it gives no attestation: 503 'no'"]
    other = asked_of(lambda nonce: Response(200, {}, answered(nonce=nonce, values=BEFORE)), manifest())
    assert other == ["PCR 11 says that the initrd is not over: what opens its disk may still run"]


DEVICES = [
    ("", "is not JSON"),
    ("[]", "is no JSON object"),
    ("{}", "is no file of a device"),
    ({"kind": "imagekit device 2"}, "is no file of a device"),
    ({"key": "zz"}, "is no file of a device"),
    ({"key": 1}, "is no file of a device"),
    ({"firmware": []}, "is no file of a device"),
    ({"firmware": None}, "is no file of a device"),
    ({"resets": -1}, "is no file of a device"),
    ({"clock": True}, "is no file of a device"),
    ({"nonce": "00"}, "is no file of a device"),
    ("x" * 20000, "is larger than"),
]


@pytest.mark.parametrize(("said", "message"), DEVICES, ids=range(len(DEVICES)))
def test_a_file_of_something_else_is_no_device(said, message, tmp_path):
    path = tmp_path / "device.json"
    device.write(path, KNOWN)
    assert device.read(path) == KNOWN
    path.write_text(said if isinstance(said, str) else json.dumps({**json.loads(path.read_text()), **said}))
    with pytest.raises(Problem, match=message):
        device.read(path)


@pytest.mark.parametrize(
    ("pcrs", "message"),
    [
        (None, "predicts no PCRs"),
        ({}, "predicts no PCRs"),
        ({"4": "00" * 32}, "predicts no PCRs"),
        ({"11": "00"}, "predicts no PCRs"),
        ({"11": "x"}, "the manifest's PCRs are none"),
        (["11"], "the manifest's PCRs are none"),
        ({"11": 7}, "the manifest's PCRs are none"),
    ],
)
def test_a_manifest_without_a_prediction_is_refused(pcrs, message):
    with pytest.raises(Problem, match=message):
        attestation.predicted(manifest(pcrs=pcrs))


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """`imagekit attest` in a folder with a signed image and a device that is known; its status and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IMAGEKIT_KEY", str(HOME / "fixtures/keys/test.key"))
    text = artifact.canonical(manifest())
    Path("web.manifest.json").write_bytes(text)
    Path("web.manifest.json.minisig").write_text(key.read(HOME / "fixtures/keys/test.key").sign(text, comment="toy"))

    def told(*words, image="web.manifest.json"):
        code = cli.main(["attest", image, "--device", "17.json", *words])
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return told


def test_a_reply_is_taken_once(told):
    assert told("--challenge") == (1, "imagekit: 17.json: nothing is known of this device\n"
                                      "  hint: --enroll believes it this once, for ever after\n")  # fmt: skip
    code, nonce = told("--challenge", "--enroll")
    assert (code, len(bytes.fromhex(nonce))) == (0, 32)
    Path("reply").write_bytes(answered(nonce=bytes.fromhex(nonce)))
    code, said = told("--reply", "reply", "--enroll")
    assert code == 0, said
    assert "TRUSTED AT FIRST SIGHT: nothing but this answer" in said
    assert "PCR 4, 7, 11, 12 as the image leads to, by a log of" in said
    assert "17.json: runs web 1.2 x86_64, signed by" in said
    assert "waits for no reply: each nonce is good for one" in told("--reply", "reply")[1]
    assert "has a key already: this device is enrolled" in told("--reply", "reply", "--enroll")[1]
    assert told("--challenge")[0] == 0
    assert "it is a replay" in told("--reply", "reply")[1]
    assert device.read(Path("17.json")).resets == 3


def test_another_image_is_refused_and_notes_nothing(told):
    device.write(Path("17.json"), device.Device(KNOWN.key, KNOWN.firmware, nonce=NONCE.hex()))
    other = manifest(pcrs={"11": "00" * 32, "4": BEFORE[4].hex()})
    Path("o.manifest.json").write_bytes(artifact.canonical(other))
    assert "is not signed" in told("--reply", "reply", image="o.manifest.json")[1]
    signature = key.read(HOME / "fixtures/keys/test.key").sign(artifact.canonical(other), comment="toy")
    Path("o.manifest.json.minisig").write_text(signature)
    Path("reply").write_bytes(answered(image="web 9"))
    code, said = told("--reply", "reply", image="o.manifest.json")
    assert code == 1
    assert f"the machine does not run web 1.2:\n  PCR 11 is {BEFORE[11].hex()}, not {'00' * 32}" in said
    assert "it says that it runs web 9, which nothing proves" in said
    assert device.read(Path("17.json")).nonce == NONCE.hex()


def made(uki, pcrs):
    """An artifact with this UKI in the folder, signed by the test key."""
    digest = sha256(uki).hexdigest()
    text = artifact.canonical(manifest(file="o.efi", role="uki", size=len(uki), sha256=digest, pcrs=pcrs))
    Path("o.efi").write_bytes(uki)
    Path("o.manifest.json").write_bytes(text)
    Path("o.manifest.json.minisig").write_text(key.read(HOME / "fixtures/keys/test.key").sign(text, comment="toy"))


def test_what_was_measured_otherwise_is_named(told):
    device.write(Path("17.json"), device.Device(KNOWN.key, KNOWN.firmware, nonce=NONCE.hex()))
    Path("reply").write_bytes(GOOD)
    other = uki(cmdline=b"console=ttyS0 quiet")
    leads = pcr.of_uki(other, keys=None).values()
    made(other, {str(number): value.hex() for number, value in leads.items()})
    said = told("--reply", "reply", image="o.efi")[1]
    assert f"PCR 11 is {BEFORE[11].hex()}, not {leads[11].hex()}" in said
    assert "\n  PCR 11: content of .cmdline: something else" in said
    made(other, {str(number): value.hex() for number, value in leads.items()} | {"11": "00" * 32})
    said = told("--reply", "reply", image="o.efi")[1]
    assert "the manifest does not fit its image, which leads to another PCR 11" in said


ADDRESSES = ["192.0.2.1", "https://192.0.2.1", "http://", "http://h/attest", "http://h:x", "http://u@h", "http://[h"]


@pytest.mark.parametrize("url", ADDRESSES)
def test_an_address_that_is_none_is_told(url, told):
    assert f"--host {url} is no address" in told("--enroll", "--host", url)[1]


def test_a_machine_is_asked(told, tmp_path):
    """All of it but the machine: its TPM, the firmware's log, the program of the image, and the verb."""
    (tmp_path / "tpm").mkdir()
    program = attest_rig.compiled(tmp_path, log=LOG, release="IMAGE_ID=web\nIMAGE_VERSION=1.2\n")
    with new_tpm(tmp_path / "tpm") as emulated:
        measured = [f"{event.pcr}:sha256={event.digest.hex()}" for event in EVENTS if event.is_measured]
        emulated("pcrextend", *measured, f"11:sha256={attestation.LEFT.hex()}")
        with attest_rig.serving(program, emulated) as port:
            for words in (["--enroll"], []):
                code, said = told("--host", f"http://127.0.0.1:{port}", *words)
                assert code == 0, said
        emulated("clear")  # the key stays the same, and the count of starts begins again
        with attest_rig.serving(program, emulated) as port:
            assert "it was cleared, or an old state of it is back" in told("--host", f"http://127.0.0.1:{port}")[1]
    assert "runs web 1.2 x86_64" in said
    assert "FIRST SIGHT" not in said
    assert told("--host", f"http://127.0.0.1:{port}")[0] == 1
