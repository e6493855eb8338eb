"""The sparsification angle against arithmetic written from its definition, and against its own lemma."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat import select
from torchswat.analysis import angle, angle_between, expected_angle, masked_angle, needed_density
from torchswat.errors import InvalidValue, NotFinite, UnknownName

vectors = st.lists(
    st.floats(-1e6, 1e6, width=32, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-6),
    min_size=1,
    max_size=30,
)
sparsities = st.floats(0, 0.99)


@given(vectors, sparsities)
def test_it_is_the_angle_between_the_tensor_and_what_is_kept(values, sparsity):
    v = np.array(values)
    k = len(v) - math.floor(round(sparsity * len(v), 6))
    kept = np.zeros_like(v)
    order = np.argsort(-np.abs(v), kind="stable")[: max(1, k)]
    kept[order] = v[order]
    found = float(angle(torch.tensor(values), sparsity))
    if not v.any():
        assert found == 0
    else:
        cosine = kept @ v / (np.linalg.norm(kept) * np.linalg.norm(v))
        assert math.cos(math.radians(found)) == pytest.approx(cosine, abs=1e-6)


@given(vectors, sparsities, st.randoms())
def test_no_mask_of_as_many_entries_turns_less(values, sparsity, random):
    tensor = torch.tensor(values, dtype=torch.float64)
    mask = select(tensor, sparsity)
    other = torch.tensor(random.sample(mask.tolist(), len(mask)))
    assert masked_angle(tensor, mask) <= masked_angle(tensor, other) + 1e-9


@given(vectors, st.floats(0.01, 100))
def test_it_does_not_depend_on_the_length(values, factor):
    tensor = torch.tensor(values, dtype=torch.float64)
    assert torch.allclose(angle(tensor, 0.5), angle(factor * tensor, 0.5), atol=1e-6)


def test_tiny_and_huge_values_neither_vanish_nor_overflow():
    for scale in (1e-37, 1e37):
        assert float(angle(torch.tensor([3.0, 4.0]) * scale, 0.5)) == pytest.approx(36.8699, abs=1e-3)


def test_scopes_and_memory_layouts():
    tensor = torch.randn(4, 3, 5, 5)
    angles = [float(angle(tensor, 0.8, scope)) for scope in ("nchw", "chw", "hw")]
    assert angles == sorted(angles) and angles[0] < angles[2]
    assert float(angle(tensor.to(memory_format=torch.channels_last), 0.8)) == pytest.approx(angles[0])


def test_half_precision_and_zeros():
    assert float(angle(torch.ones(4, dtype=torch.bfloat16), 0.5)) == pytest.approx(45)
    assert float(angle(torch.zeros(4), 0.5)) == 0
    assert float(angle(torch.randn(4), 0)) == 0


def test_what_has_no_direction_is_refused():
    with pytest.raises(NotFinite, match="infinity"):
        angle(torch.tensor([1.0, math.inf]), 0.5)
    with pytest.raises(NotFinite, match="NaN"):
        angle(torch.tensor([1.0, math.nan]), 0.5)
    with pytest.raises(InvalidValue):
        angle(torch.ones(3), 1.0)
    with pytest.raises(UnknownName):
        angle(torch.ones(3), 0.5, "cnhw")


@given(st.integers(2, 20))
def test_the_angle_between_two_vectors(dimension):
    first, second = torch.randn(2, 3, dimension, dtype=torch.float64)
    expected = [
        math.degrees(math.acos(float(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))
        for a, b in zip(first.numpy(), second.numpy(), strict=True)
    ]
    assert angle_between(first, second).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.8, 0.95])
def test_the_closed_form_is_what_large_vectors_do(sparsity):
    drawn = angle(torch.randn(400_000, dtype=torch.float64), sparsity)
    assert expected_angle(sparsity) == pytest.approx(float(drawn), abs=0.3)


@given(st.floats(0.5, 80))
def test_the_inverse_of_the_closed_form(degrees):
    assert expected_angle(1 - needed_density(degrees)) == pytest.approx(degrees, abs=1e-6)


@pytest.mark.parametrize("degrees", [0, 90, -1, math.nan])
def test_angles_that_no_share_gives_are_refused(degrees):
    with pytest.raises(InvalidValue, match="between 0 and 90"):
        needed_density(degrees)
