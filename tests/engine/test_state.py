"""The sixteen words of a layer's state."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.engine import state as words

floats = st.floats(allow_nan=False)


@given(st.integers(0, words.WORDS - 1), floats)
def test_a_word_holds_any_float_and_no_other_changes(at, value):
    state = words.new_state(7)
    before = state.clone()
    words.put(state, at, value)
    assert words.get(state, at) == value and math.copysign(1, words.get(state, at)) == math.copysign(1, value)
    others = torch.arange(words.WORDS) != at
    assert torch.equal(state[others], before[others])


@given(st.integers(0, 2**64 - 1))
def test_a_seed_of_64_bits_stays_whole(seed):
    assert int(words.new_state(seed)[words.SEED]) % 2**64 == seed


def test_no_two_names_stand_for_one_word():
    of_operands = [at + i for at in words.OPERANDS.values() for i in range(3)]
    rest = [
        words.ITERATION,
        words.SPARSITY,
        words.WEIGHT_THRESHOLD,
        words.WEIGHT_TIES,
        words.ACTIVATION_THRESHOLD,
    ]
    rest += [words.ACTIVATION_COUNT, words.PRODUCTS, words.GRADIENT_DENSITY, words.OUTPUT_DENSITY, words.SEED]
    assert sorted(of_operands + rest) == list(range(words.WORDS))


@given(st.sampled_from(["weight", "activation"]), st.floats(0, 1), st.floats(0, 1e30))
def test_thresholds_are_forgotten_and_densities_stay(operand, density, threshold):
    state = words.new_state()
    assert words.threshold(state, operand) is None
    words.put_density(state, operand, density)
    words.put(state, words.OPERANDS[operand], threshold)
    assert words.threshold(state, operand) == threshold
    words.forget_thresholds(state)
    assert words.threshold(state, operand) is None and words.density(state, operand) == density


def test_a_threshold_that_is_no_number_is_none():
    state = words.new_state()
    words.put(state, words.WEIGHT, float("nan"))
    assert words.threshold(state, "weight") is None


@pytest.mark.parametrize("operand", ["weight", "activation", "gradient", "output"])
def test_densities_begin_at_one(operand):
    assert words.density(words.new_state(), operand) == 1
