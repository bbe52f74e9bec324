"""Boot: how a boot went, stage by stage, and by which clock."""

from dataclasses import dataclass

Stage = tuple[float, str]  # seconds since the kernel's start, and the words of an event (early.py lists them)


@dataclass(frozen=True)
class Boot:
    """One boot as it was measured."""

    stages: tuple[Stage, ...]
    clock: str = "guest"  # "instructions": virtual seconds, exact; "guest": the guest's own clock, which runs with ours

    @property
    def seconds(self) -> float:
        """Until everything was ready."""
        return next(seconds for seconds, words in self.stages if words == "ready")
