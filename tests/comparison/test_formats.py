"""Numbers and curves as people read them."""

from driftkit.comparison.formats import format_count, format_rate, format_score, format_seconds, sparkline


def test_numbers_are_shown_for_people():
    assert [format_count(v) for v in (None, 12, 1234, 38_300_000)] == ["–", "12", "1,234", "38.3 M"]
    assert [format_seconds(v) for v in (None, 42.4, 600, 9000)] == ["–", "42 s", "10 min", "2.5 h"]
    assert [format_score(v) for v in (None, 0.0, 3.14159, 1234.5, 0.01234)] == [
        "–",
        "0.0000",
        "3.14",
        "1,234.5",
        "0.0123",
    ]


def test_rates_have_three_digits():
    assert [format_rate(v) for v in (None, 1601.4, 437.2, 32.51, 8.5, 0.123)] == [
        "–",
        "1,601",
        "437",
        "32.5",
        "8.50",
        "0.123",
    ]


def test_sparklines_rise_from_the_lowest_to_the_highest():
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert sparkline([5.0, 5.0, None, 5.0]) == "▄▄▄"
    assert sparkline([1.0, float("nan")]) == ""
    assert len(sparkline(list(range(1000)), width=10)) == 10
