"""The 8-GPU command starts: with the process group of CUDA, agreements of hosts find a backend for CPU tensors."""

import os
import subprocess
import sys
from pathlib import Path

from driftkit.storage.run_folder import Run
from tests.tiny import TINY_DATA, TINY_UNET


def test_training_on_two_ranks_starts_in_the_process_group_of_cuda(tmp_path):
    """In a group of NCCL alone every rank ended before its first step: "No backend type associated with device cpu"."""
    words = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, "--batch-size", "4", "--steps", "2",
             "--set", "trainer.sample_every=0", "--device", "cpu", "--output", str(tmp_path / "run")]  # fmt: skip
    script = Path(__file__).with_name("cuda_group.py")
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), *words]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DRIFTKIT_DATA_DIR": str(tmp_path), "PYTHONPATH": root}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Run.open(tmp_path / "run").manifest().step == 2
