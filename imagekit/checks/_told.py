"""What a guest tells of itself: files of its own, and the events of its boot."""

from typing import TYPE_CHECKING, NamedTuple

from imagekit.errors import Problem

if TYPE_CHECKING:
    from imagekit.guest import Guest

EVENTS = "/run/imagekit/events"  # a line each: SECONDS WORDS, in the guest's clock; early.py lists the words


class Event(NamedTuple):
    """Something that happened in a guest."""

    seconds: float
    words: tuple[str, ...]


def read(guest: "Guest", *paths: str) -> str:
    """The text of files, one after the other; one that is not there adds nothing."""
    return guest.run(["cat", *paths]).stdout.decode("utf-8", "backslashreplace")


def events(guest: "Guest") -> list[Event]:
    """Everything that happened since the guest's init began; raises Problem where no init of ours runs."""
    lines = [line.split() for line in read(guest, EVENTS).splitlines()]
    if not lines:
        raise Problem(
            f"{guest.target} tells no events: no services run there",
            "ask for `guest`, an image with a kernel on a machine that boots",
        )
    return [Event(float(line[0]), tuple(line[1:])) for line in lines if line and _is_number(line[0])]


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdecimal()
