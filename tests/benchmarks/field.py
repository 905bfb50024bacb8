"""Time of the drifting field against the literal batched form of Algorithm 2: `python -m tests.benchmarks.field`.

Prints seconds of both, their ratio, the ratio to the time of the matrix products alone, and the relative difference.
"""

import statistics
import time
from collections.abc import Callable

import torch

from driftkit.drift import aggregated_drift

SHAPES = ((72, 256, 768), (8, 1024, 768), (18, 256, 2048), (18, 256, 256), (118, 128, 64))
TAUS = (0.02, 0.05, 0.2)


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


def seconds(function: Callable[[], object], repeats: int = 5) -> float:
    """Median time of a call, after one that is not counted."""
    function()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, float32, taus {TAUS}, one scale per location")
    heads = ("literal s", "driftkit s", "speed-up", "over products", "difference")
    print(f"{'[G, N, C] + N positives':>24} " + " ".join(f"{head:>13}" for head in heads))
    for shape in SHAPES:
        x, pos = torch.randn(shape), torch.randn(shape) + 0.1
        y, coefficients = torch.cat([x, pos], dim=1), torch.randn(*shape[:2], 2 * shape[1])

        def ours(x: torch.Tensor = x, pos: torch.Tensor = pos) -> torch.Tensor:
            return aggregated_drift(x, pos, taus=TAUS, scale_over="location").v

        want, got = literal(x.double(), pos.double()), ours()
        difference = float((got - want).norm() / want.norm())
        slow, fast = seconds(lambda: literal(x, pos)), seconds(ours)  # noqa: B023
        floor = seconds(lambda: products(x, y, coefficients))  # noqa: B023
        print(
            f"{shape!s:>24} {slow:13.3f} {fast:13.3f} {slow / fast:12.1f}x {fast / floor:12.1f}x {difference:13.1e}",
            flush=True,
        )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
