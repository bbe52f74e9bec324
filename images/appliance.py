"""A sealed appliance: its data opens in the state that was built, and stays shut after each of many tamperings."""

import pytest

from imagekit import DOCS, Budget, Image, Layout, Seal, SecureBoot, Service, Step, Verity
from imagekit.checks import tamper
from imagekit.checks.attestation import unattested
from imagekit.checks.oracles import complaints
from imagekit.checks.recovery import unrecoverable
from imagekit.checks.standard import test_is_signed, test_rebuilds_identically, test_within_size_budget  # noqa: F401
from imagekit.checks.updates import updated, updated_by_stranger, withdrawn

image = Image(
    name="appliance",
    version="1",
    kernel="debian:linux-image-cloud",
    without=DOCS,
    onboot=(  # a secret that is made once, and shown to nobody: its digest tells whether it is still the same
        Step("secret", ("/bin/sh", "-c", "[ -e /data/secret ] || head -c 32 /dev/urandom >/data/secret; sync")),
        Step("digest", ("/bin/sh", "-c", "mkdir -p /run/www && sha256sum </data/secret >/run/www/digest")),
    ),
    services=(
        Service("vault", "/usr/bin/busybox httpd -f -p 80 -h /run/www", ready="http:80/digest"),
        Service("attest", "/usr/sbin/imagekit-attest --serve 8410", ready="tcp:8410"),
    ),
    formats=("raw_efi", "update"),
    budget=Budget(size="160 MiB"),
    disk=Layout(root="squashfs", verity=Verity(), secure_boot=SecureBoot(), seal=Seal(generation=1), slots=2),
)


@pytest.mark.parametrize("what", tamper.ALL.values(), ids=str)
def test_stays_shut(sealed, what):
    sealed.refuses(what)


def test_opens_as_it_was_built(sealed, artifact):
    again = sealed.opens()
    assert again.changed == (), "the same was measured as at its first boot"
    again.guest.wait_ready()
    assert unattested(again.guest, artifact, port=8410) == []
    digest = again.guest.http.get("/digest").text
    other = sealed.opens(tamper.smbios())  # more arguments by the firmware, which nothing of this image takes
    assert other.changed == ()
    other.guest.wait_ready()
    assert other.guest.http.get("/digest").text == digest, "the secret outlived the power"


def test_others_find_it_well_signed(artifact):
    """sbverify of what the firmware starts, among others."""
    assert complaints(artifact) == []


def test_measures_what_was_predicted(sealed, artifact):
    """What the manifest says, against the TPM itself, before anything ran."""
    [predicted] = (part["pcrs"] for part in artifact.manifest["parts"] if part.get("pcrs"))
    said = sealed.first.console
    assert {pcr: value for pcr, value in predicted.items() if f"imagekit: pcr {pcr} {value}" not in said} == {}


def test_opens_by_its_recovery_key_elsewhere(sealed):
    assert unrecoverable(sealed) == []


def test_opens_after_an_update_by_its_maker(sealed, release, key):
    """And the image before it opens nothing any more, once the new one was kept and has started again."""
    new = sealed.opens(updated(release("2", generation=2), key))
    again = sealed.later(new.guest)
    second = again.opens()
    again.later(second.guest).refuses(withdrawn("appliance", "2"))


def test_stays_shut_after_an_update_by_anybody_else(sealed, release, key):
    sealed.refuses(updated_by_stranger(release("2", generation=2), key))
