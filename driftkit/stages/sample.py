"""Sampling: from a run to a samples file."""

import re
from pathlib import Path
from typing import Any

from driftkit.storage.images import SampleSet, write_samples
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import generate


def sample(run: Run, output: Path | None, **request: Any) -> SampleSet:
    """Generate and write a sample set; the arguments after `output` are those of `generate`."""
    images, info = generate(run, **request)
    if output is None:
        chosen = "".join(f"-{key}{value}" for key, value in sorted(info["sampler_options"].items()))
        label = f"{info['sampler']}{chosen}-nfe{info['nfe']}-{info['weights']}-step{info['step']}"
        label += f"-seed{info['seed']}-n{len(images)}"
        label += "" if info["precision"] == "float32" else f"-{info['precision']}"
        output = run.path / "samples" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', label)}.safetensors"
    return write_samples(output, images, info)
