"""The forecast cost of a training step: bytes gathered, operations and memory, from shapes without memory."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from driftkit.datasets.packs import ImagePack
from driftkit.datasets.sources import resolve
from driftkit.encoders.autoencoder import load_autoencoder
from driftkit.errors import NotFoundError, UsageError
from driftkit.methods.base import BatchCost, Forward
from driftkit.methods.registry import METHODS
from driftkit.models.registry import build_network
from driftkit.runtime.device import Precision, training_dtype
from driftkit.runtime.memory import gib
from driftkit.training.conditions import conditioned_network
from driftkit.training.latents import latent_shape, with_latent_channels
from driftkit.training.train_config import TrainConfig

ASSUMED_IMAGE_SIZE = 32
FLOAT_BYTES = 4
CARDS_GIB = (24, 40, 80)  # memory of common GPUs
# Share of a card that a forecast may reach: workspaces of convolutions, gradients of activations and the losses of the
# allocator are not counted.
CARD_SHARE = 0.8


@dataclass(frozen=True)
class Shapes:
    """What one image costs, whatever the batch."""

    network_flops: int  # every forward of the trained network in a step; a backward counts two
    encoder_flops: int  # one forward of the frozen encoders. Their weights get no gradient: a backward counts one.
    decoder_flops: int  # one forward of the frozen decoder of latents where a step decodes them; a backward counts one
    regenerates: bool  # whether a step of several micro-batches runs every forward twice
    batch: BatchCost | None  # cost of what is computed over the global batch; None where nothing is
    parameters: int  # of the trained network
    averages: int  # of its weights that are kept
    encoder_bytes: int  # of the weights of encoders and autoencoder
    saved_bytes: int  # tensors that the networks keep for the backward pass under autocast of `dtype` on `device`
    dtype: str  # float32 or bfloat16
    device: str  # "cpu" or "cuda"
    micro_batch: int | None  # images that the networks see at a time; None: all


@dataclass(frozen=True)
class Budget:
    """One training step of one rank, in bytes and operations."""

    ranks: int
    images_per_rank: int
    gathered_bytes: int  # features that arrive from other ranks
    gradient_bytes: int  # that arrive in the ring that averages gradients
    field_flops: int  # of what is computed over the global batch
    encoder_flops: int  # of the decoder of latents, too
    network_flops: int
    state_bytes: (
        int  # float32 weights, gradients, two moments, averages; weights of the encoder; on a CPU checkpoints' copy
    )
    saved_bytes: int  # tensors kept for the backward pass of the images that the networks see at a time
    feature_bytes: int  # gathered features that live at a time
    field_bytes: int  # workspace and result of what is computed over the global batch
    memory_bytes: int  # of all these: features and result live on while networks run backwards


def budget(shapes: Shapes, *, images: int, ranks: int) -> Budget:
    """The cost of one step of a rank. Raises UsageError: `ranks` cannot share `images` evenly."""
    if images % ranks:
        raise UsageError(f"{images} images cannot be shared evenly by {ranks} ranks")
    rows, batch = images // ranks, shapes.batch
    seen = min(rows, shapes.micro_batch or rows)
    again = shapes.regenerates and seen < rows
    kept = 3 + shapes.averages  # weights, two moments, averages
    copied = kept if shapes.device == "cpu" else 0  # to write checkpoints from
    state = FLOAT_BYTES * (kept + 1 + copied) * shapes.parameters + shapes.encoder_bytes
    saved = seen * shapes.saved_bytes
    features = batch.feature_bytes(rows=rows, images=images) if batch else 0
    real = batch.encoded_images(rows=rows, images=images) if batch else 0
    field = batch.workspace_bytes(rows=rows, images=images, device=shapes.device) if batch else 0
    return Budget(
        ranks=ranks,
        images_per_rank=rows,
        gathered_bytes=batch.gathered_bytes(rows=rows, ranks=ranks) if batch else 0,
        gradient_bytes=int(2 * (ranks - 1) / ranks * shapes.parameters * FLOAT_BYTES),
        field_flops=batch.flops(rows=rows, images=images) if batch else 0,
        encoder_flops=shapes.encoder_flops * (rows * (2 + again) + real) + shapes.decoder_flops * rows * (2 + again),
        network_flops=rows * shapes.network_flops * (3 + again),
        state_bytes=state,
        saved_bytes=saved,
        feature_bytes=features,
        field_bytes=field,
        memory_bytes=state + saved + features + field,
    )


def training_shapes(config: TrainConfig, *, device: str) -> tuple[Shapes, list[str]]:
    """The cost of an image of this run, counted on networks without memory, and assumptions as sentences.

    `device` is "cpu" or "cuda" and need not be here. Raises ArtifactError where the encoder is a run that is not there
    yet, UsageError where there is no such encoder.
    """
    assumed = []
    size = config.data.image_size or _size_in_pack(config.data.spec)
    if size is None:
        size = ASSUMED_IMAGE_SIZE
        assumed.append(f"images of {size} pixels (`data.image_size` is not set)")
    method = METHODS[config.objective.name]
    config = with_latent_channels(config)
    sample_shape = latent_shape(config, size) or (3, size, size)
    with torch.device("meta"):
        shape = conditioned_network(config.objective, config.model, None)
        network = build_network(method.complete(config.objective, shape, None), image_size=sample_shape[-1])
    work = method.workload(config.objective, network, size)
    trained, encode = work.trained, work.encode
    frozen: list[nn.Module] = [*work.encoders]
    autoencoder = None
    if config.data.autoencoder is not None and method.sees_pixels:
        autoencoder = load_autoencoder(config.data.autoencoder, "meta")
        frozen.append(autoencoder)
    image, sample = torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, *sample_shape, device="meta")
    dtype = _dtype(config.trainer.precision, device)
    network_flops, encoder_flops = _flops(trained, sample), _flops(encode, image) if encode else 0
    decode = autoencoder.decode if autoencoder is not None else lambda latents: latents
    for encoder in work.encoders:
        encoder.prepare(torch.device(device), dtype)

    def generate_and_encode(samples: torch.Tensor) -> list[torch.Tensor]:
        outputs = trained(samples)
        return encode(decode(outputs[0].float())) if encode else outputs

    shapes = Shapes(
        network_flops=network_flops,
        encoder_flops=encoder_flops,
        decoder_flops=_flops(lambda latents: [decode(latents)], sample) if autoencoder is not None else 0,
        regenerates=work.regenerates,
        batch=work.batch,
        parameters=sum(p.numel() for p in network.parameters()),
        averages=len(config.trainer.averages),
        encoder_bytes=sum(p.nbytes for module in frozen for p in module.parameters()),
        saved_bytes=kept_bytes([network, *frozen], generate_and_encode, shape=sample_shape, dtype=dtype, device=device),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        micro_batch=config.trainer.micro_batch,
    )
    return shapes, assumed


def _size_in_pack(spec: str) -> int | None:
    """Side of the images of a pack, from its card; None where the spec is none, or names nothing that is here."""
    with contextlib.suppress(NotFoundError):
        found = resolve(spec, allow_download=False)
        return found.image_size if isinstance(found, ImagePack) else None
    return None


def _dtype(precision: Precision, device: str) -> torch.dtype:
    """The number format; "auto" stands for that of a GPU that computes in bfloat16, and of this machine's CPU."""
    if (precision, device) == ("auto", "cuda"):  # which need not be here
        return torch.bfloat16
    return training_dtype(precision, torch.device(device))


def _flops(function: Forward, images: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(images)
    return int(counter.get_total_flops())


def training_budget(config: TrainConfig, *, ranks: int, device: str) -> dict[str, Any]:
    """The budget of a run: as it is started, and the same batch on 1, 8 and 64 GPUs where they share it evenly.

    Returns:
        `assumed` and `advice`: sentences; `step_images`: what a step of all ranks consists of, by name; `shapes`;
        `steps`: budgets, the run's own first.
    """
    shapes, assumed = training_shapes(config, device=device)
    images = config.trainer.batch_size * ranks
    others = (1, 8, 64) if device == "cuda" else ()
    counts = [ranks, *(count for count in others if count != ranks and _is_shared(shapes, images, count))]
    return {
        "images": images,
        "assumed": assumed,
        "step_images": shapes.batch.step_images(images=images) if shapes.batch else {},
        "advice": [
            *(_card_advice(shapes, images=images, ranks=ranks) if device == "cuda" else []),
            *(shapes.batch.advice(images=images) if shapes.batch else []),
        ],
        "shapes": asdict(shapes),
        "steps": [asdict(budget(shapes, images=images, ranks=count)) for count in counts],
    }


def _is_shared(shapes: Shapes, images: int, ranks: int) -> bool:
    return images % ranks == 0 and (shapes.batch is None or shapes.batch.is_shared_by(ranks, images=images))


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
        fix = "no micro-batch leaves enough"
        if fitting:
            fix = f"`trainer.micro_batch` {max(fitting)} takes {gib(smaller[max(fitting)])}, with the same gradient"
        advice.append(f"{gib(whole.memory_bytes)} leave too little room on a GPU of {card} GB; {fix}")
    return advice


def kept_bytes(
    networks: Sequence[nn.Module], function: Forward, *, shape: Sequence[int], dtype: torch.dtype, device: str
) -> int:
    """Bytes kept per image between forward and backward: the difference between three images and two.

    A GPU that is not here is counted, too: its autocast runs norms and sums in float32 that a CPU's leaves alone, and
    its attention keeps no matrix of weights.

    Args:
        networks: all that `function` uses; their weights are replaced by tensors without memory.
        function: images or latents [N, *shape] -> tensors that the backward pass starts from.
        dtype: of autocast; float32: none.
    """
    target = torch.device("cuda", 0) if device == "cuda" else torch.device(device)
    kept: dict[int, int] = {}  # by storage, which takes its memory once however often it is kept

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    totals = []
    with FakeTensorMode(allow_non_fake_inputs=True), _attention_of(target, dtype):
        for network in networks:
            network.to_empty(device=target)
        for count in (2, 3):
            kept.clear()
            with _autocast(target, dtype), saved_tensors_hooks(pack, lambda tensor: tensor):
                images = torch.zeros(count, *shape, device=target)
                outputs = function(images.contiguous(memory_format=torch.channels_last))
            totals.append(sum(kept.values()))  # while the outputs live, and with them all that they need
            del outputs
    return totals[1] - totals[0]


@contextlib.contextmanager
def _autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Autocast of a device that need not be here; `torch.autocast` switches itself off without it."""
    if dtype == torch.float32:
        yield
        return
    before = torch.is_autocast_enabled(device.type), torch.get_autocast_dtype(device.type)
    torch.set_autocast_enabled(device.type, True)
    torch.set_autocast_dtype(device.type, dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled(device.type, before[0])
        torch.set_autocast_dtype(device.type, before[1])


class _FusedAttention(TorchFunctionMode):
    """Forces the fused attention kernel that a GPU would use; without a GPU torch would not choose it."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        self.dtype = dtype

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or len(args) > 3 or kwargs.get("attn_mask") is not None:
            return func(*args, **kwargs)
        query, key, value = (tensor.to(self.dtype) for tensor in args)
        if self.dtype == torch.float32:  # which the flash kernel does not compute in
            return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True)[0]
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def _attention_of(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    return _FusedAttention(dtype) if device.type == "cuda" else contextlib.nullcontext()
