"""How far a call has come: what long functions report, and what a bar or a log takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

Progress = Callable[[int, int], object]
"""Called after every piece of work with the number done and the number of all."""

Item = TypeVar("Item")
Item_co = TypeVar("Item_co", covariant=True)


class SizedIterable(Protocol[Item_co]):
    """What has a length and can be iterated over."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Item_co]: ...


def counted(items: SizedIterable[Item], progress: Progress | None) -> Iterator[Item]:
    """Yield `items`, and report each to `progress` when the next one is asked for.

    Examples
    --------
    >>> list(counted("ab", lambda done, total: print(done, "of", total)))
    1 of 2
    2 of 2
    ['a', 'b']
    """
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(done, len(items))
