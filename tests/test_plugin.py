"""The plugin, as pytest runs it: which definitions and tests it collects, and which it selects."""

import re

import pytest
from toys import EVERYTHING, TESTS, TOY, collected, log, write

pytest_plugins = "pytester"


# --- collecting -------------------------------------------------------------------------------------------------------


def test_every_definition_of_a_folder_is_collected_once_in_the_order_of_machines(project: pytest.Pytester) -> None:
    write(project, "images/no_definition.py", "import imagekit\ndef test_never(): raise AssertionError\n")
    write(project, "images/raises.py", "image = 1 / 0\n")  # not ours: it never mentions us, and is not imported
    assert collected(project) == EVERYTHING
    assert collected(project, "images/toy.py") == EVERYTHING
    assert log(project) == []


@pytest.mark.parametrize("name", ["toy.py", "test_toy.py", "http.py", "json.py"])
def test_a_definition_may_be_called_anything(project: pytest.Pytester, name: str) -> None:
    (project.path / "images/toy.py").rename(project.path / "images" / name)
    for path in ("images", f"images/{name}"):
        result = project.runpytest_inprocess(path)
        result.assert_outcomes(passed=12)


def test_assertions_are_explained(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY + "\ndef test(image):\n    assert image.name == 'other'\n")
    for path in ("images", "images/toy.py"):
        project.runpytest_inprocess(path).stdout.fnmatch_lines(["E*AssertionError: assert 'toy' == 'other'"])
    project.runpytest_inprocess("images", "--assert=plain").assert_outcomes(failed=1)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("def f(:\n", "*toy.py:*: invalid syntax"),
        ("image = Image('toy', pakages=())\n", "*toy.py:*: image 'toy': unknown field 'pakages'"),
        ("import no_such_thing\n", "*toy.py:*: ModuleNotFoundError: No module named 'no_such_thing'"),
        ("image = Image('toy', formats=('tra',))\ndef test(artifact): ...\n", "*unknown format 'tra'*"),
        ("def test(guest, sandbox): ...\n", "*test: a test asks for guest or sandbox, not both"),
    ],
)
def test_a_broken_definition_is_one_message(project: pytest.Pytester, source: str, words: str) -> None:
    write(project, "images/toy.py", TOY + source)
    result = project.runpytest_inprocess("images")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*ERROR collecting images/toy.py*", words])
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*plugin.py*")
    assert len(result.outlines) < 30


def test_other_tests_of_the_project_are_left_alone(project: pytest.Pytester) -> None:
    write(project, "test_unit.py", "import pytest\n@pytest.mark.parametrize('n', 'ba')\ndef test(n): ...\n")
    result = project.runpytest_inprocess("--collect-only", "-q", "--arch", "aarch64", "--target", "toy_aarch64", ".")
    assert [line for line in result.outlines if "test_unit" in line] == [
        "test_unit.py::test[b]",
        "test_unit.py::test[a]",
    ]


def test_fixtures_of_the_same_names_are_left_alone(project: pytest.Pytester) -> None:
    """A project that has its own `tree` and `key` has nothing to do with ours."""
    write(
        project,
        "test_unit.py",
        "import pytest\n@pytest.fixture\ndef tree(): return 1\ndef test(tree): assert tree == 1\n",
    )
    project.runpytest_inprocess("test_unit.py", "--arch", "aarch64").assert_outcomes(passed=1)


# --- selecting --------------------------------------------------------------------------------------------------------


def naming(*words: str) -> list[str]:
    return [test for test in EVERYTHING if any(word in test for word in words)]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), EVERYTHING),
        (("--arch", "aarch64"), naming("value", "aarch64")),
        (("--arch", "x86_64", "--arch", "aarch64"), EVERYTHING),
        (("--format", "sketch"), naming("value", "tree", "sketch")),
        (("--format", "paper", "--arch", "x86_64"), naming("value", "tree[x86_64", "[x86_64-paper")),
        (("--target", "toy_x86_64"), naming("value", "tree[x86_64", "[x86_64-paper")),
        (("--target", "pretend"), naming("value", "tree[x86_64", "[x86_64-sketch")),
        (
            ("--target", "pretend", "--target", "toy_aarch64", "--arch", "aarch64"),
            naming("value", "tree[aarch64", "h64-paper"),
        ),
    ],
)
def test_what_is_not_asked_for_is_deselected(
    project: pytest.Pytester, options: tuple[str, ...], expected: list[str]
) -> None:
    assert collected(project, *options) == expected
    left = len(EVERYTHING) - len(expected)
    project.runpytest_inprocess("images", *options).assert_outcomes(passed=len(expected), deselected=left, skipped=0)


@pytest.mark.parametrize(
    "options",
    [
        ("--format", "tar"),
        ("--target", "pretend", "--arch", "aarch64"),
        ("--target", "qemu_x86_64"),
        ("--format", "sketch", "--target", "toy_x86_64"),
    ],
)
def test_nothing_left_ends_with_5(project: pytest.Pytester, options: tuple[str, ...]) -> None:
    result = project.runpytest_inprocess("images", *options)
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert result.parseoutcomes() == {"deselected": len(EVERYTHING)}


def test_what_an_image_does_not_offer_is_deselected_too(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", TOY.replace('"sketch"', "") + TESTS)
    result = project.runpytest_inprocess("images")
    result.assert_outcomes(passed=9, deselected=1)


@pytest.mark.parametrize(
    ("option", "name", "known"),
    [
        ("arch", "x68_64", "unknown arch 'x68_64'*did you mean 'x86_64'?*known: aarch64, x86_64*"),
        ("format", "zip", "unknown format 'zip'*known: *paper, *sketch, *tar*"),
        ("target", "toy", "unknown target 'toy'*known: *toy_aarch64, toy_x86_64*"),
    ],
)
@pytest.mark.parametrize("where", ["option", "variable", "pyproject"])
def test_a_name_that_does_not_exist_ends_with_4(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, where: str, option: str, name: str, known: str
) -> None:
    options = [f"--{option}", name] if where == "option" else []
    if where == "variable":
        monkeypatch.setenv(f"IMAGEKIT_{option.upper()}", name)
    if where == "pyproject":
        write(project, "pyproject.toml", f"[tool.imagekit]\n{option} = ['{name}']\n")
    result = project.runpytest_inprocess("images", *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(known.replace("?", r"\?").replace("*", ".*"), result.stderr.str(), re.DOTALL)
    assert "Traceback" not in result.stderr.str()


def test_the_command_line_counts_before_the_variable_and_that_before_the_project(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(project, "pyproject.toml", "[tool.imagekit]\narch = ['aarch64']\nformat = 'paper'\n")
    assert collected(project) == naming("value", "tree[aarch64", "[aarch64-paper")
    monkeypatch.setenv("IMAGEKIT_ARCH", "x86_64")
    assert collected(project) == naming("value", "tree[x86_64", "[x86_64-paper")
    monkeypatch.setenv("IMAGEKIT_FORMAT", "paper, sketch")
    assert collected(project, "--arch", "aarch64") == naming("value", "aarch64")


def test_help_lists_the_names_and_a_clash_of_options_ends_nothing(project: pytest.Pytester) -> None:
    result = project.runpytest_inprocess("--help")
    result.stdout.fnmatch_lines(
        ["*--arch=NAME*aarch64, x86_64*", "*--format=NAME*", "*kernel_initrd*", "*--tools={auto,host,tree}*"]
    )
    project.makepyfile(clash="def pytest_addoption(parser): parser.addoption('--key')")
    project.syspathinsert()
    project.runpytest_inprocess("-p", "clash", "images", "--key", "other").assert_outcomes(passed=12)
    project.runpytest_inprocess("-p", "clash", "images", "--imagekit-key", "other").assert_outcomes(passed=3, errors=9)


# --- samples ----------------------------------------------------------------------------------------------------------

SAMPLED = (
    TOY
    + """
import pytest
@pytest.mark.sample("sketch", "toy_aarch64")
def test_it(artifact): ...
@pytest.mark.sample("toy_aarch64")
def test_machine(guest): ...
"""
)


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), ["test_it[x86_64-sketch]", "test_machine[aarch64-paper-toy_aarch64]", "test_it[aarch64-sketch]"]),
        (("--arch", "x86_64"), ["test_it[x86_64-sketch]"]),
        (("--format", "paper", "--arch", "x86_64"), ["test_it[x86_64-paper]", "test_machine[x86_64-paper-toy_x86_64]"]),
        (("--full", "--arch", "aarch64"),
         ["test_it[aarch64-paper]", "test_machine[aarch64-paper-toy_aarch64]", "test_it[aarch64-sketch]"]),
    ],
)  # fmt: skip
def test_a_sample_stands_for_all_formats_and_machines(
    project: pytest.Pytester, options: tuple[str, ...], ids: list[str]
) -> None:
    write(project, "images/toy.py", SAMPLED)
    assert collected(project, *options) == ids


@pytest.mark.parametrize(
    ("mark", "words"), [("sample('rwa')", "unknown format or target 'rwa'"), ("sample()", "names no format")]
)
def test_a_sample_of_nothing_ends_the_run(project: pytest.Pytester, mark: str, words: str) -> None:
    write(project, "images/toy.py", TOY + f"import pytest\n@pytest.mark.{mark}\ndef test(artifact): ...\n")
    result = project.runpytest_inprocess("images")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*{words}*"])
