"""Eventlog: the log that firmware writes of what it measured: read strictly, replayed, compared by name.

Source: TCG, "PC Client Platform Firmware Profile", 10.2 (the log, crypto agile) and 10.4.5 (TCG_EfiSpecIdEvent). The
log is no evidence: the TPM's PCRs are, and a log is worth something once it replays to them. Even then the digests
alone are what was measured; of an event's words, those are marked that do not fit its digest.
"""

import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from imagekit import tpm
from imagekit.disk import eventwords
from imagekit.errors import Problem
from imagekit.tpm import Measurement

MAX_SIZE = 1 << 20  # bytes; OVMF writes 10 KiB, and keeps room for 64
MAX_PCR = 23
SIZES = {0x0004: 20, 0x000B: 32, 0x000C: 48, 0x000D: 64, 0x0012: 32, 0x0027: 32, 0x0028: 48, 0x0029: 64}  # of digests
MOST_BANKS = 8
HEAD = struct.Struct("<II20sI")  # the first event has the older form: PCR, type, a digest of SHA-1, size
SPEC_ID = struct.Struct("<16sIBBBBI")
SIGNATURE = b"Spec ID Event03\0"
EVENT = struct.Struct("<III")
LOCALITY = b"StartupLocality\0"
FOREIGN = " (but its digest is of something else)"


class Event(NamedTuple):
    """One entry: what was extended, and what is said of it."""

    pcr: int
    kind: int
    digest: bytes  # SHA-256
    data: bytes

    @property
    def is_measured(self) -> bool:
        """Whether a PCR was extended with it."""
        return self.kind != eventwords.NO_ACTION

    @property
    def measurement(self) -> Measurement:
        """What was measured, in words; with a mark where these words are not what was."""
        name, content, digest = eventwords.words(self.kind, self.data)
        if self.kind == eventwords.IPL and self.pcr in _LOADERS:
            name, content = _LOADERS[self.pcr](self, name)
        return Measurement(self.pcr, name, self.digest, content + ("" if digest in (None, self.digest) else FOREIGN))


def _of_stub(event: Event, text: str) -> tuple[str, str]:
    """Systemd's stub measures the name of a section and then its content, and calls both by the name."""
    is_name = event.digest == sha256(text.encode() + b"\0").digest()
    return f"{'name' if is_name else 'content'} of {text}", ""


def _of_arguments(event: Event, text: str) -> tuple[str, str]:
    """Systemd's boot loader and stub measure arguments as they tell them."""
    return "kernel's arguments", text + ("" if sha256(event.data).digest() == event.digest else FOREIGN)


_LOADERS = {11: _of_stub, 12: _of_arguments}


class Log(NamedTuple):
    """A log, as a value."""

    events: tuple[Event, ...]

    def replay(self) -> dict[int, bytes]:
        """The PCRs that these events lead to, of those in which anything was measured."""
        found: dict[int, bytes] = {}
        for event in self.events:
            if event.is_measured:
                found[event.pcr] = tpm.extended(found.get(event.pcr, tpm.NO_MEASUREMENT), event.digest)
            elif event.pcr == 0 and event.data.startswith(LOCALITY) and 0 not in found:
                found[0] = bytes(31) + event.data[len(LOCALITY) :][:1]  # TPM2_Startup came from another locality
        return found

    def measurements(self) -> list[Measurement]:
        """What was measured, in order."""
        return [event.measurement for event in self.events if event.is_measured]

    def of(self, pcr: int) -> list[Measurement]:
        """What was measured into a PCR, in order."""
        return [event.measurement for event in self.events if event.is_measured and event.pcr == pcr]


class Difference(NamedTuple):
    """One thing that two logs do not have in common."""

    pcr: int
    name: str
    what: str

    def __str__(self) -> str:
        return f"PCR {self.pcr}: {self.name}: {self.what}"


def parse(data: bytes, *, what: str = "the event log") -> Log:
    """The events of a log that is all of `data`. Raises Problem unless every byte is as the specification says."""
    if len(data) > MAX_SIZE:
        raise Problem(f"{what} is larger than the {MAX_SIZE} bytes that a log can have")
    found, end = _read(data, what)
    if end != len(data):
        raise Problem(f"{what} has {len(data) - end} bytes after its last event that are none")
    return Log(tuple(found))


def cut(memory: bytes, *, what: str = "the event log") -> bytes:
    """The log that begins here, less what follows it: where firmware writes one, the rest of the room is 0xFF or zeros.

    Raises Problem when it begins with none, or ends in the middle of an event.
    """
    room = memory[:MAX_SIZE]
    return room[: _read(room, what)[1]]


def differences(
    expected: Collection[Measurement], found: Collection[Measurement], *, pcrs: Collection[int] = range(MAX_PCR + 1)
) -> list[Difference]:
    """What was measured here and not there, or otherwise, PCR by PCR; nothing is found by its place."""
    return [
        one
        for pcr in pcrs
        for one in _compared(pcr, *([each for each in side if each.pcr == pcr] for side in (expected, found)))
    ]


def _read(data: bytes, what: str) -> tuple[list[Event], int]:
    """The events, and where they end: at the end of the data, or where the room is unused."""
    try:
        banks, at = _banks(data, what)
        events = []
        while at < len(data) and not _is_unused(data, at):
            event, at = _event(data, at, banks, what)
            events.append(event)
    except struct.error:
        raise Problem(f"{what} ends in the middle of an event") from None
    return events, at


def _is_unused(data: bytes, at: int) -> bool:
    """No event begins so: PCR 0xFFFFFFFF is none, and an event of no type without digests is neither."""
    return data[at : at + 12] in (b"\xff" * 12, bytes(12))


def _banks(data: bytes, what: str) -> tuple[dict[int, int], int]:
    """The algorithms of the log with the sizes of their digests, and where its first event begins."""
    pcr, kind, digest, size = HEAD.unpack_from(data)
    content = data[HEAD.size : HEAD.size + size]
    if (pcr, kind, digest) != (0, eventwords.NO_ACTION, bytes(20)) or content[:16] != SIGNATURE:
        raise Problem(f"{what} is no event log of UEFI and TPM 2.0: it does not begin with a Spec ID event")
    count = SPEC_ID.unpack_from(content)[-1]
    if not 0 < count <= MOST_BANKS:
        raise Problem(f"{what} has {count} banks, more than a TPM has")
    pairs = [struct.unpack_from("<HH", content, SPEC_ID.size + 4 * number) for number in range(count)]
    vendor = SPEC_ID.size + 4 * count
    (vendor_size,) = struct.unpack_from("<B", content, vendor)
    if vendor + 1 + vendor_size != size or len(content) != size:
        raise Problem(f"{what}: the sizes of its first event do not add up")
    banks = dict(pairs)
    if len(banks) != count or any(SIZES.get(bank) != width for bank, width in pairs):
        raise Problem(f"{what}: its banks {pairs} are none, or the same twice")
    if tpm.ALG_SHA256 not in banks:
        raise Problem(f"{what} has no digests of SHA-256", "swtpm_setup --pcr-banks sha256 turns the bank on")
    return banks, HEAD.size + size


def _event(data: bytes, at: int, banks: Mapping[int, int], what: str) -> tuple[Event, int]:
    pcr, kind, count = EVENT.unpack_from(data, at)
    place, at = at, at + EVENT.size
    if pcr > MAX_PCR and not (kind == eventwords.NO_ACTION and pcr == 0xFFFFFFFF):
        raise Problem(f"{what}: the event at {place} is of PCR {pcr}, which no TPM has")
    if count != len(banks):
        raise Problem(f"{what}: the event at {place} has {count} digests, and the log {len(banks)} banks")
    digests = {}
    for _ in range(count):
        (bank,) = struct.unpack_from("<H", data, at)
        if bank not in banks or bank in digests:
            raise Problem(
                f"{what}: the event at {place} has a digest of bank {bank:#x} twice, or that is not the log's"
            )
        digests[bank] = data[at + 2 : at + 2 + banks[bank]]
        at += 2 + banks[bank]
    (size,) = struct.unpack_from("<I", data, at)
    at += 4
    if at + size > len(data):
        raise Problem(f"{what} ends in the middle of the event at {place}")
    return Event(pcr, kind, digests[tpm.ALG_SHA256], data[at : at + size]), at + size


def _compared(pcr: int, expected: Sequence[Measurement], found: Sequence[Measurement]) -> Iterator[Difference]:
    """The differences of one PCR: first by name, and if there are none, by order."""
    ours, theirs = _by_name(expected), _by_name(found)
    names = list(dict.fromkeys(each.name for each in (*expected, *found)))
    same = True
    for name in names:
        for one in _of_one_name(pcr, name, ours.get(name, ()), theirs.get(name, ())):
            same = False
            yield one
    if same:
        for a, b in zip(expected, found, strict=True):
            if a.digest != b.digest:
                yield Difference(pcr, b.name, f"measured earlier than expected, where {a.name} was")
                return


def _of_one_name(
    pcr: int, name: str, ours: Sequence[Measurement], theirs: Sequence[Measurement]
) -> Iterator[Difference]:
    """What is left of the events of a name when those with equal digests are taken away, pair by pair."""
    here, there = _left(ours, theirs), _left(theirs, ours)
    for a, b in zip(here, there, strict=False):
        is_told = a.content and b.content and a.content != b.content
        words = f": {b.content}, expected {a.content}" if is_told else ""
        yield Difference(pcr, name, f"something else{words}")
    for a in here[len(there) :]:
        yield Difference(pcr, name, "not measured" + (f", expected {a.content}" if a.content else ""))
    for b in there[len(here) :]:
        yield Difference(pcr, name, "measured, and not expected" + (f": {b.content}" if b.content else ""))


def _left(events: Sequence[Measurement], others: Sequence[Measurement]) -> list[Measurement]:
    taken, left = Counter(other.digest for other in others), []
    for each in events:
        if taken[each.digest]:
            taken[each.digest] -= 1
        else:
            left.append(each)
    return left


def _by_name(events: Sequence[Measurement]) -> Mapping[str, list[Measurement]]:
    found: dict[str, list[Measurement]] = defaultdict(list)
    for each in events:
        found[each.name].append(each)
    return found
