"""What metrics compare: the features that an extractor made of a set of images, with their moments."""

from dataclasses import dataclass

import torch

from driftkit.metrics.moments import Moments
from driftkit.metrics.survey import Survey


@dataclass(frozen=True)
class FeatureStats:
    """What an extractor made of a set of images.

    Attributes:
        moments: of the features of all images.
        rows: features kept, float32 [R, D].
        indices: which images they belong to, ascending, int64 [R].
        survey: facts about all images; None for statistics that others wrote.
        predictions: classes the extractor's classifier gives the kept images, int64 [R].
        logits: of the kept images, float32 [R, K]; statistics on disk lack them.
        labels: true classes of the kept images, int64 [R].
    """

    moments: Moments
    rows: torch.Tensor
    indices: torch.Tensor
    survey: Survey | None
    predictions: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    labels: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.moments.count
