"""Checks: each finds what it is for, and nothing where there is nothing."""

import re
import socket
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest import SkipTest

import pytest

from imagekit import artifact, key
from imagekit.artifact import Artifact
from imagekit.baseline import Recorded
from imagekit.boot import Boot
from imagekit.checks import boot, contents, network, services, signature, size, standard
from imagekit.errors import Problem
from imagekit.guest import Console, Finished, Guest, GuestProblem
from imagekit.image import Budget, Image, Service
from imagekit.tree import Entry, Tree, directory, file, symlink

KEY = key.from_seed(bytes(32), comment=key.TEST_MARK)


def guest(files: dict[str, str] | None = None, **facts: Any) -> Guest:
    """A guest that has these files and nothing else."""

    def run(argv: tuple[str, ...], **_: Any) -> Finished:
        assert argv[0] == "cat"
        have = files or {}
        missing = [path for path in argv[1:] if path not in have]
        return Finished(argv, int(bool(missing)), "".join(have.get(path, "") for path in argv[1:]).encode(), b"")

    return Guest("x86_64", "toy", run, print, print, Console(), facts)


def eventful(*lines: str) -> Guest:
    text = "".join(f"{number}.000000500 {line}\n" for number, line in enumerate(lines))
    return guest({"/run/imagekit/events": text})


@pytest.mark.parametrize(
    ("lines", "failed"),
    [
        (("early", "service start nginx", "service ready nginx", "ready"), {}),
        (("service start a", "service exit a 0"), {}),
        (("service start a", "service exit a 139", "service start a"), {"a": "ended with 139"}),
        (("service exit a 1", "service exit a 2", "service exit a 3"), {"a": "ended 3 times, last with 3"}),
        (("service failed a died twice before it was ready",), {"a": "died twice before it was ready"}),
        (("service failed a",), {"a": "no reason given"}),
        (("service exit a 1", "service failed a it died"), {"a": "it died"}),
        (("onboot start mount", "onboot failed mount 32"), {"onboot mount": "ended with 32"}),
        (("ready", "shutdown", "service exit a 143"), {}),
        (("onboot done mount", "network up", "something new"), {}),
    ],
)
def test_failed_services_are_told_with_why(lines: tuple[str, ...], failed: dict[str, str]) -> None:
    assert services.failed(eventful("early", *lines)) == failed


def test_running_services_are_those_that_have_not_ended() -> None:
    events = (
        "service start a",
        "service start b",
        "service exit b 0",
        "service start c",
        "service failed d x",
        "ready",
    )
    assert services.running(eventful(*events)) == {"a", "c"}
    assert services.running(eventful(*events, "service start b")) == {"a", "b", "c"}


@pytest.mark.parametrize("ask", [services.failed, services.running])
def test_where_no_services_run_that_is_said(ask: Any) -> None:
    with pytest.raises(Problem, match=r"toy tells no events: no services run there\n  hint: ask for `guest`"):
        ask(guest())


def test_words_that_are_no_events_are_passed_by() -> None:
    assert services.failed(guest({"/run/imagekit/events": "garbage service failed a\n\n1.5 ready\n"})) == {}


HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TCP = (
    "   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n"
    "   1: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n"
    "   2: 0F02000A:0050 0202000A:D431 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 20 4\n"
)
TCP6 = (
    "   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000:00000000 0 0 0 0 1\n"
)


@pytest.mark.parametrize(
    ("files", "ports"),
    [
        ({"/proc/net/tcp": HEAD + TCP, "/proc/net/tcp6": HEAD + TCP6}, {80, 8080, 443}),
        ({"/proc/net/tcp": HEAD + TCP}, {80, 8080}),
        ({"/proc/net/tcp": HEAD, "/proc/net/tcp6": HEAD}, set()),
        ({}, set()),
    ],
)
def test_listening_ports_are_those_of_the_kernel(files: dict[str, str], ports: set[int]) -> None:
    assert network.listening(guest(files)) == ports


TREE = Tree(
    {
        "/tmp": directory(0o1777),
        "/open": directory(0o777),
        "/usr": directory(),
        "/usr/sudo": file(b"", mode=0o4755),
        "/usr/wall": file(b"", mode=0o2755),
        "/usr/free": file(b"", mode=0o666),
        "/usr/fine": file(b"", mode=0o755),
        "/bin": symlink("usr"),
        "/by/bin": symlink("../bin/fine"),
        "/up": symlink("../../../usr/fine"),
        "/abs": symlink("/usr/fine"),
        "/self": symlink("self"),
        "/gone": symlink("usr/gone"),
        "/late": symlink("/run/late"),
        "/dir": symlink("usr/"),
        "/below": symlink("usr/fine/x"),
        "/null": Entry("char", 0o666, device=(1, 3)),
    }
)


def test_surprising_modes_are_found() -> None:
    assert contents.setuid(TREE) == {"/usr/sudo", "/usr/wall"}
    assert contents.world_writable(TREE) == {"/open", "/usr/free"}


def test_dangling_links_are_found() -> None:
    assert contents.dangling(TREE) == {"/self": "self", "/gone": "usr/gone", "/below": "usr/fine/x"}
    assert contents.dangling(Tree()) == {}


def made(folder: Path, data: bytes = b"initrd", **more: Any) -> Artifact:
    """A signed artifact of one part."""
    folder.mkdir(exist_ok=True)
    (folder / "toy.initrd").write_bytes(data)
    part = {"role": "initrd", "file": "toy.initrd", "size": len(data), "sha256": sha256(data).hexdigest()}
    packages = [{"name": f"p{n}", "version": "1", "architecture": "all", "size": n << 20} for n in range(20)]
    largest = [[f"/usr/lib/{n}", n << 10] for n in range(20, 0, -1)]
    about = {"name": "toy", "arch": "x86_64", "format": "kernel_initrd", "kind": "kernel"}
    text = artifact.canonical({**about, "parts": [part], "packages": packages, "largest": largest, **more})
    path = folder / "toy.manifest.json"
    path.write_bytes(text)
    path.with_name("toy.manifest.json.minisig").write_text(KEY.sign(text, comment="toy"))
    return artifact.load(path)


def test_differences_name_parts_and_facts(tmp_path: Path) -> None:
    one = made(tmp_path / "a")
    assert contents.differences(one, made(tmp_path / "b")) == []
    assert contents.differences(one, made(tmp_path / "c", b"other", tree="x")) == ["tree", "initrd"]
    assert contents.differences(one, made(tmp_path / "d", parts=[])) == ["initrd"]


def test_the_ten_largest_packages_and_paths_are_shown(tmp_path: Path) -> None:
    shown = size.breakdown(made(tmp_path, bytes(2 << 20)))
    assert shown.startswith("toy x86_64 kernel_initrd has 2.0 MiB:\n     2.0 MiB  initrd\n")
    assert re.findall(r"(p\d+) 1$", shown, re.MULTILINE) == [f"p{n}" for n in range(19, 9, -1)]
    assert re.findall(r"/usr/lib/\d+$", shown, re.MULTILINE) == [f"/usr/lib/{n}" for n in range(20, 10, -1)]


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (19083673, "18.2 MiB"), (3 << 30, "3.0 GiB")]
)
def test_sizes_are_for_people(count: int, words: str) -> None:
    assert size.text(count) == words


def boot_of(service: float, *, first: float = 0.75, **fields: Any) -> Boot:
    """A boot whose one service takes so many seconds."""
    stages = ((0.5, "early"), (first, "modules"), (first, "service start db"), (first + service, "service ready db"),
              (first + service, "ready"))  # fmt: skip
    return Boot(stages, "instructions", **fields)


BOOTED = guest(boot=boot_of(1.75))
NOWHERE = Recorded("x86_64 paper toy", Path("toy.baseline.json"), None)


def test_the_stages_of_a_boot_are_shown_with_what_ready_waited_for() -> None:
    assert boot.seconds(BOOTED) == 2.5
    lines = boot.breakdown(BOOTED).splitlines()
    assert lines[0] == "booted in 2.500 s (virtual seconds of 500 million instructions each)"
    assert [line.split()[0] for line in lines[1:4]] == ["kernel", "modules", "init"]
    assert lines[-1] == "critical path: kernel 0.500 s, modules 0.250 s, service db 1.750 s"


def test_a_slower_boot_is_told_with_the_stages_that_grew() -> None:
    before = replace(NOWHERE, boot=boot_of(1.7))
    assert before.slower(BOOTED.boot) == pytest.approx(0.05 / 2.45)
    lines = boot.breakdown(BOOTED, IMAGE, before).splitlines()
    assert lines[-2:] == ["recorded: 2.450 s; +0.050 s (+2.04%):", "    +0.050 s  service db"]
    with pytest.raises(AssertionError, match=r"\+0\.050 s  service db"):
        standard.test_boots_as_recorded(IMAGE, BOOTED, before)
    standard.test_boots_as_recorded(IMAGE, BOOTED, replace(NOWHERE, boot=boot_of(1.74)))  # 0.4 %: no news
    standard.test_boots_as_recorded(IMAGE, BOOTED, replace(NOWHERE, boot=boot_of(9.0)))


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (NOWHERE, "has nothing on x86_64 paper toy: record it with --update-baseline"),
        (replace(NOWHERE, boot=boot_of(1, about={"qemu": "9"})), r"another machine \(qemu 9, not None\)"),
        (replace(NOWHERE, boot=replace(boot_of(1), clock="guest")), "its clock is guest, not instructions"),
    ],
)
def test_a_record_of_something_else_judges_nothing_and_says_so(record: Recorded, words: str) -> None:
    with pytest.raises(SkipTest, match=words):
        standard.test_boots_as_recorded(IMAGE, BOOTED, record)
    assert re.search(words, boot.breakdown(BOOTED, IMAGE, record))


def test_a_refusal_says_why(tmp_path: Path) -> None:
    good = made(tmp_path)
    assert signature.refusal(good, KEY) == ""
    assert "signed by key" in signature.refusal(good, key.new())
    (tmp_path / "toy.initrd").write_bytes(b"INITRD")
    assert signature.refusal(good, KEY) == "toy.initrd has other bytes, not the 6 that the manifest names"


def test_every_changed_bit_is_noticed_and_the_artifact_stays_whole(tmp_path: Path) -> None:
    good = made(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert signature.unnoticed(good, KEY) == []
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_verification_that_sees_nothing_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signature, "refusal", lambda *_: "")
    good = made(tmp_path)
    assert "toy.initrd" in signature.unnoticed(good, KEY)


IMAGE = Image("toy", budget=Budget(size=6, boot=2.5))


def test_the_standard_tests_pass_where_all_is_well(tmp_path: Path) -> None:
    good = made(tmp_path / "a")
    standard.test_within_size_budget(IMAGE, good)
    standard.test_is_signed(good, KEY)
    standard.test_rebuilds_identically(good, made(tmp_path / "b"))
    standard.test_boots_within_budget(IMAGE, BOOTED, NOWHERE)
    standard.test_nothing_failed(eventful("ready"))


def test_the_standard_tests_fail_where_it_is_not(tmp_path: Path) -> None:
    good, tight = made(tmp_path / "a"), replace(IMAGE, budget=Budget(size=5, boot=2.4))
    with pytest.raises(AssertionError, match="largest packages, uncompressed"):
        standard.test_within_size_budget(tight, good)
    with pytest.raises(AssertionError, match=r"service db +\|.*\+1\.750 s"):
        standard.test_boots_within_budget(tight, BOOTED, NOWHERE)
    with pytest.raises(AssertionError, match="signed by key"):
        standard.test_is_signed(good, key.new())
    with pytest.raises(AssertionError, match="initrd"):
        standard.test_rebuilds_identically(good, made(tmp_path / "b", b"other"))
    with pytest.raises(AssertionError, match="it died"):
        standard.test_nothing_failed(eventful("service failed a it died"))


@pytest.mark.parametrize("test", [standard.test_within_size_budget, standard.test_boots_within_budget])
def test_a_budget_that_is_not_there_is_not_kept(tmp_path: Path, test: Any) -> None:
    with pytest.raises(AssertionError, match=r"image 'toy' has no budget for its (size|boot): give it one"):
        test(Image("toy"), *([made(tmp_path)] if "size" in test.__name__ else [BOOTED, NOWHERE]))


def test_a_star_import_brings_the_tests_alone() -> None:
    assert all(name.startswith("test_") for name in standard.__all__)
    assert set(standard.__all__) == {name for name in vars(standard) if name.startswith("test_")}


class Answers:
    """What a toy's web server says to each request, over a socket pair."""

    def __init__(self, kept: ExitStack, **status: str) -> None:
        self.kept, self.status = kept, status

    def connect(self, port: int) -> socket.socket:
        if f"p{port}" not in self.status:
            raise GuestProblem(f"nobody listens on port {port} of the guest\n(its console)")
        ours, theirs = socket.socketpair()
        self.kept.enter_context(theirs)
        theirs.sendall(f"HTTP/1.1 {self.status[f'p{port}']}\r\nContent-Length: 0\r\n\r\n".encode())
        return ours


def test_what_does_not_answer_from_outside_is_told() -> None:
    conditions = ("http:80/", "http:81/health", "http:82", "tcp:22", "tcp:80", "file:/run/x", "")
    image = Image("toy", services=tuple(Service(f"s{n}", "/bin/x", ready=at) for n, at in enumerate(conditions)))
    with ExitStack() as kept:
        connect = Answers(kept, p80="204 Fine", p81="503 Busy").connect
        found = network.unanswered(image, Guest("x86_64", "toy", None, connect, None, None, {}))  # type: ignore[arg-type]
    assert found == {
        "http:81/health": "status 503",
        "http:82": "nobody listens on port 82 of the guest",
        "tcp:22": "nobody listens on port 22 of the guest",
    }
