"""Scores at equal cost: what each run had reached after as many steps, images, seconds or network evaluations."""

from collections.abc import Sequence
from dataclasses import dataclass

from driftkit.comparison.run_summary import COSTS, RunSummary
from driftkit.comparison.score_table import ScoreRow, ScoreTable


@dataclass(frozen=True)
class BudgetCell:
    """The best score of a run within a budget, of which its checkpoint `spent` a part."""

    score: float
    spent: float
    step: int | None
    sampler: str | None
    nfe: int | None


@dataclass(frozen=True)
class EqualBudget:
    """A budget ("step", "images", "seconds" or "nfe"), its amount in that unit, and the best score of each run within it.

    `cells` is by the run's label; None where no checkpoint within the budget was scored.
    """

    cost: str
    amount: float
    cells: dict[str, BudgetCell | None]


def training_budgets(table: ScoreTable, runs: Sequence[RunSummary]) -> list[EqualBudget]:
    """Scores at the largest number of steps, images and seconds that every trained run was scored at or beyond.

    A run is shown with its best score of all checkpoints within the budget, in any sampler setup. Runs without any
    training cost nothing and fit every budget. A cost is skipped where fewer than two trained runs tell it.
    """
    summaries = {run.label: run for run in runs}
    budgets = []
    for cost in COSTS:
        spent: dict[str, list[tuple[float, ScoreRow]]] = {}
        for row in table.history:
            run = summaries.get(row.run)
            if run is not None and (value := run.cost_at(row.step or 0, cost)) is not None:
                spent.setdefault(row.run, []).append((value, row))
        totals = [total for rows in spent.values() if (total := max(value for value, _ in rows)) > 0]
        if len(totals) >= 2:
            amount = min(totals)
            budgets.append(EqualBudget(cost, amount, {run: _within(rows, amount) for run, rows in spent.items()}))
    return budgets


def nfe_budgets(table: ScoreTable) -> list[EqualBudget]:
    """The best score of every run with at most so many network evaluations per image, for every NFE that was scored."""
    by_run: dict[str, list[tuple[float, ScoreRow]]] = {}
    for row in table.rows:
        if row.nfe is not None:
            by_run.setdefault(row.run, []).append((float(row.nfe), row))
    amounts = sorted({nfe for rows in by_run.values() for nfe, _ in rows})
    return [EqualBudget("nfe", a, {run: _within(rows, a) for run, rows in by_run.items()}) for a in amounts]


def _within(rows: Sequence[tuple[float, ScoreRow]], amount: float) -> BudgetCell | None:
    affordable = [(value, row) for value, row in rows if value <= amount * (1 + 1e-9)]
    if not affordable:
        return None
    value, row = min(affordable, key=lambda pair: pair[1].score)
    return BudgetCell(row.score, value, row.step, row.sampler, row.nfe)
