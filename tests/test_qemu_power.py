"""Power, reboots and what a boot is waited for; a fake QEMU and real boots."""

import pytest
from fake_rig import Start
from test_qemu import lives
from test_qemu_boot import HTTPD, boot, image

from imagekit.errors import Problem
from imagekit.guest import GuestProblem
from imagekit.image import Text


def test_power_ends_one_qemu_and_starts_the_next(start: Start) -> None:
    guest = start("good")
    first = guest.facts["pid"]
    with pytest.raises(GuestProblem, match="is on already"):
        guest.power.on()
    guest.power.cut()
    guest.power.cut()
    assert not lives(first)
    assert not guest.is_alive()
    for ask in (lambda: guest.run("upper"), lambda: guest.http.get("/"), guest.wait_ready):
        with pytest.raises(GuestProblem, match="the power was cut"):
            ask()
    guest.power.on()
    guest.wait_ready()
    assert guest.facts["pid"] != first
    assert guest.run("upper", input=b"x").stdout == b"X"
    assert guest.http.get("/").status == 200  # by a forward of the new QEMU
    guest.power.reset()
    guest.wait_ready()
    assert guest.facts["boots"] == ["booted", "power on", "reset"]
    text = guest.console.text
    assert text.count("Linux version 9") == 3
    marks = [text.index(f"--- imagekit: {how} ---") for how in ("power on", "reset")]
    assert marks == sorted(marks)


def test_stop_after_a_power_cut_is_no_failure(start: Start) -> None:
    guest = start("good")
    guest.power.cut()
    guest.stop()
    assert guest.facts["stopped"] == "the power was cut"


WAITS = [
    ("good", "nothing", ""),
    ("good", "console:Linux version [0-9]", ""),
    ("powers_off_after_all", "shutdown", ""),
    ("powers_off", "console:nowhere", "the guest powered off before its console showed /nowhere/"),
    ("good_silent", "console:nowhere", "did not print /nowhere/ on its console: the guest is idle"),
    ("good_silent", "console:(?#the login)nowhere", "did not print the login on its console: the guest is idle"),
    ("panic", "shutdown", "the guest panicked (Kernel panic"),
    ("dies", "shutdown", "QEMU ended with 1"),
    ("step_fails", "shutdown", "the onboot step 10-fetch failed with 7"),
    ("reboots", "shutdown", "the guest rebooted where tiny x86_64 should power off"),
    ("good_silent", "shutdown", "has not powered off: the guest is idle"),
    ("good", "readiness", "unknown thing to wait for 'readiness'"),
    ("good", "console:(", "console:( is no regular expression"),
]


@pytest.mark.parametrize(("scenario", "wait", "words"), WAITS)
def test_what_is_waited_for(start: Start, scenario: str, wait: str, words: str) -> None:
    patience = 2.0 if scenario == "good_silent" else 60.0
    scenario = scenario.removesuffix("_silent")
    if not words:
        guest = start(scenario, wait=wait, ready_timeout=patience)
        assert guest.is_alive() == (wait != "shutdown")
        return
    with pytest.raises(Problem) as caught:
        start(scenario, wait=wait, ready_timeout=patience)
    assert words in str(caught.value)


def test_a_real_machine_reboots_and_comes_back_after_a_cut() -> None:  # x86_64: test_qemu_disks.py
    files = {"/srv/index.html": Text("hello\n")}
    with boot(image(network="dhcp", services=(HTTPD,), files=files), "aarch64") as guest:
        guest.run(["/bin/sh", "-c", "echo 1 > /tmp/here"]).check()
        guest.run("/usr/sbin/reboot").check()
        guest.wait_ready()
        assert guest.run("cat /tmp/here").code == 1
        assert guest.http.get("/index.html").text == "hello\n"
        guest.power.cut()
        guest.power.on()
        guest.wait_ready()
        assert guest.http.get("/index.html").text == "hello\n"
        assert guest.facts["boots"] == ["booted", "reboot", "power on"]


def test_a_real_machine_is_waited_for_until_it_powers_off() -> None:
    off = image(services=())
    with boot(off, "aarch64", wait="console:imagekit: early") as guest:
        guest.wait_ready()
        assert "imagekit: early" in guest.console.text
