"""What a training step will cost, on paper: bytes gathered, multiplications and memory, from shapes alone."""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from driftkit.encoders.features import feature_set, field_calls
from driftkit.encoders.loading import load_encoder, native_image_size
from driftkit.encoders.networks import FrozenEncoder
from driftkit.encoders.specs import SPECS, TIMM_PREFIX
from driftkit.errors import UsageError
from driftkit.methods.classifier.objective import ClassifierConfig
from driftkit.methods.drifting.affinity import Affinity
from driftkit.methods.drifting.objective import DriftingConfig
from driftkit.methods.drifting.precision import MAX_SHARPNESS, WAITS
from driftkit.methods.drifting.workspace import CHUNK_BYTES, KEPT_CHUNKS, field_flops, workspace_bytes
from driftkit.methods.mae.objective import NEVER, MAEConfig
from driftkit.methods.registry import build_network
from driftkit.models.unet import UNetConfig
from driftkit.runtime.memory import gib
from driftkit.training.kept_tensors import Forward, kept_bytes
from driftkit.training.train_config import TrainConfig

ASSUMED_IMAGE_SIZE = 32
FLOAT_BYTES = 4
CARDS_GIB = (24, 40, 80)  # memory of common GPUs
# Of a card, what a step may take on paper: workspaces of convolutions, gradients of activations and what the allocator
# loses are not counted.
CARD_SHARE = 0.8
LOG_MATRICES = 2  # of pairs, beside the workspace, at temperatures whose kernel would underflow


@dataclass(frozen=True)
class Shapes:
    """What one image costs, whatever the batch.

    Attributes:
        calls: (vectors, channels) of every batched field; none but for drifting.
        field: how they are computed; None but for drifting.
        network_flops: one forward of the trained network, of all that it does in a step; a backward counts two.
        encoder_flops: one forward of the frozen encoder. Its weights get no gradient: a backward counts one.
        real_encoded: whether real images go through the encoder, too.
        parameters: of the trained network.
        encoder_bytes: of the encoder's weights.
        saved_bytes: what the networks keep for the backward pass under autocast of `dtype` on `device`.
        dtype: float32 or bfloat16.
        device: "cpu" or "cuda".
        micro_batch: images that the networks see at a time; None: all.
    """

    calls: tuple[tuple[int, int], ...]
    field: "FieldShape | None"
    network_flops: int
    encoder_flops: int
    real_encoded: bool
    parameters: int
    encoder_bytes: int
    saved_bytes: int
    dtype: str
    device: str
    micro_batch: int | None


@dataclass(frozen=True)
class FieldShape:
    """How fields are computed.

    Attributes:
        num_taus: temperatures.
        shared: whether fields share their scales, so that V of all of them waits for the last.
        wide: whether temperatures are so small that it takes float64.
        chunk_bytes: size of the workspace; None: that of the device.
    """

    num_taus: int = 3
    shared: bool = False
    wide: bool = False
    chunk_bytes: int | None = None


@dataclass(frozen=True)
class Budget:
    """One training step of one rank, in bytes and operations."""

    ranks: int
    images_per_rank: int
    gathered_bytes: int  # features that arrive from other ranks
    gradient_bytes: int  # that arrive in the ring that averages gradients
    field_flops: int
    encoder_flops: int
    network_flops: int
    state_bytes: int  # float32 weights, gradients, two moments, EMA; weights of the encoder; on a CPU checkpoints' copy
    saved_bytes: int  # what the networks keep for the backward pass of the images they see at a time
    feature_bytes: int  # gathered float32 features: of the largest field, and of the next, on its way
    field_bytes: int  # workspace and V of the largest field
    memory_bytes: int  # of all these: features and V go on living while networks run backwards


def gathered_bytes(calls: tuple[tuple[int, int], ...], *, rows: int, ranks: int) -> int:
    """Float32 features, generated and real, that a rank receives from the others."""
    return sum(2 * (ranks - 1) * rows * vectors * channels * FLOAT_BYTES for vectors, channels in calls)


def budget(shapes: Shapes, *, images: int, ranks: int) -> Budget:
    """The cost of one step of a rank.

    Args:
        images: of all ranks together.
        ranks: how many share them.

    Raises:
        UsageError: the ranks cannot share the images evenly.
    """
    if images % ranks:
        raise UsageError(f"{images} images cannot be shared evenly by {ranks} ranks")
    rows, columns = images // ranks, 2 * images
    how = shapes.field or FieldShape()
    seen = min(rows, shapes.micro_batch or rows)
    again = seen < rows  # everything generated is made once more, for its gradient
    flops = sum(
        vectors * field_flops(num_rows=rows, num_columns=columns, channels=channels, num_taus=how.num_taus)
        for vectors, channels in shapes.calls
    )
    gathered = gathered_bytes(shapes.calls, rows=rows, ranks=ranks)
    gradients = int(2 * (ranks - 1) / ranks * shapes.parameters * FLOAT_BYTES)
    drifting = shapes.field is not None
    encoder = rows * shapes.encoder_flops * (2 + shapes.real_encoded + again)
    network = rows * shapes.network_flops * (3 + (again and drifting))
    features = sorted((vectors * columns * channels * FLOAT_BYTES for vectors, channels in shapes.calls), reverse=True)
    copied = 4 * shapes.parameters if shapes.device == "cpu" else 0  # all but gradients, to write checkpoints from
    state = FLOAT_BYTES * (5 * shapes.parameters + copied) + shapes.encoder_bytes
    chunk = how.chunk_bytes or CHUNK_BYTES[shapes.device]
    wait = shapes.device in WAITS
    field = max(
        (field_bytes(call, how, rows=rows, columns=columns, chunk=chunk, wait=wait) for call in shapes.calls),
        default=0,
    )
    return Budget(
        ranks=ranks,
        images_per_rank=rows,
        gathered_bytes=gathered,
        gradient_bytes=gradients,
        field_flops=flops,
        encoder_flops=encoder,
        network_flops=network,
        state_bytes=state,
        saved_bytes=seen * shapes.saved_bytes,
        feature_bytes=sum(features[:2]),
        field_bytes=field,
        memory_bytes=state + seen * shapes.saved_bytes + sum(features[:2]) + field,
    )


def field_bytes(call: tuple[int, int], how: FieldShape, *, rows: int, columns: int, chunk: int, wait: bool) -> int:
    """Most memory that a field call takes beside the features: workspace, V, and matrices where it needs logarithms."""
    vectors, channels = call
    width = 1 + how.wide
    one = width * workspace_bytes(
        num_rows=rows, num_columns=columns, channels=channels, num_taus=how.num_taus, wait=wait
    )
    at_once = max(1, min(vectors, chunk // one))
    if wait:
        one += width * FLOAT_BYTES * rows * (LOG_MATRICES * columns + channels)
    result = vectors * rows * channels * FLOAT_BYTES
    kept = 0
    if how.shared and at_once < vectors:
        kept = how.num_taus * width * result
        kept = kept if kept <= KEPT_CHUNKS * chunk else width * result
    return at_once * one + result + kept


def training_shapes(config: TrainConfig, *, device: str) -> tuple[Shapes, list[str]]:
    """What an image of this run costs, counted on networks without memory, and what had to be assumed.

    Args:
        device: "cpu" or "cuda", which need not be here.

    Raises:
        ArtifactError: the encoder is a run that is not there yet.
        UsageError: the config names no such encoder.
    """
    assumed = []
    size = config.data.image_size
    if size is None:
        size = ASSUMED_IMAGE_SIZE
        assumed.append(f"images of {size} pixels (data.image_size says)")
    with torch.device("meta"):
        network = build_network(_with_head(config), image_size=size)
    trained = _trained(config, network)
    image = torch.zeros(1, 3, size, size, device="meta")
    shapes = Shapes(
        calls=(),
        field=None,
        network_flops=_flops(trained, image),
        encoder_flops=0,
        real_encoded=False,
        parameters=sum(p.numel() for p in network.parameters()),
        encoder_bytes=0,
        saved_bytes=0,
        dtype=_dtype(config.trainer.precision, device),
        device=device,
        micro_batch=config.trainer.micro_batch,
    )
    networks, whole = [network], trained
    if isinstance(config.objective, DriftingConfig):
        encoder = _encoder(config.objective, size)
        features = feature_set(config.objective.feature_set or encoder.feature_set)
        networks.append(encoder)

        def encode(images: torch.Tensor) -> list[torch.Tensor]:
            return [group.values for group in features(encoder.maps(images), images)]

        def whole(images: torch.Tensor) -> list[torch.Tensor]:
            return encode(trained(images)[0].float())

        shapes = replace(
            shapes,
            calls=tuple((c.vectors, c.channels) for c in field_calls(features(encoder.maps(image), image))),
            field=_field_shape(config.objective),
            encoder_flops=_flops(encode, image),
            real_encoded=not config.objective.cache_features,
        )
        encoder.store_weights_for(getattr(torch, shapes.dtype))
        shapes = replace(shapes, encoder_bytes=sum(p.nbytes for p in encoder.parameters()))
    saved = kept_bytes(networks, whole, image_size=size, dtype=getattr(torch, shapes.dtype), device=device)
    return replace(shapes, saved_bytes=saved), assumed


def _dtype(precision: str, device: str) -> str:
    """The type that "auto" stands for, of a GPU that computes in bfloat16."""
    return precision if precision != "auto" else "bfloat16" if device == "cuda" else "float32"


def _trained(config: TrainConfig, network: nn.Module) -> Forward:
    """Every forward that the trained network makes of some images in a step."""
    objective = config.objective
    only_classified = isinstance(objective, ClassifierConfig)
    classified = isinstance(objective, MAEConfig) and objective.finetune_from != NEVER

    def forward(images: torch.Tensor) -> list[torch.Tensor]:
        if isinstance(config.model, UNetConfig):
            return [network(images, torch.zeros(len(images), dtype=torch.long, device=images.device))]
        if only_classified:
            return [network(images, classify=True)]
        return [network(images), *([network(images, classify=True)] if classified else [])]

    return forward


def _field_shape(objective: DriftingConfig) -> FieldShape:
    return FieldShape(
        num_taus=len(objective.taus),
        shared=objective.scale_over == "map",
        wide=Affinity(objective.kernel).sharpness(min(objective.taus)) > MAX_SHARPNESS,
        chunk_bytes=objective.field_chunk_mib * 2**20 if objective.field_chunk_mib else None,
    )


def _with_head(config: TrainConfig) -> Any:
    """The model section; a classifier whose classes only the images tell has one."""
    if isinstance(config.model, UNetConfig):
        return config.model
    decoder = False if isinstance(config.objective, ClassifierConfig) else config.model.decoder
    return config.model.model_copy(update={"num_classes": config.model.num_classes or 1, "decoder": decoder})


def _encoder(objective: DriftingConfig, image_size: int) -> FrozenEncoder:
    return load_encoder(
        objective.encoder,
        image_size=native_image_size(objective.encoder) or image_size,
        input_size=objective.input_size,
        random_weights=_published(objective.encoder),
        resize=objective.resize,
        taps=objective.taps,
        map_norm=objective.map_norm,
        feature_set=objective.feature_set,
        device="meta",
    )


def _published(name: str) -> bool:
    """Whether weights would have to be fetched, of which only the shapes matter here."""
    return name in SPECS or name.startswith(TIMM_PREFIX)


def _flops(function: Forward, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(images)
    return int(counter.get_total_flops())


def training_budget(config: TrainConfig, *, ranks: int, device: str) -> dict[str, Any]:
    """The budget of a run: as it is started, and the same batch on 1, 8 and 64 GPUs where they share it evenly.

    Args:
        device: "cpu" or "cuda", which need not be here.

    Returns:
        `assumed`: sentences; `advice`: sentences; `shapes`; `steps`: budgets, the run's own first.
    """
    shapes, assumed = training_shapes(config, device=device)
    images = config.trainer.batch_size * ranks
    counts = [ranks, *(count for count in (1, 8, 64) if device == "cuda" and count != ranks and images % count == 0)]
    return {
        "images": images,
        "assumed": assumed,
        "advice": _card_advice(shapes, images=images, ranks=ranks) if device == "cuda" else [],
        "shapes": asdict(shapes),
        "steps": [asdict(budget(shapes, images=images, ranks=count)) for count in counts],
    }


def _card_advice(shapes: Shapes, *, images: int, ranks: int) -> list[str]:
    """For every common size of GPU memory that a step leaves too little room on, the largest micro-batch that fits."""
    advice = []
    whole = budget(shapes, images=images, ranks=ranks)
    for card in CARDS_GIB:
        room = CARD_SHARE * card * 2**30
        if whole.memory_bytes <= room:
            continue
        sizes = [2**power for power in range(20) if 2**power < (shapes.micro_batch or whole.images_per_rank)]
        smaller = {n: budget(replace(shapes, micro_batch=n), images=images, ranks=ranks).memory_bytes for n in sizes}
        fitting = [n for n, needed in smaller.items() if needed <= room]
        way_out = "no micro-batch leaves enough"
        if fitting:
            way_out = f"--micro-batch {max(fitting)} takes {gib(smaller[max(fitting)])}, with the same gradient"
        advice.append(f"{gib(whole.memory_bytes)} leave too little room on a GPU of {card} GB; {way_out}")
    return advice
