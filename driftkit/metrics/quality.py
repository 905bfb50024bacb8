"""How well classes can be read off features: nearest neighbours, and a linear classifier in closed form."""

import torch
import torch.nn.functional as F

QUERY_ROWS = 1024  # similarities are computed for so many queries at a time
RIDGE = 1e-3  # of the mean variance: the classifier stays defined where features are redundant


def knn_accuracy(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor, *, neighbours: int
) -> float:
    """Share of queries whose most frequent class among the `neighbours` most similar bank features is their own.

    Similarity is the cosine after the bank's mean is taken off; among classes equally frequent the lowest wins.

    Args:
        bank, queries: features [N, D] and [M, D].
        bank_labels, labels: int64 [N] and [M], all >= 0.
    """
    centre = bank.mean(dim=0)
    known = F.normalize(bank - centre, dim=1)
    asked = F.normalize(queries - centre, dim=1)
    count = min(neighbours, len(bank))
    right = 0
    with torch.autocast(bank.device.type, enabled=False):  # bfloat16 would make ties of close neighbours
        for rows, truth in zip(asked.split(QUERY_ROWS), labels.split(QUERY_ROWS), strict=True):
            nearest = (rows @ known.T).topk(count, dim=1).indices  # [m, count]
            votes = F.one_hot(bank_labels[nearest], int(bank_labels.max()) + 1).sum(dim=1)
            right += int((votes.argmax(dim=1) == truth).sum())
    return right / len(labels)


def linear_accuracy(
    bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor, labels: torch.Tensor
) -> float:
    """Share of queries that `linear_predictions` puts into their own class. Args as `knn_accuracy`."""
    return float((linear_predictions(bank, bank_labels, queries) == labels).double().mean())


def linear_predictions(bank: torch.Tensor, bank_labels: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Classes, int64 [M], that a ridge regression onto the bank's one-hot classes gives the queries.

    Features are standardised by the bank. Args as `knn_accuracy`.
    """
    mean, std = bank.double().mean(dim=0), bank.double().std(dim=0).clamp(min=1e-12)
    known, asked = (bank.double() - mean) / std, (queries.double() - mean) / std
    target = F.one_hot(bank_labels, int(bank_labels.max()) + 1).double()
    gram = known.T @ known / len(known)
    gram += RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights = torch.linalg.solve(gram, known.T @ (target - target.mean(dim=0)) / len(known))
    scores: torch.Tensor = asked @ weights + target.mean(dim=0)
    return scores.argmax(dim=1)
