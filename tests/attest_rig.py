"""What images ask a TPM by (inside/attest.c), for this machine; and what a TPM says, said by whoever has the key."""

import platform
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from imagekit import early, quote

INSIDE = Path(early.__file__).with_name("inside")
SOURCES = [
    *(INSIDE / name for name in ("attest.c", "serve.c", "event.c", "sealed/commands.c", "sealed/tpm.c")),
    Path(__file__).with_name("attest_host.c"),
]
FLAGS = ("-Os", "-fno-asynchronous-unwind-tables", "-fno-unwind-tables")  # as build.sh has them: a library for all
PCRS = tuple(range(16))
NONCE = bytes(range(100, 132))
PRIVATE = ec.derive_private_key(7, ec.SECP256R1())
OTHER = ec.derive_private_key(8, ec.SECP256R1())


def compiled(folder, *, log, release):
    """imagekit-attest as a program of this machine, which takes these bytes for the firmware's log and os-release."""
    folder.joinpath("log").write_bytes(log)
    folder.joinpath("release").write_text(release)
    named = [f'-DEVENT_LOG="{folder}/log"', f'-DRELEASE="{folder}/release"']
    target = f"{platform.machine()}-linux-musl"
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", target, "-std=c99", "-static", *FLAGS]
    argv = [*compiler, f"-I{INSIDE}", *named, "-o", folder / "attest", *SOURCES]
    subprocess.run(argv, check=True)
    return folder / "attest"


def run(program, tpm, *words):
    """imagekit-attest, with the TPM of a folder."""
    env = {"TPM_SOCKET": f"{tpm.folder}/tpm"}
    return subprocess.run([program, *words], env=env, capture_output=True, text=True, check=False)


@contextmanager
def serving(program, tpm):
    """imagekit-attest --serve at some port of this machine, as soon as it listens."""
    env = {"TPM_SOCKET": f"{tpm.folder}/tpm"}
    for _ in range(5):  # somebody else may get the free port first
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        with subprocess.Popen([program, "--serve", str(port)], env=env) as process:
            try:
                while not _listens(port) and process.poll() is None:
                    time.sleep(0.01)
                if process.poll() is None:
                    yield port
                    return
            finally:
                process.terminate()
    raise AssertionError("the service did not start")


def _listens(port):
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def public(private=PRIVATE):
    """The TPMT_PUBLIC of a key as a TPM would make it."""
    numbers = private.public_key().public_numbers()
    return quote.TEMPLATE + b"".join(b"\0\x20" + number.to_bytes(32) for number in (numbers.x, numbers.y))


BY = quote.key(public())


def attested(values, *, magic=b"\xffTCG", kind=b"\x80\x18", signer=BY.qualified_name, nonce=NONCE, clock=1000, resets=3,
             restarts=1, banks=1, bank=11, bits=b"\xff\xff\0", end=b""):  # fmt: skip
    """A quote of PCRs as a TPM makes it, or not quite."""
    named = len(signer).to_bytes(2) + signer
    counted = clock.to_bytes(8) + resets.to_bytes(4) + restarts.to_bytes(4) + b"\1"
    chosen = banks.to_bytes(4) + bank.to_bytes(2) + len(bits).to_bytes(1) + bits
    digest = sha256(b"".join(values[pcr] for pcr in PCRS)).digest()
    return magic + kind + named + b"\0\x20" + nonce + counted + bytes(8) + chosen + b"\0\x20" + digest + end


def signature(data, *, key=PRIVATE, algorithm=0x18, hashed=11, end=b""):
    """A TPMT_SIGNATURE over a quote, or not quite."""
    numbers = utils.decode_dss_signature(key.sign(data, ec.ECDSA(SHA256(), deterministic_signing=True)))
    fields = b"".join(b"\0\x20" + number.to_bytes(32) for number in numbers)
    return algorithm.to_bytes(2) + hashed.to_bytes(2) + fields + end
