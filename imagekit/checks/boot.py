"""The boot: how long it took by the instruction clock, which is the same on any host, and where the time went."""

from typing import TYPE_CHECKING

from imagekit.image import Image

if TYPE_CHECKING:
    from imagekit.baseline import Recorded
    from imagekit.guest import Guest

SHOWN = 10  # differences to the recorded boot


def seconds(guest: "Guest") -> float:
    """From the kernel's start until everything was ready, in virtual seconds: `assert seconds(guest) < 3`."""
    return guest.boot.seconds


def breakdown(guest: "Guest", image: Image | None = None, recorded: "Recorded | None" = None) -> str:
    """The stages of a boot, what `ready` waited for, and what changed since it was recorded."""
    after = {service.name: service.after for service in image.services} if image else None
    path = guest.boot.critical_path(after)
    lines = [*guest.boot.chart(), "critical path: " + ", ".join(f"{s.name} {s.seconds:.3f} s" for s in path)]
    if recorded is None:
        return "\n".join(lines)
    if why := recorded.unusable(guest.boot):
        return "\n".join([*lines, why])
    assert recorded.boot is not None
    by = guest.boot.seconds - recorded.boot.seconds
    lines.append(f"recorded: {recorded.boot.seconds:.3f} s; {by:+.3f} s ({by / recorded.boot.seconds:+.2%}):")
    return "\n".join([*lines, *(guest.boot.growth(recorded.boot)[:SHOWN] or ["  no stage differs"])])
