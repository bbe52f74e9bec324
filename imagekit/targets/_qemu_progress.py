"""What a guest has said of its boot: pure, fed line by line, by the agent or from the console.

A line is `SECONDS WORDS` with the guest's own clock; the words are listed in early.py.
"""

import re
from dataclasses import dataclass, field

from imagekit.console import WIDTH, escape

MAX_STAGES = 2000  # lines that are kept: a guest that says more is not booting
MAX_ENDS = 3  # times that a service may end before the whole is ready
LINE = re.compile(r"([0-9]{1,9}\.[0-9]{1,9}) (\S.*)\Z", re.DOTALL)
CONSOLE = re.compile(  # the kernel's time may stand behind a prompt; without it only a whole line is an event
    rb"(?:\[ *(\d{1,9}\.\d{1,9})\] |^)imagekit: ([^\r\n]+)\r*$", re.MULTILINE
)
PANIC = re.compile(rb"^(?:\[ *\d+\.\d+\] ?(?:\[ *[TC]\d+\] ?)?)?(Kernel panic - not syncing[^\r\n]*)", re.MULTILINE)
CARRY = 1 << 12  # bytes of an unfinished line that are kept for the next piece

Stage = tuple[float, str]


def boot_seconds(stages: list[Stage]) -> float:
    """How long the boot took, by the guest's own clock; the one place that says so."""
    return next(seconds for seconds, words in stages if words == "ready")


@dataclass
class Progress:
    """A boot as told so far."""

    stages: list[Stage] = field(default_factory=list)  # until ready
    later: list[Stage] = field(default_factory=list)  # after ready
    failure: str = ""  # why it will never be ready: the first cause
    panic: str = ""  # the kernel's own words
    ends: dict[str, int] = field(default_factory=dict)  # service -> times that it ended before ready

    @property
    def is_ready(self) -> bool:
        """Whether the guest said that everything is up."""
        return bool(self.stages) and self.stages[-1][1] == "ready"

    @property
    def is_going_down(self) -> bool:
        """Whether the guest will power itself off after its failure."""
        return bool(self.panic) or self.failure.startswith(("the onboot step", "the guest shut down"))

    @property
    def is_in_step(self) -> bool:
        """Whether a step runs that the guest itself ends when its time is up."""
        return bool(self._open_steps)

    @property
    def services(self) -> dict[str, float]:
        """When each service was ready."""
        return {words.split()[2]: at for at, words in self.stages if words.startswith("service ready ")}

    @property
    def shutdown(self) -> list[Stage]:
        """What was said since the guest began to shut down."""
        place = next((n for n, (_, words) in enumerate(self.later) if words == "shutdown"), len(self.later))
        return self.later[place:]

    @property
    def awaited(self) -> str:
        """What the boot is waiting for, as far as the guest told."""
        if not self.stages:
            return "the first word of the image's init"
        if self._open_steps:
            return f"the onboot step {self._open_steps[-1]}"
        services = self._open("service start ", ("service ready ",))
        return f"ready: {', '.join(services)}" if services else f"what follows `{self.stages[-1][1]}`"

    @property
    def last(self) -> str:
        """What the guest said last."""
        if not self.stages:
            return "it has said nothing"
        seconds, words = self.stages[-1]
        return f"`{words}` at {seconds:.2f} s"

    def take(self, line: str) -> bool:
        """Take a line of the guest; whether it was one that makes sense."""
        found = LINE.match(line)
        if not found:
            return False
        seconds, words = float(found[1]), escape(found[2].encode("utf-8", "replace"))[:WIDTH]
        if self.is_ready:
            self.later = [*self.later[-MAX_STAGES:], (seconds, words)]
        elif len(self.stages) < MAX_STAGES or words == "ready":
            self.stages.append((seconds, words))
            self.failure = self.failure or self._failure(words.split())
        return True

    def _failure(self, words: list[str]) -> str:
        match words:
            case ["onboot", "failed", name, code, *_]:
                return f"the onboot step {name} failed with {code}"
            case ["service", "failed", name, *reason]:
                return f"the service {name} failed: {' '.join(reason) or 'no reason given'}"
            case ["service", "exit", name, code, *_]:
                self.ends[name] = self.ends.get(name, 0) + 1
                if self.ends[name] >= MAX_ENDS:
                    return f"the service {name} ended {MAX_ENDS} times before it was ready, last with {code}"
            case ["shutdown", *_]:
                return "the guest shut down before it was ready"
        return ""

    @property
    def _open_steps(self) -> list[str]:
        return self._open("onboot start ", ("onboot done ", "onboot failed "))

    def _open(self, begin: str, ends: tuple[str, ...]) -> list[str]:
        """What began and did not end."""
        names: dict[str, None] = {}
        for _, words in self.stages:
            if words.startswith(begin):
                names[words.removeprefix(begin)] = None
            for end in ends:
                if words.startswith(end):
                    names.pop(words.split()[2], None)
        return list(names)


class ConsoleLines:
    """Finds what the kernel and early boot say on the console; a flood of other bytes costs one search each."""

    def __init__(self, progress: Progress, *, take_events: bool) -> None:
        self._progress = progress
        self._take_events = take_events  # False where the agent tells the events, which the console cannot forge
        self._rest = b""

    def feed(self, data: bytes) -> bool:
        """Look at what was printed now; whether it told something."""
        text, told = self._rest + data, False
        cut = text.rfind(b"\n") + 1
        whole, self._rest = text[:cut], text[cut:][-CARRY:]
        if not self._progress.panic and (found := PANIC.search(whole) if b"Kernel panic" in whole else None):
            self._progress.panic, told = escape(found[1])[:WIDTH], True
        if self._take_events and b"imagekit: " in whole:
            for line in CONSOLE.finditer(whole):
                told |= self._progress.take(f"{(line[1] or b'0.0').decode()} {line[2].decode('utf-8', 'replace')}")
        return told
