"""Progress of commands that do the same thing several times."""

from driftkit.cli.output import progress_bars
from driftkit.runtime import progress


def test_what_is_done_again_is_counted_from_nothing(capsys, monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(progress, "TICK_S", 1000.0)
    with progress_bars() as report:
        for _ in range(2):
            for _ in range(2):
                report("reference", 5, 10)
    counts = [line.split(" images")[0] for line in capsys.readouterr().err.splitlines()]
    assert counts == ["reference: 5 of 10", "reference: 10 of 10"] * 2
