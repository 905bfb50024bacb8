"""What images look like in plain numbers: brightness, colour, background, contrast, edges. No network is asked.

Where evaluators disagree about two runs, these say what the images differ in.
"""

from typing import Any

import torch

LUMA = (0.299, 0.587, 0.114)
FLAT = 1 / 255  # contrast below which an image has no edges to speak of
PROPERTIES = {
    "brightness": "brightness",
    "colour": "strength of colours",
    "background": "brightness of the border",
    "contrast": "contrast",
    "edges": "sharpness of edges",
}
"""Key -> what it is called. All are measured per image, between 0 and about 1."""


def luma(images: torch.Tensor) -> torch.Tensor:
    """Luma of uint8 images [N, 3, H, W], float32 [N, H, W] in [0, 255]."""
    return torch.einsum("nchw,c->nhw", images.float(), torch.tensor(LUMA, device=images.device))


def measure_appearance(images: torch.Tensor) -> torch.Tensor:
    """The PROPERTIES of uint8 images [N, 3, H, W], float32 [N, 5], on the CPU.

    brightness: mean luma. colour: mean difference of the strongest and the weakest channel. background: mean luma of
    the outermost ring of pixels. contrast: standard deviation of luma. edges: mean step of luma between neighbours over
    the contrast; 0 for an image without any.
    """
    grey = luma(images) / 255
    across, down = grey.diff(dim=2).abs(), grey.diff(dim=1).abs()
    ring = torch.ones(grey.shape[1:], dtype=torch.bool)
    ring[1:-1, 1:-1] = False
    contrast = grey.flatten(1).std(dim=1, correction=0)
    steps = (across.flatten(1).mean(dim=1) + down.flatten(1).mean(dim=1)) / 2
    values = (
        grey.mean(dim=(1, 2)),
        (images.amax(dim=1).float() - images.amin(dim=1).float()).mean(dim=(1, 2)) / 255,
        grey[:, ring].mean(dim=1),
        contrast,
        torch.where(contrast > FLAT, steps / contrast.clamp(min=FLAT), 0.0),
    )
    return torch.stack(values, dim=1).cpu()


def compare_appearance(generated: torch.Tensor, real: torch.Tensor) -> dict[str, dict[str, Any]]:
    """Property -> means of both sets [N, 5] and [M, 5], and the 1-Wasserstein `distance`, in the property's unit."""
    return {
        name: {
            "generated": float(fake.double().mean()),
            "real": float(true.double().mean()),
            "distance": wasserstein(fake, true),
        }
        for name, fake, true in zip(PROPERTIES, generated.unbind(1), real.unbind(1), strict=True)
    }


def wasserstein(first: torch.Tensor, second: torch.Tensor) -> float:
    """The 1-Wasserstein distance of two sets of numbers [N] and [M]: the area between their distribution functions."""
    values = torch.cat([first, second]).double().sort().values
    below = [
        torch.searchsorted(part.double().sort().values, values[:-1], right=True).double() / len(part)
        for part in (first, second)
    ]
    return float(((below[0] - below[1]).abs() * values.diff()).sum())
