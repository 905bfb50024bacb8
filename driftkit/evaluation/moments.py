"""Mean and covariance of feature vectors in float64, gathered in one pass and mergeable."""

import torch


class Moments:
    """Count, mean and scatter of the feature vectors seen so far.

    Two of them merge exactly as if one had seen everything, so neither batches nor ranks change the result beyond
    float64 rounding.

    Attributes:
        count: vectors seen.
        mean: float64 [D].
        scatter: sum of outer products of the centred vectors, float64 [D, D].

    Source: Chan, Golub and LeVeque 1979, pairwise update. Differs: nothing.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64)
        self.scatter = torch.zeros(dim, dim, dtype=torch.float64)

    @classmethod
    def of(cls, features: torch.Tensor, *, chunk: int = 4096) -> "Moments":
        """Moments of all rows of [N, D], taken `chunk` rows at a time to bound the float64 copy."""
        if features.ndim != 2:
            raise ValueError(f"features: expected [N, D], got {list(features.shape)}")
        moments = cls(features.shape[1])
        for rows in features.split(chunk):
            moments.update(rows)
        return moments

    @classmethod
    def of_covariance(cls, mean: torch.Tensor, covariance: torch.Tensor, *, count: int = 2) -> "Moments":
        """Moments of a Gaussian that is known by mean [D] and unbiased covariance [D, D] of `count` vectors."""
        moments = cls(len(mean))
        moments.count, moments.mean, moments.scatter = count, mean.double(), covariance.double() * (count - 1)
        return moments

    def update(self, features: torch.Tensor) -> None:
        """Add the rows of [n, D].

        Raises:
            ValueError: the rows have another length.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features: expected [n, {len(self.mean)}], got {list(features.shape)}")
        if len(features) == 0:
            return
        rows = features.detach().to("cpu", torch.float64)
        other = Moments(0)
        other.count = len(rows)
        other.mean = rows.mean(dim=0)
        centred = rows - other.mean
        other.scatter = centred.T @ centred
        self.merge(other)

    def merge(self, other: "Moments") -> None:
        """Add all that `other` has seen."""
        if other.count == 0:
            return
        total = self.count + other.count
        shift = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + torch.outer(shift, shift) * (self.count * other.count / total)
        self.mean = self.mean + shift * (other.count / total)
        self.count = total

    def covariance(self) -> torch.Tensor:
        """Unbiased covariance, float64 [D, D].

        Raises:
            ValueError: fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, got {self.count}")
        return self.scatter / (self.count - 1)
