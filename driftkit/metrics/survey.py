"""Facts about each image of a set, without any network.

They tell whether a score of the set means anything (`scoring.sanity` decides), and, where evaluators disagree about two
runs, what the images differ in: brightness, colour, background, contrast, edges.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import torch

DIGEST_BYTES = 16
BLOCK = 8  # side in pixels of the blocks that JPEG codes on their own
CHUNK = 1024  # images at a time, which bounds the float copies
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


@dataclass(frozen=True)
class Survey:
    """What is kept of N images.

    Attributes:
        digests: blake2b of the pixels, uint8 [N, 16].
        flat: whether the image is one colour, bool [N].
        steps: mean absolute difference of neighbouring luma values, across the edges of 8x8 blocks and elsewhere,
            float64 [N, 2]; both 0 where images are too small to have such edges.
        appearance: the PROPERTIES, float32 [N, 5].
    """

    digests: torch.Tensor
    flat: torch.Tensor
    steps: torch.Tensor
    appearance: torch.Tensor

    def __len__(self) -> int:
        return len(self.flat)

    def distinct(self) -> int:
        """How many different images there are."""
        return len(set(self._rows()))

    def among(self, other: "Survey") -> torch.Tensor:
        """Whether each image is, pixel by pixel, an image of the other set, bool [N]."""
        others = set(other._rows())
        return torch.tensor([key in others for key in self._rows()], dtype=torch.bool)

    def shared_with(self, other: "Survey") -> int:
        """How many images of this set are, pixel by pixel, images of the other one."""
        return int(self.among(other).sum())

    def blockiness(self) -> tuple[float, float] | None:
        """Steps across the edges of 8x8 blocks over steps elsewhere, and the standard error of that ratio.

        Near 1 for images that no block codec has touched, more for JPEG. None where there are no such edges.
        """
        at_edges, elsewhere = self.steps.unbind(1)
        total = float(elsewhere.sum())
        if not total or not float(at_edges.sum()):
            return None
        ratio = float(at_edges.sum()) / total
        return ratio, float((at_edges - ratio * elsewhere).square().sum().sqrt()) / total

    def _rows(self) -> list[bytes]:
        data = self.digests.contiguous().numpy().tobytes()
        return [data[i : i + DIGEST_BYTES] for i in range(0, len(data), DIGEST_BYTES)]


def survey_images(images: torch.Tensor) -> Survey:
    """Look at uint8 images [N, 3, H, W], each on its own, so that parts of a set may be surveyed apart."""
    digests = b"".join(
        hashlib.blake2b(image.contiguous().numpy(), digest_size=DIGEST_BYTES).digest() for image in images
    )
    if not digests:
        none = torch.empty(0, DIGEST_BYTES, dtype=torch.uint8)
        return Survey(none, none[:, 0].bool(), none[:, :2].double(), none[:, : len(PROPERTIES)].float())
    parts = images.split(CHUNK)
    return Survey(
        torch.frombuffer(bytearray(digests), dtype=torch.uint8).view(-1, DIGEST_BYTES),
        torch.cat([(part == part[:, :, :1, :1]).flatten(1).all(dim=1) for part in parts]),
        torch.cat([_steps(part) for part in parts]),
        torch.cat([measure_appearance(part) for part in parts]),
    )


def _steps(images: torch.Tensor) -> torch.Tensor:
    """Mean luma steps across block edges and elsewhere, float64 [N, 2]."""
    grey = luma(images)
    sums = torch.zeros(len(images), 2, dtype=torch.float64)
    counts = torch.zeros(2, dtype=torch.float64)
    _, height, width = grey.shape
    across, down = grey.diff(dim=2).abs().sum(dim=1), grey.diff(dim=1).abs().sum(dim=2)  # [N, W - 1], [N, H - 1]
    for steps, lines in ((across, height), (down, width)):
        edge = torch.arange(1, steps.shape[1] + 1) % BLOCK == 0
        sums += torch.stack([steps[:, edge].double().sum(dim=1), steps[:, ~edge].double().sum(dim=1)], dim=1)
        counts += torch.tensor([int(edge.sum()) * lines, int((~edge).sum()) * lines])
    return sums / counts if bool((counts > 0).all()) else torch.zeros_like(sums)


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
