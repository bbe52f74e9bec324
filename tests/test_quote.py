"""Quotes: tpm2-tools take ours and we take theirs, of a TPM that swtpm emulates; whatever else is refused by name."""

import http.client
import socket
from functools import partial
from hashlib import sha256

import attest_rig
import pytest
from attest_rig import BY, NONCE, OTHER, PCRS, run, signature
from tpm_tools import new_tpm

from imagekit import quote
from imagekit.errors import Problem

LIST = f"sha256:{','.join(map(str, PCRS))}"
AK = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign"
LOG = bytes(range(256)) * 20
VALUES = {pcr: bytes([pcr]) * 32 for pcr in PCRS}
DIGEST = sha256(b"".join(VALUES.values())).digest()
PUBLIC = attest_rig.public()
attested = partial(attest_rig.attested, VALUES)


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """imagekit-attest for this machine."""
    release = "NAME=x\nIMAGE_ID=web\nIMAGE_VERSION=1.2~rc1\n"
    return attest_rig.compiled(tmp_path_factory.mktemp("program"), log=LOG, release=release)


@pytest.fixture(scope="module")
def tpm(tmp_path_factory):
    """A TPM, some PCRs of which are extended, and the attestation key as tpm2-tools make it."""
    with new_tpm(tmp_path_factory.mktemp("tpm")) as tpm:
        for pcr in (0, 4, 11, 15):
            tpm("pcrextend", f"{pcr}:sha256={bytes([pcr]).hex() * 32}")
        tpm("createprimary", "-C", "e", "-G", "ecc256:ecdsa-sha256:null", "-a", AK, "-c", "ak")
        tpm("readpublic", "-c", "ak", "-f", "tpmt", "-o", "ak.pub")
        tpm("flushcontext", "-t")
        yield tpm


def quoted(tpm, *, pcrs=LIST, key="ak"):
    """Quote and signature by tpm2-tools."""
    tpm("quote", "-c", key, "-l", pcrs, "-q", NONCE.hex(), "-m", "message", "-s", "signature")
    tpm("flushcontext", "-t")
    return tpm.read("message"), tpm.read("signature")


def fields(text):
    return [line.split(" ") for line in text.splitlines()]


def test_a_quote_of_tpm2_tools_is_taken(tpm):
    by = quote.key(tpm.read("ak.pub"))
    found = quote.signed(by, *quoted(tpm))
    tpm("pcrread", LIST, "-o", "values")
    values = {pcr: tpm.read("values")[32 * pcr :][:32] for pcr in PCRS}
    quote.check_pcrs(found, values, wanted=PCRS)
    assert values[4] == sha256(bytes(32) + bytes([4]) * 32).digest()
    assert (found.nonce, found.pcrs, found.resets, found.restarts) == (NONCE, PCRS, 1, 0)
    tpm("readpublic", "-c", "ak", "-n", "name", "-q", "qualified")
    tpm("flushcontext", "-t")
    assert (by.name, by.qualified_name) == (tpm.read("name"), tpm.read("qualified"))


def test_tpm2_tools_take_a_quote_of_ours(program, tpm):
    done = run(program, tpm, NONCE.hex())
    assert done.returncode == 0, done.stderr
    lines = fields(done.stdout)
    said = {words[0]: words[1] for words in lines if len(words) == 2}
    assert bytes.fromhex(said["key"]) == tpm.read("ak.pub")  # the same key, whoever asks the TPM to make it
    for name in ("quote", "signature"):
        tpm.folder.joinpath(f"our.{name}").write_bytes(bytes.fromhex(said[name]))
    tpm("checkquote", "-u", "ak.pub", "-m", "our.quote", "-s", "our.signature", "-q", NONCE.hex())
    found = quote.signed(quote.key(tpm.read("ak.pub")), tpm.read("our.quote"), tpm.read("our.signature"))
    values = {int(words[1]): bytes.fromhex(words[2]) for words in lines if words[0] == "pcr"}
    quote.check_pcrs(found, values, wanted=PCRS)
    assert bytes.fromhex(said["log"]) == LOG
    assert (lines[0], lines[1], lines[-1]) == (["imagekit", "attestation", "1"], ["image", "web", "1.2~rc1"], ["end"])


@pytest.mark.parametrize("word", ["", "00" * 31, "00" * 33, "0g" * 32, "AA" * 32, "--help"])
def test_the_guest_takes_nothing_but_a_nonce(word, program, tpm):
    done = run(program, tpm, word)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "imagekit-attest: that is no nonce\n")


def test_what_the_tpm_refuses_is_told(program, tpm):
    tpm("changeauth", "-c", "endorsement", "secret")
    done = run(program, tpm, NONCE.hex())
    tpm("changeauth", "-c", "endorsement", "-p", "secret")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "imagekit-attest: the TPM makes no attestation key: TPM error 0xa2\n"  # TPM_RC_BAD_AUTH


@pytest.fixture(scope="module")
def port(program, tmp_path_factory):
    """The port of a service; its TPM is its own, for an emulated one listens to one at a time."""
    with new_tpm(tmp_path_factory.mktemp("served")) as own, attest_rig.serving(program, own) as port:
        yield port


def asked(port, request):
    """Status and body of the answer to a request, as it is sent."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request)
        with http.client.HTTPResponse(connection) as response:
            response.begin()
            return response.status, response.read().decode()


GOOD = NONCE.hex().encode()
REQUESTS = [
    (b"GET / HTTP/1.1\r\n\r\n", 404),
    (b"POST /attest?nonce=" + GOOD + b" HTTP/1.1\r\n\r\n", 404),
    (b"GET /attest?nonce=" + GOOD[:-2] + b" HTTP/1.1\r\n\r\n", 400),
    (b"GET /attest?nonce=" + GOOD + b"00 HTTP/1.1\r\n\r\n", 400),
    (b"GET /attest?nonce=" + GOOD.upper() + b" HTTP/1.1\r\n\r\n", 400),
    (b"GET /attest?nonce=" + GOOD + b"&x=1 HTTP/1.1\r\n\r\n", 400),
    (b"GET /attest?nonce=" + GOOD + b" SPDY/3\r\n\r\n", 400),
    (b"GET /attest?nonce=" + GOOD + b"\r\n\r\n", 400),
    (b"\0\r\n\r\n", 404),
]


@pytest.mark.parametrize(("request_", "status"), REQUESTS, ids=range(len(REQUESTS)))
def test_the_service_answers_one_question(request_, status, port):
    assert asked(port, request_)[0] == status


def test_the_service_gives_a_quote_to_whoever_comes_next(port):
    with socket.create_connection(("127.0.0.1", port)) as rude:
        rude.sendall(b"GET /attest?nonce=")  # and goes away in the middle of the word
    with socket.create_connection(("127.0.0.1", port)) as loud:
        loud.sendall(b"x" * 5000)  # more than a head may have
    status, body = asked(port, b"GET /attest?nonce=" + GOOD + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    said = {words[0]: words[1] for words in fields(body) if len(words) == 2}
    key, *signed = (bytes.fromhex(said[name]) for name in ("key", "quote", "signature"))
    assert (status, quote.signed(quote.key(key), *signed).nonce) == (200, NONCE)


def test_what_a_tpm_would_say_is_read():
    found = quote.signed(BY, attested(), signature(attested()))
    assert found == quote.Quote(BY.qualified_name, NONCE, 1000, 3, 1, PCRS, DIGEST)
    quote.check_pcrs(found, VALUES, wanted=PCRS)


KEYS = [
    (b"", "the attestation key is cut"),
    (PUBLIC[:-1], "the attestation key is cut"),
    (PUBLIC + b"\0", "the attestation key has 1 bytes too many"),
    (PUBLIC.replace(b"\0\5\4\x72", b"\0\4\4\x72"), "another kind: not a restricted signing key"),  # not restricted
    (PUBLIC.replace(b"\0\5\4\x72", b"\0\5\4\x70"), "another kind"),  # may leave its TPM
    (quote.TEMPLATE + b"\0\x21" + bytes(67), "has a field of 33 bytes, more than 32"),
]


@pytest.mark.parametrize(("public", "message"), KEYS, ids=[message for _, message in KEYS])
def test_a_key_of_another_kind_is_refused(public, message):
    with pytest.raises(Problem, match=message):
        quote.key(public)


QUOTES = [
    (attested(), signature(attested(), key=OTHER), "is not signed by the attestation key"),
    (attested(bits=b"\xff\xfe\0"), signature(attested()), "is not signed by the attestation key"),
    (attested(), signature(attested())[:-32] + bytes(32), "is not signed by the attestation key"),
    (attested(), b"\0\x18\0\x0b" + b"\0\x20" + b"\xff" * 32 + b"\0\x20" + b"\xff" * 32, "is not signed by the"),
    (attested(), b"\0\x18\0\x0b\0\0\0\0", "is not signed by the attestation key"),
    (attested(), signature(attested(), algorithm=0x14), "signature: its algorithm is 0x14, not 0x18"),
    (attested(), signature(attested(), hashed=4), "signature: its hash is 0x4, not 0xb"),
    (attested(), signature(attested(), end=b"x"), "signature has 1 bytes too many"),
    (attested(), signature(attested())[:-1], "signature is cut"),
    (attested(), b"", "signature is cut"),
]
SAID = [
    (attested(magic=b"\xffTCH"), "its magic number is 0xff544348"),
    (attested(kind=b"\x80\x17"), "its type is 0x8017, not 0x8018"),  # certify, which a restricted key signs too
    (attested(signer=BY.name), "not one of the TPM's endorsement hierarchy"),
    (attested(signer=bytes(35)), "has a field of 35 bytes, more than 34"),
    (attested(banks=0), "its number of PCR banks is 0x0, not 0x1"),
    (attested(banks=2), "its number of PCR banks is 0x2, not 0x1"),
    (attested(bank=4), "its PCR bank is 0x4, not 0xb"),
    (attested(bits=b"\xff\xff\0\0"), "its size of a selection is 0x4, not 0x3"),
    (attested(end=b"\0"), "the quote has 1 bytes too many"),
    (attested()[:-1], "the quote is cut"),
    (b"", "the quote is cut"),
]


WRONG = [*QUOTES, *((data, signature(data), message) for data, message in SAID)]


@pytest.mark.parametrize(("data", "signed", "message"), WRONG, ids=[row[-1] for row in WRONG])
def test_what_no_tpm_said_is_refused(data, signed, message):
    with pytest.raises(Problem, match=message):
        quote.signed(BY, data, signed)


@pytest.mark.parametrize(
    ("bits", "values", "message"),
    [
        (b"\x7f\xff\0", VALUES, "leaves out PCR 7"),
        (b"\x6f\xf7\0", VALUES, "leaves out PCR 4, 7, 11"),
        (b"\0\0\0", VALUES, "leaves out PCR 0, 1, 2, 3, 4"),
        (b"\xff\xff\1", VALUES, "is of more PCRs than were asked for"),
        (b"\xff\xff\0", {**VALUES, 4: VALUES[5]}, "the PCRs' values are not those that were quoted"),
    ],
)
def test_pcrs_that_were_not_quoted_are_refused(bits, values, message):
    found = quote.signed(BY, attested(bits=bits), signature(attested(bits=bits)))
    with pytest.raises(Problem, match=message):
        quote.check_pcrs(found, values, wanted=PCRS)


def test_a_point_off_the_curve_signs_nothing():
    odd = quote.key(PUBLIC[:-1] + bytes([PUBLIC[-1] ^ 1]))
    with pytest.raises(Problem, match="is not signed by the attestation key"):
        quote.signed(odd, attested(), signature(attested()))
