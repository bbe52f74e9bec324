"""Whether KVM really runs a guest here: one is booted, once per boot of this machine.

That /dev/kvm is there and opens proves nothing: nested, broken and forbidden KVM show it too. Shared inside this
folder; no plug.
"""

import json
import os
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from imagekit import host
from imagekit.arch import ARCHES
from imagekit.errors import RigProblem
from imagekit.store import Store
from imagekit.toolbox import Tools

DEVICE = Path("/dev/kvm")
CPU_SECONDS = 8  # of QEMU's own time, which a busy machine does not stretch: a guest that runs takes 0.1 s
WALL_SECONDS = 60.0
NOTE = "kvm"

# A boot sector (BIOS loads it to 0x7c00) that goes to long mode with paging and SSE, counts down from 30,000,000, and
# writes 0x21 to the debug-exit device: QEMU then ends with 0x21 * 2 + 1. Work like a kernel's, in 512 bytes.
X86_64_SOURCE = """
.code16
.globl _start
_start: cli
 xorw %ax,%ax
 movw %ax,%ds; movw %ax,%es; movw %ax,%ss
 movw $0x7c00,%sp
 inb $0x92,%al; orb $2,%al; outb %al,$0x92  # address line 20
 movl $0x1000,%edi; movl %edi,%cr3
 xorl %eax,%eax; movl $3072,%ecx; cld; rep stosl
 movl $0x2003,0x1000  # page tables: the first GiB by one level, 2 MiB pages
 movl $0x3003,0x2000
 movl $0x83,0x3000
 movl %cr4,%eax; orl $0x620,%eax; movl %eax,%cr4  # PAE, SSE
 movl $0xC0000080,%ecx; rdmsr; orl $0x100,%eax; wrmsr  # long mode
 movl %cr0,%eax; andl $0xfffffff3,%eax; orl $0x80000003,%eax; movl %eax,%cr0
 lgdt gdtr
 ljmp $8,$lm
.code64
lm: movl $30000000,%ecx
1: decl %ecx
 jnz 1b
 pxor %xmm0,%xmm0
 movq %rsp,%xmm1
 paddq %xmm1,%xmm0
 movl $0x21,%eax
 movw $0xf4,%dx
 outl %eax,%dx
2: hlt
 jmp 2b
.align 8
gdt: .quad 0
 .quad 0x00209A0000000000
gdtr: .word 15
 .long gdt
.org 510
.word 0xAA55
"""
X86_64 = bytes.fromhex(
    "fa31c08ed88ec08ed0bc007ce4920c02e69266bf001000000f22df6631c066b9000c0000fcf366ab66c70600100320000066c706002003300000"
    "66c7060030830000000f20e0660d200600000f22e066b9800000c00f32660d000100000f300f20c06683e0f3660d030000800f22c00f0116b07c"
    "ea797c0800b980c3c901ffc975fc660fefc066480f6ecc660fd4c1b82100000066baf400eff4ebfd0f1f40000000000000000000000000000"
    "09a20000f00a07c0000"
).ljust(510, b"\0") + b"\x55\xaa"  # fmt: skip

# The same for arm64, as a kernel without a header: count down, then PSCI SYSTEM_OFF (Arm DEN 0022).
AARCH64_SOURCE = """
.globl _start
_start: movz w1, #0x1c9, lsl #16
1: subs w1, w1, #1
 b.ne 1b
 movz w0, #8
 movk w0, #0x8400, lsl #16
 hvc #0
2: wfi
 b 2b
"""
AARCH64 = bytes.fromhex("2139a05221040071e1ffff54000180520080b072020000d47f2003d5ffffff17")


class Guest(NamedTuple):
    """The least guest of an architecture."""

    code: bytes
    machine: tuple[str, ...]  # QEMU's options; the code's path goes in at {}
    status: int  # QEMU's exit status when it ran


X86_64_DEVICES = "-device isa-debug-exit,iobase=0xf4,iosize=4 -drive file={},format=raw,if=ide,snapshot=on"
GUESTS = {
    "x86_64": Guest(X86_64, ("-machine", "pc", "-m", "16", *X86_64_DEVICES.split()), 67),
    "aarch64": Guest(AARCH64, ("-machine", "virt", "-m", "64", "-kernel", "{}"), 0),
}


class Probe(NamedTuple):
    """Whether KVM works here, and how that is known."""

    works: bool
    why: str


def probe(store: Store, tools: Tools) -> Probe:
    """Boot the probe guest, or recall how that went since this machine was started.

    `tools` holds qemu-system-* of this machine's own architecture.
    """
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Probe(False, "/dev/kvm is not there")
    except OSError as error:
        return Probe(False, f"/dev/kvm does not open: {error.strerror}")
    arch = os.uname().machine
    if arch not in GUESTS:
        return Probe(False, f"present, but no probe guest is known for {arch}")
    name = f"qemu-system-{ARCHES[arch].qemu}"
    key = sha256(repr((host.powers(), tools.origin(name), tools.version(name))).encode()).hexdigest()
    known = store.recall(NOTE, key)
    if known is None:
        known = json.dumps(boots(GUESTS[arch], name, tools, accelerator="kvm", cpu="host")).encode()
        store.remember(NOTE, key, known)
    return Probe(*json.loads(known))


def boots(guest: Guest, name: str, tools: Tools, *, accelerator: str, cpu: str) -> Probe:
    """Boot a probe guest; QEMU is ended by the kernel when it has used its seconds, whatever it does."""
    import resource
    from subprocess import DEVNULL, PIPE

    code = os.memfd_create("probe")
    try:
        os.write(code, guest.code)
        words = [word.format(f"/proc/self/fd/{code}") for word in guest.machine]
        quiet = ("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-accel", accelerator, "-cpu", cpu)
        process = host.launch(tools.argv(name, *quiet, *words), env=tools.env, pass_fds=(code,),
                              stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)  # fmt: skip
        resource.prlimit(process.pid, resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
        done = host.converse(process, timeout=WALL_SECONDS, limit=1 << 20)
    except (TimeoutError, RigProblem, ProcessLookupError) as error:
        return Probe(False, f"present, but a probe guest did not run ({str(error) or 'it hung'})")
    finally:
        os.close(code)
    if done.code == guest.status:
        return Probe(True, "a probe guest ran")
    lines = host.printable(done.stderr).strip().splitlines()
    said = f"it used {CPU_SECONDS} s and was ended" if done.code == 137 else lines[0] if lines else "it hung"
    return Probe(False, f"present, but a probe guest did not run ({said})")
