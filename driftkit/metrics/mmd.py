"""The maximum mean discrepancy with a Gaussian kernel on normalised features."""

import torch
import torch.nn.functional as F

from driftkit.metrics.base import Metric, MetricInputs, MetricResult, Quantity
from driftkit.metrics.manifold import PointCloud, draw_rows

SIGMA = 10.0  # width of the kernel, for features of length 1
SCALE = 1000.0
MAX_ROWS = 10_000  # of either side; the cost grows with their product


def gaussian_mmd(
    generated: torch.Tensor, reference: torch.Tensor, *, sigma: float = SIGMA, device: torch.device | str = "cpu"
) -> float:
    """1000 times the squared maximum mean discrepancy, with the kernel exp(-|x - y|^2 / (2 sigma^2)), biased, >= 0.

    Rows [N, D] and [M, D] are divided by their length first. Squared distances are float32; sums of kernel values are
    float64, of expm1 instead of exp, since the constant 1 that all kernel values share cancels.

    Source: Jayasumana et al. 2023 (arXiv 2401.09603), CMMD with its sigma of 10 and its factor of 1000, estimated as in
    the authors' code. Differs: features are those of any extractor, up to 10,000 rows of either side. Only the
    projected ones of CLIP ViT-L/14 at 336 px would give CMMD, so the number is called MMD.
    """
    x, y = (F.normalize(rows.to(device), dim=1) for rows in (generated, reference))
    centre = y.mean(dim=0)
    fake, real = PointCloud(x, centre, device), PointCloud(y, centre, device)
    within = _mean_kernel(fake, fake, sigma) + _mean_kernel(real, real, sigma)
    return max(0.0, SCALE * (within - 2 * _mean_kernel(fake, real, sigma)))


def _mean_kernel(x: PointCloud, y: PointCloud, sigma: float) -> float:
    """Mean over all pairs of the kernel less 1."""
    total = 0.0
    for rows in x.chunks(y):
        distances = x.squared_distances(rows, y).clamp_(min=0)
        total += float(distances.mul_(-1 / (2 * sigma**2)).expm1_().sum(dtype=torch.float64))
    return total / (len(x) * len(y))


def _compute(inputs: MetricInputs) -> MetricResult:
    generated, reference = (draw_rows(side.rows, MAX_ROWS) for side in (inputs.generated, inputs.reference))
    value = gaussian_mmd(generated, reference, device=inputs.device)
    return MetricResult({"mmd": value}, {"mmd_images": min(len(generated), len(reference))})


MMD = Metric(
    name="mmd",
    label="MMD",
    help="Gaussian-kernel maximum mean discrepancy of normalised features, as CMMD has it for those of CLIP.",
    quantities=(
        Quantity("mmd", "MMD", "lower", "distance", "Gaussian-kernel discrepancy to the reference, times 1000."),
    ),
    needs="rows",
    min_images=2,
    compute=_compute,
)
