"""The agent in real machines, on both architectures: health, files, waiting, and what a hostile guest may try."""

import hashlib
import os
from collections.abc import Iterator

import pytest
from test_qemu_boot import boot, image

from imagekit.call import Call
from imagekit.errors import GuestProblem, Problem
from imagekit.guest import Guest
from imagekit.image import Service, Text

HTTPD = Service("httpd", "/usr/bin/busybox httpd -f -p 80 -h /srv", ready="http:80/index.html")
DYING = Service("dying", "/bin/sh -c 'sleep 1; exit 3'", restart="never")


@pytest.fixture(scope="module", params=["x86_64", "aarch64"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    made = image(network="dhcp", services=(HTTPD, DYING), files={"/srv/index.html": Text("hello\n")})
    with boot(made, request.param) as started:
        started.expect("not command:! grep -q 'service failed dying' /run/imagekit/events")  # else it ends a later wait
        yield started


def test_health_is_that_of_the_guest(guest: Guest) -> None:
    health = guest.health()
    assert (health.taint, health.taints, health.oom_kills) == (0, (), 0)
    assert health.boot_id == guest.run("cat /proc/sys/kernel/random/boot_id").text
    assert 0 < health.memory_available < health.memory < 256 << 20
    assert 1 < health.processes < 20
    assert guest.facts["boot_seconds"] < health.uptime < float(guest.run("cat /proc/uptime").text.split()[0]) + 0.01
    httpd = health.services["httpd"]
    assert httpd.state == "ready"
    assert guest.run(f"cat /proc/{httpd.pid}/comm").text == "busybox"
    guest.run("mkdir -p /mnt/ro").check()
    guest.run("mount -t tmpfs -o ro tmpfs /mnt/ro").check()
    assert "/mnt/ro" in set(guest.health().read_only) - set(health.read_only)
    guest.run("umount /mnt/ro").check()


def test_a_service_that_ended_is_told(guest: Guest) -> None:
    script = "while ! grep -q 'service failed dying' /run/imagekit/events; do usleep 10000; done"
    guest.run(["/bin/sh", "-c", script]).check()
    state = guest.services()["dying"]
    assert (state.state, state.code, state.pid) == ("failed", 3, None)
    assert [failed.name for failed in guest.health().failed] == ["dying"]


def test_files_are_written_read_and_told(guest: Guest) -> None:
    data = os.urandom(60_000)
    digest = hashlib.sha256(data).hexdigest()
    guest.run("mkdir -p /tmp/files").check()
    assert guest.write("/tmp/files/data", data, mode=0o600) == digest
    assert guest.run("sha256sum /tmp/files/data").text.split()[0] == digest
    assert guest.read("/tmp/files/data") == data
    told = guest.stat("/tmp/files/data", digest=True)
    assert (told.kind, told.size, told.mode, told.uid, told.sha256) == ("file", len(data), 0o600, 0, digest)
    assert guest.run("ls -A /tmp/files").text == "data"
    assert guest.read("/proc/1/comm") == guest.run("cat /proc/1/comm").stdout
    assert guest.read("/srv/index.html") == b"hello\n"


def test_what_cannot_be_read_is_told_with_its_path(guest: Guest) -> None:
    for path, act in (("/none", guest.read), ("/none/x", lambda path: guest.write(path, b"x")), ("/none", guest.stat)):
        with pytest.raises(GuestProblem, match=f"{path}: No such file or directory"):
            act(path)
    with pytest.raises(GuestProblem, match="/dev/zero has more than 5000 bytes"):
        guest.read("/dev/zero", limit=5000)
    done = guest.run(["@none"])
    assert (done.code, done.stderr) == (127, b"@none: no such built-in command\n")


def test_a_built_in_command_is_one_like_others(guest: Guest) -> None:
    """Its streams end, other commands' too, and it stands where the image's programs stand."""
    assert guest.run(["@tail", "/run/imagekit", "-600", "3"]).stdout.startswith(b"==> /run/imagekit/")
    with pytest.raises(GuestProblem, match=r"@read .* was killed"):
        guest.run(["@read", "/dev/zero", "0", str(1 << 30)], timeout=0.3)
    assert guest.run(["/bin/sh", "-c", "ls /proc/self/fd | wc -l"]).text == "4"


@pytest.mark.parametrize("is_seen", [True, False])
def test_much_output_is_copied_from_memory_or_comes_by_frames(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, is_seen: bool
) -> None:
    copies: list[int] = []
    copied = Call.copied

    def count(call: Call, data: bytes | None) -> bytes:
        copies.append(len(data or b""))
        return copied(call, data if is_seen else None)

    monkeypatch.setattr(Call, "copied", count)
    data = os.urandom(20_000)
    guest.write("/tmp/some", data)
    done = guest.run(["/bin/sh", "-c", "for n in 1 2 3 4 5 6; do cat /tmp/some; done; exit 3"])
    assert (done.code, done.stdout) == (3, data * 6)
    assert sum(copies) > 12_288  # where it is seen, nearly all; else until the guest gives up


def test_what_is_waited_for_comes_or_never_will(guest: Guest) -> None:
    assert guest.expect("tcp:80", by="httpd") == "port 80 is open"
    assert guest.expect("http:80/index.html").startswith("HTTP/1.")
    assert guest.expect("service:httpd").startswith("httpd: ready")
    assert guest.expect("console:imagekit: ready") != "nothing"
    assert "No such file" in guest.expect("not file:/none")
    guest.run(["/bin/sh", "-c", "(sleep 0.3; echo begun; echo done) >/tmp/log &"]).check()
    assert guest.expect("log:/tmp/log:^do.e$") == "last line: done"
    assert guest.expect("command:grep -q done /tmp/log") == "it ended with 0"
    assert 80 in guest.ports()


@pytest.mark.parametrize(
    ("condition", "by", "words"),
    [
        ("tcp:81", "", "expected tcp:81: not within 1 s; last seen: port 81: Connection refused"),
        ("not tcp:80", "", "expected not tcp:80: not within 1 s; last seen: port 80 is open"),
        ("http:80/none", "", "last seen: HTTP/1.[01] 404"),
        ("command:exit 3", "", "last seen: it ended with 3"),
        ("console:never printed", "", "expected console:never printed: not within"),
    ],
)
def test_a_wait_that_fails_tells_what_was_seen_last(guest: Guest, condition: str, by: str, words: str) -> None:
    with pytest.raises(GuestProblem, match=words):
        guest.expect(condition, by=by, timeout=1)


def test_nobody_waits_for_what_cannot_come(guest: Guest) -> None:
    guest.expect("not command:! grep -q 'service failed dying' /run/imagekit/events")
    with pytest.raises(GuestProblem, match="it will not come: dying failed: ended with 3"):
        guest.expect("tcp:82", by="dying", timeout=1e6)
    with pytest.raises(Problem, match="there is no service nobody"):
        guest.expect("tcp:82", by="nobody")
    with pytest.raises(Problem, match="'port:82' is no condition"):
        guest.expect("port:82")
    with pytest.raises(Problem, match="pattern makes no sense"):
        guest.expect("log:/tmp/log:(")


def test_a_command_is_talked_with(guest: Guest) -> None:
    with guest.stream_argv(["/bin/sh"]) as shell:
        shell.send(b"echo one; echo two; read x; echo got $x\n")
        shell.expect("^two$")
        shell.send(b"a word\n")
        shell.expect("got a word")
        shell.send(b"x" * 5000 + b"\nexit 5\n")
        shell.close_input()
        assert shell.finished() == 5
        assert shell.stderr.endswith(b"File name too long\n")
    with guest.stream_argv(["/bin/sh", "-c", "echo 1; echo 2; printf 3"]) as stream:
        assert list(stream) == ["1", "2", "3"]
        assert stream.code == 0
    with guest.stream_argv(["sleep", "1000"]) as stream, pytest.raises(GuestProblem, match=r"'x' did not come within"):
        stream.expect("x", timeout=0.2)
    assert guest.run("pidof sleep").code == 1


def test_a_log_is_followed_across_its_rotation(guest: Guest) -> None:
    guest.write("/tmp/follow.log", b"old\n")
    with guest.follow("/tmp/follow.log") as log:
        guest.run(["/bin/sh", "-c", "echo new >> /tmp/follow.log"])
        assert log.expect("^.+\n").group() == b"new\n"
        guest.run(
            ["/bin/sh", "-c", "mv /tmp/follow.log /tmp/1; echo next > /tmp/follow.log; echo last >> /tmp/follow.log"]
        )
        log.expect("^next$")
        log.expect("^last$")


def test_a_terminal_is_one(guest: Guest) -> None:
    with guest.stream_argv(
        ["@terminal", "31", "97", "/bin/sh", "-c", "stty size; tty; read x; echo got $x; exit 6"]
    ) as t:
        t.expect("31 97")
        t.expect("/dev/pts/0")
        t.send(b"typed\n")
        t.expect("got typed")
        assert t.finished() == 6
