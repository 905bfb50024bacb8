"""The short form of the soak, and that its verdict knows a leak when it sees one."""

import random

import pytest

from tests.soak.program import soak, trends_of, write_results
from tests.soak.slopes import trend
from tests.soak.watch import Sample


def looks(leak_mib=0.0, handles=0.0, count=300):
    """Looks at a made-up training of 20,000 steps, with ups and downs; what leaks does so per 1,000 steps."""
    draws = random.Random(0)
    made = []
    for i in range(1, count + 1):
        step = 20_000 * i // count
        memory = 430 + draws.gauss(0, 1) + leak_mib * step / 1000
        opened = 3 + (draws.random() < 0.02) + int(handles * step / 1000)
        made.append(Sample(float(i), step, memory + 350, memory, opened, 1, 0.75, 4, 94 * step, 50 * i, 1))
    return made


def complaints(samples):
    return [line.name for line in trends_of(samples) if not line.flat]


def test_ups_and_downs_are_flat_and_leaks_are_not():
    assert complaints(looks()) == []
    assert complaints(looks(leak_mib=0.5)) == ["resident memory", "anonymous memory"]
    assert complaints(looks(handles=0.1)) == ["file handles"]


def test_the_slope_is_that_of_the_line():
    line = trend("x", "MiB", [0, 1000, 2000], [1.0, 3.0, 5.0], allowed=1.0)
    assert (line.slope, line.growth, line.mean) == (2.0, 4.0, 3.0)
    assert line.error == pytest.approx(0)
    assert not line.flat


@pytest.mark.slow
def test_a_short_soak_is_flat(tmp_path):
    result, samples = soak(tmp_path / "soak", objective="drift", steps=300, every_s=0.25, writes=10)
    assert result.complaints == ()
    assert result.exit_code == 0
    assert result.totals["grids"] == 10
    assert result.totals["metric records"] == 30
    assert write_results(result, samples, tmp_path / "results").is_file()
    assert (tmp_path / "results" / "drift.png").is_file()
