"""The Fréchet distance between two Gaussians, which is what FID is of two sets of features."""

import torch

from driftkit.metrics.base import Metric, MetricInputs, MetricResult, Quantity
from driftkit.metrics.moments import Moments

SMALLEST_PIVOT = 1e-10  # of a Cholesky factor, squared, over the largest variance


def frechet_distance(a: Moments, b: Moments, *, device: torch.device | str = "cpu") -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians with these moments, >= 0, of >= 2 vectors each.

    |mean_a - mean_b|^2 + tr(C_a) + tr(C_b) - 2 tr((C_a C_b)^(1/2)). The last trace is the sum of the singular values
    of R_a^T R_b with C = R R^T: they come out to float64 precision of the largest one, where the
    square root of the eigenvalues of C_a C_b would keep half the digits and may turn complex.
    A device without float64 leaves it to the CPU.

    Raises:
        ValueError: dimensions differ, or a covariance is not finite.

    Source: Heusel et al. 2017 (arXiv 1706.08500), Eq. (6). Differs: nothing but the numerics.
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features of {len(a.mean)} and {len(b.mean)} dimensions cannot be compared")
    a, b = a.to(device), b.to(device)
    cov_a, cov_b = a.covariance(), b.covariance()
    if not bool(torch.isfinite(cov_a).all() and torch.isfinite(cov_b).all()):
        raise ValueError("the features are not finite")
    shared = torch.linalg.svdvals(_root(cov_a).T @ _root(cov_b)).sum()
    distance = (a.mean - b.mean).square().sum() + cov_a.trace() + cov_b.trace() - 2 * shared
    return max(0.0, float(distance))  # equal moments may come out as -1e-13


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """A factor R [D, r] with R R^T = covariance, without the directions that are rounding noise.

    Any such factor gives the same singular values. Cholesky's takes a tenth of the time of eigenvectors, and is as
    exact unless the covariance is near singular: then it fails or its smallest pivot shows it.
    """
    factor: torch.Tensor
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not int(failed) and float(factor.diagonal().min()) ** 2 > SMALLEST_PIVOT * float(covariance.diagonal().max()):
        return factor
    try:
        values, vectors = torch.linalg.eigh(covariance)
    except torch.linalg.LinAlgError:  # of few images most eigenvalues are 0, where solvers may fail to converge
        vectors, values, _ = torch.linalg.svd(covariance)
    noise = values.max().clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    kept = values > noise
    root: torch.Tensor = vectors[:, kept] * values[kept].sqrt()
    return root


def _compute(inputs: MetricInputs) -> MetricResult:
    a, b = inputs.generated.moments, inputs.reference.moments
    return MetricResult({"fid": frechet_distance(a, b, device=inputs.device)})


FID = Metric(
    name="fid",
    label="FID",
    help="Fréchet distance between Gaussians fitted to the features of all images.",
    quantities=(Quantity("fid", "FID", "lower", "distance", "Fréchet distance to the reference."),),
    needs="features",
    min_images=2,
    compute=_compute,
)
