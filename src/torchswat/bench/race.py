"""Contestants that run in turns in one process, and what is made of their times.

A machine that is shared or grows warm slows all contestants of a round alike, so ratios hold where times do
not. The first round is not timed: it allocates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

Tick = Callable[[], object]
"""Called after every round, for a progress bar."""


def race(
    contestants: Mapping[str, Callable[[], object]],
    repeats: int,
    tick: Tick = lambda: None,
    *,
    in_turns: bool = False,
) -> dict[str, list[float]]:
    """Return the milliseconds of `repeats` runs of each contestant.

    With `in_turns` each runs once right before it is timed, and another one begins each round: whoever comes
    before a contestant leaves caches and threads behind that would slow it, and always the same.

    Examples
    --------
    >>> times = race({"a": lambda: sum(range(10)), "b": lambda: None}, repeats=3)
    >>> [len(samples) for samples in times.values()]
    [3, 3]
    """
    names = list(contestants)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for round_number in range(repeats + 1):
        first = round_number % len(names) if in_turns and names else 0
        for name in names[first:] + names[:first]:
            run = contestants[name]
            if in_turns:
                run()
            start = time.perf_counter()
            run()
            if round_number:
                samples[name].append(1000 * (time.perf_counter() - start))
        tick()
    return samples


def median(samples: list[float]) -> float:
    """Return the median."""
    return float(np.median(samples))


def spread(samples: list[float]) -> float:
    """Return the distance of the quartiles, as a share of the median.

    Examples
    --------
    >>> spread([9.0, 10.0, 11.0])
    0.1
    """
    low, middle, high = np.percentile(samples, [25, 50, 75])
    return float((high - low) / middle)


def faster(samples: Mapping[str, list[float]]) -> str:
    """Return the name of the contestant with the least median."""
    return min(samples, key=lambda name: median(samples[name]))
