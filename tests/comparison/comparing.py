"""Comparing in tests: without timing and neighbours unless a test asks for them."""

from driftkit.comparison.compare_config import CompareConfig
from driftkit.stages.compare import compare


def compare_runs(paths, output, **settings):
    """The comparison of runs, written to `output`."""
    return compare(paths, CompareConfig(**{"output": output, "speed": False, "neighbours": False, **settings}))
