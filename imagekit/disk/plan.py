"""Plan: what is to lie on a disk, before anything has a place."""

from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from imagekit.disk import fat
from imagekit.disk.sparse import Sparse


class Part(NamedTuple):
    """A partition before it has a place."""

    name: str
    type: UUID
    content: Sparse
    attributes: int = 0
    grows: bool = False  # the last one of a disk, as far as its end


class Plan(NamedTuple):
    """A disk that UEFI starts: its own system partition, and those behind it."""

    files: Mapping[str, fat.Content]  # of the EFI system partition
    boot_size: int  # bytes that this has at least
    parts: list[Part]
    facts: Mapping[str, Any]  # for the manifest
