"""Resizing of the images that encoders see, in training, probing and `fid --extractor encoder:RUN`.

The published evaluators resize in `driftkit.scoring` by conventions of their own, with 8-bit rounding.
"""

import functools
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from driftkit.errors import UsageError
from driftkit.runtime.device import ieee_float32

Resize = Literal["bicubic", "bilinear"]
RESIZES: tuple[str, ...] = get_args(Resize)


def resize(images: torch.Tensor, size: int, mode: Resize = "bicubic") -> torch.Tensor:
    """Images resized to size x size, antialiased when shrinking.

    Resizing is linear and separable: each channel is A x B^T with a constant matrix per axis. Unlike the backward pass
    of torch's interpolation, products are deterministic on CUDA, and they compile for changing batch sizes.

    Args:
        images: float [N, C, H, W].
        size: side of the result in pixels.
        mode: "bicubic" or "bilinear".

    Returns:
        float32 [N, C, size, size], whatever autocast and TF32 say; images of that size as they are.

    Raises:
        UsageError: another mode.

    Source: torch.nn.functional.interpolate with align_corners=False. Differs: rounding (1e-6).
    """
    if mode not in RESIZES:
        raise UsageError(f"resize {mode!r}: expected {' or '.join(RESIZES)}")
    height, width = images.shape[-2:]
    if (height, width) == (size, size):
        return images
    resized: torch.Tensor = _resample(images.float(), height, width, size, mode, False)
    return resized


# One operator for compilers and fake tensors: what happens inside depends on the precision flags of the process.
@torch.library.custom_op("driftkit::resample", mutates_args=())
def _resample(x: torch.Tensor, height: int, width: int, size: int, mode: str, transposed: bool) -> torch.Tensor:
    """[N, C, height, width] -> [N, C, size, size]; transposed the other way round, as the gradient goes."""
    antialias = size < max(height, width)
    rows, columns = (axis_matrix(side, size, mode, antialias, x.device) for side in (height, width))
    if transposed:
        rows, columns = rows.T, columns.T
    with ieee_float32(x.device):
        return rows @ (x @ columns.T)


@_resample.register_fake
def _(x: torch.Tensor, height: int, width: int, size: int, mode: str, transposed: bool) -> torch.Tensor:
    return x.new_empty((*x.shape[:2], *((height, width) if transposed else (size, size))))


def _keep_arguments(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.arguments = inputs[1:]


def _backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None, None, None]:
    *sizes, transposed = ctx.arguments
    return _resample(gradient, *sizes, not transposed), None, None, None, None, None


_resample.register_autograd(_backward, setup_context=_keep_arguments)


@functools.lru_cache(maxsize=64)
def axis_matrix(side: int, size: int, mode: str, antialias: bool, device: torch.device) -> torch.Tensor:
    """What resizing one axis from `side` to `size` positions multiplies it by, float32 [size, side]."""
    with torch.inference_mode(False):
        identity = torch.eye(side, dtype=torch.float64)[None, None]
        matrix = F.interpolate(identity, size=(size, side), mode=mode, antialias=antialias)[0, 0]
        return matrix.to(device, torch.float32)
