"""pytest --attest: what is signed of an artifact is what became of each test that judges it, and which did not run."""

from hashlib import sha256
from pathlib import Path

import pytest

from imagekit import artifact, key, proofs, tested

pytest_plugins = "pytester"
KEYS = Path(__file__).parents[1] / "fixtures" / "keys"
SIGNER = key.read(KEYS / "test.pub")
IMAGE = """
import pytest
from imagekit import Image
image = Image("toy", formats=("tar", "oci"), arches=("x86_64", "aarch64"))
"""
TESTS = """
def test_value(image): ...
def test_tree(tree): ...
def test_artifact(artifact): ...
"""


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a definition with more in it; the result, and what was signed of each artifact."""
    monkeypatch.setenv("IMAGEKIT_CACHE", str(pytester.path / "cache"))
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.key"))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"):  # what this run is told, the runs in it are not
        monkeypatch.delenv(name, raising=False)

    def run(source, *words):
        from imagekit import cli

        Path("toy.py").write_text(IMAGE + source)
        assert cli.main(["lock", "toy.py"]) == 0
        result = pytester.runpytest_inprocess("--attest", "out", *(words or ("toy.py",)))
        return result, {path.name.split(".")[0][6:] + "." + path.name.split(".")[1]: read(path, pytester.path / "cache")
                        for path in Path("out").glob("*.tests.json") if path.is_file()}  # fmt: skip

    return run


def read(path, cache):
    """What a statement says, checked against the artifact that it is of, wherever that is kept."""
    name = path.name.replace(".tests.json", ".manifest.json")
    [manifest] = cache.glob(f"artifacts/*/{name}")
    made = artifact.load(manifest)
    found = proofs.read(made, path, keys=[SIGNER], predicate_type=tested.PREDICATE)
    [file] = found.predicate["configuration"]
    assert file == {"name": "toy.py", "digest": {"sha256": sha256(Path("toy.py").read_bytes()).hexdigest()}}
    return tested.parse(found.predicate)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["here", "xdist"])
def test_every_artifact_has_a_statement_of_the_tests_that_judge_it(run, workers):
    failing = "def test_format(artifact):\n    assert artifact.format == 'tar'\n"
    result, signed = run(TESTS + failing, "toy.py", "--arch", "x86_64", *workers)
    assert result.ret == 1
    assert sorted(signed) == ["x86_64.oci", "x86_64.tar"]
    both = ("toy.py::test_tree[x86_64]", "toy.py::test_value")
    away = ("toy.py::test_tree[aarch64]",)
    tar = ("toy.py::test_artifact[x86_64-tar]", "toy.py::test_format[x86_64-tar]", *both)
    assert signed["x86_64.tar"].passed == tar
    assert signed["x86_64.tar"].verdict == "PASSED"
    assert signed["x86_64.oci"].failed == ("toy.py::test_format[x86_64-oci]",)
    assert signed["x86_64.oci"].verdict == "FAILED"
    assert not any(set(away) & {*results.passed, *results.deselected} for results in signed.values())
    result.stdout.fnmatch_lines(["attested: out/toy_0_x86_64.oci.tests.json: FAILED: 3 passed, 1 failed"])


KINDS = [  # test, field, verdict
    ("@pytest.mark.skip(reason='no')\ndef test_x(artifact): ...", "skipped", "WARNED"),
    ("def test_x(artifact): pytest.skip('now')", "skipped", "WARNED"),
    ("@pytest.mark.xfail(reason='bug')\ndef test_x(artifact): assert 0", "warned", "WARNED"),
    ("@pytest.mark.xfail(reason='bug')\ndef test_x(artifact): ...", "warned", "WARNED"),
    ("@pytest.mark.xfail(reason='bug', strict=True)\ndef test_x(artifact): ...", "failed", "FAILED"),
    ("def test_x(artifact): assert 0", "failed", "FAILED"),
    ("@pytest.fixture\ndef bad(artifact): assert 0\ndef test_x(bad): ...", "failed", "FAILED"),
    ("@pytest.fixture\ndef bad(artifact):\n    yield\n    assert 0\ndef test_x(bad): ...", "failed", "FAILED"),
]


@pytest.mark.parametrize(("source", "field", "verdict"), KINDS, ids=range(len(KINDS)))
def test_what_became_of_a_test(run, source, field, verdict):
    _, signed = run(TESTS + source, "toy.py", "--arch", "x86_64", "--format", "tar")
    results = signed["x86_64.tar"]
    assert getattr(results, field) == ("toy.py::test_x[x86_64-tar]",)
    assert len(results.passed) == 3
    assert results.verdict == verdict


PARTS = [  # words, field, names, verdict
    (("toy.py", "-k", "artifact and x86_64"), "deselected", ["test_tree[x86_64]", "test_value"], "WARNED"),
    (("toy.py", "--deselect", "toy.py::test_value"), "deselected", ["test_value"], "WARNED"),
    (("toy.py::test_artifact",), "selection", ["test_artifact"], "WARNED"),
    (("toy.py", "-x"), "unfinished", ["test_z[x86_64-tar]"], "FAILED"),
]


@pytest.mark.parametrize(("words", "field", "names", "verdict"), PARTS, ids=["k", "deselect", "name", "x"])
def test_what_did_not_run_is_named(run, words, field, names, verdict):
    more = "def test_y(artifact): assert 0\ndef test_z(artifact): ...\n" if "-x" in words else ""
    _, signed = run(TESTS + more, *words)
    assert sorted(getattr(signed["x86_64.tar"], field)) == [f"toy.py::{name}" for name in names]
    assert signed["x86_64.tar"].verdict == verdict


def test_a_comparison_that_was_not_asked_for_leaves_nothing_open(run):
    _, signed = run(TESTS + "@pytest.fixture\ndef comparison(): ...\ndef test_no_worse(artifact, comparison): ...\n")
    assert signed["x86_64.tar"].verdict == "PASSED"


def test_tests_of_nothing_sign_nothing(run):
    result, signed = run("def test_value(image): ...\n")
    assert (result.ret, signed) == (0, {})
    result.stdout.fnmatch_lines(["not attested: no test asked for an artifact"])


def test_who_cannot_sign_learns_it_before_the_tests_run(run, monkeypatch):
    monkeypatch.setenv("IMAGEKIT_KEY", str(KEYS / "test.pub"))
    result, signed = run(TESTS)
    assert (result.ret, signed) == (pytest.ExitCode.USAGE_ERROR, {})
    result.stderr.fnmatch_lines(["*is a public key: it verifies, it cannot sign*"])


def test_a_statement_that_cannot_be_written_fails_the_run(run):
    Path("out/toy_0_x86_64.tar.tests.json/full").mkdir(parents=True)
    result, signed = run(TESTS, "toy.py", "--arch", "x86_64", "--format", "tar")
    assert (result.ret, signed) == (1, {})
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["not attested: cannot write out/toy_0_x86_64.tar.tests.json: Is a directory*"])
