"""Density and coverage: how close generated features lie to real ones, and how many real ones they reach."""

import torch

NEIGHBOURS = 5
CHUNK = 1000  # rows of distances at a time: 1,000 x 50,000 float32 take 0.2 GB


def density_coverage(
    generated: torch.Tensor, reference: torch.Tensor, *, neighbours: int = NEIGHBOURS, chunk: int = CHUNK
) -> dict[str, float]:
    """Density and coverage of [N, D] generated features among [M, D] reference features.

    The ball of a real point reaches to its k-th nearest other real point. Density is the mean number of balls that
    hold a generated point, over k; it is near 1 for equal distributions and may exceed it. Coverage is the share of
    balls that hold at least one generated point.

    Args:
        neighbours: k, below M.
        chunk: real points at a time; bounds the memory and changes nothing.

    Raises:
        ValueError: no more than k reference points.

    Source: Naeem et al. 2020, arXiv 2002.09797, equations 4 and 5, with the authors' k = 5.
    """
    if len(reference) <= neighbours:
        raise ValueError(f"density needs more than {neighbours} reference points, got {len(reference)}")
    centre = reference.mean(dim=0)  # products of centred features cancel less
    generated, reference = generated - centre, reference - centre
    inside, covered = 0, 0
    for first in range(0, len(reference), chunk):
        rows = reference[first : first + chunk]
        among = torch.cdist(rows, reference)  # [chunk, M]
        own = torch.arange(len(rows), device=rows.device)
        among[own, first + own] = torch.inf
        radius = among.kthvalue(neighbours, dim=1, keepdim=True).values
        del among
        within = torch.cdist(rows, generated) < radius  # [chunk, N]
        inside += int(within.sum())
        covered += int(within.any(dim=1).sum())
    return {"density": inside / (neighbours * len(generated)), "coverage": covered / len(reference)}
