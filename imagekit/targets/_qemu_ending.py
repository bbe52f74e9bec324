"""Why a guest is no longer there: what QEMU told before it ended, in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from imagekit.console import Console, escape
from imagekit.guest import GuestProblem, MachineProblem

ENDS = {  # reasons of QMP's SHUTDOWN (qapi/run-state.json), in words
    "guest-shutdown": "the guest powered off",
    "guest-reset": "the guest rebooted",
    "guest-panic": "the guest's kernel panicked",
    "host-qmp-quit": "the guest was stopped",
    "host-signal": "QEMU was ended by a signal",
}
BY_OTHERS = ("host-signal", "host-error", "host-ui")


class Ending(NamedTuple):
    """Why a guest is no longer there."""

    words: str
    kind: type[GuestProblem]

    @property
    def is_clean(self) -> bool:
        """Whether that is how a guest should end."""
        return self.words in (ENDS["guest-shutdown"], ENDS["guest-reset"], ENDS["host-qmp-quit"])

    @property
    def is_power_off(self) -> bool:
        """Whether the guest powered itself off."""
        return self.words == ENDS["guest-shutdown"]

    @property
    def is_reboot(self) -> bool:
        """Whether the guest wants to be started again."""
        return self.words == ENDS["guest-reset"]


def epitaph(code: int, panic: str, events: Sequence[tuple[str, dict[str, Any]]], words: Console) -> Ending:
    """What QEMU's exit status, its events and its own words say together."""
    if panic:
        return Ending(f"the guest panicked ({panic})", GuestProblem)
    said = [str(found.get("reason", "")) for name, found in events if name == "SHUTDOWN"]
    if said and code == 0:
        kind = MachineProblem if said[-1] in BY_OTHERS else GuestProblem
        return Ending(ENDS.get(said[-1], f"QEMU ended ({escape(said[-1].encode())})"), kind)
    last = escape(bytes(words.tail[-2000:] or words.head[-2000:])).strip()
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    return Ending(f"QEMU {how}{': ' if last else ''}{last}", MachineProblem)
