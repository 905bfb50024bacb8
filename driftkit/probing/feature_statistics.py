"""Statistics of feature vectors: what a kernel over them can tell apart, and where its gradient moves the pixels."""

from collections.abc import Callable

import torch

from driftkit.encoders.feature_sets import FeatureGroup
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting.distance import pairwise_distance

NEIGHBOURS = 10


def kernel_statistics(x: torch.Tensor, y_pos: torch.Tensor, *, taus: tuple[float, ...]) -> dict[str, torch.Tensor]:
    """Over how many points the row softmax of the drifting field spreads its weight.

    For every x_i, over the K - 1 points it is compared with (the other x, then y+), with
    p_ik = softmax over k of -|x_i - y_k| / (d_mean * tau), d_mean over all pairs as in `aggregated_drift`.

    Args:
        x: features that play the generated ones, [G, N, C].
        y_pos: features of real images, [G, P, C].
        taus: temperatures relative to the mean distance.

    Returns:
        `perplexity` [T, G], exp of the entropy of p_i in nats, averaged over i: 1 means that only the nearest
        neighbour counts, N + P - 1 that all count alike; `logit_spread` [T, G], the standard deviation over k of the
        logits, averaged over i; `candidates` [], N + P - 1.

    Source: arXiv 2602.04770, Algorithm 2 (row softmax, before the geometric mean with the column softmax).
    """
    centre = x.mean(dim=1, keepdim=True)  # as in the field: products of centred features cancel less
    n = x.shape[1]
    distance = pairwise_distance(x - centre, torch.cat([x, y_pos], dim=1) - centre, self_at=0)  # [G, N, K]
    mean = distance.mean(dim=(1, 2), keepdim=True)
    safe = torch.where(mean > 0, mean, 1.0)
    own = torch.eye(n, distance.shape[-1], dtype=torch.bool, device=x.device)
    others = distance[:, ~own].reshape(x.shape[0], n, -1) / safe  # [G, N, K - 1]
    perplexity, spread = [], []
    for tau in taus:
        log_p = torch.log_softmax(-others / tau, dim=2)
        perplexity.append((-(log_p.exp() * log_p).sum(dim=2)).exp().mean(dim=1))
        spread.append(others.std(dim=2, correction=0).mean(dim=1) / tau)
    candidates = torch.tensor(float(others.shape[-1]))
    return {"perplexity": torch.stack(perplexity), "logit_spread": torch.stack(spread), "candidates": candidates}


def distance_concentration(values: torch.Tensor) -> torch.Tensor:
    """Standard deviation over mean of the distances between different points: [G, N, C] -> [G].

    Near 0 all points are equally far from one another, and nearness says nothing. 0 where all points coincide.
    """
    n = values.shape[1]
    centred = values - values.mean(dim=1, keepdim=True)
    off = ~torch.eye(n, dtype=torch.bool, device=values.device)
    distance = pairwise_distance(centred, centred, self_at=0)[:, off]  # [G, N * (N - 1)]
    mean = distance.mean(dim=1)
    return distance.std(dim=1, correction=0) / torch.where(mean > 0, mean, 1.0)


def neighbour_purity(values: torch.Tensor, labels: torch.Tensor, *, neighbours: int = NEIGHBOURS) -> torch.Tensor:
    """Share of the nearest neighbours that have the point's own class, averaged over points: [G, N, C] -> [G].

    Args:
        values: features, [G, N, C].
        labels: int64 [N].
        neighbours: how many others count; at most N - 1.
    """
    count = min(neighbours, values.shape[1] - 1)
    shares = []
    for field in values:  # one at a time: [N, N] distances of 5,000 points take 100 MB
        distance = torch.cdist(field, field).fill_diagonal_(torch.inf)
        nearest = distance.topk(count, largest=False).indices  # [N, count]
        shares.append((labels[nearest] == labels[:, None]).double().mean())
    return torch.stack(shares)


def chance_purity(labels: torch.Tensor) -> float:
    """What `neighbour_purity` would be if neighbours were drawn at random from the other points."""
    counts = torch.unique(labels, return_counts=True)[1].double()
    return float((counts * (counts - 1)).sum() / (len(labels) * (len(labels) - 1)))


def spectrum(values: torch.Tensor) -> torch.Tensor:
    """Shares of the variance along the principal axes, ascending: [N, C] -> [min(N, C)], summing to 1, or all 0."""
    centred = values.double() - values.double().mean(dim=0)
    gram = centred.T @ centred if centred.shape[1] <= centred.shape[0] else centred @ centred.T
    eigenvalues = torch.linalg.eigvalsh(gram).clamp(min=0)
    total = eigenvalues.sum()
    shares: torch.Tensor = eigenvalues / torch.where(total > 0, total, 1.0)
    return shares


def effective_rank(shares: torch.Tensor) -> float:
    """exp of the entropy of the variance shares: k for k equal directions; 0 where there is no variance."""
    if not bool((shares > 0).any()):
        return 0.0
    return float(torch.exp(-torch.xlogy(shares, shares).sum()))


def participation_ratio(shares: torch.Tensor) -> float:
    """1 over the sum of squared variance shares: k for k equal directions, less moved by a long tail of small ones."""
    square = float(shares.square().sum())
    return 1.0 / square if square > 0 else 0.0


def signal_share(drifts: torch.Tensor) -> torch.Tensor:
    """Share of the drift's power that does not depend on which other images share the batch: [R, G, A, C] -> [G].

    With V_r the drift of the same A points in R batches whose other members are all different, the mean of
    <V_r, V_s> over r != s, which noise does not raise, over the mean of |V_r|^2. 1 is the same drift in every batch,
    0 is noise; sampling can take it slightly below 0.

    Raises:
        ValueError: fewer than two batches.
    """
    repeats = drifts.shape[0]
    if repeats < 2:
        raise ValueError(f"got {repeats} batch, expected at least 2")
    drifts = drifts.double()
    squares = drifts.square().sum(dim=(0, 2, 3))  # sum over r of |V_r|^2, [G]
    cross = (drifts.sum(dim=0).square().sum(dim=(1, 2)) - squares) / (repeats * (repeats - 1))
    power = squares / repeats
    return torch.where(power > 0, cross / torch.where(power > 0, power, 1.0), 0.0)


Groups = Callable[[torch.Tensor], list[FeatureGroup]]
"""Float images in [-1, 1] -> the feature groups, with gradient to the images where there is one."""


def pixel_alignment(
    groups: Groups,
    corrupted: torch.Tensor,
    clean: torch.Tensor,
    real: torch.Tensor,
    *,
    taus: tuple[float, ...],
    chunk: int,
) -> float:
    """Cosine between the step that the drifting loss asks of each pixel and the step that restores the image.

    The loss is the training loss: the mean over the vectors of a group, summed over groups. Of random corruptions a
    cosine of d^-1/2 (0.02 for 32x32 px) per image is chance, and its mean over a batch is near 0.

    Args:
        groups: encoder and feature set in one.
        corrupted: play the generated images, float [N, 3, H, W].
        clean: what they were made from, in the same order.
        real: other real images, [P, 3, H, W].
        taus: temperatures of the loss.
        chunk: images that go through the encoder at a time.

    Returns:
        Mean over the images, -1 to 1; 0 where the loss has no gradient.
    """
    with torch.no_grad():
        x, y = _features(groups, corrupted, chunk), _features(groups, real, chunk)
    pulls = {}
    for name, values in x.items():
        drift = aggregated_drift(values, y[name], taus=taus, scale_over="location")
        scale = drift.feature_scale[:, None, None]
        # Minus the gradient of the group's loss at its features, up to a factor that all groups share.
        pull = drift.v / torch.where(scale > 0, scale, 1.0) / (values.shape[0] * values.shape[2])
        pulls[name] = torch.where(scale > 0, pull, 0.0)
    cosines = []
    for start in range(0, len(corrupted), chunk):
        rows = slice(start, start + chunk)
        images = corrupted[rows].clone().requires_grad_(True)
        total = images.new_zeros(())
        for group in groups(images):
            total = total + (group.values.float() * pulls[group.name][:, rows]).sum()
        (step,) = torch.autograd.grad(total, images)
        restoring = clean[rows] - corrupted[rows]
        cosines.append(torch.nn.functional.cosine_similarity(step.flatten(1), restoring.flatten(1), dim=1, eps=1e-30))
    return float(torch.cat(cosines).mean())


def _features(groups: Groups, images: torch.Tensor, chunk: int) -> dict[str, torch.Tensor]:
    parts: dict[str, list[torch.Tensor]] = {}
    for part in images.split(chunk):
        for group in groups(part):
            parts.setdefault(group.name, []).append(group.values.float())
    return {name: torch.cat(values, dim=1) for name, values in parts.items()}
