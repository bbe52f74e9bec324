"""What the fake QEMU does once its monitor is there: boots that go well, and boots that fail."""

import os
import sys
import time
from itertools import repeat
from threading import Thread
from typing import TYPE_CHECKING

from imagekit.channel import Kind, encode

if TYPE_CHECKING:
    from fake_qemu import Fake

BOOT = ("early", "modules", "network up", "service start web", "service ready web", "ready")


def good(fake: "Fake") -> None:
    fake.boot()


def silence(fake: "Fake") -> None:
    fake.hello()
    fake.tell("early", "onboot start fetch")


def panic(fake: "Fake") -> None:
    fake.say(
        "\x1b[2J\x1bc[    1.0] Run /init as init process\r\n[    1.5] Kernel panic - not syncing: no init \x9b31m\r\n"
    )
    fake.shut_down("guest-reset")


def powers_off(fake: "Fake") -> None:
    fake.hello()
    fake.tell("early", "network up")
    fake.shut_down("guest-shutdown")


def terminated(fake: "Fake") -> None:
    fake.hello()
    fake.shut_down("host-signal")


def dies(fake: "Fake") -> None:
    fake.hello()
    print("qemu: out of \x1b[31mmemory", file=sys.stderr, flush=True)
    os._exit(1)


def step_fails(fake: "Fake") -> None:
    fake.hello()
    fake.tell("early", "onboot start 10-fetch", "onboot failed 10-fetch 7", "shutdown")
    fake.say("fetch: no such host\r\n")
    time.sleep(0.1)
    fake.shut_down("guest-shutdown")


def service_fails(fake: "Fake") -> None:
    fake.hello()
    fake.tell("early", "service start web", "service failed web not ready within 10 s")


def service_loops(fake: "Fake") -> None:
    fake.hello()
    fake.tell("early", "service start web", *repeat("service exit web 3", 3))


def garbage(fake: "Fake") -> None:
    fake.say("IK\x01\xa5 imagekit: ready\r\n\xff\xfe")
    fake.channel.sendall(os.urandom(30000) + b"IK\x01\xa5\x02\0\0\0\xff\xff\xff\x7f" + b"1.0 ready\n")
    fake.send(Kind.EVENT, b"1.0 ready")  # before HELLO: whoever says it is not the agent
    fake.channel.sendall(encode(Kind.HELLO, bytes(8) + fake.nonce.encode(), nonce=fake.nonce)[:-5])  # cut
    fake.boot()
    fake.tell("ready", "nonsense", first=3.0)


def other_boot(fake: "Fake") -> None:
    fake.hello("ab" * 16)
    fake.hello()
    fake.channel.sendall(encode(Kind.EVENT, b"1.0 ready", nonce="ab" * 16))


def flood(fake: "Fake") -> None:
    text = ("the same line for ever\r\n" * 2000).encode()
    Thread(target=lambda: [fake.console.sendall(text) for _ in repeat(0)], daemon=True).start()
    fake.boot()


def slow(fake: "Fake") -> None:
    fake.hello()
    for number, words in enumerate(BOOT):
        fake.tell(words, first=1.0 + number)
        time.sleep(0.2)


def disobedient(fake: "Fake") -> None:
    fake.obeys = False
    fake.boot()


def echoes(fake: "Fake") -> None:
    fake.boot()
    fake.say("login: ")
    Thread(target=fake.serve_agent, daemon=True).start()
    typed = b""
    while not typed.endswith(b"\r"):
        typed += fake.console.recv(1)
    fake.say(f"<{repr(typed)[2:-1]}>")


def refuses_states(fake: "Fake") -> None:
    fake.boot()


def cannot_save(fake: "Fake") -> None:
    fake.boot()


def powers_off_after_all(fake: "Fake") -> None:
    fake.boot()
    fake.tell("shutdown", first=9.0)
    fake.shut_down("guest-shutdown")


def reboots(fake: "Fake") -> None:
    fake.boot()
    fake.shut_down("guest-reset")
