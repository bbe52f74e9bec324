"""Services and boot steps: what runs, what failed and why."""

from typing import TYPE_CHECKING

from imagekit.checks import _told

if TYPE_CHECKING:
    from imagekit.guest import Guest


def failed(guest: "Guest") -> dict[str, str]:
    """What failed since the guest booted: name -> why; also a service that ended badly and was started again."""
    found: dict[str, str] = {}
    ends: dict[str, int] = {}
    for event in _told.events(guest):
        match event.words:
            case ["service", "failed", name, *why]:
                found[name] = " ".join(why) or "no reason given"
            case ["service", "exit", name, code, *_] if code != "0":
                ends[name] = ends.get(name, 0) + 1
                found[name] = f"ended with {code}" if ends[name] == 1 else f"ended {ends[name]} times, last with {code}"
            case ["onboot" | "onshutdown" as when, "failed", name, code, *_]:
                found[f"{when} {name}"] = f"ended with {code}"
            case ["shutdown", *_]:
                break  # from here on services end because they are told to
    return found


def running(guest: "Guest") -> set[str]:
    """The services that were started and have not ended."""
    found: set[str] = set()
    for event in _told.events(guest):
        match event.words:
            case ["service", "start", name, *_]:
                found.add(name)
            case ["service", "exit" | "failed", name, *_]:
                found.discard(name)
    return found
