"""Time and memory of the drifting field against the literal batched form of Algorithm 2.

`python -m tests.benchmarks field` prints both, their ratio, and the ratio to the time of the matrix products alone.
"""

from collections.abc import Iterator

import torch

from driftkit.drift import aggregated_drift
from tests.benchmarks.harness import Row, alternate

SHAPES = ((72, 256, 768), (8, 1024, 768), (18, 256, 2048), (18, 256, 256), (118, 128, 64))
TAUS = (0.02, 0.05, 0.2)
GOALS = {
    ((72, 256, 768), "literal"): ">= 4.5x",
    ((72, 256, 768), "products"): "<= 1.6x",
    ((8, 1024, 768), "literal"): ">= 3.5x",
    ((18, 256, 2048), "literal"): ">= 3.5x",
    ((18, 256, 256), "literal"): ">= 3.5x",
}


def literal(x: torch.Tensor, pos: torch.Tensor) -> torch.Tensor:
    """Algorithm 2 and Appendix A.6 line by line: two cdist, two softmaxes and one product per temperature."""
    distance = torch.cat([torch.cdist(x, pos), torch.cdist(x, x)], dim=2)  # [G, N, P + N]
    mean = distance.mean(dim=(1, 2), keepdim=True)
    scale = mean / x.shape[-1] ** 0.5
    targets = torch.cat([pos, x], dim=1) / scale
    mask = torch.zeros_like(distance)
    torch.diagonal(mask, pos.shape[1], 1, 2).fill_(torch.inf)
    v = torch.zeros_like(x)
    for tau in TAUS:
        logits = -distance / (mean * tau) - mask
        affinity = (torch.softmax(logits, dim=2) * torch.softmax(logits, dim=1)).sqrt()
        pull, push = affinity[:, :, : pos.shape[1]], affinity[:, :, pos.shape[1] :]
        weights = torch.cat([pull * push.sum(2, keepdim=True), -push * pull.sum(2, keepdim=True)], dim=2)
        v_tau = torch.bmm(weights, targets)
        v += v_tau / v_tau.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return v


def products(x: torch.Tensor, y: torch.Tensor, coefficients: torch.Tensor) -> None:
    """The matrix products that no form can do without: one Gram and one product per temperature."""
    torch.bmm(x, y.transpose(1, 2))
    for _ in TAUS:
        torch.bmm(coefficients, y)


def rows() -> Iterator[Row]:
    """Speed-up over the literal form and distance from the bare products, for every shape."""
    with torch.inference_mode():
        for shape in SHAPES:
            yield from _speed(shape)


def _speed(shape: tuple[int, int, int]) -> Iterator[Row]:
    x, pos = torch.randn(shape), torch.randn(shape) + 0.1
    y, coefficients = torch.cat([x, pos], dim=1), torch.randn(*shape[:2], 2 * shape[1])

    def ours() -> torch.Tensor:
        return aggregated_drift(x, pos, taus=TAUS, scale_over="location").v

    took = alternate(
        {"literal": lambda: literal(x, pos), "ours": ours, "products": lambda: products(x, y, coefficients)}
    )
    for name, ratio in (("literal", took["literal"] / took["ours"]), ("products", took["ours"] / took["products"])):
        goal = GOALS.get((shape, name), "")
        yield Row("field", f"{list(shape)}", took["ours"], took[name], "s", ratio, goal, baseline_name=name)
