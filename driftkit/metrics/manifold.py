"""Scores by nearest neighbours: precision, recall, density, coverage, and the nearest image of another set.

No matrix of distances is ever whole: 50,000 x 50,000 of them take their turn in chunks of CHUNK_BYTES.
"""

import torch

from driftkit.metrics.base import Metric, MetricInputs, MetricResult, Quantity
from driftkit.runtime.device import ieee_float32

CHUNK_BYTES = 2**27  # of distances at a time
PRC_NEIGHBOURS = 3
DENSITY_NEIGHBOURS = 5
ROW_SEED = 2020  # of the choice of rows where one side has more


class PointCloud:
    """Feature vectors [N, D], prepared so that one matrix product gives squared distances between two sets.

    Rounding is relative to the distance to `centre` [D], which lies near both sets.
    """

    def __init__(self, rows: torch.Tensor, centre: torch.Tensor, device: torch.device | str):
        self.rows = rows.to(device) - centre.to(device)
        square = self.rows.square().sum(dim=1, keepdim=True)
        one = torch.ones_like(square)
        self.left = torch.cat([self.rows, square, one], dim=1)
        self.right = torch.cat([-2 * self.rows, one, square], dim=1)

    def __len__(self) -> int:
        return len(self.rows)

    def chunks(self, other: "PointCloud") -> list[slice]:
        """Rows of this set whose distances to all of the other one fit into CHUNK_BYTES."""
        size = max(1, CHUNK_BYTES // (4 * len(other)))
        return [slice(first, min(first + size, len(self))) for first in range(0, len(self), size)]

    def squared_distances(self, which: slice, other: "PointCloud") -> torch.Tensor:
        """[n, M]; rounding may take those of equal points slightly below 0."""
        with ieee_float32(self.left.device):
            return self.left[which] @ other.right.T


def neighbour_radii(points: PointCloud, neighbours: tuple[int, ...]) -> torch.Tensor:
    """Squared distances of every point to its k-th nearest other point, [len(neighbours), N]."""
    radii = []
    for which in points.chunks(points):
        nearest = points.squared_distances(which, points).topk(max(neighbours) + 1, dim=1, largest=False).values
        radii.append(nearest[:, list(neighbours)].T)  # the nearest one is the point itself
    return torch.cat(radii, dim=1)


def manifold_scores(
    generated: torch.Tensor, reference: torch.Tensor, *, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Precision, recall, density and coverage of float32 [N, D] against [M, D].

    With B_k(y) the closed ball around y that reaches its k-th nearest neighbour in y's own set: precision is the share
    of generated points in some B_k(real), recall that of real points in some B_k(generated), density the mean number of
    B_k(real) that a generated point lies in over k, coverage the share of real points whose ball holds a generated one.
    k is 3 for the first two and 5 for the others; either set has more rows than that.

    Source: Kynkäänniemi et al. 2019 (arXiv 1904.06991), Eq. (1)-(2), and Naeem et al. 2020 (arXiv 2002.09797),
    Eq. (3)-(4). Differs: balls are closed for all four, as torch-fidelity has them for the first two.
    """
    centre = reference.mean(dim=0)
    fake, real = PointCloud(generated, centre, device), PointCloud(reference, centre, device)
    real_radius, real_density_radius = neighbour_radii(real, (PRC_NEIGHBOURS, DENSITY_NEIGHBOURS))
    (fake_radius,) = neighbour_radii(fake, (PRC_NEIGHBOURS,))
    inside, dense = torch.zeros(2, dtype=torch.int64, device=device)  # the host waits for them once, at the end
    reached = torch.full_like(real_radius, torch.inf)  # distance of a real point to the nearest ball around a generated
    nearest = torch.full_like(real_radius, torch.inf)
    work = torch.empty(0, device=device)
    for which in fake.chunks(real):
        distance = fake.squared_distances(which, real)
        work = torch.empty_like(distance) if work.shape != distance.shape else work
        inside += (torch.sub(distance, real_radius, out=work).amin(dim=1) <= 0).sum()
        dense += torch.count_nonzero(distance <= real_density_radius)
        torch.minimum(nearest, distance.amin(dim=0), out=nearest)
        beyond = torch.sub(distance, fake_radius[which, None], out=work).amin(dim=0)
        torch.minimum(reached, beyond, out=reached)
    return {
        "precision": int(inside) / len(fake),
        "recall": int((reached <= 0).sum()) / len(real),
        "density": int(dense) / (DENSITY_NEIGHBOURS * len(fake)),
        "coverage": int((nearest <= real_density_radius).sum()) / len(real),
    }


def nearest_images(
    queries: torch.Tensor,
    bank: torch.Tensor,
    *,
    themselves: torch.Tensor | None = None,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor]:
    """For every query [N, D], float32, the nearest row of the bank [M, D].

    Args:
        themselves: int64 [N], where each query stands in the bank, so that it does not find itself; needs M >= 2.

    Returns:
        Distances, float64 [N], computed again from the difference, so that copies are at 0; and rows of the bank [N].
    """
    centre = bank.mean(dim=0)
    asking, known = PointCloud(queries, centre, device), PointCloud(bank, centre, device)
    indices, distances = [], []
    for which in asking.chunks(known):
        distance = asking.squared_distances(which, known)
        if themselves is not None:
            own = themselves[which].to(distance.device)
            distance[torch.arange(len(own), device=distance.device), own] = torch.inf
        index = distance.argmin(dim=1)
        indices.append(index)
        distances.append((asking.rows[which] - known.rows[index]).double().norm(dim=1))
    return torch.cat(distances).cpu(), torch.cat(indices).cpu()


def draw_rows(rows: torch.Tensor, count: int) -> torch.Tensor:
    """`count` random rows; all in their order where there are no more. Real images may be sorted by class."""
    if len(rows) <= count:
        return rows
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(ROW_SEED))[:count]]


def _compute(inputs: MetricInputs) -> MetricResult:
    sides = inputs.generated.rows, inputs.reference.rows
    count = min(map(len, sides))
    # All four numbers move with the counts, so that both sides have equally many.
    generated, reference = (draw_rows(rows, count) for rows in sides)
    return MetricResult(
        manifold_scores(generated, reference, device=inputs.device),
        {"prc_neighbours": PRC_NEIGHBOURS, "density_neighbours": DENSITY_NEIGHBOURS, "prc_images": count},
    )


MANIFOLD = Metric(
    name="manifold",
    label="precision, recall, density and coverage",
    help="Nearest-neighbour shares: are samples near real images, and are real images near samples?",
    quantities=(
        Quantity("precision", "Precision", "higher", "share", "Share of samples among the real images."),
        Quantity("recall", "Recall", "higher", "share", "Share of real images among the samples."),
        Quantity("density", "Density", "one", "share", "How many real images samples lie near, over the expectation."),
        Quantity("coverage", "Coverage", "higher", "share", "Share of real images with a sample nearby."),
    ),
    needs="rows",
    min_images=max(PRC_NEIGHBOURS, DENSITY_NEIGHBOURS) + 1,
    compute=_compute,
)
