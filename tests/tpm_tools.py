"""A software TPM and tpm2-tools: what tests ask when they want to know what a TPM says."""

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from imagekit import toolbox
from imagekit.stores.directory import open_store


class Tpm:
    """A TPM that was started, and tpm2-tools that speak with it in a folder of their own."""

    def __init__(self, folder: Path, tools: toolbox.Tools) -> None:
        self.folder = folder
        self.tools = tools

    def __call__(self, verb: str, *words: str | Path) -> str:
        """What a program of tpm2-tools says; its failure fails the test."""
        done = self.ask(verb, *words)
        assert done.returncode == 0, (verb, words, done.stderr)
        return done.stdout

    def ask(self, verb: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """The same, and it may fail."""
        command = self.tools.argv("tpm2", verb, *words)
        env = {**self.tools.env, "TPM2TOOLS_TCTI": f"swtpm:path={self.folder}/tpm"}
        return subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, check=False)

    def read(self, name: str) -> bytes:
        """A file that one of the programs wrote."""
        return (self.folder / name).read_bytes()


def tpm2_tools() -> toolbox.Tools:
    """tpm2-tools, and a TPM for them."""
    return toolbox.tools("tpm2", "swtpm", mode="tree", store=open_store())


@contextmanager
def new_tpm(folder: Path) -> Iterator[Tpm]:
    """A TPM out of the factory, started; its state is in the folder."""
    tools = tpm2_tools()
    sockets = (f"--server=type=unixio,path={folder}/tpm", f"--ctrl=type=unixio,path={folder}/tpm.ctrl")
    where = ("--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear")
    command = tools.argv("swtpm", "socket", "--tpm2", *where, *sockets)
    process = subprocess.Popen(command, env=tools.env, stderr=subprocess.PIPE)
    try:
        while not _listens(folder / "tpm") and process.poll() is None:
            time.sleep(0.01)
        yield Tpm(folder, tools)
    finally:
        process.kill()
        process.wait()
        if process.stderr:
            process.stderr.close()


def _listens(path: Path) -> bool:
    """The socket is there some time before anybody is behind it."""
    with socket.socket(socket.AF_UNIX) as door:
        return not door.connect_ex(str(path))
