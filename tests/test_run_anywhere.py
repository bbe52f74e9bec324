"""README's way from a definition to one file that runs anywhere, as a newcomer types it."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent
FIRST, LAST = "imagekit build images/web.py --arch x86_64 --format tar", "imagekit unit systemd"
MORE = {
    "run": ["--", "/usr/sbin/nginx", "-v"],  # nginx as the image starts it takes port 80, which may be somebody's
    "unit": ["--at", "/srv/web.tar.gz"],  # services have a /tmp of their own, and this is below /tmp
}


def commands() -> list[list[str]]:
    """The commands of README's block, from the build to the unit."""
    lines = re.findall(r"^    (imagekit .*?)(?:  +#.*)?$", (HOME / "README.md").read_text(), re.MULTILINE)
    begin = next(number for number, line in enumerate(lines) if line.startswith(FIRST))
    end = next(number for number, line in enumerate(lines) if line.startswith(LAST))
    return [shlex.split(line, comments=True) for line in lines[begin : end + 1]]


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="README builds for x86_64, and this machine runs it")
def test_what_readme_says_leads_to_a_program_that_runs_anywhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("web.py", "web.lock"):
        shutil.copy(HOME / "images" / name, tmp_path / "images" / name)
    shutil.copytree(HOME / "images/web", tmp_path / "images/web")
    unkeyed = {name: value for name, value in os.environ.items() if name != "IMAGEKIT_KEY"}
    env = {**unkeyed, "PYTHONPATH": str(HOME), "XDG_CONFIG_HOME": str(tmp_path / "config")}

    def typed(words: list[str]) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "imagekit.cli", *words[1:]] if words[0] == "imagekit" else words
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    typed(["imagekit", "key", "new"])
    verbs = []
    for words in commands():
        verbs.append(words[1])
        done = typed([*words, *MORE.get(words[1], [])])
        assert ("nginx version:" in done.stderr) == (words[1] == "run")
    assert verbs == ["build", "sign", "run", "bundle", "unit"]
    assert "nginx version:" in typed(["./web", "--bundle-exec", *MORE["run"][1:]]).stderr
    assert "/srv/web.tar.gz" in "".join(path.read_text() for path in (tmp_path / "units").glob("*.service"))
