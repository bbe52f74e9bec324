"""What is predicted of an image is what real firmware measures, as a TPM tells it, and its log by name."""

import os
from pathlib import Path

import pytest

from imagekit import build, definition, key, pcr, plugs
from imagekit.disk import eventlog
from imagekit.guest import Rig
from imagekit.rig import Tpm
from imagekit.stores.directory import open_store

HOME = Path(__file__).parents[1]
FORMATS = HOME / "images/formats.py"
LATER = 10  # the kernel's own, by IMA


@pytest.mark.parametrize("arch", ["x86_64", "aarch64"])
def test_what_is_predicted_is_measured(arch):
    store, signer = open_store(), key.read(HOME / "fixtures/keys/test.key")
    made = build.artifact(definition.load(FORMATS), folder=FORMATS.parent, lock=build.read_lock(FORMATS), arch=arch,
                          format="raw_efi", key=signer, store=store)  # fmt: skip
    rig = Rig(tools=os.environ.get("IMAGEKIT_TOOLS", "auto"), channel=False, tpm=Tpm(), wait="console:imagekit: early")
    with made.opened(signer) as opened:
        told = pcr.of_artifact(opened, keys=None)
        with plugs.load("targets", f"qemu_{arch}_uefi").start(opened, rig=rig, store=store) as guest:
            pcrs, log = guest.tpm.pcrs(), eventlog.parse(guest.tpm.log())
    assert told.pcrs == (4, 9, 11, 12)
    assert {pcr: pcrs[pcr].hex() for pcr in told.pcrs} == {pcr: value.hex() for pcr, value in told.values().items()}
    assert pcr.compare(told, log) == []
    replayed = dict.fromkeys(range(16), bytes(32)) | log.replay()
    assert [pcr for pcr in range(16) if replayed[pcr] != pcrs[pcr] and pcr != LATER] == []
