"""From a run to images: its network, and the images that a sampler draws with it. Nothing is written here."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from driftkit.config.layers import first_problem
from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.autoencoder import Autoencoder
from driftkit.errors import ArtifactError, RefusedError, UsageError
from driftkit.methods.registry import build_sampler
from driftkit.models.registry import build_network, build_with, to_device
from driftkit.protocols import Condition, Network, Sampler, SampleRequest
from driftkit.runtime.device import autocast_dtype, sampling_precision
from driftkit.runtime.memory import fitting_batch
from driftkit.runtime.progress import phase
from driftkit.runtime.random import image_noise
from driftkit.runtime.readback import require_finite
from driftkit.storage.images import to_uint8
from driftkit.storage.run_folder import Checkpoint, Run
from driftkit.training.conditions import SampleConditions, sample_conditions
from driftkit.training.latents import open_autoencoder
from driftkit.training.train_config import TrainConfig, load_config

SAMPLE_BATCH = 256


def load_network(
    run: Run, *, weights: str = "ema", step: int | None = None
) -> tuple[nn.Module, TrainConfig, Checkpoint]:
    """The trained network of a run in evaluation mode, its config and the checkpoint it came from.

    Raises ArtifactError where one of them is absent or not readable, RefusedError where weights are not finite.
    """
    config = config_of(run)
    image_size = _sample_shape(config, run)[-1]
    tensors, checkpoint = run.weights(weights, step)
    network = build_with(
        lambda: build_network(config.model, image_size=image_size),
        tensors,
        name=f"{checkpoint.path}: weights {weights}",
    )
    require_finite(
        network.state_dict(),
        f"{checkpoint.path}: {weights} weights",
        fix="take an earlier checkpoint by `step`, or train again",
    )
    network.requires_grad_(False)
    return network.eval(), config, checkpoint


def config_of(run: Run) -> TrainConfig:
    """The config of a run; ArtifactError where it is none of this version."""
    try:
        return load_config(run.manifest().config)
    except ValidationError as error:
        raise ArtifactError(
            f"{run.manifest_path}: config key {first_problem(error)}; "
            "the run is of another version of driftkit, or was edited"
        ) from None
    except UsageError as error:
        raise ArtifactError(f"{run.manifest_path}: {error}") from None


def conditions_of(run: Run, sampling: SamplingConfig) -> SampleConditions:
    """What samples of a run are conditioned on. UsageError: classes, a scale or an NFE that do not fit the run."""
    config = config_of(run)
    conditions = sample_conditions(
        config.objective, config.model, run.manifest().classes, classes=sampling.classes, guidance=sampling.guidance
    )
    if conditions.guides_sampler:
        require_even(sampling.nfe)
    return conditions


def _sample_shape(config: TrainConfig, run: Run) -> tuple[int, int, int]:
    """[C, H, W] of what the run's network generates."""
    if config.data.image_size is None:
        return 3, run.image_size, run.image_size  # or its error, which names the manifest
    return config.data.sample_shape


def generate(
    run: Run,
    sampling: SamplingConfig,
    *,
    num_images: int,
    first_image: int = 0,
    options: dict[str, Any] | None = None,
    batch_size: int = SAMPLE_BATCH,
    device: torch.device | None = None,
    advance: Callable[[int], None] | None = None,
    keep: Callable[[torch.Tensor], None] | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Images of a run, uint8 [N, 3, H, W], and the record of how they were made, which `write_samples` stores.

    Image i is a function of (seed, i) alone: neither its batch nor the count changes it beyond float rounding. So is
    its label, which `conditions_of(...).labels` gives.

    Args:
        first_image: number of the first one.
        options: further options of the sampler, for example eta.
        advance: called with the number of images just made; within a batch by the evaluations made.
        keep: called with the images of every batch, of which then only the last are returned.

    Raises:
        UsageError: a sampler, NFE, option, class or guidance scale that does not fit the run.
        RefusedError: the network gave values that are not finite.
        ResourceError: memory ran out; the message names a batch that fits.
    """
    if num_images < 1:
        raise UsageError(f"`num_images` {num_images}: expected at least 1")
    device = device or torch.device("cpu")
    with phase(f"loading {run.path}"):
        network, config, checkpoint = load_network(run, weights=sampling.weights, step=sampling.step)
    manifest = run.manifest()
    conditions = sample_conditions(
        config.objective, config.model, manifest.classes, classes=sampling.classes, guidance=sampling.guidance
    )
    drawn = draw_images(
        to_device(network, config.model, device),
        config,
        range(first_image, first_image + num_images),
        sampling,
        conditions=conditions,
        options=options,
        batch_size=batch_size,
        device=device,
        autoencoder=open_autoencoder(config, device, run=run),
        advance=advance,
        keep=keep,
        source=f"{run.path} at step {checkpoint.step}",
    )
    info = {
        "num_images": num_images,
        "image_size": drawn.images.shape[-1],
        "method": config.objective.name,
        "encoder": (manifest.encoder or {}).get("name"),
        "sampler": drawn.sampler,
        "nfe": drawn.nfe,
        "sampler_options": drawn.options,
        "classes": conditions.names,
        "asked_classes": conditions.asked_classes,
        "guidance": conditions.guidance,
        "seed": sampling.seed,
        "weights": run.kept_name(sampling.weights),
        "step": checkpoint.step,
        "run": str(run.path),
        "data": config.data.spec,
        "precision": drawn.precision,
    }
    return drawn.images, info


class CountedNetwork(nn.Module):
    """A network that reports the progress of sampling by counting its evaluations.

    `advance` is called with whole images, `images` in all: one is done when the network was evaluated `evaluations`
    times for it, or as much as that for parts of several.
    """

    def __init__(self, network: nn.Module, images: int, evaluations: int, advance: Callable[[int], None]):
        super().__init__()
        self.network, self.images, self.evaluations, self.advance = network, images, evaluations, advance
        self.rows = self.reported = 0

    def forward(self, x: torch.Tensor, *inputs: Any, **options: Any) -> torch.Tensor:
        prediction: torch.Tensor = self.network(x, *inputs, **options)
        self.rows += len(x)
        self.report(min(self.images, self.rows // self.evaluations))
        return prediction

    def report(self, done: int) -> None:
        """So many of the images are done."""
        if done > self.reported:
            self.advance(done - self.reported)
            self.reported = done


@dataclass(frozen=True)
class Drawn:
    """Images of a network, and how they were drawn."""

    images: torch.Tensor  # uint8 [N, 3, H, W]
    sampler: str
    nfe: int
    options: dict[str, Any]
    precision: str


def draw_images(
    network: nn.Module,
    config: TrainConfig,
    numbers: range,
    sampling: SamplingConfig,
    *,
    conditions: SampleConditions,
    options: dict[str, Any] | None = None,
    batch_size: int = SAMPLE_BATCH,
    device: torch.device,
    autoencoder: Autoencoder | None = None,
    advance: Callable[[int], None] | None = None,
    keep: Callable[[torch.Tensor], None] | None = None,
    source: str = "the network",
) -> Drawn:
    """Images of a network in evaluation mode on the device; the other arguments and the errors are those of `generate`.

    Args:
        numbers: of the images, which with the seed decide them.
        sampling: its sampler, NFE, seed and precision; the network has its weights, and `conditions` the rest.
        conditions: what the images are conditioned on.
        autoencoder: decodes what a network of latents generates.
        source: how an error names the network.
    """
    seed, nfe = sampling.seed, sampling.nfe
    spec, draw = build_sampler(config.objective, sampling.sampler)
    evaluated: Network = network
    steps = nfe
    if conditions.guides_sampler:
        assert conditions.guidance is not None
        steps, draw = halved(nfe), guided_sampler(draw, conditions.guidance)
        evaluated = guided_prediction(network, conditions.guidance)
    known = {} if autoencoder is None else spec.latent_options
    recorded = spec.recorded_options(config.objective, steps, {**known, **(options or {})})
    shape = config.data.sample_shape
    dtype = autocast_dtype(sampling.precision or config.trainer.precision, device)
    images: list[torch.Tensor] = []
    used_nfe = 0
    expected_nfe = nfe or spec.default_nfe(config.objective) * (2 if conditions.guides_sampler else 1)
    counted = CountedNetwork(network, len(numbers), expected_nfe, advance or (lambda count: None))
    counted.advance(0)
    for first in range(0, len(numbers), batch_size):
        indices = numbers[first : first + batch_size]
        noise = image_noise(seed, "sample", indices, shape).to(device)

        def step_noise(number: int, indices: range = indices) -> torch.Tensor:
            return image_noise(seed, "sampler", indices, shape, step=number).to(device)

        condition = conditions.of(indices, seed=seed, stream="sample", device=device)
        request = SampleRequest(nfe, step_noise, recorded, condition)
        once = partial(_evaluate, evaluated, noise, condition, device=device, dtype=dtype)
        explained = fitting_batch("sampling", len(indices), once, device=device)
        with explained, torch.inference_mode(), sampling_precision(device, dtype):
            batch, used_nfe = draw(counted, noise, request)
            if autoencoder is not None:
                batch = autoencoder.to_images(batch)
        if not bool(torch.isfinite(batch).all()):
            raise RefusedError(f"{source} gives images that are not finite; nothing was written")
        if keep:
            images.clear()
        images.append(to_uint8(batch).cpu())
        if keep:
            keep(images[-1])
        counted.report(first + len(indices))
    return Drawn(torch.cat(images), spec.name, used_nfe, recorded, str(dtype).removeprefix("torch."))


def _evaluate(
    network: Network,
    noise: torch.Tensor,
    condition: Condition,
    count: int,
    *,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """One evaluation of the network for the first `count` images, which is most of the memory that sampling takes."""
    t = torch.zeros(count, dtype=torch.long, device=device)
    with torch.inference_mode(), sampling_precision(device, dtype):
        network(noise[:count], t, condition.part(slice(count)))


def guided_prediction(network: Network, scale: float) -> Network:
    """A class-conditional network with classifier-free guidance: without class + scale (with class - without class).

    Both halves are one evaluation of a doubled batch. Predictions are float32.

    Source: Ho and Salimans 2022 (arXiv 2207.12598), Eq. (6). Differs: the scale is the paper's w + 1, so that 1 is no
    guidance, after Imagen (arXiv 2205.11487), Eq. (2).
    """

    def predict(x: torch.Tensor, t: torch.Tensor, condition: Condition) -> torch.Tensor:
        assert condition.labels is not None, "only class-conditional networks are guided by their sampler"
        both = Condition(*(None if part is None else torch.cat([part, part]) for part in condition))
        both = both._replace(labels=torch.cat([condition.labels, torch.full_like(condition.labels, -1)]))
        prediction = network(torch.cat([x, x]), torch.cat([t, t]), both).float()
        with_class, without_class = prediction.chunk(2)
        return without_class + scale * (with_class - without_class)

    return predict


def guided_sampler(sampler: Sampler, scale: float) -> Sampler:
    """The sampler with `guided_prediction`: each of its steps counts two evaluations, so it makes half as many.

    UsageError where the request's NFE is odd; without one the sampler keeps the number of its steps.
    """

    def draw(network: Network, noise: torch.Tensor, request: SampleRequest) -> tuple[torch.Tensor, int]:
        steps = halved(request.nfe)
        try:
            images, made = sampler(guided_prediction(network, scale), noise, replace(request, nfe=steps))
        except UsageError as error:
            if steps is None:
                raise
            raise UsageError(
                f"`nfe` {request.nfe}: with `guidance` every step counts two evaluations, which makes {steps} steps; "
                f"{error}"
            ) from None
        return images, 2 * made

    return draw


def halved(nfe: int | None) -> int | None:
    """Evaluations with class of a guided sampler's NFE."""
    require_even(nfe)
    return None if nfe is None else nfe // 2


def require_even(nfe: int | None) -> None:
    """Refuse an NFE that a guided sampler cannot spend."""
    if nfe is not None and nfe % 2:
        raise UsageError(
            f"`nfe` {nfe}: with `guidance` every step counts two evaluations, so it must be even; take {nfe + 1}"
        )
