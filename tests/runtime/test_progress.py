"""What is said of long work: how far it is, how fast, and how long it still takes, with a clock of the test's own."""

import io
import re
import threading
from types import SimpleNamespace

import pytest

from driftkit.runtime import progress as module
from driftkit.runtime.progress import (
    Bars,
    Display,
    Work,
    duration,
    phase,
    progress,
    progress_bars,
    showing,
    time_left,
    within,
)
from driftkit.runtime.terminal import open_console


@pytest.fixture
def clock(monkeypatch):
    """`clock.now` is what the clock shows; no thread looks at it."""
    clock = SimpleNamespace(now=100.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "TICK_S", 1000.0)
    return clock


@pytest.fixture
def said(capsys):
    return lambda: capsys.readouterr().err.splitlines()


def test_a_line_has_count_rate_and_time_left(clock, said):
    display = Display()
    display.report("sampling", 0, 2000)
    for _ in range(4):
        clock.now += 2
        display.report("sampling", 50, 2000)
    assert said() == ["sampling: 150 of 2,000 images, 25/s, 74 s left"]  # after 6 s, and then not before 11 s


def test_work_that_reports_nothing_for_long_is_shown_all_the_same(clock, said):
    display = Display()
    display.report("sampling", 0, 2000)
    for _ in range(12):
        clock.now += 1
        display.tick()
    assert said() == ["sampling: 0 of 2,000 images, 5 s so far", "sampling: 0 of 2,000 images, 10 s so far"]


def test_the_work_that_began_last_is_the_one_that_is_shown(clock, said):
    with progress("scores", 12, "scores"), phase("computing precision and recall"):
        clock.now += 6
        module._shown.tick()
        clock.now += 6
    assert said() == ["computing precision and recall: 6 s so far", "computing precision and recall: done in 12 s"]


def test_few_large_things_have_no_rate(clock, said):
    display = Display()
    display.report("scores", 0, 12, unit="scores")
    clock.now += 60
    display.report("scores", 1, 12, unit="scores")
    assert said() == ["scores: 1 of 12 scores, 11 min left"]


def test_an_unknown_total_has_no_time_left(clock, said):
    with progress("importing photos", 0) as advance:
        clock.now += 10
        advance(50)
    assert said() == ["importing photos: 50 images, 5/s, 10 s so far", "importing photos: 50 images, 5/s, done in 10 s"]


def test_short_work_says_nothing_and_failed_work_does_not_say_that_it_is_done(clock, said):
    with progress("reading", 10) as advance:
        clock.now += 4
        advance(10)
    with pytest.raises(ValueError, match="broken"), phase("loading"):
        clock.now += 60
        raise ValueError("broken")
    assert said() == []


def test_a_thread_looks_at_the_clock_while_work_goes_on(monkeypatch, said):
    monkeypatch.setattr(module, "PLAIN_INTERVAL_S", 0.0)
    monkeypatch.setattr(module, "TICK_S", 0.001)
    looked = threading.Event()
    tick = Display.tick
    monkeypatch.setattr(Display, "tick", lambda self: (tick(self), looked.set()))
    with phase("loading weights"):
        assert looked.wait(60)
    assert said()[0] == "loading weights: 0 s so far"
    assert not [thread for thread in threading.enumerate() if thread.name == "progress"]


def test_other_ranks_than_the_first_show_nothing(monkeypatch, clock, said):
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "29500")):
        monkeypatch.setenv(name, value)
    with progress("encoding", 10) as advance:
        clock.now += 60
        advance(5)
        module._shown.tick()
        advance(5)
    assert said() == []


def test_in_a_terminal_bars_have_rate_and_time_left_and_works_join_one_display(monkeypatch):
    stream = io.StringIO()
    console = open_console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr(module, "open_console", lambda **_: console)
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", clock)
    with progress_bars() as report:
        report("inception", 0, 100)
        clock.now = 2.0
        report("inception", 50, 100)
        with phase("computing FID"):
            module._shown.bars.refresh()
        assert list(module._shown.works) == ["inception"]
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert re.search(r"inception .* 50/100 25/s 0:00:00 -?\S+", drawn)
    assert "computing FID" in drawn
    assert module._shown is None


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 40 columns: gives the lines that were drawn on it."""
    stream = io.StringIO()
    console = open_console(file=stream, force_terminal=True, width=40)
    monkeypatch.setattr(module, "open_console", lambda **_: console)
    return lambda: re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()))


def test_in_a_terminal_a_line_above_the_bars_tells_of_the_whole_pipeline(terminal):
    with within(lambda seconds: f"stage 7 of 14, {seconds}"), phase("computing FID"):
        module._shown.bars.refresh()
    drawn = terminal()
    at = next(number for number, line in enumerate(drawn) if line.startswith("computing FID"))
    assert drawn[at - 1] == "stage 7 of 14, None"
    assert "?" not in drawn[at]  # nobody counts it


def test_the_line_on_the_pipeline_knows_the_time_that_the_command_knows_and_does_not_stay(terminal, clock):
    console = module.open_console()
    bars = Bars(console, ["{task.completed}"], transient=False)
    with within(lambda seconds: f"stage 7 of 14, {seconds} s, and the rest of a long line"), showing(bars):
        work = bars.begin(Work("train", 100, "steps", is_command=True))
        clock.now += 10
        work.done = 20
        bars.bars.refresh()
        work.done = 100
        bars.refresh(work)
        bars.bars.refresh()
    drawn = terminal()
    assert "stage 7 of 14, 40.0 s, and the rest of …" in drawn
    assert "stage 7 of 14, None s, and the rest of …" in drawn  # what it still does is not counted
    assert [line for line in drawn if line.strip()][-1] == "100"


def test_a_command_that_is_a_part_says_what_is_left_of_the_whole():
    assert time_left(54) == "54 s left"
    with within(lambda seconds: f"about {duration(seconds + 240)} left in all"):
        assert time_left(60) == "60 s left, about 5 min left in all"
    assert time_left(54) == "54 s left"


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 s"), (54, "54 s"), (600, "10 min"), (9000, "2.5 h")])
def test_durations_are_short(seconds, words):
    assert duration(seconds) == words


def test_what_is_done_before_the_clock_starts_has_no_part_in_the_rate(clock):
    work = Work("train", 100, "steps", done=50)
    clock.now += 10
    work.done = 60
    assert (work.rate(), work.seconds_left()) == (1.0, 40.0)
