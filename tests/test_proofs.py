"""Proofs beside an artifact: what they say is told as it is, and what is of another artifact or nobody's is refused."""

import json
from hashlib import sha256
from pathlib import Path

import pytest

from imagekit import artifact, key, proofs, provenance, rebuild, statement, tested
from imagekit.errors import Problem
from imagekit.tested import Results

A, B, C, STRANGER = (key.from_seed(bytes([n]) * 32) for n in (1, 2, 3, 4))
DISK = b"disk" * 100
ROW = {"name": "nginx", "version": "1", "architecture": "amd64", "sha256": "a" * 64, "size": 1}


def laid(folder, **changes):
    """A signed artifact with one part."""
    part = {"role": "disk", "file": "web_1_x86_64.img", "size": len(DISK), "sha256": sha256(DISK).hexdigest()}
    manifest = {"name": "web", "version": "1", "arch": "x86_64", "format": "raw_efi", "kind": "disk", "parts": [part],
                "imagekit": "0.1.0", "suite": "bookworm", "definition": "d" * 64, "lock": "c" * 64, "tree": "b" * 64,
                "packages": [ROW], **changes}  # fmt: skip
    text = artifact.canonical(manifest)
    path = folder / "web_1_x86_64.raw_efi.manifest.json"
    path.write_bytes(text)
    path.with_name(path.name + ".minisig").write_text(A.sign(text, comment=""))
    (folder / part["file"]).write_bytes(DISK)
    return artifact.load(path)


@pytest.fixture
def made(tmp_path):
    return laid(tmp_path)


def test_a_statement_is_of_the_manifest_and_every_file(made):
    where = proofs.write(made, proofs.path(made, "tests"), predicate_type="x", predicate={}, key=A)
    assert where.name == "web_1_x86_64.raw_efi.tests.json"
    found = proofs.read(made, where, keys=[B, A], predicate_type="x")
    disk = {"web_1_x86_64.img": sha256(DISK).hexdigest()}
    assert found.subjects == {"web_1_x86_64.raw_efi.manifest.json": made.digest, **disk}
    assert found.keys == (A,)


def test_a_proof_that_is_missing_too_large_or_of_another_artifact_is_named(made, tmp_path):
    where = proofs.path(made, "tests")
    with pytest.raises(Problem, match=r"cannot read .*raw_efi\.tests\.json: No such file"):
        proofs.read(made, where, keys=[A], predicate_type="x")
    where.write_bytes(b" " * (statement.MAX_ENVELOPE + 2))
    with pytest.raises(Problem, match=r"web_1_x86_64\.raw_efi\.tests\.json: the envelope is larger"):
        proofs.read(made, where, keys=[A], predicate_type="x")
    proofs.write(made, where, predicate_type="x", predicate={}, key=A)
    other = laid(tmp_path, version="2")
    with pytest.raises(Problem, match=r"tests\.json: the statement is of another file: of "):
        proofs.read(other, where, keys=[A], predicate_type="x")


# What tests said


def signed_tests(made, said, *, by=A):
    proofs.write(made, proofs.path(made, "tests"), predicate_type=tested.PREDICATE, predicate=said, key=by)


RUNS = [
    (Results(passed=("b", "a")), "PASSED", "tested: passed: 2 passed, 0 failed"),
    (Results(passed=("a",), skipped=("b",)), "WARNED", "tested: warned: 1 passed, 0 failed, 1 skipped"),
    (Results(passed=("a",), deselected=("b", "c")), "WARNED", "1 passed, 0 failed, 2 deselected"),
    (Results(passed=("a",), unfinished=("b",)), "WARNED", "1 passed, 0 failed, 1 unfinished"),
    (Results(passed=("a",), warned=("b",)), "WARNED", "1 passed, 0 failed, 1 warned"),
    (Results(passed=("a",), selection=("a",)), "WARNED", "1 passed, 0 failed; only tests that were asked for by name"),
    (Results(passed=("a",), failed=("x[\x1b",)), "FAILED", r"not pass its tests: 1 passed, 1 failed, first 'x[\x1b'"),
    (Results(), "FAILED", "did not pass its tests: 0 passed, 0 failed"),
    (Results(skipped=("a",)), "FAILED", "did not pass its tests: 0 passed, 0 failed, 1 skipped"),
    (Results(deselected=("a",)), "FAILED", "did not pass its tests: 0 passed, 0 failed, 1 deselected"),
]  # fmt: skip


@pytest.mark.parametrize(("results", "verdict", "words"), RUNS, ids=range(len(RUNS)))
def test_what_tests_said_is_told_as_it_was(made, results, verdict, words):
    said = tested.predicate(results, {"images/web.py": "f" * 64})
    assert said["result"] == verdict
    assert tested.parse(said) == Results(**{n: tuple(sorted(v)) for n, v in results._asdict().items()})
    signed_tests(made, said)
    if verdict == "FAILED":
        with pytest.raises(Problem) as refused:
            tested.check(made, [A])
        assert words in str(refused.value)
    else:
        assert words in tested.check(made, [A])
        assert A.id in tested.check(made, [A])


GOOD = tested.predicate(Results(passed=("a", "b")), {})
LIES = [
    ({**GOOD, "failedTests": ["x"]}, "says 'PASSED', and what it names is FAILED"),
    ({**GOOD, "passedTests": []}, "says 'PASSED', and what it names is FAILED"),
    ({**GOOD, "skippedTests": ["x"]}, "says 'PASSED', and what it names is WARNED"),
    ({**GOOD, "result": "FAILED"}, "says 'FAILED', and what it names is PASSED"),
    ({**GOOD, "failedTests": ["a"], "result": "FAILED"}, "names a test twice"),
    ({**GOOD, "passedTests": ["a", "a"]}, "names a test twice"),
    ({**GOOD, "passedTests": "ab"}, "passedTests is no list of names"),
    ({**GOOD, "passedTests": [1]}, "passedTests is no list of names"),
    ({}, "says None, and what it names is FAILED"),
]


@pytest.mark.parametrize(("said", "words"), LIES, ids=range(len(LIES)))
def test_a_statement_that_contradicts_itself_is_refused(made, said, words):
    signed_tests(made, said)
    with pytest.raises(Problem) as refused:
        tested.check(made, [A])
    assert words in str(refused.value)


def test_tests_of_another_artifact_or_of_nobody_count_nothing(made, tmp_path):
    signed_tests(made, GOOD)
    with pytest.raises(Problem, match="must be signed by a trusted key, and is by none of them"):
        tested.check(made, [B])
    with pytest.raises(Problem, match="of another file"):
        tested.check(laid(tmp_path, version="2"), [A])


def test_other_tools_statements_are_read(made):
    signed_tests(made, {"result": "PASSED", "configuration": [], "passedTests": ["a"], "url": "https://ci.example/1"})
    assert "1 passed" in tested.check(made, [A])


# Provenance


def test_provenance_tells_definition_lock_pins_and_times(made):
    where = provenance.write(made, key=A, started=1_700_000_000.5, finished=1_700_000_007.9)
    found = proofs.read(made, where, keys=[A], predicate_type="https://slsa.dev/provenance/v1").predicate
    asked = found["buildDefinition"]["externalParameters"]
    assert (asked["definition"], asked["lock"], asked["format"]) == ("d" * 64, "c" * 64, "raw_efi")
    [dependency] = found["buildDefinition"]["resolvedDependencies"]
    assert dependency["uri"] == "pkg:deb/debian/nginx@1?arch=amd64&distro=debian-12"
    assert dependency["digest"] == {"sha256": "a" * 64}
    assert found["runDetails"]["builder"]["id"] == f"urn:imagekit:key:{A.id}"
    times = {"startedOn": "2023-11-14T22:13:20Z", "finishedOn": "2023-11-14T22:13:27Z"}
    assert found["runDetails"]["metadata"] == times
    assert provenance.check(made, [A]) == f"built '2023-11-14T22:13:27Z' from 1 packages, says {A.id}"


def test_a_kept_artifact_is_not_said_to_have_been_built_now(made):
    where = provenance.write(made, key=A, started=1_700_000_000, finished=1_600_000_000)
    found = proofs.read(made, where, keys=[A], predicate_type=provenance.PREDICATE).predicate
    assert found["runDetails"]["metadata"] == {"finishedOn": "2020-09-13T12:26:40Z"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda said: said["buildDefinition"]["externalParameters"].update(lock="0" * 64),
            "its externalParameters are",
        ),
        (lambda said: said["buildDefinition"]["resolvedDependencies"].pop(), "its resolvedDependencies are not"),
        (lambda said: said["buildDefinition"].update(buildType="urn:other"), "does not tell of a build by imagekit"),
        (lambda said: said.update(buildDefinition=[]), "does not tell of a build by imagekit"),
        (lambda said: said.pop("runDetails"), "does not tell of a build by imagekit"),
    ],
)
def test_provenance_that_does_not_fit_its_manifest_is_refused(made, change, words):
    said = json.loads(json.dumps(provenance.predicate(made, key=A, started=None, finished=0)))
    change(said)
    where = proofs.path(made, "provenance")
    proofs.write(made, where, predicate_type=provenance.PREDICATE, predicate=said, key=A)
    with pytest.raises(Problem, match=words):
        provenance.check(made, [A])


# Rebuilds

SAME = {"same": True, "differences": []}
OTHER = {"same": False, "differences": ["raw_efi: disk: /etc/motd: 1 against 2"]}


def claim(made, by, said=SAME, *, name="", kind=rebuild.PREDICATE):
    """A statement of a rebuild, beside the artifact."""
    where = proofs.path(made, f"rebuilt-{name or by.id}")
    return proofs.write(made, where, predicate_type=kind, predicate=said, key=by)


def test_two_of_three_keys(made):
    claim(made, A)
    with pytest.raises(Problem, match="the same, by 1 of the trusted keys, and 2 are required"):
        rebuild.check(made, [A, B, C], require=2)
    claim(made, B)
    assert rebuild.check(made, [A, B, C], require=2) == sorted(
        f"built again, the same, says {one.id}" for one in (A, B)
    )
    assert len(rebuild.check(made, [A], require=1)) == 2


BADLY = [  # (what lies beside it, require, words)
    (
        lambda _: None,
        1,
        r"by 0 of the trusted keys, and 1 are required\n  hint: no \*\.rebuilt-\*\.json lies beside it",
    ),
    (lambda made: (claim(made, A), claim(made, A, name="again")), 2, "by 1 of the trusted keys, and 2"),
    (lambda made: (claim(made, A), claim(made, STRANGER)), 2, "not counted: .*is by none of them"),
    (lambda made: (claim(made, A), claim(made, B, kind="urn:other")), 2, "not counted: .*is a 'urn:other'"),
    (lambda made: (claim(made, A), claim(made, B).write_bytes(b"[" * 10**6)), 2, "not counted: .*nested deeper"),
    (
        lambda made: (claim(made, A), claim(made, B), claim(made, C, OTHER)),
        2,
        f"not the same, says {C.id}: 'raw_efi: d",
    ),
    (lambda made: (claim(made, A), claim(made, A, OTHER, name="x")), 1, f"not the same, says {A.id}"),
    (lambda made: claim(made, A, {"same": False, "differences": []}), 1, "not the same, .*no difference is named"),
    (lambda made: claim(made, A, {**OTHER, "same": True}), 1, "not the same"),
    (lambda made: claim(made, A, {"same": "yes"}), 1, "not the same"),
    (lambda made: claim(made, A, {**SAME, "differences": 1}), 1, "not counted: .*differences is no list"),
    (lambda made: claim(made, A), 0, "0 rebuilds are required, and 3 keys are trusted"),
    (lambda made: claim(made, A), 4, "4 rebuilds are required, and 3 keys are trusted"),
]


@pytest.mark.parametrize(("lay", "require", "words"), BADLY, ids=range(len(BADLY)))
def test_too_few_rebuilds_or_one_that_differs_are_refused(made, lay, require, words):
    lay(made)
    with pytest.raises(Problem, match=words):
        rebuild.check(made, [A, B, C, A], require=require)


def test_a_rebuild_of_another_artifact_is_not_counted(made, tmp_path):
    claim(made, A)
    other = laid(tmp_path, version="2")
    claim(other, B)
    with pytest.raises(
        Problem, match=f"by 1 of the trusted keys.*\n.*rebuilt-{A.id}.json: the statement is of another"
    ):
        rebuild.check(other, [A, B], require=2)


def test_a_stranger_who_says_it_differs_decides_nothing(made):
    claim(made, A)
    claim(made, STRANGER, OTHER)
    assert any("not counted" in line for line in rebuild.check(made, [A], require=1))


def test_proofs_lie_where_they_are_looked_for(made):
    claim(made, A)
    Path(made.path.parent / "web_1_x86_64.raw_efi.rebuilt-x.txt").write_text("")
    Path(made.path.parent / "web_1_x86_64.raw_efi2.rebuilt-x.json").write_text("")
    assert [path.name for path in proofs.found(made, "rebuilt")] == [f"web_1_x86_64.raw_efi.rebuilt-{A.id}.json"]
