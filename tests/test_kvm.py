"""The probe guest: its bytes are its source's, it runs where a CPU runs, and a broken KVM is told as broken."""

import importlib.util
import os
import subprocess
import sys

import pytest
from sleepers import NAP, sleepers

from imagekit import host, toolbox
from imagekit.stores.directory import open_store
from imagekit.targets import _kvm


class FakeTools:
    """What `Tools` gives, for a shell script in QEMU's place."""

    env = host.environment()

    def __init__(self, script: str) -> None:
        self.script, self.started = script, 0

    def argv(self, name, *args):
        self.started += 1
        return ["sh", "-c", self.script, name, *args]

    def origin(self, _):
        return "host"

    def version(self, _):
        return "10.0"


@pytest.fixture(params=["x86_64", "aarch64"])
def arch(request):
    return request.param


@pytest.fixture(scope="module")
def real_tools():
    """Tools as this run's option wants them, from the cache that all runs share."""

    def find(name):
        return toolbox.tools(name, mode=os.environ.get("IMAGEKIT_TOOLS", "auto"), store=open_store())

    return find


@pytest.mark.skipif(not importlib.util.find_spec("ziglang"), reason="assembling the sources needs ziglang (extra dev)")
@pytest.mark.parametrize(
    ("target", "source", "code", "address"),
    [
        ("x86_64-freestanding-none", _kvm.X86_64_SOURCE, _kvm.X86_64, "0x7c00"),
        ("aarch64-freestanding-none", _kvm.AARCH64_SOURCE, _kvm.AARCH64, "0x0"),
    ],
    ids=["x86_64", "aarch64"],
)
def test_bytes_are_the_sources(tmp_path, target, source, code, address):
    (tmp_path / "probe.s").write_text(source)
    zig = [sys.executable, "-m", "ziglang"]
    env = {"ZIG_GLOBAL_CACHE_DIR": str(tmp_path), "ZIG_LOCAL_CACHE_DIR": str(tmp_path)}
    host.run([*zig, "cc", "-target", target, "-c", "probe.s", "-o", "probe.o"], cwd=tmp_path, env=env)
    link = ["ld.lld", "--image-base=0", f"-Ttext={address}", "--oformat", "binary", "-o", "probe", "probe.o"]
    host.run([*zig, *link], cwd=tmp_path, env=env)
    assert (tmp_path / "probe").read_bytes() == code


def test_a_boot_sector_is_one():
    assert len(_kvm.X86_64) == 512
    assert _kvm.X86_64.endswith(b"\x55\xaa")


DEVICE = pytest.mark.skipif(os.uname().machine not in _kvm.GUESTS, reason="no probe guest for this architecture")


@pytest.fixture
def device(tmp_path, monkeypatch):
    path = tmp_path / "kvm"
    path.touch()
    monkeypatch.setattr(_kvm, "DEVICE", path)
    return path


GOOD = f"exit {_kvm.GUESTS[os.uname().machine].status}" if os.uname().machine in _kvm.GUESTS else ""


@DEVICE
@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(
    ("script", "works", "why"),
    [
        (GOOD, True, "a probe guest ran"),
        ("exit 1", False, "present, but a probe guest did not run (it hung)"),
        ("echo 'failed to set MSR' >&2; kill -ABRT $$", False, "did not run (failed to set MSR)"),
        ("while :; do :; done", False, "did not run (it used 1 s and was ended)"),
        ("exec sleep NAP", False, "present, but a probe guest did not run (it hung)"),
    ],
)
def test_what_qemu_does_decides(tmp_path, monkeypatch, script, works, why):
    monkeypatch.setattr(_kvm, "CPU_SECONDS", 1)
    monkeypatch.setattr(_kvm, "WALL_SECONDS", 1.0 if "sleep" in script else 60.0)
    result = _kvm.probe(open_store(tmp_path / "cache"), FakeTools(script.replace("NAP", NAP)))
    assert (result.works, why in result.why) == (works, True), result
    assert not sleepers()


@DEVICE
@pytest.mark.usefixtures("device")
def test_asked_once_per_boot(tmp_path):
    store, tools = open_store(tmp_path / "cache"), FakeTools("exit 1")
    assert _kvm.probe(store, tools) == _kvm.probe(store, tools)
    assert tools.started == 1


def test_no_device_is_not_asked(tmp_path, monkeypatch):
    tools = FakeTools("exit 0")
    monkeypatch.setattr(_kvm, "DEVICE", tmp_path / "nowhere")
    assert _kvm.probe(open_store(tmp_path), tools) == (False, "/dev/kvm is not there")
    monkeypatch.setattr(_kvm, "DEVICE", tmp_path)
    assert "does not open" in _kvm.probe(open_store(tmp_path), tools).why
    assert tools.started == 0


def test_the_guest_itself_runs(arch, real_tools):
    """Emulated, where every machine can: so a guest that does not run says something of KVM, not of the guest."""
    name = f"qemu-system-{arch}"
    tools = real_tools(name)
    assert _kvm.boots(_kvm.GUESTS[arch], name, tools, accelerator="tcg", cpu="max") == (True, "a probe guest ran")


def test_the_guest_runs_by_the_trees_loader(arch):
    """As where user namespaces are forbidden: without QEMU_MODULE_DIR and -L, QEMU would not find its own files."""
    name = f"qemu-system-{arch}"
    tools = toolbox.tools(name, mode="tree", store=open_store())
    found = tools.found[name]
    tree = found.path.parents[2]
    alone = toolbox.Tools({name: found._replace(origin="loader", prefix=toolbox.loader(name, tree), usr=None)})
    assert _kvm.boots(_kvm.GUESTS[arch], name, alone, accelerator="tcg", cpu="max") == (True, "a probe guest ran")


def test_this_machine(tmp_path, real_tools):
    """Whatever the answer is here, it is one, and QEMU is gone."""
    if not _kvm.DEVICE.exists():
        pytest.skip("there is no /dev/kvm")
    tools = real_tools(f"qemu-system-{os.uname().machine}")
    result = _kvm.probe(open_store(tmp_path), tools)
    assert result.works == (result.why == "a probe guest ran")
    assert result.works or "a probe guest did not run" in result.why or "does not open" in result.why
    assert subprocess.run(["pgrep", "-P", str(os.getpid()), "qemu"], check=False).returncode == 1
