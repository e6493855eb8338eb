"""Image files that cannot be read: found before a training needs them, and left out of a split."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from torchswat.data.batches import usable_processors
from torchswat.data.dataset import Pictures
from torchswat.data.picture import decode
from torchswat.errors import InvalidData

_AT_ONCE = 256  # files that are queued for the threads


def find_unreadable(
    paths: Sequence[Path], advance: Callable[[int], object] = lambda count: None
) -> dict[Path, str]:
    """Decode image files as a training does, and return those that fail, each with what is wrong with it.

    Parameters
    ----------
    paths : sequence of Path
    advance : callable, optional
        Called with the number of files that were decoded since it was last called.

    Raises
    ------
    MissingDependency
        Pillow is not installed.

    Examples
    --------
    >>> find_unreadable([Path("no/such/image.jpg")])
    {PosixPath('no/such/image.jpg'): "no/such/image.jpg is not a readable image ([Errno 2] ..."}
    """
    found: dict[Path, str] = {}
    pool = ThreadPoolExecutor(usable_processors(), thread_name_prefix="check")
    try:
        for start in range(0, len(paths), _AT_ONCE):
            some = paths[start : start + _AT_ONCE]
            for path, problem in zip(some, pool.map(_problem, some), strict=True):
                if problem is not None:
                    found[path] = problem
            advance(len(some))
    finally:  # also on Ctrl-C
        pool.shutdown(cancel_futures=True)
    return found


def leave_out(split: Pictures, paths: Collection[Path]) -> Pictures:
    """Make a split without some files.

    Raises
    ------
    InvalidData
        A class that had images has none left.
    """
    kept = torch.tensor([path not in paths for path in split.paths], dtype=torch.bool)
    left = split.subset(kept.nonzero().flatten())
    lost = set(split.labels.tolist()) - set(left.labels.tolist())
    if lost:
        names = ", ".join(repr(split.classes[label]) for label in sorted(lost)[:5])
        raise InvalidData(f"no readable image is left of {len(lost)} class(es): {names}")
    return left


def _problem(path: Path) -> str | None:
    try:
        decode(path, 1, lambda width, height: ((0, 0, 1, 1), False))
    except InvalidData as error:
        return str(error)
    return None
