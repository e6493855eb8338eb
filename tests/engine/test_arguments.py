"""How many entries are kept, in exact arithmetic, and where a pass stands among iterations."""

from __future__ import annotations

from decimal import Decimal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from torchswat import selection
from torchswat.engine.arguments import (
    COUNTED,
    COUNTS,
    EVALUATION,
    Arguments,
    Moment,
    kept_count,
    kept_now,
    moment_of,
    share_of,
)

sparsities = st.one_of(st.decimals(0, "0.999", places=3), st.floats(0, 1, exclude_max=True))


@given(st.integers(0, 10**12), sparsities)
def test_the_count_is_exact_in_the_decimals_as_they_are_written(n, sparsity):
    written = Decimal(repr(float(sparsity)))
    dropped = int(n * written.as_integer_ratio()[0] // written.as_integer_ratio()[1])
    assert kept_count(n, float(sparsity)) == n - dropped
    assert min(n, 1) <= kept_count(n, float(sparsity)) <= n


@given(st.integers(1, 10**6), sparsities, sparsities)
def test_more_sparsity_keeps_no_more(n, one, other):
    low, high = sorted((float(one), float(other)))
    assert kept_count(n, high) <= kept_count(n, low)


def test_floats_that_round_down_do_not_count():
    assert kept_count(90, 0.7) == 27 and kept_count(10, 0.9) == 1 and share_of(0.1) == (1, 10)
    assert selection.kept_count is kept_count


def arguments() -> Arguments:
    pairs = (1, 1), (0, 0), (1, 1)
    return Arguments(0.5, 3, 4, -1, *pairs, 1, 7, 1, 1, 0, 0, False, COUNTS, True, False, "layer")


@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9]), min_size=1, max_size=9), st.integers(0, 20))
def test_a_schedule_has_the_last_word_and_its_last_value_stays(values, number):
    sparsity, weights, activations = kept_now(
        arguments(), torch.tensor(values, dtype=torch.float64), number, 10, 100
    )
    assert sparsity == values[min(number, len(values) - 1)]
    assert (weights, activations) == (kept_count(10, sparsity), kept_count(100, sparsity))
    assert kept_now(arguments(), None, number, 10, 100) == (0.5, 3, 4)


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        (EVALUATION, Moment(False, False, True)),
        (COUNTS, Moment(True, True, False)),
        (COUNTED, Moment(True, False, False)),
    ],
)
def test_a_pass_of_a_program(training, expected):
    assert moment_of(training) == expected


@pytest.mark.parametrize("training", [COUNTS, COUNTED])
def test_a_recomputation_is_the_same_iteration_again(training):
    seen = []

    def run(x: torch.Tensor) -> torch.Tensor:
        seen.append(moment_of(training))
        return x.sin()

    out = checkpoint(run, torch.ones(3, requires_grad=True), use_reentrant=True)
    assert isinstance(out, torch.Tensor)
    out.sum().backward()
    first, again = seen
    assert first.advances == (training == COUNTS) and not again.advances
    assert again.last == (training == COUNTS) and again.remembers
