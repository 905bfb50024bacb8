"""Bytes that autograd keeps for the backward pass, counted on tensors that have a shape and a device but no memory."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode

from driftkit.methods.base import Forward


def kept_bytes(
    networks: Sequence[nn.Module], function: Forward, *, image_size: int, dtype: torch.dtype, device: str
) -> int:
    """Bytes kept per image between forward and backward: the difference between three images and two.

    A GPU that is not here is counted, too: its autocast runs norms and sums in float32 that a CPU's leaves alone, and
    its attention keeps no matrix of weights.

    Args:
        networks: all that `function` uses; their weights are replaced by tensors without memory.
        function: images [N, 3, H, W] -> tensors that the backward pass starts from.
        image_size: side in pixels.
        dtype: of autocast; float32: none.
        device: "cpu" or "cuda".
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
                images = torch.zeros(count, 3, image_size, image_size, device=target)
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
    """Attention by the kernel that a GPU takes: which one that is torch asks the GPU, and without it takes none."""

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
