"""The part of inside/sealed that speaks with a TPM, for this machine; and what stands between it and a TPM."""

import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

from tpm_tools import Tpm, new_tpm

from imagekit import bootkeys, early, rsa
from imagekit.disk import pcrsign

INSIDE = Path(early.__file__).with_name("inside")
PARTS = ("settings", "policy", "secret", "commands", "nv", "tpm")
SOURCES = (*(INSIDE / "sealed" / f"{name}.c" for name in PARTS), INSIDE / "sha256.c")
KEYS = bootkeys.chosen(Path(__file__).parent.parent / "fixtures/keys/boot")
UNMEASURED = bytes(32)  # PCR 11 of a machine whose firmware started no UKI
CC_PCR_EXTEND = 0x182
Change = Callable[[int, bytes], bytes | None]  # of the reply to a command, by its number; None: it is cut off there


def compiled(folder: Path) -> Path:
    """tests/sealed_host.c as a program of this machine, which ends where C leaves undefined what it does."""
    zig = (
        sys.executable,
        "-m",
        "ziglang",
        "cc",
        "-std=c99",
        "-O1",
        "-fsanitize=undefined",
        "-fsanitize-trap=undefined",
    )
    checked = ("-Wall", "-Wextra", "-Werror", f"-I{INSIDE / 'sealed'}", "-o", folder / "sealed")
    subprocess.run([*zig, *checked, Path(__file__).with_name("sealed_host.c"), *SOURCES], check=True)
    return folder / "sealed"


def settle(folder: Path, *, signer: rsa.Signer | None = None, value: bytes = UNMEASURED, **changed: object) -> None:
    """Write what an image brings along: its settings, and the signature for a value of PCR 11."""
    signer = signer or KEYS.signer("pcr")
    lines = {
        "image": "toy", "disk": "data", "mount": "/data", "pcrs": "7,11", "policy": "signed", "recovery": "console",
        "secure_boot": "off", "generation": 3, "public": f"{signer.public.modulus:0512x}", **changed,
    }  # fmt: skip
    (folder / "seal").write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
    approval = pcrsign.Approval(signer, int(str(lines["generation"])))
    (folder / "signatures").write_bytes(pcrsign.signature(value, approval))


def boot(program: Path, folder: Path, *, bus: str = "tpm") -> str:
    """What it says at the end of a boot; the TPM is whoever listens at that name in the folder."""
    words = [program, folder / bus, folder]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    return done.stdout.removesuffix("\n")


@contextmanager
def started(folder: Path) -> Iterator[Tpm]:
    """The TPM of a folder, after a reset."""
    for name in ("tpm", "tpm.ctrl"):
        (folder / name).unlink(missing_ok=True)
    with new_tpm(folder) as tpm:
        yield tpm


def extend(tpm: Tpm, pcr: int, words: bytes) -> None:
    """Measure something."""
    body = struct.pack(">III", pcr, 9, 0x40000009) + bytes(5) + struct.pack(">IH", 1, 0x000B) + sha256(words).digest()
    with socket.socket(socket.AF_UNIX) as to:
        to.connect(str(tpm.folder / "tpm"))
        to.sendall(struct.pack(">HII", 0x8002, 10 + len(body), CC_PCR_EXTEND) + body)
        assert message(to)[6:10] == bytes(4)


def message(source: socket.socket) -> bytes:
    """A whole command or reply; nothing when the other side has gone."""
    head = source.recv(10, socket.MSG_WAITALL)
    return head + source.recv(int.from_bytes(head[2:6], "big") - 10, socket.MSG_WAITALL) if len(head) == 10 else b""


@contextmanager
def between(folder: Path, *, replies: list[bytes] | None = None, change: Change) -> Iterator[list[bytes]]:
    """Whoever sits on the bus to a TPM, at the name `bus`; gives the replies that went by.

    replies: said in the TPM's place, whatever is asked.
    """
    (folder / "bus").unlink(missing_ok=True)
    seen: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / "bus"))
        door.listen()
        thread = threading.Thread(target=_pass_on, args=(door, folder, replies, change, seen), daemon=True)
        thread.start()
        yield seen
        thread.join(timeout=300)


def _pass_on(door: socket.socket, folder: Path, replies: list[bytes] | None, change: Change, seen: list[bytes]) -> None:
    client, _ = door.accept()
    with suppress(ConnectionError), client, socket.socket(socket.AF_UNIX) as to:
        if replies is None:
            to.connect(str(folder / "tpm"))
        while command := message(client):
            if replies is None:
                to.sendall(command)
                seen.append(message(to))
            elif len(seen) < len(replies):
                seen.append(replies[len(seen)])
            else:
                return
            if (changed := change(len(seen) - 1, seen[-1])) is None:
                return
            client.sendall(changed)
            if len(changed) < 10 or len(changed) < int.from_bytes(changed[2:6], "big"):
                return  # a device has no more either
