"""Bytes as zstd frames of a MiB each, known by size and sha256, so that each is checked before it is unpacked.

RFC 8878: frames stand one after another and every reader unpacks them as one stream; what a skippable frame holds
(section 3.1.2) is passed over.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from imagekit.errors import Problem

LEVEL = 3  # 6 saves a twentieth and takes twice as long
STEP = 1 << 20  # unpacked bytes of every frame but the last
LARGEST = STEP + (STEP >> 8) + 1024  # packed: more than zstd ever adds to what does not shrink
SKIPPABLE = 0x184D2A50
SKIPPABLE_HEAD = 8  # bytes
MAX_WINDOW = 8 << 20


def packed(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The frames of a stream; the same stream gives the same frames, however it is cut into chunks."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        while len(held) >= STEP:
            yield _packer().compress(bytes(held[:STEP]))
            del held[:STEP]
    if held:
        yield _packer().compress(bytes(held))


def count(size: int) -> int:
    """How many frames a stream of so many bytes has."""
    return -(-size // STEP)


def unpacked(data: bytes, size: int, *, packer: str) -> bytes:
    """The `size` bytes in one frame; raises Problem for another size, and for what `packer` would have written else.

    packer: the version of zstd that wrote it. Another one's choices cannot be repeated here; its frames are held to
    the form alone: one frame, its size stated, no checksum, no dictionary.
    """
    import zstandard

    try:
        about = zstandard.get_frame_parameters(data)
        if about.content_size != size or about.has_checksum or about.dict_id or about.window_size > MAX_WINDOW:
            raise Problem("a zstd frame is not of the form that imagekit writes")
        plain: bytes = _unpacker().decompress(
            data, max_output_size=size, read_across_frames=False, allow_extra_data=False
        )
    except zstandard.ZstdError as error:
        raise Problem(f"a zstd frame is broken: {error}") from error
    if len(plain) != size or (packer == version() and _packer().compress(plain) != data):
        raise Problem("a zstd frame is not the one that imagekit writes of these bytes")
    return plain


def skippable(data: bytes) -> bytes:
    """A frame that readers pass over."""
    return SKIPPABLE.to_bytes(4, "little") + len(data).to_bytes(4, "little") + data


def skippable_size(head: bytes) -> int:
    """How many bytes such a frame holds, by its first 8 bytes; -1 where it is none."""
    is_one = len(head) == SKIPPABLE_HEAD and int.from_bytes(head[:4], "little") == SKIPPABLE
    return int.from_bytes(head[4:], "little") if is_one else -1


def version() -> str:
    """The version of zstd that packs here: the bytes depend on it."""
    import zstandard

    return ".".join(map(str, zstandard.ZSTD_VERSION))


def _packer() -> Any:
    import zstandard

    return zstandard.ZstdCompressor(level=LEVEL, write_content_size=True, write_checksum=False, write_dict_id=False)


def _unpacker() -> Any:
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
