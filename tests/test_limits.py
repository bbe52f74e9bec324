"""Control groups of `imagekit run`, where version 2 has them; test_run.py has the rest."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_rig import IS_ROOT

V2 = """
import sys
from pathlib import Path
from imagekit import limits
limit = limits.Limit("--huge", controller="hugetlb", files={2: [("hugetlb.2MB.max", "4194304")], 1: []}, weaker="")
group = limits._group(limit)
limits._watch([group])
limits._put(f"{group}/cgroup.procs", "0")
print(group, Path(group, "hugetlb.2MB.max").read_text().strip(), Path("/proc/self/cgroup").read_text().splitlines()[-1])
"""


def test_groups_of_version_2_are_made_and_removed():
    """By a controller that is no version 1's here, whichever those of memory and processors are."""
    roots = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup2 " in line]
    control = Path(roots[0], "cgroup.subtree_control") if roots else Path("/nowhere")
    if not IS_ROOT or not roots or "hugetlb" not in (control.parent / "cgroup.controllers").read_text():
        pytest.skip("no control group of version 2 can be made here")
    before = control.read_text().split()
    done = subprocess.run([sys.executable, "-c", V2], check=False, capture_output=True, text=True)
    if "hugetlb" not in before:
        control.write_text("-hugetlb" if gone(done.stdout.split(" ")[0]) else "")
    group, most, own = done.stdout.strip().split(" ")
    assert (most, own) == ("4194304", f"0::{group.removeprefix(roots[0])}"), done.stderr


def gone(group: str) -> bool:
    """Wait until what removes a group has done so."""
    deadline = time.monotonic() + 300
    while Path(group).is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return True
