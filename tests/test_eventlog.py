"""Logs that real firmware wrote, read as tpm2-tools reads them; logs that nobody should believe; differences."""

import random
import re
import struct
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from imagekit import toolbox, tpm
from imagekit.disk import eventlog, eventwords
from imagekit.errors import Problem
from imagekit.stores.directory import open_store

FOLDER = Path(__file__).parents[1] / "fixtures/eventlogs"
REAL = {path.stem: path.read_bytes() for path in sorted(FOLDER.glob("*.log"))}
HEAD = 32 + struct.unpack_from("<I", REAL["x86_64"], 28)[0]
IPL, VARIABLE, SEPARATOR = eventwords.IPL, eventwords.VARIABLE_CONFIG, eventwords.SEPARATOR


@pytest.fixture(scope="module")
def their():
    """What `tpm2 eventlog` tells of a log: the types of its events, and PCRs of the bank of SHA-256."""
    tools = toolbox.tools("tpm2", mode="tree", store=open_store())

    def read(path):
        done = subprocess.run(tools.argv("tpm2", "eventlog", path), env=tools.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        last = done.stdout[done.stdout.index("\n  sha256:") :].partition("sha384")[0]
        pcrs = {int(pcr): value for pcr, value in re.findall(r"(\d+) *: 0x([0-9a-f]{64})", last)}
        return [int(pcr) for pcr in re.findall(r"  PCRIndex: (\d+)", done.stdout)], pcrs

    return read


@pytest.mark.parametrize("name", REAL)
def test_real_logs_replay_as_tpm2_tools_replay_them(their, name):
    order, pcrs = their(FOLDER / f"{name}.log")
    log = eventlog.parse(REAL[name])
    assert {pcr: value.hex() for pcr, value in log.replay().items()} == pcrs
    assert [event.pcr for event in log.events] == order[1:], "the first says which banks there are"


@pytest.mark.parametrize(("arch", "program"), [("x86_64", "BOOTX64"), ("aarch64", "BOOTAA64")])
def test_events_have_names(arch, program):
    log = eventlog.parse(REAL[arch])
    assert [each.name for each in log.of(4)] == [
        "action: Calling EFI Application from Boot Option",
        "separator",
        f"program \\EFI\\BOOT\\{program}.EFI",
        "program from memory, by systemd-stub",
    ]
    assert [each.name for each in log.of(7)] == [*(f"variable {v}" for v in ("SecureBoot", "PK", "KEK", "db", "dbx")),
                                                   "separator"]  # fmt: skip
    assert [each.name for each in log.of(11)] == [
        f"{what} of {name}" for name in (".linux", ".osrel", ".cmdline", ".initrd") for what in ("name", "content")
    ]
    assert not [each for each in log.measurements() if "digest is of something else" in each.content]
    boot = next(each for each in log.of(1) if each.name == "variable Boot0001")
    assert boot.content == "'UEFI Misc Device' PCI device 1.0"


@pytest.mark.parametrize("rest", [b"", b"\xff" * 999, bytes(999)], ids=["nothing", "0xFF", "zeros"])
@pytest.mark.parametrize("name", REAL)
def test_a_log_is_cut_out_of_memory(name, rest):
    assert eventlog.cut(REAL[name] + rest) == REAL[name]


def changed(at, new, *, of=REAL["x86_64"]):
    return of[:at] + new + of[at + len(new) :]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends in the middle of an event"),
        (REAL["x86_64"][HEAD:], "does not begin with a Spec ID event"),
        (changed(32, b"Spec ID Event02\0"), "does not begin with a Spec ID event"),
        (changed(56, struct.pack("<I", 1 << 31)), "2147483648 banks, more than a TPM has"),
        (changed(56, bytes(4)), "0 banks"),
        (changed(62, b"\x21"), "are none, or the same twice"),
        (changed(64, b"\x04"), "are none, or the same twice"),
        (changed(76, b"\x04"), "sizes of its first event do not add up"),
        (changed(HEAD, b"\x18"), "is of PCR 24, which no TPM has"),
        (changed(HEAD + 8, b"\x05"), "has 5 digests, and the log 4 banks"),
        (changed(HEAD + 8, b"\xff\xff\xff\x7f"), "has 2147483647 digests"),
        (changed(HEAD + 34, b"\x04"), "bank 0x4 twice"),
        (changed(HEAD + 12 + 22 + 34 + 50 + 66, b"\xff\xff\xff\xff"), "ends in the middle of the event"),
        (REAL["x86_64"][:-1], "ends in the middle of the event"),
        (REAL["x86_64"] + bytes(16), "16 bytes after its last event"),
        (REAL["x86_64"] + bytes(eventlog.MAX_SIZE), "larger than the 1048576 bytes"),
    ],
)
def test_what_is_no_log_is_refused(data, said):
    with pytest.raises(Problem, match=said):
        eventlog.parse(data)


def test_a_log_without_sha256_is_refused():
    content = struct.pack("<16sIBBBBIHHB", eventlog.SIGNATURE, 0, 0, 2, 0, 2, 1, 4, 20, 0)
    with pytest.raises(Problem, match="no digests of SHA-256"):
        eventlog.parse(struct.pack("<II20sI", 0, 3, bytes(20), len(content)) + content)


def test_no_log_makes_it_fail_otherwise():
    """Cut anywhere, or with any byte changed: a log or a Problem, and words for whatever is left."""
    rand = random.Random(7)
    for data in REAL.values():
        for _ in range(60):
            broken = bytearray(data[: rand.randrange(len(data) + 1)] if rand.random() < 0.3 else data)
            for _ in range(rand.randrange(4)):
                if broken:
                    broken[rand.randrange(len(broken))] = rand.randrange(256)
            try:
                log = eventlog.parse(bytes(broken))
            except Problem:
                continue
            assert all((each.name + each.content).isprintable() for each in log.measurements())
            log.replay()


def event(pcr, kind, data, *, digest=None):
    return eventlog.Event(pcr, kind, digest or sha256(data).digest(), data)


def variable(name, content):
    return event(
        7, VARIABLE, bytes(16) + struct.pack("<QQ", len(name), len(content)) + name.encode("utf-16le") + content
    )


def section(name, content):
    wide = (name + "\0").encode("utf-16le")
    return [
        event(11, IPL, wide, digest=sha256(name.encode() + b"\0").digest()),
        event(11, IPL, wide, digest=sha256(content).digest()),
    ]


SHIPPED = (
    variable("SecureBoot", b"\1"),
    variable("db", b"a certificate of the owner"),
    event(7, SEPARATOR, bytes(4)),
    *section(".cmdline", b"quiet"),
    *section(".initrd", b"as shipped"),
    event(1, eventwords.FLAGS, b"ACPI DATA", digest=sha256(b"1").digest()),
    event(1, eventwords.FLAGS, b"ACPI DATA", digest=sha256(b"2").digest()),
    event(0, eventwords.NO_ACTION, b"nobody measures it"),
)
AUTHORITY = event(7, eventwords.AUTHORITY, variable("db", bytes(16) + b"another").data)


def without(name):
    return tuple(one for one in SHIPPED if one.measurement.name != name)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (SHIPPED, []),
        (SHIPPED[:-1], []),
        (tuple(sorted(SHIPPED, key=lambda one: one.pcr)), []),
        (
            (variable("SecureBoot", b"\0"), *SHIPPED[1:]),
            ["PCR 7: variable SecureBoot: something else: 00, expected 01"],
        ),
        (
            (*without("content of .cmdline"), section(".cmdline", b"init=/bin/sh")[1]),
            ["PCR 11: content of .cmdline: something else"],
        ),
        (without("variable db"), ["PCR 7: variable db: not measured, expected 26 bytes"]),
        (
            (*SHIPPED, AUTHORITY),
            [
                "PCR 7: authority in db: measured, and not expected: "
                "a key of 00000000-0000-0000-0000-000000000000, 23 bytes"
            ],
        ),
        (
            (*SHIPPED, *section(".dtb", b"x")),
            [f"PCR 11: {what} of .dtb: measured, and not expected" for what in ("name", "content")],
        ),
        (
            (*SHIPPED[:5], *SHIPPED[7:]),
            ["PCR 11: name of .initrd: not measured", "PCR 11: content of .initrd: not measured"],
        ),
        (
            (*SHIPPED[:3], *section(".initrd", b"as shipped"), *section(".cmdline", b"quiet"), *SHIPPED[7:]),
            ["PCR 11: name of .initrd: measured earlier than expected, where name of .cmdline was"],
        ),
        (without("ACPI DATA"), ["PCR 1: ACPI DATA: not measured"] * 2),
        ((*SHIPPED[:7], *SHIPPED[8:]), ["PCR 1: ACPI DATA: not measured"]),
    ],
)
def test_what_changed_is_named(found, said):
    told = [str(one) for one in eventlog.differences(*(eventlog.Log(log).measurements() for log in (SHIPPED, found)))]
    assert told == said


def test_logs_of_two_machines_differ_by_name():
    told = [
        str(one)
        for one in eventlog.differences(*(eventlog.parse(REAL[arch]).measurements() for arch in ("x86_64", "aarch64")))
    ]
    assert "PCR 7: variable SecureBoot: something else: 00, expected empty" in told
    assert "PCR 1: variable Boot0002: not measured, expected 'EFI Internal Shell' file" in "\n".join(told)
    assert not [one for one in told if one.startswith(("PCR 2:", "PCR 3:", "PCR 6:"))]


def test_words_that_do_not_fit_the_digest_are_marked():
    lie = variable("SecureBoot", b"\1")._replace(digest=variable("SecureBoot", b"\0").digest)
    assert lie.measurement.content == "01 (but its digest is of something else)"


@pytest.mark.parametrize(
    ("kind", "data", "name"),
    [
        (0x7FFF, b"\x1b[2J", "event of type 0x7fff"),
        (VARIABLE, b"short", "event of type 0x80000001"),
        (VARIABLE, bytes(16) + struct.pack("<QQ", 1 << 62, 1 << 62), "event of type 0x80000001"),
        (eventwords.APPLICATION, bytes(24) + struct.pack("<Q", 1 << 63), "program from memory"),
        (eventwords.APPLICATION, bytes(24) + struct.pack("<QBBH", 4, 4, 4, 0), "program from memory"),
        (
            eventwords.APPLICATION,
            struct.pack("<QQQQ", 0, 9, 0, 1 << 18) + b"\1\2\4\0" * (1 << 16),
            "program from memory",
        ),
        (IPL, b"grub_cmd: ls \x1b[2J\0", "grub_cmd: ls \\x1b[2J"),
        (IPL, "section‮".encode("utf-16le"), "section\\u202e"),
        (eventwords.EFI_ACTION, b"x" * 999, "action: " + "x" * 149 + "..."),
    ],
)
def test_words_of_a_stranger_are_shown_and_steer_nothing(kind, data, name):
    assert eventwords.words(kind, data).name == name


def test_with_a_boot_loader_programs_and_arguments_have_names():
    log = eventlog.parse(REAL["aarch64-secure-loader"])
    assert [each.name for each in log.of(4)][2:] == [
        "program \\EFI\\BOOT\\BOOTAA64.EFI",
        "program \\EFI\\Linux\\formats_1.efi",
    ]
    (arguments,) = log.of(12)
    assert arguments.name == "kernel's arguments"
    assert arguments.content.startswith("quiet panic=-1 console=tty0")
    authority = log.of(7)[-1]
    assert (authority.name, authority.content[:45]) == (
        "authority in db",
        "a key of 9ec21953-c19d-4761-9231-80cef9c8c650",
    )
    path = "\\EFI\\x_1+3-0.efi\0".encode("utf-16le")
    counted = struct.pack("<QQQQBBH", 0, 9, 0, 4 + len(path), 4, 4, 4 + len(path)) + path
    assert eventwords.words(eventwords.APPLICATION, counted).name == "program \\EFI\\x_1.efi", (
        "however often it was tried"
    )


def test_startup_from_another_locality_is_where_pcr_0_begins():
    log = eventlog.Log((event(0, eventwords.NO_ACTION, eventlog.LOCALITY + b"\3"), event(0, SEPARATOR, bytes(4))))
    assert log.replay() == {0: tpm.extended(bytes(31) + b"\3", sha256(bytes(4)).digest())}
