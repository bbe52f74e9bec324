"""An emulated TPM on this machine: swtpm, tpm2-tools to ask it, and what images ask it by (inside/attest.c)."""

import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagekit import early, toolbox
from imagekit.stores.directory import open_store

INSIDE = Path(early.__file__).with_name("inside")
SOURCES = [INSIDE / "attest.c", INSIDE / "serve.c", INSIDE / "event.c", Path(__file__).with_name("attest_host.c")]


@dataclass(frozen=True)
class Tpm:
    """A TPM that runs; its folder holds its socket and what tpm2-tools write."""

    folder: Path
    tools: toolbox.Tools

    @property
    def socket(self):
        return self.folder / "tpm"

    def __call__(self, *words):
        """A command of tpm2-tools; what it loaded into the TPM is put out again."""
        for argv in words, ("flushcontext", "-t"):
            env = {**self.tools.env, "TPM2TOOLS_TCTI": f"swtpm:path={self.socket}"}
            done = subprocess.run(
                self.tools.argv("tpm2", *argv), env=env, cwd=self.folder, capture_output=True, text=True
            )
            assert done.returncode == 0, (argv, done.stderr)

    def read(self, name):
        return (self.folder / name).read_bytes()


@contextmanager
def running(folder):
    """A new TPM, with a seed of its own."""
    tools = toolbox.tools("swtpm", "tpm2", mode="tree", store=open_store())
    tpm = Tpm(folder, tools)
    sockets = ["--server", f"type=unixio,path={tpm.socket}", "--ctrl", f"type=unixio,path={tpm.socket}.ctrl"]
    argv = ["socket", "--tpm2", "--tpmstate", f"dir={folder}", *sockets, "--flags", "not-need-init,startup-clear"]
    with subprocess.Popen(tools.argv("swtpm", *argv), env=tools.env, stderr=subprocess.DEVNULL) as process:
        try:
            while not folder.joinpath("tpm.ctrl").exists():
                assert process.poll() is None, "swtpm ended"
                time.sleep(0.01)
            yield tpm
        finally:
            process.terminate()


def compiled(folder, *, log, release):
    """imagekit-attest as a program of this machine, which takes these bytes for the firmware's log and os-release."""
    folder.joinpath("log").write_bytes(log)
    folder.joinpath("release").write_text(release)
    named = [f'-DEVENT_LOG="{folder}/log"', f'-DRELEASE="{folder}/release"']
    compiler = [sys.executable, "-m", "ziglang", "cc", "-std=c99", "-O1", "-Wall", "-Wextra", "-Werror"]
    argv = [*compiler, f"-I{INSIDE}", *named, "-o", folder / "attest", *SOURCES]
    subprocess.run(argv, check=True)
    return folder / "attest"
