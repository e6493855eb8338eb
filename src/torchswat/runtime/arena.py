"""Memory planned once: results in one block, so that those alive at the same time do not overlap."""

from __future__ import annotations

from collections.abc import Sequence

ALIGNMENT = 64  # bytes


def place(sizes: Sequence[int], lives: Sequence[tuple[int, int]]) -> tuple[list[int], int]:
    """Return the offset of each piece, and the size of the block.

    The largest pieces are placed first, each into the lowest gap that is free all its life.

    Parameters
    ----------
    sizes : sequence of int
        In bytes.
    lives : sequence of (int, int)
        The step that makes each piece, and the last one that reads it.

    Examples
    --------
    >>> place([100, 50, 100], [(0, 1), (1, 2), (2, 3)])
    ([0, 128, 0], 192)
    """
    rounded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    offsets = [0] * len(sizes)
    placed: list[int] = []
    for piece in sorted(range(len(sizes)), key=lambda index: (-rounded[index], index)):
        first, last = lives[piece]
        neighbours = [other for other in placed if lives[other][0] <= last and first <= lives[other][1]]
        at = 0
        for other in sorted(neighbours, key=lambda index: offsets[index]):
            if at + rounded[piece] <= offsets[other]:
                break
            at = max(at, offsets[other] + rounded[other])
        offsets[piece] = at
        placed.append(piece)
    return offsets, max((offset + size for offset, size in zip(offsets, rounded, strict=True)), default=0)
