"""The paired test against its definition and a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchswat.errors import InvalidValue
from torchswat.experiments.paired import sign_flip_test

differences = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=8)


@given(differences)
def test_it_counts_the_patterns_of_signs(values):
    n, observed = len(values), sum(values)
    sums = [sum(v if bits >> i & 1 else -v for i, v in enumerate(values)) for bits in range(2**n)]
    assert sign_flip_test(values) == pytest.approx(np.mean([s >= observed - 1e-9 for s in sums]))


@given(differences)
def test_both_directions_cover_everything(values):
    assert 2**-8 <= sign_flip_test(values) <= 1
    assert sign_flip_test(values) + sign_flip_test([-v for v in values]) >= 1


def test_many_pairs_are_drawn_and_repeatable():
    generator = np.random.default_rng(0)
    none, some = generator.standard_normal(40), generator.standard_normal(40) + 1
    assert sign_flip_test(some) < 0.001 < 0.05 < sign_flip_test(none)
    assert sign_flip_test(none) == sign_flip_test(none)


def test_no_pair_is_an_error():
    with pytest.raises(InvalidValue, match="without any pair"):
        sign_flip_test([])
