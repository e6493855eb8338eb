"""Schedules: their ends, their shape, what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import torchswat
from torchswat.convert import has_weights_to_prune
from torchswat.errors import InvalidValue
from torchswat.schedules import Cubic, DenseEnd, Steps

sparsities = st.floats(0, 0.999)


@given(sparsities, sparsities, st.integers(1, 10**6), st.integers(0, 10**6))
def test_cubic_starts_and_ends_where_it_is_told_and_never_turns_back(initial, final, steps, begin):
    ramp = Cubic(final, steps, initial, begin)
    assert ramp(0) == ramp(begin) == pytest.approx(initial)
    assert ramp(begin + steps) == ramp(begin + 10 * steps) == pytest.approx(final)
    values = [ramp(begin + steps * i // 7) for i in range(8)]
    assert values == sorted(values, reverse=final < initial) or max(values) - min(values) < 1e-12
    assert all(0 <= value < 1 for value in values)


def test_cubic_is_the_published_formula():
    """Zhu and Gupta 2017: s_f + (s_i - s_f) (1 - (t - t_0) / n)^3, by hand at three quarters."""
    assert Cubic(final=0.8, steps=100, initial=0.4, begin=50)(125) == pytest.approx(0.8 - 0.4 / 64)


@given(st.lists(st.tuples(st.integers(1, 1000), sparsities), max_size=5, unique_by=lambda pair: pair[0]))
def test_steps_hold_each_value_until_the_next(pairs):
    pairs = [(0, 0.25), *sorted(pairs)]
    schedule = Steps(tuple(pairs))
    for (start, sparsity), (end, _) in zip(pairs, [*pairs[1:], (5000, 0.0)], strict=True):
        assert schedule(start) == schedule(end - 1) == sparsity


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cubic(final=1.0, steps=5), "final is 1.0"),
        (lambda: Cubic(final=0.5, steps=5, initial=-0.1), "initial is -0.1"),
        (lambda: Cubic(final=0.5, steps=0), "steps = 0"),
        (lambda: Cubic(final=0.5, steps=5, begin=-1), "begin = -1"),
        (lambda: DenseEnd(1.0, 5), "before is 1.0"),
        (lambda: DenseEnd(0.5, -1), "begin = -1"),
        (lambda: Steps(()), r"iterations of Steps are \[\]"),
        (lambda: Steps(((1, 0.5),)), r"\[1\]; allowed are ascending ones that begin with 0"),
        (lambda: Steps(((0, 0.5), (9, 0.1), (9, 0.2))), r"\[0, 9, 9\]"),
        (lambda: Steps(((0, 0.5), (9, 1.0))), "the sparsity from iteration 9 is 1.0"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(InvalidValue, match=message):
        make()


@given(sparsities, st.integers(1, 1000), st.integers(0, 1000), st.integers(0, 3000))
def test_a_dense_end_changes_nothing_before_and_sets_nothing_to_zero_after(final, steps, begin, iteration):
    for before in (final, Cubic(final, steps)):
        schedule = DenseEnd(before, begin)
        expected = 0.0 if iteration >= begin else before(iteration) if callable(before) else before
        assert schedule(iteration) == expected
        assert schedule(schedule.last) == schedule(10 * schedule.last + 1) == 0


def test_a_network_with_a_dense_end_has_nothing_to_prune():
    torch.manual_seed(0)
    model = torchswat.sparsify_(torch.nn.Linear(8, 4), sparsity=DenseEnd(0.5, begin=2))
    x = torch.randn(3, 8)
    for dense in (False, False, True):
        outputs = model(x)
        plain = torch.nn.functional.linear(x, model.weight, model.bias)
        assert torch.allclose(outputs, plain) == dense
    assert not has_weights_to_prune(model)
