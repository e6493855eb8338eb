"""Comparisons of quickselect: right in small cases, linear in large ones."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchswat.experiments.top_k_cost import comparisons


@given(st.lists(st.integers(0, 5).map(float), min_size=1, max_size=20), st.data())
def test_it_ends_and_compares_every_entry_once_at_least(values, data):
    k = data.draw(st.integers(1, len(values)))
    assert 1 <= comparisons(np.array(values), k) <= len(values)


def test_equal_entries_are_done_in_one_round():
    assert comparisons(np.ones(1000), 300) == 1


def test_a_few_comparisons_an_entry_whatever_the_size():
    generator = np.random.default_rng(0)
    found = [np.mean([comparisons(generator.random(n), n // 5) for _ in range(20)]) for n in (1000, 30_000)]
    assert found == pytest.approx([2.7, 2.7], abs=0.7)  # Knuth 1971: 2 to 3.4, by the rank
