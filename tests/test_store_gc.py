"""What nobody used for long leaves a cache, and nothing else; killed at any moment, what is left is right."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import test_build
from cache_rig import later, names
from debian_archive import Archive, archive

from imagekit import artifact, build, care, clearing, definition, inuse, key
from imagekit import store as stores
from imagekit.cli import main
from imagekit.store import Store
from imagekit.stores.directory import open_store

KEY = Path(__file__).parents[1] / "fixtures/keys/test.key"


def fill(store: Store) -> dict[str, int]:
    """Something of each kind, and what is nobody's to remove; how many there are of each that can go."""
    root = Path(store.location)
    digest = store.write([b"a part" * 1000])
    store.remember("kind", "key", b"a note")
    for seen in ("debian-seen", "highest-1"):
        store.remember(seen, "key", b"seen once")
    for kind in ("artifacts", "templates", "roots", "tools", "failures"):
        place = store.folder(kind) / "one" / "deep"
        place.mkdir(parents=True)
        (place / "file").write_bytes(b"x" * 5000)
    os.link(store.path(digest), root / "artifacts/one/part")
    for kind in ("stamps", "catalogues", "images", "bad"):
        (store.folder(kind) / "one").write_bytes(b"x")
    left = [row for row in clearing.LEFTOVERS if row[0] != "drafts"]  # those go whenever a store is opened
    for folder, prefix, suffix in left:
        (store.folder(folder) / f"{prefix}x{suffix}").write_bytes(b"left by a killed process")
    return {**dict.fromkeys(clearing.KINDS, 1), "leftovers": len(left)}


@pytest.mark.parametrize("words", [["--keep", "0"], ["--older-than", "0"]])
def test_all_that_can_be_made_again_goes_and_what_was_seen_once_stays(
    store: Store, root: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    expected = fill(store)
    before = sum(kind.bytes for kind in care.kinds(root))
    later()
    assert main(["store", "gc", "--dry-run", *words]) == 0
    would = capsys.readouterr().out
    assert sum(kind.bytes for kind in care.kinds(root)) == before
    assert main(["store", "gc", *words]) == 0
    said = capsys.readouterr().out
    assert would == said.replace("removed", "would remove").replace("freed", "would be freed")
    assert sorted(line.split()[1] for line in said.splitlines()[:-1]) == sorted(map(str, expected.values()))
    kept = {"failures/one/deep/file", "notes/debian-seen/key", "notes/highest-1/key"}
    assert names(root) == kept
    left = sum((root / name).stat().st_blocks * 512 for name in kept)
    assert f"{left / 1024:.1f} KiB left" in said


def test_without_words_only_what_is_old_goes(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.write([b"x"])
    before = names(root)
    (store.folder("drafts") / "1-2").write_text("")
    assert main(["store", "gc"]) == 0
    assert names(root) == before
    assert "0 B freed" in capsys.readouterr().out
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 31 * clearing.DAY)
    assert main(["store", "gc"]) == 0
    assert names(root) == set()


def test_the_longest_unused_goes_first_and_only_as_much_as_must(store: Store, root: Path) -> None:
    digests = []
    for number in range(5):
        digests.append(store.write([bytes([number]) * 10_000]))
        later()
    one = store.path(digests[0]).stat().st_blocks * 512
    _use(store.path(digests[0]))
    done = clearing.clear(root, keep=3 * one + 100)
    assert [store.has(digest) for digest in digests] == [True, False, False, True, True]
    assert (done.counts, done.freed, done.left) == ({"objects": 2}, 2 * one, 3 * one)


def _use(path: Path) -> None:
    """As a use that is long after the last."""
    now = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: now + 2 * stores.GRAIN)
        stores.touch(path)


def test_an_object_is_used_when_its_artifact_is(store: Store, root: Path) -> None:
    shared, other = store.write([b"shared" * 2000]), store.write([b"other" * 2000])
    place = store.folder("artifacts") / "plan"
    place.mkdir()
    os.link(store.path(shared), place / "part")
    later()
    young = store.write([b"young" * 2000])
    later()
    _use(place)
    size = clearing.clear(root, dry_run=True).left
    block = store.path(other).stat().st_blocks * 512
    assert clearing.clear(root, keep=size - 1).counts == {"objects": 1}
    assert (store.has(shared), store.has(other), store.has(young)) == (True, False, True)
    assert clearing.clear(root, keep=size - block - 1).counts == {"objects": 1}
    assert (store.has(shared), store.has(young)) == (True, False)
    done = clearing.clear(root, keep=0)
    assert done.counts == {"artifacts": 1, "objects": 1}
    assert done.freed == block


def test_a_use_is_noted_by_what_neither_reading_nor_a_backup_moves(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = store.write([b"x"])
    store.remember("kind", "key", b"note")
    places = [store.path(digest), root / "notes/kind/key"]
    uses: list[Callable[[], object]] = [lambda: open_store(root).read(digest), lambda: store.recall("kind", "key")]
    for place, use in zip(places, uses, strict=True):
        before = place.stat()
        later()
        place.read_bytes()
        use()
        assert place.stat().st_ctime_ns == before.st_ctime_ns, "an hour has not passed: nothing is written"
        with monkeypatch.context() as patch:
            now = time.time()
            patch.setattr(time, "time", lambda now=now: now + 2 * stores.GRAIN)
            use()
        after = place.stat()
        assert after.st_ctime_ns > before.st_ctime_ns
        assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)


def test_a_clock_that_was_wrong_makes_nothing_live_for_ever(
    store: Store, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = store.path(store.write([b"x"]))
    before = place.stat()
    later()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10 * clearing.DAY)
    assert clearing.clear(root, days=1.0).counts == {}
    assert place.stat().st_ctime_ns > before.st_ctime_ns, "it was used now, and not in the future"
    assert place.stat().st_mtime_ns == before.st_mtime_ns
    assert clearing.clear(root, keep=0).counts == {"objects": 1}


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    with archive(tmp_path_factory.mktemp("mirror")) as made:
        test_build.fill(made)  # type: ignore[no-untyped-call]
        yield made


@pytest.fixture
def project(root: Path, debian: Archive, monkeypatch: pytest.MonkeyPatch) -> Path:
    debian.use(monkeypatch)
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEY))
    place = root.parent
    monkeypatch.chdir(place)
    (place / "motd").write_text("welcome\n")
    (place / "tiny.py").write_text(test_build.DEFINITION)
    assert main(["lock", "tiny.py"]) == 0
    return place


def built(project: Path, format: str = "kernel_initrd") -> str:
    """The digest of all that a build writes."""
    path, signer = project / "tiny.py", key.read(KEY)
    image, lock = definition.load(path), build.read_lock(path)
    made = build.artifact(image, folder=project, lock=lock, arch="x86_64", format=format, key=signer,
                          store=open_store())  # fmt: skip
    made.verify(signer)
    return made.digest


def killed_at(moment: int, run: Callable[[], object]) -> bool:
    """Whether a child that runs this was killed before the n-th time that it changes something."""
    child = os.fork()
    if not child:
        left = moment

        def hook(event: str, _: object) -> None:
            nonlocal left
            if event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.utime"):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            run()
            code = 0
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "it ended by itself or was killed"
    return status == signal.SIGKILL


def test_killed_at_any_moment_the_cache_is_right(project: Path, root: Path) -> None:
    expected = built(project)
    for name in ("artifacts/.draft", "templates/key/deep/er", "tools/a", "rebuilt/left/cache"):
        (root / name).mkdir(parents=True)
        (root / name / "file").write_text("x")
    shutil.copytree(root, project / "full", symlinks=True)
    moment = 1
    while True:
        shutil.rmtree(root)
        subprocess.run(["cp", "-a", project / "full", root], check=True)
        if not killed_at(moment, lambda: clearing.clear(root, keep=0)):
            break
        assert care.verify(root)[1] == []
        for manifest in root.glob("artifacts/[!.]*"):
            assert len(list(manifest.iterdir())) > 3, "an artifact is whole or not there"
        if moment % 8 == 1:  # each of these takes longer than the rest together
            assert built(project) == expected
        clearing.clear(root, keep=0)
        assert not names(root) - {name for name in names(root) if name.startswith("notes/debian-seen")}
        moment += 1
    assert moment > 40, "it was killed many times"


def test_whatever_one_thing_is_missing_a_build_is_the_same(project: Path, root: Path) -> None:
    expected = built(project)
    shutil.rmtree(root / "artifacts")
    things = sorted(name for name in names(root) if name.startswith(("objects/", "notes/")))
    assert len(things) > 20
    for name in things:
        (root / name).unlink(missing_ok=True)
        assert built(project) == expected, name
        shutil.rmtree(root / "artifacts")


def test_builds_and_gcs_at_once_are_all_right(project: Path) -> None:
    pipe, expected = subprocess.PIPE, built(project)
    os.close(inuse._HELD.pop((os.getpid(), str(project / "cache"))))  # else each waits for us
    command = [sys.executable, "-m", "imagekit.cli"]
    gc = [*command, "store", "gc", "--older-than", "0", "--wait"]
    running = []
    for turn in range(5):
        build_ = [*command, "build", "tiny.py", "--format", "kernel_initrd", "-o", f"out-{turn}"]
        running += [subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) for words in (build_, gc, build_)]
        time.sleep(0.2)
    for process in running:
        said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    signer = key.read(KEY)
    for turn in range(5):
        (manifest,) = (project / f"out-{turn}").glob("*.manifest.json")
        made = artifact.load(manifest)
        made.verify(signer)
        assert made.digest == expected
