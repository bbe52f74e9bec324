"""Updates of appliances in tests, as values: on disks that nothing starts; images/appliance.py boots them."""

from dataclasses import replace
from pathlib import Path

import pytest
from slots_rig import KEY
from test_formats import job_of
from test_guarded import ALL, KEYS
from test_updating import written

from imagekit import slots
from imagekit.artifact import Artifact, Job
from imagekit.checks.tamper import Parts
from imagekit.checks.updates import updated, updated_by_stranger, withdrawn
from imagekit.disk import authenticode, reworked
from imagekit.disk.altered import Altered
from imagekit.disk.sparse import of_file
from imagekit.errors import Problem
from imagekit.layout import Layout
from imagekit.rig import Rig
from imagekit.stores.directory import open_store


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    store = open_store(tmp_path_factory.mktemp("cache"))
    return replace(job_of(store), boot_keys=KEYS, key=KEY, layout=Layout(root="squashfs", slots=2, **ALL))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("machine")


@pytest.fixture(scope="module")
def parts(folder: Path, job: Job) -> Parts:
    disk = written("raw_efi", job, folder / "disk")
    return Parts(Altered(of_file(str(disk), disk.stat().st_size)), None, b"", Rig(), "data", folder=folder)


@pytest.fixture(scope="module")
def release(folder: Path, job: Job) -> Artifact:
    update = written("update", replace(job, version="2"), folder / "toy.update")
    about = {"name": "toy", "version": "2"}
    part = {"role": "update", "file": update.name, "size": 0, "sha256": ""}
    return Artifact(folder / "toy.manifest.json", b"", {**about, "parts": [part]})


def ukis(parts: Parts) -> list[str]:
    return [one.file for one in slots.of("toy", reworked.files(parts.disk, parts.boot))]


def test_a_machine_is_updated_and_back_again(parts: Parts, release: Artifact) -> None:
    new = updated(release, KEY)
    after = new.change(parts)
    assert (new.words, new.opens, str(new)) == ("", "imagekit: slot kept toy_2", "updated-toy_2")
    assert ukis(parts) == ["EFI/Linux/toy_1.efi"], "the machine before is as it was"
    assert ukis(after) == ["EFI/Linux/toy_2+3.efi", "EFI/Linux/toy_1.efi"]
    assert after.disk.read(after.partition("root-b").start, 4) == b"hsqs"
    before = reworked.files(parts.disk, parts.boot)
    old = withdrawn("toy", "1").change(after)
    assert ukis(old) == ["EFI/Linux/toy_2+3.efi"]
    assert reworked.files(old.disk, old.boot).keys() >= before.keys() - {"EFI/Linux/toy_1.efi"}
    with pytest.raises(Problem, match=r"the boot partition has no EFI/Linux/toy_9.efi"):
        withdrawn("toy", "9").change(after)


def test_a_stranger_signs_what_is_started_next(parts: Parts, release: Artifact) -> None:
    theirs = updated_by_stranger(release, KEY).change(parts)
    files = reworked.files(theirs.disk, theirs.boot)
    own, other = (keys.pair("db").certificate for keys in (KEYS, theirs.stranger))
    authenticode.verify(files["EFI/Linux/toy_1.efi"], own)
    authenticode.verify(files["EFI/Linux/toy_2+3.efi"], other)
    with pytest.raises(Problem):
        authenticode.verify(files["EFI/Linux/toy_2+3.efi"], own)
