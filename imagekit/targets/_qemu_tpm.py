"""The TPM of a QEMU machine, and what can be seen of it without the guest: PCRs, and the event log in its memory."""

import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import ExitStack

from imagekit import toolbox
from imagekit.errors import GuestProblem, Problem
from imagekit.guest import NO_CHIP
from imagekit.guest import Chip as Seen
from imagekit.rig import Rig
from imagekit.targets._qemu_command import Board
from imagekit.targets._tpm import Chip
from imagekit.targets._tpm2 import PCRS

SIGNATURE = b"Spec ID Event03\0"  # TCG PC Client Platform Firmware Profile, section 10.4.5.1
BEFORE = 32  # bytes of the log's first event that stand before it: PCR, type, SHA-1, size
MAX_LOG = 1 << 20  # bytes: 64 KiB are what firmware keeps for one
PIECE = 1 << 24
MAX_BANKS = 16
MAX_LOGS = 64  # copies of it that are looked at: memory is the guest's, and may be full of them
LEAVING = b"Exit Boot Services Invocation"  # the last but one that firmware measures
FINAL = struct.Struct(
    "<QQ"
)  # EFI_TCG2_FINAL_EVENTS_TABLE: its version, 1, and how many events follow (EFI Protocol, 7)
MAX_FINAL = 64  # events
AROUND = 8192  # bytes in which such a table lies, before that event and behind it


def wanted(rig: Rig, board: Board) -> tuple[str, ...]:
    """The tools that a TPM takes; raises Problem where the machine cannot have one."""
    if rig.tpm and not board.tpm:
        raise Problem(f"the machine {board.machine_name} has no place for a TPM", "QEMU's x86_64 and aarch64 have one")
    return ("swtpm",) if rig.tpm else ()


def chip(rig: Rig, tools: toolbox.Tools, held: ExitStack) -> Chip | None:
    """The TPM that the rig wants, running."""
    if rig.tpm is None:
        return None
    made = Chip(tools, rig.tpm)
    held.callback(made.close)
    made.start()
    return made


def seen(chip: Chip | None) -> Seen:
    """What a guest's test gets of its TPM."""
    return Seen(chip.pcrs, lambda: log(chip.memory()), chip.state, chip.send) if chip else NO_CHIP


def log(ram: int) -> bytes:
    """The longest event log in a machine's memory, in a file; raises GuestProblem when there is none.

    Firmware has one, and a kernel a copy of it that goes on. The bytes are the guest's, and prove nothing alone.
    """
    found = max((whole(start) for start in _starts(ram, SIGNATURE, BEFORE, MAX_LOG)), key=len, default=b"")
    if not found:
        raise GuestProblem("there is no event log in the machine's memory", "UEFI writes one: Rig(firmware='uefi')")
    return found + _final(ram, found)


def _final(ram: int, log: bytes) -> bytes:
    """What firmware measured after the kernel had copied the log. Its own is gone when the kernel uses that memory."""
    sizes, at = _banks(log)
    known = _events(log, at, sizes)
    for around in _starts(ram, LEAVING, AROUND, 2 * AROUND):
        at = around.rfind(FINAL.pack(1, 0)[:8], 0, AROUND)
        while at >= 0:
            _, count = FINAL.unpack_from(around, at)
            events = _events(around, at + FINAL.size, sizes, most=count) if count <= MAX_FINAL else []
            if len(events) == count and any(LEAVING in event for event in events):
                same = next(size for size in range(count, -1, -1) if known[len(known) - size :] == events[:size])
                return b"".join(events[same:])
            at = around.rfind(FINAL.pack(1, 0)[:8], 0, at)
    return b""


def _events(data: bytes, at: int, sizes: Mapping[int, int], *, most: int = MAX_LOG) -> list[bytes]:
    """The events that follow one another from there on, up to so many."""
    found: list[bytes] = []
    while len(found) < most and (end := _event_end(data, at, sizes)):
        found.append(data[at:end])
        at = end
    return found


def whole(start: bytes) -> bytes:
    """The log that begins there, up to where no event follows; b"" where none begins."""
    sizes, at = _banks(start)
    while at:
        end = _event_end(start, at, sizes)
        if not end:
            break
        at = end
    return start[:at]


def _banks(start: bytes) -> tuple[dict[int, int], int]:
    """(algorithm -> bytes of a digest, where the second event begins), of the first event, which tells."""
    try:
        (size,) = struct.unpack_from("<I", start, BEFORE - 4)
        (count,) = struct.unpack_from("<I", start, BEFORE + 24)
        if not 0 < count <= MAX_BANKS or not 28 + 4 * count < size <= 1024:
            return {}, 0
        pairs = struct.iter_unpack("<HH", start[BEFORE + 28 : BEFORE + 28 + 4 * count])
        return dict(pairs), BEFORE + size
    except struct.error:
        return {}, 0


def _event_end(log: bytes, at: int, sizes: Mapping[int, int]) -> int:
    """Where the event there ends; 0 where there is none (TCG_PCR_EVENT2, section 10.2.2)."""
    try:
        pcr, kind, count = struct.unpack_from("<III", log, at)
        if pcr >= len(PCRS) or not kind or not 0 < count <= len(sizes):
            return 0
        at += 12
        for _ in range(count):
            (bank,) = struct.unpack_from("<H", log, at)
            at += 2 + sizes[bank]
        (size,) = struct.unpack_from("<I", log, at)
    except (struct.error, KeyError):
        return 0
    end = at + 4 + int(size)
    return end if end <= len(log) else 0


def _starts(ram: int, words: bytes, before: int, size: int) -> Iterator[bytes]:
    """Memory from so far before some words on; holes of the file, where the guest never was, are passed over."""
    found, all_of_it = 0, os.fstat(ram).st_size
    for offset, end in _filled(ram, all_of_it):
        piece = os.pread(ram, min(end + len(words), all_of_it) - offset, offset)
        at = piece.find(words)
        while at >= 0 and found < MAX_LOGS:
            found += 1
            if offset + at >= before:
                yield os.pread(ram, size, offset + at - before)
            at = piece.find(words, at + 1)


def _filled(file: int, size: int) -> Iterator[tuple[int, int]]:
    """(offset, end) of what was written of a file, in pieces that can be held."""
    at = 0
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # ENXIO: there are only holes from here on
            return
        end = min(os.lseek(file, at, os.SEEK_HOLE), size)
        while at < end:
            yield at, min(at + PIECE, end)
            at = min(at + PIECE, end)
