"""Whether following the drift in pixels mends wrong images: what a generator is told, after the encoder's gradient."""

from collections.abc import Callable

import torch

from driftkit.encoders.features import FeatureGroup
from driftkit.methods.drifting import aggregated_drift

Groups = Callable[[torch.Tensor], list[FeatureGroup]]
"""Float images in [-1, 1] -> the feature groups, with gradient to the images where there is one."""


def restoration(
    groups: Groups,
    wrong: torch.Tensor,
    clean: torch.Tensor,
    real: torch.Tensor,
    *,
    taus: tuple[float, ...],
    chunk: int,
) -> float:
    """Cosine between the step that the drifting loss asks of each pixel and the step that would mend the image.

    The loss is the training loss: the mean over the vectors of a group, summed over groups. Of images that are wrong
    at random a cosine of d^-1/2 (0.02 for 32x32 px) per image is chance, and its mean over a batch lies near 0.

    Args:
        groups: encoder and feature set in one.
        wrong: play the generated images, float [N, 3, H, W].
        clean: what they were made from, in the same order.
        real: other real images, [P, 3, H, W].
        taus: temperatures of the loss.
        chunk: images that go through the encoder at a time.

    Returns:
        Mean over the images, -1 to 1; 0 where the loss has no gradient.
    """
    with torch.no_grad():
        x, y = _features(groups, wrong, chunk), _features(groups, real, chunk)
    pulls = {}
    for name, values in x.items():
        drift = aggregated_drift(values, y[name], taus=taus, scale_over="location")
        scale = drift.feature_scale[:, None, None]
        # Minus the gradient of the group's loss at its features, up to a factor that all groups share.
        pull = drift.v / torch.where(scale > 0, scale, 1.0) / (values.shape[0] * values.shape[2])
        pulls[name] = torch.where(scale > 0, pull, 0.0)
    cosines = []
    for start in range(0, len(wrong), chunk):
        rows = slice(start, start + chunk)
        images = wrong[rows].clone().requires_grad_(True)
        total = images.new_zeros(())
        for group in groups(images):
            total = total + (group.values.float() * pulls[group.name][:, rows]).sum()
        (step,) = torch.autograd.grad(total, images)
        mend = clean[rows] - wrong[rows]
        cosines.append(torch.nn.functional.cosine_similarity(step.flatten(1), mend.flatten(1), dim=1, eps=1e-30))
    return float(torch.cat(cosines).mean())


def _features(groups: Groups, images: torch.Tensor, chunk: int) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {}
    for part in images.split(chunk):
        for group in groups(part):
            parts.setdefault(group.name, []).append(group.values.float())
    return {name: torch.cat(values, dim=1) for name, values in parts.items()}
