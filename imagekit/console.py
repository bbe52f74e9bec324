"""Console: what a guest printed, bounded; and a guest's bytes as text that can do no harm."""

from dataclasses import dataclass, field

HEAD, TAIL = 1 << 20, 1 << 20  # bytes of console that are kept: the first and the last
END, WIDTH = 1 << 16, 400  # bytes that are looked at for the console's end, and characters that are shown of a line


@dataclass
class Console:
    """All that a guest printed: the first and the last MiB, and how much there was."""

    head: bytearray = field(default_factory=bytearray)
    tail: bytearray = field(default_factory=bytearray)
    total: int = 0  # bytes ever printed

    def feed(self, data: bytes) -> None:
        """Add what the guest printed now."""
        self.total += len(data)
        room = HEAD - len(self.head)
        self.head += data[:room]
        self.tail += data[room:] if room > 0 else data
        if len(self.tail) > 2 * TAIL:
            del self.tail[:-TAIL]

    def last(self, size: int) -> bytes:
        """The last bytes, as many as were asked for and are kept."""
        return bytes((self.head[-size:] if size > len(self.tail) else b"") + self.tail)[-size:]

    @property
    def text(self) -> str:
        """What was kept, as printable text: escape sequences and control characters are shown, not obeyed."""
        dropped = self.total - len(self.head) - len(self.tail)
        gap = f"\n[... {dropped} bytes not kept ...]\n" if dropped else ""
        return escape(bytes(self.head)) + gap + escape(bytes(self.tail))

    def since(self, mark: int) -> bytes:
        """What was printed after the first `mark` bytes, as far as it is kept."""
        begin = self.total - len(self.tail)  # where in all that was printed the tail begins
        return bytes(self.head[mark:] + self.tail[max(0, mark - begin) :])

    def end(self, lines: int = 30) -> str:
        """The last lines, each marked as the guest's own words."""
        return marked(bytes(self.head[-END:] + self.tail[-END:])[-END:], lines)


def marked(data: bytes, lines: int) -> str:
    """The last lines of a guest's bytes, each marked as its own words and no wider than a report can bear."""
    last = escape(data[-END:]).rstrip().splitlines()[-lines:]
    shown = (line if len(line) <= WIDTH else f"{line[:WIDTH]}..." for line in last)
    return "\n".join(f"guest| {line}" for line in shown) or "guest| (it printed nothing)"


def escape(data: bytes) -> str:
    """A guest's bytes as text that cannot steer a terminal, forge a report line or hide: only printable characters."""
    text = data.decode("utf-8", "backslashreplace").replace("\r\n", "\n")
    return "".join(c if c == "\n" or c == "\t" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)
