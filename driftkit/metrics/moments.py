"""Mean and covariance of feature vectors in float64, gathered in one pass and mergeable."""

import torch

from driftkit.runtime.device import float64_device


class Moments:
    """Count, mean [D] and scatter [D, D] (of the centred vectors) of the features seen so far, in float64.

    Two of them merge exactly as if one had seen everything, so neither batches nor ranks change the result beyond
    float64 rounding. Sums stay on the device, or on the CPU where the device has no float64.

    Source: Chan, Golub and LeVeque 1979, pairwise update. Differs: nothing.
    """

    def __init__(self, dim: int, *, device: torch.device | str = "cpu"):
        place = float64_device(device)
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=place)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64, device=place)

    @classmethod
    def of(cls, features: torch.Tensor, *, chunk: int = 4096, device: torch.device | str | None = None) -> "Moments":
        """Moments of all rows of [N, D], taken `chunk` rows at a time to bound the float64 copy."""
        if features.ndim != 2:
            raise ValueError(f"features: expected [N, D], got {list(features.shape)}")
        moments = cls(features.shape[1], device=features.device if device is None else device)
        for rows in features.split(chunk):
            moments.update(rows)
        return moments

    @classmethod
    def of_sums(cls, count: int, mean: torch.Tensor, scatter: torch.Tensor) -> "Moments":
        """Moments known by their parts, float64."""
        moments = cls(0)
        moments.count, moments.mean, moments.scatter = count, mean, scatter
        return moments

    def update(self, features: torch.Tensor) -> None:
        """Add the rows of [n, D]."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features: expected [n, {len(self.mean)}], got {list(features.shape)}")
        if len(features) == 0:
            return
        rows = features.detach().to(self.mean.device).double()
        mean = rows.mean(dim=0)
        centred = rows - mean
        self.merge(Moments.of_sums(len(rows), mean, centred.T @ centred))

    def merge(self, other: "Moments") -> None:
        if other.count == 0:
            return
        total = self.count + other.count
        shift = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    def to(self, device: torch.device | str) -> "Moments":
        """The same moments on a device, or on the CPU where that has no float64."""
        place = float64_device(device)
        return Moments.of_sums(self.count, self.mean.to(place), self.scatter.to(place))

    def covariance(self) -> torch.Tensor:
        """Unbiased covariance, float64 [D, D]; ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, got {self.count}")
        return self.scatter / (self.count - 1)
