"""`shipped`: on which machines of the matrix it is, and that the image is started there with nothing added."""

import pytest
from toys import collected, log, write

pytest_plugins = "pytester"
IMAGE = """
from imagekit import Image

image = Image("toy", formats=("paper", "pressed"), arches=("x86_64",))
"""
TESTS = """
def test_guest(guest): guest.run("hello").check()
def test_shipped(shipped): assert shipped.is_alive()
def test_shipped_again(shipped): assert shipped.facts["memory"] == 256
def test_boot(boot): boot(memory=512)
"""


def test_it_is_placed_on_the_machines_whose_firmware_the_format_names(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", IMAGE + TESTS)
    of_guest, of_shipped = ("test_guest", "test_boot"), ("test_shipped", "test_shipped_again")
    assert sorted(collected(project)) == sorted(
        [f"{test}[x86_64-paper-toy_x86_64]" for test in (*of_guest, *of_shipped)]
        + [f"{test}[x86_64-pressed-toy_x86_64]" for test in of_guest]
        + [f"{test}[x86_64-pressed-press]" for test in of_shipped]
    )
    assert {test.partition("[")[0] for test in collected(project, "--target", "press")} == set(of_shipped)


def test_one_machine_a_module_with_nothing_added(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", IMAGE.replace('"paper", "pressed"', '"pressed",') + TESTS)
    project.runpytest_inprocess("images").assert_outcomes(passed=4)
    starts = [line.removesuffix(" -") for line in log(project) if line.startswith("start")]
    assert sorted(starts) == [
        "start toy x86_64 pressed press untouched",
        *["start toy x86_64 pressed toy_x86_64"] * 2,
    ]


def test_firmware_that_is_asked_for_starts_the_image_with_nothing_added(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", IMAGE + "\ndef test(boot): boot(firmware='toyware')\n")
    project.runpytest_inprocess("images", "--format", "pressed").assert_outcomes(passed=1)
    assert "start toy x86_64 pressed toy_x86_64 untouched -" in log(project)


def test_a_test_is_at_one_depth(project: pytest.Pytester) -> None:
    write(project, "images/toy.py", IMAGE + "\ndef test(guest, shipped): ...\n")
    result = project.runpytest_inprocess("images")
    result.stdout.fnmatch_lines(["*test: a test asks for guest or shipped, not both"])
