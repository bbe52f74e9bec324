"""The boot: how long it took by the guest's own clock, and with what."""

from imagekit.guest import Guest


def seconds(guest: Guest) -> float:
    """From the kernel's start until everything was ready, by the guest's own clock."""
    return float(guest.facts["boot_seconds"])


def breakdown(guest: Guest) -> str:
    """The stages of the boot, each with the time that led to it: what a test says when it was too slow."""
    lines, last = [f"booted in {seconds(guest):.3f} s of the guest's clock:"], 0.0
    for at, words in guest.facts["stages"]:
        lines.append(f"  {at:8.3f} s  +{at - last:.3f}  {words}")
        last = at
    return "\n".join(lines)
