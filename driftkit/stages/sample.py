"""Sampling: from a run to a samples file."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field

from driftkit.config.places import EXPANDED
from driftkit.config.sampling_config import SAMPLING, SamplingConfig
from driftkit.config.settings import Option
from driftkit.errors import UsageError

if TYPE_CHECKING:  # torch is loaded when images are made, not for --help
    from driftkit.storage.images import SampleSet

FILES = "Where it goes"


class SampleConfig(SamplingConfig):
    """Settings of `driftkit sample`. Keys that are no fields are options of the sampler, for example eta."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    num_images: Annotated[int, Option(SAMPLING, ("--num-images", "-n"))] = Field(
        64, ge=1, description="number of images"
    )
    batch_size: Annotated[int, Option(SAMPLING, ("--batch-size", "-b"))] = Field(
        256, ge=1, description="images at a time"
    )
    device: Annotated[str, Option(SAMPLING)] = Field("auto", description="auto, cpu or cuda")
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default="in RUN/samples")] = Field(
        None, description="safetensors file; JSON and PNG go next to it"
    )


def sample(
    path: Path, config: SampleConfig, *, report: Callable[[str, int, int], None] = lambda task, done, total: None
) -> "SampleSet":
    """Generate images with the run in a folder, and write them: safetensors, JSON record and PNG grid.

    Args:
        report: called with "sampling", the number of images just made, and their total.

    Raises:
        UsageError: a sampler, NFE, option, class, guidance scale or output that does not fit.
        ArtifactError: the run or its checkpoint is absent or damaged.
        RefusedError: the network gave values that are not finite.
    """
    from driftkit.runtime.device import resolve_device
    from driftkit.storage.images import write_samples
    from driftkit.storage.run_folder import Run
    from driftkit.storage.writable import require_replaceable, require_writable
    from driftkit.training.conditions import conditions_file_label
    from driftkit.training.sampling import conditions_of, generate

    if config.output is not None and config.output.suffix != ".safetensors":
        raise UsageError(f"`output` {config.output}: expected a name that ends in .safetensors")
    device = resolve_device(config.device)
    run = Run.open(path)
    require_writable(config.output or run.path / "samples" / "samples.safetensors", "`output`")
    if config.output is not None:
        require_replaceable(config.output, "`output`", "samples")
    asked: dict[str, Any] = {"classes": config.classes, "guidance": config.guidance}
    labels = conditions_of(run, nfe=config.nfe, **asked).labels(range(config.num_images))
    images, info = generate(
        run,
        num_images=config.num_images,
        sampler=config.sampler,
        nfe=config.nfe,
        **asked,
        seed=config.seed,
        weights=config.weights,
        step=config.step,
        options=config.model_extra,
        precision=config.precision,
        batch_size=config.batch_size,
        device=device,
        advance=lambda count: report("sampling", count, config.num_images),
    )
    output = config.output
    if output is None:
        chosen = "".join(f"-{key}{value}" for key, value in sorted(info["sampler_options"].items()))
        chosen += conditions_file_label(info["asked_classes"], info["guidance"])
        label = f"{info['sampler']}{chosen}-nfe{info['nfe']}-{info['weights']}-step{info['step']}"
        label += f"-seed{info['seed']}-n{len(images)}"
        label += "" if info["precision"] == "float32" else f"-{info['precision']}"
        output = run.path / "samples" / f"{re.sub(r'[^A-Za-z0-9.-]+', '-', label)}.safetensors"
    return write_samples(output, images, info, labels)
