"""What an encoder costs: shapes and memory of the fields, and images per second by input size."""

import time
from collections.abc import Callable, Sequence

import torch

from driftkit.encoders.encoder_union import EncoderUnion
from driftkit.encoders.feature_sets import FeatureSet, FieldCall, field_calls
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.errors import DriftkitError
from driftkit.methods.drifting.precision import WAITS
from driftkit.methods.drifting.workspace import CHUNK_BYTES, field_flops, workspace_bytes
from driftkit.probing.probe_record import EncoderSpeed, FieldCallCost, FieldMemory, MapShape
from driftkit.runtime.device import autocast, peak_memory_gib, reset_peak_memory, synchronize, training_dtype
from driftkit.runtime.progress import Report, no_report

SIZES = (32, 64, 112, 224)
DEFAULT_TAUS = 3
FLOAT_BYTES = 4


def encoder_shapes(encoders: EncoderUnion, *, image_size: int) -> tuple[list[MapShape], list[FieldCall]]:
    """Maps and field calls of one image of `image_size` pixels, found by running the encoders once."""
    images = torch.zeros(1, 3, image_size, image_size, device=encoders.device)
    with torch.inference_mode():
        maps, groups = encoders.maps_and_groups(images)
    shapes = {m.name: m.values.shape for m in maps}
    # Feature sets may add vectors of the image itself, which no map gives.
    shapes |= {g.map: images.shape for g in groups if g.map not in shapes}
    described = [
        MapShape(name, channels, height, width, sum(g.values.shape[0] for g in groups if g.map == name))
        for name, (_, channels, height, width) in shapes.items()
    ]
    return described, field_calls(groups)


def field_call_cost(call: FieldCall, *, batch_size: int) -> FieldCallCost:
    """For `batch_size` generated and as many real images, with the usual number of temperatures."""
    one = field_flops(num_rows=batch_size, num_columns=2 * batch_size, channels=call.channels, num_taus=DEFAULT_TAUS)
    return FieldCallCost(call.channels, call.vectors, call.vectors * one / 1e9)


def field_memory(calls: Sequence[FieldCall], *, batch_size: int) -> FieldMemory:
    """Memory of the batched fields for `batch_size` generated and as many real images, on all ranks together."""
    features = sum(call.vectors * call.channels for call in calls) * 2 * batch_size * FLOAT_BYTES
    chunks = {}
    for device, budget in CHUNK_BYTES.items():
        chunks[device] = 0
        for call in calls:
            one = workspace_bytes(
                num_rows=batch_size,
                num_columns=2 * batch_size,
                channels=call.channels,
                num_taus=DEFAULT_TAUS,
                wait=device in WAITS,
            )
            chunks[device] = max(chunks[device], one * min(call.vectors, max(1, budget // one)))
    return FieldMemory(batch_size, features, chunks)


def measure_encoder_speed(
    load: Callable[[int], FrozenEncoder],
    feature_set: FeatureSet,
    *,
    image_size: int,
    device: torch.device,
    batch_size: int = 8,
    sizes: Sequence[int] = SIZES,
    budget_seconds: float = 10.0,
    report: Report = no_report,
) -> list[EncoderSpeed]:
    """Time the encoder at each input size, smallest first, in the number format that training would choose.

    Args:
        load: input size -> the encoder at that size; raises DriftkitError for a size that does not fit.
        feature_set: part of the cost, as in training.
        image_size: side in pixels of the images, which are resized to the input size.
        sizes: sides in pixels, ascending.
        budget_seconds: a size is skipped if, by the number of pixels, one batch would take longer.
    """
    speeds: list[EncoderSpeed] = []
    last: tuple[int, float] | None = None  # side and seconds of one forward and backward
    report("speed", 0, len(sizes), unit="sizes")
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
        report("speed", 1, len(sizes), unit="sizes")
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
    images = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
    dtype = training_dtype("auto", device)
    encoder.prepare(device, dtype)

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
