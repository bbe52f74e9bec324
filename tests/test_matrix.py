"""Which places a test runs at, and in which order: pure functions over the plugs that ship."""

from collections.abc import Callable
from itertools import permutations

import pytest

from imagekit import Image, matrix
from imagekit.errors import Problem
from imagekit.matrix import NOWHERE, Placed, Point, Selection

IMAGE = Image("web", formats=("kernel_initrd", "tar"), arches=("x86_64", "aarch64"))
MACHINES = [Point("x86_64", "kernel_initrd", "qemu_x86_64"), Point("aarch64", "kernel_initrd", "qemu_aarch64")]


def test_an_image_offers_what_fits_together() -> None:
    offered = matrix.offered(IMAGE)
    assert [point for point in offered if point.format == "kernel_initrd"] == MACHINES
    assert {point.format for point in offered} == {"kernel_initrd", "tar"}
    assert NOWHERE not in offered


def test_places_are_as_deep_as_a_test_needs() -> None:
    assert matrix.places(IMAGE, depth=1) == [Point("x86_64"), Point("aarch64")]
    assert matrix.places(IMAGE, depth=2) == [Point(a, f) for a in IMAGE.arches for f in IMAGE.formats]
    assert matrix.places(IMAGE, depth=3) == MACHINES
    assert {point.target for point in matrix.places(IMAGE, depth=3, lives=("sandbox",))} <= {"namespace"}
    assert matrix.places(Image("web", formats=("tar",)), depth=3) == []


def test_an_unknown_format_is_a_problem() -> None:
    with pytest.raises(Problem, match="unknown format 'tra'"):
        matrix.offered(Image("web", formats=("tra",)))


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ("x86_64", ("x86_64",)),
        (" x86_64, aarch64 ", ("x86_64", "aarch64")),
        ("x86_64 aarch64", ("x86_64", "aarch64")),
        (["aarch64"], ("aarch64",)),
    ],
)
def test_names_are_words_or_a_list(given: str | list[str], names: tuple[str, ...]) -> None:
    assert matrix.check("arch", given) == names


@pytest.mark.parametrize("given", ["x86", "x86_64;aarch64", "", "amd64", ["x86_64", "vax"], [7]])
def test_other_names_are_refused(given: str | list[str]) -> None:
    with pytest.raises(Problem, match=r"unknown arch .*\n.*known: aarch64, x86_64"):
        matrix.check("arch", given)


CHAIN = (*MACHINES, Point("x86_64", "tar", "namespace"), Point("aarch64", "tar", ""))


@pytest.mark.parametrize(
    ("chosen", "point", "admitted"),
    [
        (Selection(), Point(), True),
        (Selection(), MACHINES[0], True),
        (Selection(), NOWHERE, False),
        (Selection(arch=("aarch64",)), Point("x86_64"), False),
        (Selection(arch=("aarch64",)), Point(), True),
        (Selection(target=("namespace",)), Point("x86_64"), True),
        (Selection(target=("namespace",)), Point("aarch64"), False),
        (Selection(target=("namespace",)), Point("x86_64", "kernel_initrd"), False),
        (Selection(format=("tar",), arch=("aarch64",)), Point("aarch64", "tar"), True),
        (Selection(format=("tar",), target=("qemu_x86_64",)), Point(), False),
        (Selection(format=("raw",)), Point(), False),
    ],
)
def test_a_chain_that_was_asked_for_must_lead_through(chosen: Selection, point: Point, admitted: bool) -> None:
    assert chosen.admits(point, CHAIN) is admitted


ORDER = [
    Point(),
    Point("x86_64"),
    Point("x86_64", "kernel_initrd"),
    Point("x86_64", "kernel_initrd", "qemu_x86_64"),
    Point("x86_64", "tar"),
    Point("aarch64"),
    Point("aarch64", "kernel_initrd", "qemu_aarch64"),
]


@pytest.mark.parametrize("shuffle", [list, reversed, lambda points: sorted(points, key=str)])
def test_everything_is_made_once_in_whatever_order_tests_come(shuffle: Callable[[list[Point]], list[Point]]) -> None:
    placed = [Placed(point, "web.py", IMAGE, point) for point in shuffle(ORDER)]
    assert matrix.arranged(placed, Selection()) == (ORDER, [])


def test_tests_of_one_place_keep_their_order_and_files_stay_apart() -> None:
    at = Point("x86_64")
    for order in permutations("abc"):
        placed = [Placed((file, name), file, IMAGE, at) for name in order for file in ("two.py", "one.py")]
        kept, left = matrix.arranged(placed, Selection())
        assert kept == [("two.py", name) for name in order] + [("one.py", name) for name in order]
        assert left == []


def test_tests_of_something_else_are_never_deselected() -> None:
    placed = [Placed("unit", "unit.py", None, Point()), Placed("web", "web.py", IMAGE, Point("x86_64"))]
    assert matrix.arranged(placed, Selection(arch=("aarch64",))) == (["unit"], ["web"])
