"""How long a loop waits for its batches."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Batch = TypeVar("Batch")


def timed(batches: Iterable[Batch]) -> Iterator[tuple[float, Batch]]:
    """Yield each batch with the seconds that it took to come.

    Examples
    --------
    >>> [(batch, seconds < 1) for seconds, batch in timed("ab")]
    [('a', True), ('b', True)]
    """
    asked = time.perf_counter()
    for batch in batches:
        yield time.perf_counter() - asked, batch
        asked = time.perf_counter()
