"""A QEMU that is none: it speaks QMP, prints a console and plays the agent, well or badly, on the lines it is given.

Started exactly as QEMU is (`fake_qemu.py SCENARIO QEMU-ARGUMENTS...`), so that all but QEMU itself is real.
"""

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from itertools import repeat
from pathlib import Path
from threading import Event, Thread

sys.path.insert(0, str(Path(__file__).parent))  # started with -I, as a stranger

import fake_faults
import fake_scenarios

from imagekit.channel import Decoder, Frame, Kind, encode, parse_request

TABLES = (  # /proc/net/tcp, tcp6 and route of a guest that listens on 80, on 81 inside, and on 443 by IPv6
    "  sl  local_address rem_address   st tx_queue rx_queue\n"
    "   0: 00000000:0050 00000000:0000 0A 00000000:00000000\n"
    "   1: 0100007F:0051 00000000:0000 0A 00000000:00000000\n"
    "   2: 0F02000A:0050 0202000A:1234 01 00000000:00000000\n"
    "  sl  local_address                         remote_address                        st tx_queue rx_queue\n"
    "   0: 00000000000000000000000000000000:01BB 00000000000000000000000000000000:0000 0A 00000000\n"
    "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
    "eth0\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
)


class Fake:
    """The lines, and what can be done with them."""

    def __init__(self, arguments: list[str]) -> None:
        self.arguments = arguments
        lines = dict(re.findall(r"socket,id=(\w+),fd=(\d+)", " ".join(arguments)))
        self.monitor, self.console, self.channel = (
            socket.socket(fileno=int(lines[name])) if name in lines else None
            for name in ("monitor", "console", "channel")
        )
        found = None if self.is_incoming else re.search(r"imagekit\.nonce=(\w+)", self.option("-append"))
        self.nonce = found[1] if found else ""
        self.refuses = self.cannot_save = False
        self.has_arrived = Event()
        self.given: list[int] = []  # descriptors that came over the monitor
        self.obeys = True  # whether quit and poweroff are done
        self.status = "running"
        self.acks_ahead = 0  # bytes that are acknowledged and were never sent
        self.reply: Callable[[Fake, dict], object] = Fake.answer  # to a command of QMP
        self.commands: dict[int, bytes] = {}  # stream -> request as far as it came
        self.inputs: dict[int, bytes] = {}
        self.deaf: set[int] = set()  # streams whose KILL is not obeyed
        self.killed: set[int] = set()

    @property
    def is_incoming(self) -> bool:
        return "-incoming" in self.arguments

    def option(self, name: str) -> str:
        return self.arguments[self.arguments.index(name) + 1]

    def file(self, name: str) -> bytes:
        with open(self.option(name), "rb") as file:
            return file.read()

    # --- QMP

    def serve_monitor(self) -> None:
        version = {"qemu": {"major": 9, "minor": 8, "micro": 7}, "package": "fake"}
        self.qmp({"QMP": {"version": version, "capabilities": []}})
        negotiated = Event()
        Thread(target=self._serve_monitor, args=(negotiated,), daemon=True).start()
        negotiated.wait()

    def _serve_monitor(self, negotiated: Event) -> None:
        for asked in self._asked():
            if asked["execute"] == "quit" and not self.obeys:
                continue
            self.reply(self, asked)
            negotiated.set()
            if asked["execute"] == "quit":
                self.shut_down("host-qmp-quit")

    def answer(self, asked: dict) -> None:
        given = asked.get("arguments", {})
        found: object = self.moved(asked["execute"], **given)
        if asked["execute"] == "query-status" and not self.is_incoming:
            found = {"running": self.status == "running", "status": self.status}
        if asked["execute"] == "human-monitor-command":
            found = self.human(given["command-line"])
        self.qmp({"return": found, "id": asked.get("id")})

    def _asked(self) -> Iterator[dict]:
        """QMP is a stream of JSON, without line ends."""
        text = ""
        while received := socket.recv_fds(self.monitor, 1 << 16, 4):
            if not received[0]:
                return
            self.given += received[1]
            text = (text + received[0].decode()).lstrip()
            while text:
                try:
                    asked, end = json.JSONDecoder().raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                yield asked

    def qmp(self, message: dict) -> None:
        self.monitor.sendall(json.dumps(message).encode() + b"\n")

    def moved(self, command: str, **arguments: object) -> dict:
        """A machine's state, saved and restored: its nonce."""
        if command == "add-fd":
            return {"fdset-id": len(self.given) - 1}
        if command == "migrate":
            os.write(self.given[int(str(arguments["uri"]).removeprefix("file:/dev/fdset/"))], b"state of ")
            os.write(self.given[-1], self.nonce.encode())
        if command == "migrate-incoming":
            if self.refuses:
                print("qemu: load of migration failed: Invalid argument", file=sys.stderr, flush=True)
                os._exit(1)
            with open(str(arguments["uri"]).removeprefix("file:"), "rb") as file:
                self.nonce = file.read().removeprefix(b"state of ").decode()
            self.has_arrived.set()
        if command == "query-migrate" and self.cannot_save:
            return {"status": "failed", "error-desc": "No space left on device"}
        return {"status": "completed"} if command == "query-migrate" else {"status": "paused"}

    def human(self, words: str) -> str:
        found = re.fullmatch(r"hostfwd_add net tcp:([\d.]+):(\d+)-:(\d+)", words)
        if not found:
            return "unknown command"
        try:
            listener = socket.create_server((found[1], int(found[2])))
        except OSError:
            return f"Could not set up host forwarding rule 'tcp:{found[1]}:{found[2]}-:{found[3]}'"
        Thread(target=self._serve_port, args=(listener, int(found[3])), daemon=True).start()
        return ""

    def _serve_port(self, listener: socket.socket, port: int) -> None:
        while True:
            connection, _ = listener.accept()
            with connection:
                if port != 80:
                    continue  # as slirp does when the guest refuses: accepted, then closed
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Port: 80\r\n\r\nhello")

    def shut_down(self, reason: str, code: int = 0) -> None:
        self.qmp({"event": "SHUTDOWN", "data": {"guest": True, "reason": reason}, "timestamp": {"seconds": 1}})
        os._exit(code)

    # --- console and agent

    def say(self, words: str) -> None:
        self.console.sendall(words.encode("latin-1"))

    def send(self, kind: Kind, payload: bytes = b"", stream: int = 0, nonce: str = "") -> None:
        self.channel.sendall(encode(kind, payload, nonce=nonce or self.nonce, stream=stream))

    def hello(self, nonce: str = "") -> None:
        self.send(Kind.HELLO, (10**9).to_bytes(8, "little") + (nonce or self.nonce).encode(), nonce=nonce)

    def tell(self, *lines: str, first: float = 1.0) -> None:
        for number, words in enumerate(lines):
            self.send(Kind.EVENT, f"{first + number / 10:.9f} {words}".encode())

    def boot(self) -> None:
        self.say("[    0.000000] Linux version 9\r\n")
        if self.channel:
            self.hello()
            self.tell(*fake_scenarios.BOOT)
        else:
            for number, words in enumerate(fake_scenarios.BOOT):
                self.say(f"[    1.{number}00000] imagekit: {words}\r\n")

    def serve_agent(self) -> None:
        decoders = {self.nonce: Decoder(self.nonce)}
        while received := self.channel.recv(1 << 16):
            for frame in decoders.setdefault(self.nonce, Decoder(self.nonce)).feed(received):
                self._obey(frame)

    def _renew(self, payload: bytes) -> None:
        self.nonce = payload[9 : 9 + payload[8]].decode()
        self.hello()

    def _obey(self, frame: Frame) -> None:
        if frame.kind == Kind.RENEW:
            self._renew(frame.payload)
        piece, is_last = frame.payload[9:], frame.payload[8:9] == b"\1"
        kept = {Kind.EXEC: self.commands, Kind.STDIN: self.inputs}.get(frame.kind)
        if frame.kind == Kind.KILL and frame.stream not in self.deaf:
            self.killed.add(frame.stream)
            self.exit(137, frame.stream)
        if kept is None:
            return
        kept[frame.stream] = kept.get(frame.stream, b"") + piece
        taken = bytes([frame.kind]) + (len(kept[frame.stream]) + self.acks_ahead).to_bytes(8, "little")
        self.send(Kind.ACK, taken + bytes([is_last]), frame.stream)
        if frame.kind == Kind.STDIN and is_last:
            asked = parse_request(self.commands[frame.stream])
            known = {**COMMANDS, **fake_faults.COMMANDS}
            known.get(asked.argv[0], _missing)(self, frame.stream, asked)

    def exit(self, code: int, stream: int, *, timed_out: bool = False) -> None:
        self.send(Kind.EXIT, code.to_bytes(4, "little") + bytes([timed_out]) + bytes(8), stream)


def _missing(fake: Fake, stream: int, _: object) -> None:
    fake.send(Kind.ERROR, (2).to_bytes(4, "little") + b"No such file or directory", stream)


def _cat(fake: Fake, stream: int, _: object) -> None:
    fake.send(Kind.STDOUT, TABLES.encode(), stream)
    fake.exit(1, stream)


def _upper(fake: Fake, stream: int, asked: object) -> None:
    fake.send(Kind.STDERR, repr(sorted(asked.env.items())).encode(), stream)
    text = fake.inputs[stream].upper()
    for start in range(0, len(text), 4096):
        fake.send(Kind.STDOUT, text[start : start + 4096], stream)
    fake.exit(3, stream)


def _sums(fake: Fake, stream: int, _: object) -> None:
    words = [sha256(fake.file(name)).hexdigest() for name in ("-kernel", "-initrd")]
    fake.send(Kind.STDOUT, " ".join([*words, str(_can_write(fake.option("-initrd")))]).encode(), stream)
    fake.exit(0, stream)


def _can_write(path: str) -> bool:
    try:
        with open(path, "r+b") as file:
            file.write(b"evil")
    except OSError:
        return False
    return True


def _huge(fake: Fake, stream: int, _: object) -> None:
    for _ in range(17 << 8):  # 17 MiB: more than is kept
        fake.send(Kind.STDOUT, bytes(4096), stream)


def _busy(fake: Fake, stream: int, _: object) -> None:
    fake.send(Kind.STDOUT, b"round\nround and round", stream)
    Thread(target=lambda: all(stream not in fake.killed for _ in repeat(0)), daemon=True).start()


def _power_off(fake: Fake, stream: int, _: object) -> None:
    if not fake.obeys:
        return
    fake.exit(0, stream)
    fake.tell("shutdown", "onshutdown done sync", first=9.0)
    time.sleep(0.05)
    fake.shut_down("guest-shutdown")


COMMANDS: dict[str, Callable] = {
    "cat": _cat,
    "upper": _upper,
    "sums": _sums,
    "huge": _huge,
    "sleep": lambda *_: None,
    "busy": _busy,
    "deaf": lambda fake, stream, _: fake.deaf.add(stream),
    "late": lambda fake, stream, _: fake.exit(137, stream, timed_out=True),
    "panic": lambda fake, *_: fake_scenarios.panic(fake),
    "lie": lambda fake, stream, _: fake.send(Kind.EXIT, b"\0", stream),
    "stale": lambda fake, stream, _: (fake.exit(9, stream + 1000), fake.exit(0, stream)),
    "/usr/sbin/poweroff": _power_off,
}


def main(scenario: str, arguments: list[str]) -> None:
    if scenario == "dies_at_once":
        sys.exit("qemu: -machine q35: no such machine")
    fake = Fake(arguments)
    fake.refuses, fake.cannot_save = scenario == "refuses_states", scenario == "cannot_save"
    play = getattr(fake_scenarios, scenario, None) or getattr(fake_faults, scenario)
    if not scenario.startswith("greets_"):  # these are about the monitor's first words
        fake.serve_monitor()
    if fake.is_incoming:
        fake.has_arrived.wait()
    else:
        play(fake)
    if fake.channel:
        fake.serve_agent()
    time.sleep(600)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
