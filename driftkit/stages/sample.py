"""Sampling: from a run to a file or folder of samples."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from driftkit.config.places import EXPANDED
from driftkit.config.sampling_config import SAMPLING, SamplingConfig
from driftkit.config.settings import DEVICE_HELP, Device, Option
from driftkit.errors import UsageError
from driftkit.runtime.signals import StoppedError

if TYPE_CHECKING:  # torch is loaded when images are made, not for --help
    import torch

    from driftkit.storage.records import SampleRecord
    from driftkit.storage.run_folder import Run
    from driftkit.storage.sample_forms import SampleForm

FILES = "Where it goes"
OTHER_THINGS = "expected a new or empty folder, got one with other files; give another"


class SampleConfig(SamplingConfig):
    """Settings of `driftkit sample`. Keys that are no fields are options of the sampler, for example eta."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    num_images: Annotated[int, Option(SAMPLING, ("--num-images", "-n"))] = Field(
        64, ge=1, description="number of images"
    )
    batch_size: Annotated[int, Option(SAMPLING, ("--batch-size", "-b"))] = Field(
        256, ge=1, description="images at a time"
    )
    device: Annotated[Device, Option(SAMPLING)] = Field("auto", description=DEVICE_HELP)
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default="in RUN/samples")] = Field(
        None, description="file, or folder of PNGs; the JSON record and a PNG grid are written next to it"
    )
    format: Annotated[
        Literal["safetensors", "png", "npz", "zip"] | None,
        Option(FILES, default="by the suffix of --output; none: png"),
    ] = Field(
        None,
        description="one safetensors file, a folder of PNGs, an npz with arr_0 [N,H,W,3], or a zip of PNGs",
    )

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        for key, value in (self.model_extra or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{key}: expected a finite number, got {value}")
        return self


@dataclass(frozen=True)
class Samples:
    """What was written, and where."""

    path: Path
    grid: Path
    record: "SampleRecord"
    kept: int  # images that an earlier command had made


def sample(
    path: Path,
    config: SampleConfig,
    *,
    report: Callable[[str, int, int], None] = lambda task, done, total: None,
    notify: Callable[[str], None] = lambda line: None,
) -> Samples:
    """Generate images with the run in a folder, and write them with a JSON record and a PNG grid.

    A sampling that was stopped or killed goes on where it was, where the same is asked of the same output.

    Args:
        report: called with "sampling" or "writing", the number of images just made or written, and their total.
        notify: called with lines that a user should see while it runs.

    Raises:
        UsageError: a sampler, NFE, option, class, guidance scale or output that does not fit, or an output that holds
            something else.
        ArtifactError: the run or its checkpoint is absent or damaged.
        RefusedError: the network gave values that are not finite.
    """
    from driftkit.runtime.device import choose_threads, resolve_device
    from driftkit.storage.files import digest_json
    from driftkit.storage.images import write_samples
    from driftkit.storage.lock import locked_file
    from driftkit.storage.run_folder import Run
    from driftkit.storage.sample_forms import sample_form
    from driftkit.storage.unfinished_samples import UnfinishedSamples
    from driftkit.storage.writable import require_writable
    from driftkit.training.sampling import conditions_of, generate

    form = sample_form(config.output, config.format)
    device = resolve_device(config.device)
    run = Run.open(path)
    labels = conditions_of(run, config).labels(range(config.num_images))
    request = _request(run, config, device)
    folder = run.path / "samples"
    filled = None if form.suffix else config.output
    require_writable(config.output or folder / "samples.safetensors", "`output`", folder=filled is not None)
    if filled is not None and (os.path.islink(filled) or os.path.ismount(filled)):
        raise UsageError(f"`output` {filled} is a link or a mount point; give a new folder in it")
    # What the name of a default output is follows from the images.
    place = config.output or folder / f"{digest_json({**request, 'format': form.name})[:12]}{form.suffix}"
    with locked_file(place):
        unfinished = UnfinishedSamples(place, request)
        # While it writes, a sampling has no record, and what is at its output is its own.
        if config.output is not None and (form.next_to(config.output, ".json").exists() or not unfinished.exists):
            _require_replaceable(config.output, form)
            finished = _finished_folder(config.output, form, request)
            if finished is not None:
                unfinished.finish()
                return Samples(config.output, form.next_to(config.output, ".png"), finished, finished.num_images)
        # Whole batches, so that every image is made among the same others as without the stop.
        first = min(unfinished.count, config.num_images - 1) // config.batch_size * config.batch_size
        if first:
            notify(f"{place}: {first:,} of {config.num_images:,} images are there")
        choose_threads(device)
        report("sampling", first, config.num_images)
        unfinished.begin(first)
        try:
            _, info = generate(
                run,
                config.model_copy(update={"step": request["step"]}),
                num_images=config.num_images - first,
                first_image=first,
                options=config.model_extra,
                batch_size=config.batch_size,
                device=device,
                advance=lambda count: report("sampling", count, config.num_images),
                keep=unfinished.add,
            )
        except StoppedError:
            unfinished.save()
            if unfinished.count:
                kept = f"{unfinished.count:,} of {config.num_images:,} images (weights of step {request['step']})"
                notify(f"{place}: {kept} are kept for the same command")
            raise
        info |= {"num_images": config.num_images, "request": request}
        output = config.output or folder / f"{_label(info, form)}{form.suffix}"
        _require_samples_alone(output, form, config.num_images, labelled=labels is not None)
        try:
            unfinished.mark()
            written = write_samples(
                output, unfinished.images(), info, labels, form=form,
                advance=lambda count: report("writing", count, config.num_images),
            )  # fmt: skip
        except BaseException:
            if not output.exists():
                unfinished.give_up()
            raise
        unfinished.finish()
    return Samples(output, form.next_to(output, ".png"), written.record, first)


def _request(run: "Run", config: SampleConfig, device: "torch.device") -> dict[str, Any]:
    """The settings that decide the images, as JSON data: neither where nor how fast they are made."""
    from driftkit.runtime.device import autocast_dtype
    from driftkit.training.sampling import config_of

    asked = config.model_dump(mode="json", exclude={"batch_size", "device", "output", "format"})
    dtype = autocast_dtype(config.precision or config_of(run).trainer.precision, device)  # auto is the device's
    precision = str(dtype).removeprefix("torch.")
    step = run.checkpoint(config.step).step
    return {**asked, "precision": precision, "step": step, "run id": run.manifest().id}


def _require_replaceable(output: Path, form: "SampleForm") -> None:
    """Refuse, by a UsageError, to write over anything but earlier samples in the same form."""
    from driftkit.storage.records import SampleRecord
    from driftkit.storage.writable import require_replaceable

    record, grid = form.next_to(output, ".json"), form.next_to(output, ".png")
    require_replaceable(output if form.suffix else record, "`output`", "samples")
    if grid.exists() and not record.exists():
        raise UsageError(f"`output` {output}: {grid}, where the grid goes, is no grid of samples; give another name")
    if record.exists() and (other := SampleRecord.read(record).format) != form.name:
        raise UsageError(f"`output` {output}: {record} is of samples as {other}; give another name")


def _finished_folder(output: Path, form: "SampleForm", request: Mapping[str, Any]) -> "SampleRecord | None":
    """The record of a folder that holds just what is asked for; None where a folder may be made, or a file is.

    Raises UsageError where the folder holds other samples: those in a file are replaced, as many files never are.
    """
    from driftkit.storage.records import SampleRecord
    from driftkit.storage.unfinished_samples import differences

    if not _is_filled(output, form):
        return None
    record_path = form.next_to(output, ".json")
    if not record_path.is_file():
        raise UsageError(f"`output` {output}: {OTHER_THINGS}")
    record = SampleRecord.read(record_path)
    _require_samples_alone(output, form, record.num_images, labelled=bool(record.classes))
    if different := differences(record.request, request):
        raise UsageError(f"`output` {output} holds samples of other settings ({different}); give another `output`")
    return record


def _require_samples_alone(output: Path, form: "SampleForm", count: int, *, labelled: bool) -> None:
    """Refuse, by a UsageError, a folder in which there is anything but so many samples."""
    from driftkit.storage.sample_forms import holds_samples

    if _is_filled(output, form) and not holds_samples(output, count, labelled=labelled):
        raise UsageError(f"`output` {output}: {OTHER_THINGS}")


def _is_filled(output: Path, form: "SampleForm") -> bool:
    return not form.suffix and output.is_dir() and any(output.iterdir())


def _label(info: Mapping[str, Any], form: "SampleForm") -> str:
    """Name of samples in the folder of their run, which says how they were made."""
    from driftkit.training.conditions import conditions_file_label

    chosen = "".join(f"-{key}{value}" for key, value in sorted(info["sampler_options"].items()))
    chosen += conditions_file_label(info["asked_classes"], info["guidance"])
    label = f"{info['sampler']}{chosen}-nfe{info['nfe']}-{info['weights']}-step{info['step']}"
    label += f"-seed{info['seed']}-n{info['num_images']}"
    label += "" if info["precision"] == "float32" else f"-{info['precision']}"
    label += "" if form.suffix == ".safetensors" else f"-{form.name}"  # each form has a record of its own
    return re.sub(r"[^A-Za-z0-9.-]+", "-", label)
