"""How often something is written in a run of any length: often at first, and never more than disks and readers bear."""

MOST_RECORDS = 100_000  # of metrics.jsonl, 1 to 5 KB each, before they become half as frequent
MOST_GRIDS = 1_000  # pictures in samples/


def is_due(step: int, every: int, *, most: int) -> bool:
    """Whether a step writes. The interval is `every`, and doubles whenever that would be more than `most` by now.

    A run of n * most * every steps so writes most * (1 + log2(n) / 2) times. It follows from the step alone, so that a
    resumed run writes what one that was never stopped does.

    Args:
        every: steps; 0: never.
    """
    if every <= 0:
        return False
    interval = every
    while step > interval * most:
        interval *= 2
    return step % interval == 0
