"""What an encoder costs per image, by input size: forward for real images, forward and backward for generated ones."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from driftkit.encoders.features import FeatureSet
from driftkit.encoders.networks import FrozenEncoder
from driftkit.errors import DriftkitError
from driftkit.runtime.device import autocast, autocast_dtype, peak_memory_gib, reset_peak_memory, synchronize

SIZES = (32, 64, 112, 224)


@dataclass(frozen=True)
class EncoderSpeed:
    """At one input size; the numbers are None where `skipped` says why.

    Attributes:
        forward_per_s, forward_backward_per_s: images per second.
        peak_gib: most memory of the process (CPU) or of the allocator (CUDA) at `batch_size` images.
    """

    input_size: int
    batch_size: int
    forward_per_s: float | None = None
    forward_backward_per_s: float | None = None
    peak_gib: float | None = None
    skipped: str | None = None


def measure_encoder_speed(
    load: Callable[[int], FrozenEncoder],
    feature_set: FeatureSet,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int = 8,
    sizes: Sequence[int] = SIZES,
    budget_seconds: float = 10.0,
    report: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[EncoderSpeed]:
    """Time the encoder at each input size, smallest first, in the number format that training would choose.

    Args:
        load: input size -> the encoder at that size; raises DriftkitError for a size that does not fit.
        feature_set: part of the cost, as in training.
        image_size: side in pixels of the images, which are resized to the input size.
        device: where it runs.
        batch_size: images at a time.
        sizes: sides in pixels, ascending.
        budget_seconds: a size is skipped if, by the number of pixels, one batch would take longer.
        report: progress.
    """
    speeds: list[EncoderSpeed] = []
    last: tuple[int, float] | None = None  # side and seconds of one forward and backward
    for size in sizes:
        expected = last[1] * (size / last[0]) ** 2 if last else 0.0
        if expected > budget_seconds:
            why = f"about {expected:.0f} s for {batch_size} images, more than {budget_seconds:g} s"
            speeds.append(EncoderSpeed(size, batch_size, skipped=why))
        else:
            try:
                encoder = load(size)
            except DriftkitError as error:
                speeds.append(EncoderSpeed(size, batch_size, skipped=f"does not fit: {error}"))
            else:
                speeds.append(_time(encoder, feature_set, size, image_size, device, batch_size, budget_seconds))
                last = (size, batch_size / (speeds[-1].forward_backward_per_s or 1.0))
        report("speed", 1, len(sizes))
    return speeds


def _time(
    encoder: FrozenEncoder,
    feature_set: FeatureSet,
    size: int,
    image_size: int,
    device: torch.device,
    batch_size: int,
    budget_seconds: float,
) -> EncoderSpeed:
    images = torch.rand(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0)).to(device)
    images = images * 2 - 1

    images = images.contiguous(memory_format=torch.channels_last)
    dtype = autocast_dtype("auto", device)

    def forward() -> None:
        with torch.inference_mode(), autocast(device, dtype):
            feature_set(encoder.maps(images), images)

    def both() -> None:
        inputs = images.clone().requires_grad_(True)
        with autocast(device, dtype):
            groups = feature_set(encoder.maps(inputs), inputs)
        torch.autograd.grad(torch.stack([group.values.float().mean() for group in groups]).sum(), inputs)

    reset_peak_memory(device)
    backward_seconds = _fastest(both, device, budget_seconds)
    peak = peak_memory_gib(device)
    return EncoderSpeed(
        input_size=size,
        batch_size=batch_size,
        forward_per_s=batch_size / _fastest(forward, device, budget_seconds / 2),
        forward_backward_per_s=batch_size / backward_seconds,
        peak_gib=peak,
    )


def _fastest(work: Callable[[], None], device: torch.device, budget_seconds: float) -> float:
    """Seconds of the fastest of up to three runs, as many as fit the budget; the first one only warms up if it can."""
    times: list[float] = []
    while len(times) < 4 and (not times or sum(times) + times[-1] < budget_seconds):
        synchronize(device)
        started = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - started)
    return max(min(times), 1e-9)
