"""Recovery: what cryptsetup says of a sealed disk and of the key that its first boot showed.

`assert unrecoverable(sealed) == []` in a test of an image whose Seal has recovery="console". The disk is as the first
boot left it, and no machine is started: it is what somebody has to open who has the disk, and not its machine.
"""

import re
from collections.abc import Iterator
from typing import Any

ENOUGH = 2 << 20  # bytes: the header, and some of what it opens
LINES = ("cipher: aes-xts-plain64", "offset: 1048576 [bytes]")  # of what cryptsetup tells of the header


def unrecoverable(sealed: Any) -> list[str]:
    """What is wrong with the recovery key of the fixture `sealed`, a line each."""
    return list(_wrong(sealed.first.console, sealed.first.parts))


def _wrong(console: str, parts: Any) -> Iterator[str]:
    shown = re.findall(rf"recovery key of {parts.data}: ([a-z2-9-]+)", console)
    if len(shown) != 1:
        yield f"{len(shown)} recovery keys were shown, not one"
        return
    path = parts.folder / "recovery"
    path.write_bytes(parts.disk.read(parts.partition(parts.data).start, ENOUGH))
    told = _cryptsetup("luksDump", path).text
    yield from (f"cryptsetup luksDump does not say {line!r}" for line in LINES if line not in told)
    for key, is_right in ((shown[0], True), (shown[0][::-1], False)):
        opened = _cryptsetup("open", "--test-passphrase", "--key-file", "-", path, key=key)
        if (opened.code == 0) is not is_right:
            yield f"cryptsetup {'refuses the' if is_right else 'takes another'} key: {opened.stderr.decode().strip()}"


def _cryptsetup(*words: Any, key: str = "") -> Any:
    from imagekit import host, options, toolbox  # every definition may import this module, also where none is tested
    from imagekit.stores.directory import open_store

    mode = options.lookup("tools", None, default="auto")
    tools = toolbox.tools("cryptsetup", mode=mode, store=open_store())
    return host.run(tools.argv("cryptsetup", *words), env=tools.env, input=key.encode(), ok=None)
