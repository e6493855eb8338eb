"""The arguments of a sparse layer's operation beside its tensors, in the order of its schema."""

from __future__ import annotations

from fractions import Fraction
from functools import cache, lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from torchswat.errors import NotFinite

FORWARD_WEIGHT, GRAD_INPUT_WEIGHT, GRAD_WEIGHT_ACTIVATION = 1, 2, 4
"""Bits of `Arguments.slots`: which operands of which products are selected."""

EXACT, SAMPLED = 1, 2
"""Bits of `Arguments.search`."""

FORWARD_SPARSE, GRAD_INPUT_SPARSE, GRAD_WEIGHT_SPARSE = 1, 2, 4
"""Bits of `Arguments.products`: which products run on packed weights and compressed activations."""

EVALUATION, COUNTS, COUNTED = 0, 1, 2
"""Of `Arguments.training`: no iteration of training; one more of them; or one that the optimizer's steps count."""

TUNED = -1
"""Of `Arguments.products`: as the tuned plan says when the operation runs."""


class Arguments(NamedTuple):
    """Static arguments of ``torchswat::sparse_forward``."""

    sparsity: float
    """The share of zeros in this pass; a schedule tensor has the last word."""
    kept_weights: int
    kept_activations: int
    """How many entries are kept of the weight and of the input."""
    room: int
    """How many values the saved activation has room for; as many as are kept where it is negative."""
    stride: tuple[int, int]
    padding: tuple[int, ...]
    """Of height and width, or top, left, bottom and right."""
    dilation: tuple[int, int]
    groups: int
    slots: int
    search: int
    period: int
    warmup: int
    products: int
    chwn: bool
    """Whether the output of a convolution lies as [K][P][Q][N]."""
    training: int
    """`EVALUATION`, `COUNTS` or `COUNTED`."""
    save: bool
    """Whether a gradient of the weight is wanted."""
    recompute: bool
    """Whether the input is made again in the backward pass, so that it need not be saved."""
    name: str
    """The layer's, for messages."""


def share_of(sparsity: float) -> tuple[int, int]:
    """Return a sparsity as numerator and denominator."""
    fraction = Fraction(repr(float(sparsity)))  # as it was written: in floats 0.7 * 90 is 62.99999999999999
    return fraction.numerator, fraction.denominator


_cached_share = lru_cache(maxsize=4096)(share_of)


def kept_count(n: int, sparsity: float) -> int:
    """Return how many of `n` entries are kept at `sparsity`: ``n - floor(S * n)``, at least one of any.

    Examples
    --------
    >>> kept_count(10, 0.8), kept_count(3, 0.9), kept_count(0, 0.5)
    (2, 1, 0)
    """
    numerator, denominator = _cached_share(sparsity)
    return n - n * numerator // denominator  # the part dropped is below n, so one of any stays


def kept_now(
    a: Arguments, schedule: Tensor | None, number: int, weights: int, activations: int
) -> tuple[float, int, int]:
    """Return sparsity and kept entries of pass `number`, which a schedule may say."""
    if schedule is None:
        return a.sparsity, a.kept_weights, a.kept_activations
    sparsity = float(schedule[min(number, len(schedule) - 1)])
    return sparsity, kept_count(weights, sparsity), kept_count(activations, sparsity)


def not_a_number(what: str, entries: int) -> NotFinite:
    """Return the error for a NaN among what is to be selected from."""
    return NotFinite(
        f"{what} has NaN among its {entries} entries; a selection by magnitude is undefined there."
    )


class Moment(NamedTuple):
    """Where a pass stands among the iterations of training."""

    remembers: bool
    """Whether thresholds and densities are those of the layer from now on."""
    advances: bool
    """Whether the iteration is counted now."""
    last: bool
    """Whether the pass belongs to the last iteration, which has been counted."""


def moment_of(training: int) -> Moment:
    """Return the moment of a pass; a recomputation for a backward pass is the same iteration again."""
    return _moment(training, torch._C._current_graph_task_id() != -1)


@cache
def _moment(training: int, again: bool) -> Moment:
    # It remembers, too: under reentrant checkpointing no earlier pass of the iteration selects activations.
    return Moment(
        remembers=training > 0,
        advances=training == COUNTS and not again,
        last=training == EVALUATION or (training == COUNTS and again),
    )
