"""Capture: what passed a switch lately, in memory, and as the file that tcpdump and Wireshark read."""

from collections import deque
from struct import Struct
from threading import Lock
from typing import NamedTuple

LARGEST = 8 << 20  # bytes of frames that are kept; the oldest go first
_FILE, _RECORD = Struct("<IHHiIII"), Struct("<IIII")
_MAGIC, _ETHERNET = 0xA1B2C3D4, 1  # microseconds; LINKTYPE_ETHERNET (draft-ietf-opsawg-pcap)


class Seen(NamedTuple):
    """A frame, and when it passed."""

    seconds: float  # since the epoch
    data: bytes


class Capture:
    """The last frames that came to a switch, oldest first; `len(capture)`, `for seen in capture`."""

    def __init__(self, largest: int = LARGEST) -> None:
        self.missed = 0  # frames that were too old to be kept
        self._largest, self._size = largest, 0
        self._seen: deque[Seen] = deque()
        self._lock = Lock()

    def add(self, seconds: float, data: bytes) -> None:
        """Keep a frame, and forget the oldest where there is no room."""
        with self._lock:
            self._seen.append(Seen(seconds, data))
            self._size += len(data) + _RECORD.size
            while self._size > self._largest:
                self._size -= len(self._seen.popleft().data) + _RECORD.size
                self.missed += 1

    def clear(self) -> None:
        """Forget all, so that what comes from here on stands alone."""
        with self._lock:
            self._seen.clear()
            self._size = 0

    def frames(self) -> tuple[Seen, ...]:
        """All that is kept."""
        with self._lock:
            return tuple(self._seen)

    def __len__(self) -> int:
        return len(self._seen)

    def pcap(self) -> bytes:
        """The bytes of a capture file."""
        out = [_FILE.pack(_MAGIC, 2, 4, 0, 0, 262144, _ETHERNET)]
        for seconds, data in self.frames():
            whole, part = divmod(int(seconds * 1_000_000), 1_000_000)
            out += [_RECORD.pack(whole & 0xFFFFFFFF, part, len(data), len(data)), data]
        return b"".join(out)
