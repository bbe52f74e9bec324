"""Parts of files, as an honest server gives them, or as it is told to."""

import re
from collections.abc import Callable

from debian_mirror import Answer


def data_of(answer: Answer) -> bytes:
    return (answer.mirror.folder / answer.path.partition("?")[0].lstrip("/")).read_bytes()


def part_of(answer: Answer) -> tuple[int, int, int] | None:
    """What a request asks for: (first, last, size of the file)."""
    size = len(data_of(answer))
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", answer.headers.get("Range", ""))
    if not match:
        return None
    if not match[1]:
        return max(0, size - int(match[2])), size - 1, size
    return int(match[1]), min(int(match[2]), size - 1), size


def ranges(
    answer: Answer, change: Callable[[bytes], bytes] = bytes, *, length: int | None = None, name: str = ""
) -> None:
    """A part of the file, as an honest server gives it; or `change`d, or with another name."""
    part = part_of(answer)
    if not part:
        return answer.body(change(data_of(answer)), length=length)
    first, last, size = part
    answer.mirror.requests[-1] += f" {first}-{last}"
    said = {"Content-Range": name or f"bytes {first}-{last}/{size}"}
    return answer.body(change(data_of(answer)[first : last + 1]), 206, length=length, **said)
