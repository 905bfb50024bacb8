"""Time, memory and precision of the drifting field against the literal batched form of Algorithm 2.

`python -m tests.benchmarks field` prints both, their ratio, and the ratio to the time of the matrix products alone;
then why the precision rule is needed: errors of float32 against float64, with the rule and without.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from driftkit.methods.drifting import aggregated_drift
from driftkit.runtime.ranks import Gathering, Ranks
from tests.benchmarks.harness import Row, alternate, peak_bytes

SHAPES = ((72, 256, 768), (8, 1024, 768), (18, 256, 2048), (18, 256, 256), (118, 128, 64))
MEMORY_SHAPE = (72, 1024, 768)
RANK_SHAPES = ((72, 256, 768), (8, 1024, 768))  # of the whole batch
PRECISION_SHAPE, PRECISION_TAU, PRECISION_RULE = (8, 256, 768), 0.02, 1e-5
WORLD = 4
TAUS = (0.02, 0.05, 0.2)
GOALS = {
    ((72, 256, 768), "literal"): ">= 4.5x",
    ((72, 256, 768), "products"): "<= 1.6x",
    ((8, 1024, 768), "literal"): ">= 3.5x",
    ((18, 256, 2048), "literal"): ">= 3.5x",
    ((18, 256, 256), "literal"): ">= 3.5x",
}


def literal(x: torch.Tensor, pos: torch.Tensor, taus: Sequence[float] = TAUS) -> torch.Tensor:
    """Appendix A.6 around Algorithm 2, batched, line by line: each temperature makes its own distances."""
    mean = torch.cat([torch.cdist(x, x), torch.cdist(x, pos)], dim=2).mean(dim=(1, 2), keepdim=True)
    scale = mean / x.shape[-1] ** 0.5
    x, pos = x / scale, pos / scale
    v = torch.zeros_like(x)
    for tau in taus:
        v_tau = algorithm_2(x, pos, x, tau * x.shape[-1] ** 0.5)
        v += v_tau / v_tau.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return v


def algorithm_2(x: torch.Tensor, y_pos: torch.Tensor, y_neg: torch.Tensor, temperature: float) -> torch.Tensor:
    """The field of one temperature: two cdist, two softmaxes, one product with the positives and one with the rest."""
    negative_distance = torch.cdist(x, y_neg)
    negative_distance = negative_distance + torch.eye(x.shape[1], device=x.device) * 1e6
    logits = torch.cat([torch.cdist(x, y_pos), negative_distance], dim=2) / -temperature
    affinity = (torch.softmax(logits, dim=2) * torch.softmax(logits, dim=1)).sqrt()
    pull, push = affinity.split([y_pos.shape[1], y_neg.shape[1]], dim=2)
    return (pull * push.sum(dim=2, keepdim=True)) @ y_pos - (push * pull.sum(dim=2, keepdim=True)) @ y_neg


def products(x: torch.Tensor, y: torch.Tensor, coefficients: torch.Tensor) -> None:
    """The matrix products that no form can do without: one Gram and one product per temperature."""
    torch.bmm(x, y.transpose(1, 2))
    for _ in TAUS:
        torch.bmm(coefficients, y)


def rows() -> Iterator[Row]:
    """Speed-up over the literal form and distance from the bare products; memory, work of one rank, precision."""
    with torch.inference_mode():
        for shape in SHAPES:
            yield from _speed(shape)
        for scale_over in ("location", "map"):
            yield _memory(MEMORY_SHAPE, scale_over)
        for shape in RANK_SHAPES:
            yield _rank_work(shape)
        yield from _precision(PRECISION_SHAPE, PRECISION_TAU)


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


def _memory(shape: tuple[int, int, int], scale_over: str) -> Row:
    """Peak memory beyond the arguments and the result, which both forms need."""
    x, pos = torch.randn(shape), torch.randn(shape) + 0.1
    peaks = [
        peak_bytes(function) - x.nbytes
        for function in (lambda: aggregated_drift(x, pos, taus=TAUS, scale_over=scale_over), lambda: literal(x, pos))
    ]
    gib, baseline = (peak / 2**30 for peak in peaks)
    goal = "<= 0.1" if scale_over == "location" else ""
    return Row("field", f"{list(shape)} memory, {scale_over}", gib, baseline, "GiB", gib / baseline, goal, "literal")


@dataclass(frozen=True)
class OneRank(Ranks):
    """The first rank among peers whose features have arrived: what it computes costs what it would among real peers."""

    arrived: tuple[torch.Tensor, ...] = ()

    def start_gather(self, parts: Sequence[torch.Tensor], *, compare: bool = True) -> Gathering:
        return Gathering(self.arrived)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return value * self.world_size

    def max(self, value: torch.Tensor) -> torch.Tensor:
        return value.clone()


def _rank_work(shape: tuple[int, int, int]) -> Row:
    """Rows of one rank of four, against every rank computing the field of the whole batch."""
    x, pos = torch.randn(shape), torch.randn(shape) + 0.1
    mine = slice(0, shape[1] // WORLD)
    took = alternate(
        {
            "ours": lambda: aggregated_drift(
                x[:, mine], pos[:, mine], taus=TAUS, scale_over="location", ranks=OneRank(0, WORLD, arrived=(x, pos))
            ),
            "whole": lambda: aggregated_drift(x, pos, taus=TAUS, scale_over="location"),
        }
    )
    ratio = took["ours"] / took["whole"]
    return Row(
        "field", f"{list(shape)} one rank of {WORLD}", took["ours"], took["whole"], "s", ratio, "<= 0.35", "whole"
    )


def _precision(shape: tuple[int, int, int], tau: float) -> Iterator[Row]:
    """Relative error of V in float32 against float64, with the precision rule and without (the literal form).

    Independent points do without the rule. Early in training all generated images are alike, and batches hold
    near-duplicates: there float32 distances cancel, and small temperatures amplify what they lose.
    """
    x, pos = torch.randn(shape), torch.randn(shape) + 0.1
    pairs = torch.arange(shape[1]) // 2
    cases = {
        "independent": x,
        "generated alike": 1 + 0.03 * x,
        "near-duplicates": x[:, pairs] + 1e-3 * x,
        "duplicates": x[:, pairs],
    }
    for name, near in cases.items():
        want = aggregated_drift(near.double(), pos.double(), taus=(tau,), scale_over="location").v
        results = aggregated_drift(near, pos, taus=(tau,), scale_over="location").v, literal(near, pos, (tau,))
        with_rule, without = (((v - want).norm() / want.norm()).item() for v in results)
        case, ratio = f"error at tau {tau} (ratio: over 1e-5), {name}", with_rule / PRECISION_RULE
        yield Row("field", case, with_rule, without, "", ratio, "<= 1", "without the rule")
