"""What a run writes stays within bounds however long it is."""

import pytest

from driftkit.training.hooks import MAX_GRIDS, MAX_RECORDS, is_due


def written(steps, every, maximum):
    return [step for step in range(1, steps + 1) if is_due(step, every, maximum=maximum)]


def test_intervals_double_as_the_bound_is_exceeded():
    assert written(8, 1, 100) == [1, 2, 3, 4, 5, 6, 7, 8]
    assert written(16, 1, 4) == [1, 2, 3, 4, 6, 8, 12, 16]
    assert written(60, 10, 3) == [10, 20, 30, 40, 60]
    assert written(5, 0, 4) == []


@pytest.mark.parametrize(("every", "maximum", "bound"), [(10, MAX_RECORDS, 270_000), (500, MAX_GRIDS, 3_200)])
def test_ten_million_steps_stay_within_bounds(every, maximum, bound):
    steps = range(every, 10_000_001, every)
    assert sum(is_due(step, every, maximum=maximum) for step in steps) <= bound
    assert all(is_due(step, every, maximum=maximum) for step in range(every, maximum * every + 1, every))
