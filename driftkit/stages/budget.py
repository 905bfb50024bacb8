"""What a training step will cost, on paper: bytes gathered, multiplications, memory and time, from shapes alone."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from driftkit.drift.field import CHUNK_BYTES, workspace_bytes
from driftkit.encoders.features import FieldCall, feature_set, field_calls
from driftkit.encoders.loading import load_encoder, native_image_size
from driftkit.encoders.networks import FrozenEncoder
from driftkit.encoders.specs import SPECS, TIMM_PREFIX
from driftkit.errors import UsageError
from driftkit.nn.unet import UNetConfig
from driftkit.objectives.drifting import DriftingConfig
from driftkit.objectives.mae import MAEConfig
from driftkit.objectives.registry import build_network
from driftkit.stages.config import TrainConfig

ASSUMED_IMAGE_SIZE = 32
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Machine:
    """What times are expected of. The defaults are the data sheet of an H100 SXM, and shares of it that we assume.

    Attributes:
        network_flops: peak of bfloat16 products, per second; `network_share` of it is expected of the networks.
        field_flops: peak of float32 products, per second; `field_share` of it is expected of the field.
        memory_bytes: bandwidth of the GPU's memory, per second.
        near_bytes, far_bytes: what a GPU receives per second within a machine (NVLink) and between machines (400 Gb/s).
        per_machine: GPUs of one machine.
    """

    name: str = "H100 SXM"
    network_flops: float = 989e12
    network_share: float = 0.3
    field_flops: float = 67e12
    field_share: float = 0.6
    memory_bytes: float = 3.35e12
    near_bytes: float = 450e9
    far_bytes: float = 50e9
    per_machine: int = 8


@dataclass(frozen=True)
class Shapes:
    """What one image costs, whatever the batch.

    Attributes:
        calls: (vectors, channels) of every batched field; none but for drifting.
        num_taus: temperatures.
        encoder_flops: one forward of the frozen encoder.
        network_flops: one forward of the trained network.
        passes: forwards' worth of the trained network per step; a backward counts two.
        encoder_passes: the same of the encoder, whose weights get no gradient: a backward counts one.
        parameters, encoder_parameters: how many there are.
    """

    calls: tuple[tuple[int, int], ...]
    num_taus: int
    encoder_flops: int
    network_flops: int
    passes: int
    encoder_passes: int
    parameters: int
    encoder_parameters: int


@dataclass(frozen=True)
class Budget:
    """One training step of one rank. Bytes and operations are counts; seconds rest on the assumptions of `Machine`."""

    ranks: int
    images_per_rank: int
    gathered_bytes: int  # features that arrive from other ranks
    gradient_bytes: int  # that arrive in the ring that averages gradients
    field_flops: int
    encoder_flops: int
    network_flops: int
    feature_bytes: int  # gathered float32 features: of the largest field, and of the next, on its way
    field_bytes: int  # workspace and V of the largest field
    state_bytes: int  # float32 weights, gradients, two moments, EMA; weights of the encoder
    seconds: float


def field_flops(calls: tuple[tuple[int, int], ...], *, rows: int, columns: int, num_taus: int) -> int:
    """Operations of the field's products: one of all pairs, and one per temperature, for `rows` of x on this rank."""
    return sum(2 * vectors * rows * columns * channels * (1 + num_taus) for vectors, channels in calls)


def gathered_bytes(calls: tuple[tuple[int, int], ...], *, rows: int, ranks: int) -> int:
    """Float32 features, generated and real, that a rank receives from the others."""
    return sum(2 * (ranks - 1) * rows * vectors * channels * FLOAT_BYTES for vectors, channels in calls)


def budget(shapes: Shapes, *, images: int, ranks: int, machine: Machine | None = None, device: str = "cuda") -> Budget:
    """The cost of one step of a rank.

    Args:
        images: of all ranks together.
        ranks: how many share them.
        machine: what the time is expected of; None: the defaults.
        device: "cpu" or "cuda", for the workspace of the field.

    Raises:
        UsageError: the ranks cannot share the images evenly.
    """
    if images % ranks:
        raise UsageError(f"{images} images cannot be shared evenly by {ranks} ranks")
    machine = machine or Machine()
    rows, columns = images // ranks, 2 * images
    flops = field_flops(shapes.calls, rows=rows, columns=columns, num_taus=shapes.num_taus)
    gathered = gathered_bytes(shapes.calls, rows=rows, ranks=ranks)
    gradients = int(2 * (ranks - 1) / ranks * shapes.parameters * FLOAT_BYTES)
    encoder = rows * shapes.encoder_passes * shapes.encoder_flops
    network = rows * shapes.passes * shapes.network_flops
    features = sorted((vectors * columns * channels * FLOAT_BYTES for vectors, channels in shapes.calls), reverse=True)
    arriving = machine.near_bytes if ranks <= machine.per_machine else machine.far_bytes
    # The field walks its matrices about 23 times, from and to memory where they exceed the caches.
    walked = sum(23 * vectors * rows * columns * FLOAT_BYTES for vectors, _ in shapes.calls)
    seconds = (
        (encoder + network) / (machine.network_flops * machine.network_share)
        + flops / (machine.field_flops * machine.field_share)
        + walked / machine.memory_bytes
        + (gathered + gradients) / arriving
    )
    return Budget(
        ranks=ranks,
        images_per_rank=rows,
        gathered_bytes=gathered,
        gradient_bytes=gradients,
        field_flops=flops,
        encoder_flops=encoder,
        network_flops=network,
        feature_bytes=sum(features[:2]),
        field_bytes=max((_field_bytes(c, rows, columns, shapes.num_taus, device) for c in shapes.calls), default=0),
        state_bytes=FLOAT_BYTES * (5 * shapes.parameters + shapes.encoder_parameters),
        seconds=seconds,
    )


def _field_bytes(call: tuple[int, int], rows: int, columns: int, num_taus: int, device: str) -> int:
    vectors, channels = call
    one = workspace_bytes(num_rows=rows, num_columns=columns, channels=channels, num_taus=num_taus)
    workspace = one * max(1, min(vectors, CHUNK_BYTES[device] // one))
    return workspace + vectors * rows * channels * FLOAT_BYTES


def training_shapes(config: TrainConfig) -> tuple[Shapes, list[str]]:
    """What an image of this run costs, counted on networks without memory, and what had to be assumed.

    Raises:
        MissingError: the encoder is a run that is not there yet.
        UsageError: the config names no such encoder.
    """
    assumed = []
    size = config.data.image_size
    if size is None:
        size = ASSUMED_IMAGE_SIZE
        assumed.append(f"images of {size} pixels (data.image_size says)")
    with torch.device("meta"):
        network = build_network(_with_head(config), image_size=size)
    images = torch.zeros(1, 3, size, size, device="meta")
    times = torch.zeros(1, dtype=torch.long, device="meta")
    forward = (images, times) if isinstance(config.model, UNetConfig) else (images,)
    flops, parameters = _flops(network, *forward), sum(p.numel() for p in network.parameters())
    objective, chunked = config.objective, config.trainer.micro_batch is not None
    if not isinstance(objective, DriftingConfig):
        twice = isinstance(objective, MAEConfig) and objective.finetune_from >= 0
        return Shapes((), 0, 0, flops, 6 if twice else 3, 0, parameters, 0), assumed
    encoder = _encoder(objective, size)
    groups = feature_set(objective.feature_set or encoder.feature_set)(encoder.maps(images), images)
    calls: list[FieldCall] = field_calls(groups)
    passes = 2 + (0 if objective.cache_features else 1)  # generated forward and backward, real forward
    return Shapes(
        calls=tuple((call.vectors, call.channels) for call in calls),
        num_taus=len(objective.taus),
        encoder_flops=_flops(encoder.maps, images),
        network_flops=flops,
        passes=3 + chunked,
        encoder_passes=passes + chunked,
        parameters=parameters,
        encoder_parameters=encoder.num_parameters,
    ), assumed


def _with_head(config: TrainConfig) -> Any:
    """The model section; a classifier whose classes only the images tell has one."""
    missing = not isinstance(config.model, UNetConfig) and config.model.num_classes is None
    return config.model.model_copy(update={"num_classes": 1}) if missing else config.model


def _encoder(objective: DriftingConfig, image_size: int) -> FrozenEncoder:
    return load_encoder(
        objective.encoder,
        image_size=native_image_size(objective.encoder) or image_size,
        input_size=objective.input_size,
        random_weights=_published(objective.encoder),
        taps=objective.taps,
        device="meta",
    )


def _published(name: str) -> bool:
    """Whether weights would have to be fetched, of which only the shapes matter here."""
    return name in SPECS or name.startswith(TIMM_PREFIX)


def _flops(function: nn.Module | Any, *arguments: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*arguments)
    return int(counter.get_total_flops())


def training_budget(config: TrainConfig, *, ranks: int) -> dict[str, Any]:
    """The budget of a run: as it is started, and the same batch on 1, 8 and 64 GPUs where they share it evenly.

    Returns:
        `assumed`: sentences; `machine`: what times rest on; `shapes`; `steps`: budgets, the run's own first.
    """
    shapes, assumed = training_shapes(config)
    images = config.trainer.batch_size * ranks
    counts = [ranks, *(count for count in (1, 8, 64) if count != ranks and images % count == 0)]
    return {
        "images": images,
        "assumed": assumed,
        "machine": asdict(Machine()),
        "shapes": asdict(shapes),
        "steps": [asdict(budget(shapes, images=images, ranks=count)) for count in counts],
    }
