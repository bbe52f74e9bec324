"""Commands of a TPM 2.0, for a chip that is ours: bytes to send, and what is read out of the bytes that come back.

Source: TCG, "Trusted Platform Module Library", family 2.0, parts 2 (structures) and 3 (commands). All is big-endian.
"""

import struct
from collections.abc import Iterator, Mapping

from imagekit.errors import RigProblem

NO_SESSIONS, SESSIONS = 0x8001, 0x8002  # TPM_ST
SHA1, SHA256, SHA384, SHA512 = 0x4, 0xB, 0xC, 0xD  # TPM_ALG_ID
PLATFORM = 0x4000000C  # TPM_RH_PLATFORM, whose authorization is empty until firmware sets one
PCRS = range(24)
HEADER = struct.Struct(">HII")  # TPM_ST, bytes of the whole, TPM_CC or TPM_RC
MOST = 4096  # bytes of a command or a response: those of swtpm, and of the buffers of QEMU's devices
CODES = {"allocate": 0x12B, "clear": 0x126, "startup": 0x144, "shutdown": 0x145, "read": 0x17E, "extend": 0x182}
EMPTY_PASSWORD = struct.pack(">IIHBH", 9, 0x40000009, 0, 0, 0)  # TPM_RS_PW
NOT_STARTED = 0x100  # TPM_RC_INITIALIZE


def command(name: str, body: bytes, *, tag: int = NO_SESSIONS) -> bytes:
    """A command with its header."""
    return HEADER.pack(tag, HEADER.size + len(body), CODES[name]) + body


def startup() -> bytes:
    """TPM2_Startup(TPM_SU_CLEAR): as after a power cycle."""
    return command("startup", b"\0\0")


def shutdown() -> bytes:
    """TPM2_Shutdown(TPM_SU_CLEAR)."""
    return command("shutdown", b"\0\0")


def is_startup(sent: bytes) -> bool:
    """Whether that is the command with which firmware begins."""
    return len(sent) >= HEADER.size and HEADER.unpack_from(sent)[2] == CODES["startup"]


def allocate(*, bank: int = SHA256) -> bytes:
    """TPM2_PCR_Allocate: from the next start on one bank of PCRs alone: firmware measures into each that there is."""
    chosen = [
        struct.pack(">HB3s", each, 3, bytes([0xFF * (each == bank)]) * 3) for each in (SHA1, SHA256, SHA384, SHA512)
    ]
    body = struct.pack(">I", PLATFORM) + EMPTY_PASSWORD + struct.pack(">I", len(chosen)) + b"".join(chosen)
    return command("allocate", body, tag=SESSIONS)


def clear() -> bytes:
    """TPM2_Clear by the platform: what a thief's own firmware does, or a jumper on some boards."""
    return command("clear", struct.pack(">I", PLATFORM) + EMPTY_PASSWORD, tag=SESSIONS)


def extend(pcr: int, digest: bytes) -> bytes:
    """TPM2_PCR_Extend of a SHA-256 digest."""
    body = struct.pack(">I", pcr) + EMPTY_PASSWORD + struct.pack(">IH", 1, SHA256) + digest
    return command("extend", body, tag=SESSIONS)


def reads() -> Iterator[bytes]:
    """TPM2_PCR_Read of all PCRs, of which each reads eight at most."""
    for octet in range(3):
        selected = bytes(0xFF * (place == octet) for place in range(3))
        yield command("read", struct.pack(">IHB3s", 1, SHA256, 3, selected))


def values(response: bytes) -> Mapping[int, bytes]:
    """PCR -> value, of what one of `reads` gave."""
    body = checked(response)
    try:
        _, count, bank, size = struct.unpack_from(">IIHB", body)
        selected, rest = body[11 : 11 + size], body[11 + size :]
        (digests,) = struct.unpack_from(">I", rest)
        pcrs = [pcr for pcr in PCRS if pcr // 8 < size and selected[pcr // 8] >> pcr % 8 & 1]
        if (count, bank, digests) != (1, SHA256, len(pcrs)) or len(rest) != 4 + 34 * digests:
            raise ValueError("other PCRs than were asked for")
        return {pcr: rest[6 + 34 * place : 38 + 34 * place] for place, pcr in enumerate(pcrs)}
    except (struct.error, IndexError, ValueError) as error:
        raise RigProblem(f"the TPM's answer to PCR_Read makes no sense: {error}") from None


def code(response: bytes) -> int:
    """TPM_RC of a response; raises RigProblem for what is none."""
    if len(response) < HEADER.size or HEADER.unpack_from(response)[1] != len(response):
        raise RigProblem(f"the TPM answered with {len(response)} bytes that are no response")
    return int(HEADER.unpack_from(response)[2])


def checked(response: bytes) -> bytes:
    """What follows the header of a response that tells success; raises RigProblem otherwise."""
    found = code(response)
    if found == NOT_STARTED:
        raise RigProblem("nobody has started the TPM yet: firmware does that", "wait until the machine's kernel runs")
    if found:
        raise RigProblem(f"the TPM refuses: TPM_RC {found:#x}")
    return response[HEADER.size :]
