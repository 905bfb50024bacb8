"""The short form of the kills: what a killed training and a killed score leave, and that the same command goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHORT = """
import json, sys
from pathlib import Path
from tests.faults.campaign import Campaign
from tests.faults.processes import preload
from tests.faults.targets import TARGETS
preload()
campaign = Campaign(Path("faults"), seed=int(sys.argv[1]))
chosen = [t for t in TARGETS if t.name in ("train ddpm", "data: zip to a pack", "train mae")]
tallies = [campaign.kill(target, 4) for target in chosen]
print(json.dumps([[t.target, t.count, t.ends, t.problems] for t in tallies]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks at processes in /proc")
def test_kills_leave_whole_files_and_the_same_command_comes_to_the_same_end(tmp_path):
    root = str(Path(__file__).parents[2])
    done = subprocess.run(  # a process of its own, since forks must come from one without threads
        [sys.executable, "-c", SHORT, "1"], capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    tallies = json.loads(done.stdout)
    assert [problems for *_, problems in tallies] == [[], [], []]
    assert all(kills == 4 and ends for _, kills, ends, _ in tallies)
