"""The paired test against its definition and a case worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchswat.errors import InvalidValue
from torchswat.experiments.paired import sign_flip_test, t_test

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


@pytest.mark.parametrize("differences", [[2.0, 3.0], [1.0, 2.0, 0.5], [-1.0, 0.2, 0.3], [1.0, 2.0, 3.0, 1.5]])
def test_students_test_is_that_of_the_density(differences):
    count = len(differences)
    t = np.mean(differences) / (np.std(differences, ddof=1) / np.sqrt(count))
    # the tail above t of (1 + u^2 / f) ** (-(f + 1) / 2), with u = tan(a) over a: summed, not in closed form
    angles = np.linspace(-np.pi / 2, np.pi / 2, 400_001)[1:-1]
    u, f = np.tan(angles), count - 1
    weight = (1 + u**2 / f) ** (-(f + 1) / 2) / np.cos(angles) ** 2
    assert t_test(differences) == pytest.approx(weight[u >= t].sum() / weight.sum(), abs=1e-4)


def test_students_test_of_equal_differences_and_of_other_counts():
    assert (t_test([1.0, 1.0, 1.0]), t_test([-1.0, -1.0]), t_test([0.0, 0.0])) == (0.0, 1.0, 0.5)
    for count in (1, 5):
        with pytest.raises(InvalidValue, match="two to four pairs"):
            t_test([1.0] * count)
