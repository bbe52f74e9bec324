"""Tests that every image should pass, ready to import: `from imagekit.checks.standard import *`."""

from typing import TYPE_CHECKING

from imagekit.artifact import Artifact
from imagekit.checks import boot, network, services, signature, size
from imagekit.image import Image
from imagekit.key import Key

if TYPE_CHECKING:  # every build reads the definitions that import this module
    from imagekit.baseline import Recorded
    from imagekit.comparison import Comparison
    from imagekit.guest import Guest

__all__ = (
    "test_boots_as_recorded",
    "test_boots_as_shipped",
    "test_boots_within_budget",
    "test_is_signed",
    "test_no_worse_than_before",
    "test_nothing_failed",
    "test_rebuilds_identically",
    "test_within_size_budget",
)
NO_BUDGET = "image {!r} has no budget for its {}: give it one, or import by name those tests that fit"


def test_within_size_budget(image: Image, artifact: Artifact) -> None:
    """The artifact is as small as its image promises; else the largest packages and paths are shown."""
    budget = image.budget.size_bytes
    assert budget is not None, NO_BUDGET.format(image.name, "size")
    assert artifact.size <= budget, size.breakdown(artifact)


def test_is_signed(artifact: Artifact, key: Key) -> None:
    """The key signed these very bytes."""
    assert signature.refusal(artifact, key) == ""


def test_rebuilds_identically(artifact: Artifact, rebuilt: Artifact) -> None:
    """A build from the same packages gives the same bytes, whoever builds, where and when; see twice.py."""
    from imagekit import twice

    assert twice.differences(artifact, rebuilt) == []
    assert rebuilt.digest == artifact.digest


def test_boots_within_budget(image: Image, guest: "Guest", recorded: "Recorded") -> None:
    """The guest is ready as fast as its image promises, by the instruction clock; else its stages are shown."""
    budget = image.budget.boot_seconds
    assert budget is not None, NO_BUDGET.format(image.name, "boot")
    assert boot.seconds(guest) <= budget, boot.breakdown(guest, image, recorded)


def test_boots_as_recorded(image: Image, guest: "Guest", recorded: "Recorded") -> None:
    """The guest boots no slower than is on record, by the instruction clock; else the stages that grew are shown."""
    if why := recorded.unusable(guest.boot):
        from unittest import SkipTest  # here, as in the other test, for the sake of builds

        raise SkipTest(why)
    assert recorded.slower(guest.boot) == 0.0, boot.breakdown(guest, image, recorded)


def test_no_worse_than_before(comparison: "Comparison") -> None:
    """With --compare REV: neither the size nor the boot has grown by more than 2 % since that revision."""
    assert comparison.worse == [], comparison.table()


def test_boots_as_shipped(image: Image, shipped: "Guest") -> None:
    """The image, untouched, comes up by its own firmware, and its services answer from outside."""
    from imagekit import health

    states = health.states(shipped.events())
    assert {name: state.reason for name, state in states.items() if state.state == "failed"} == {}
    assert network.unanswered(image, shipped) == {}


def test_nothing_failed(guest: "Guest") -> None:
    """No service and no boot step failed."""
    assert services.failed(guest) == {}
