"""DSG's random projection: a fair ternary matrix, inner products about kept, largest values found."""

from __future__ import annotations

import math
import zlib

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.engine.products import Conv2dProducts, LinearProducts
from torchswat.errors import NotFinite
from torchswat.projection import dimensions, predicted_mask, ternary


@given(st.integers(1, 4096), st.integers(1, 5000), st.sampled_from([0.3, 0.5, 0.7, 0.9]))
def test_dimensions_grow_with_the_logarithm_and_never_exceed_the_entries(filters, entries, epsilon):
    found = dimensions(filters, entries, epsilon)
    bound = 4 * math.log(max(filters, 2)) / (epsilon**2 / 2 - epsilon**3 / 3)
    assert found == entries or bound <= found < bound + 1
    assert 1 <= found <= entries


@pytest.mark.parametrize(("epsilon", "published"), [(0.3, 539), (0.5, 232), (0.7, 148), (0.9, 119)])
def test_dimensions_are_those_of_the_publication(epsilon, published):
    """Liu et al. 2019, Table 1, the layer of 128 filters of 1152 entries."""
    assert dimensions(128, 1152, epsilon) == pytest.approx(published, abs=1)


def test_the_matrix_has_three_values_with_their_chances():
    """Achlioptas 2003: sqrt(3 / D) times -1, 0, 1 with chances 1/6, 2/3, 1/6; within 5 deviations."""
    matrix = ternary(120, 1000, seed=1)
    values, counts = matrix.unique(return_counts=True)
    reference.check_close(values, [-math.sqrt(3 / 120), 0, math.sqrt(3 / 120)], 1e-6)
    for count, chance in zip(counts.tolist(), (1 / 6, 2 / 3, 1 / 6), strict=True):
        assert abs(count - 120_000 * chance) < 5 * math.sqrt(120_000 * chance * (1 - chance))
    assert torch.equal(matrix, ternary(120, 1000, seed=1))
    assert not torch.equal(matrix, ternary(120, 1000, seed=2))


def test_inner_products_are_kept_on_average():
    """The estimate <Rx, Ry> has mean <x, y>: over 400 matrices, within 5 of its own standard errors."""
    x, y = torch.randn(50), torch.randn(50)
    estimates = torch.stack(
        [(ternary(10, 50, seed) @ x) @ (ternary(10, 50, seed) @ y) for seed in range(400)]
    )
    assert abs(estimates.mean() - x @ y) < 5 * estimates.std() / math.sqrt(400)


def test_without_reduction_of_dimension_the_mask_is_that_of_its_estimate():
    """Few entries, so that D is all of them; the estimate written out patch by patch gives the same mask."""
    products = Conv2dProducts(stride=(2, 1), padding=(1, 0), groups=2)
    a, w = torch.randn(3, 4, 6, 5).double(), torch.randn(6, 2, 3, 3).double()
    mask = predicted_mask(products, a, w, 0.7, "layer")
    matrix = ternary(18, 18, zlib.crc32(b"layer")).double()
    patches = torch.nn.functional.unfold(a, 3, stride=(2, 1), padding=(1, 0))  # (N, C * R * S, P * Q)
    estimate = torch.zeros(3, 6, patches.shape[-1]).double()
    for k in range(6):
        group = k // 3
        estimate[:, k] = (matrix @ w[k].flatten()) @ (matrix @ patches[:, group * 18 : (group + 1) * 18])
    kept = reference.kept_count(estimate[0].numel(), 0.7)
    threshold = estimate[0].flatten().sort(descending=True).values[kept - 1]
    assert torch.equal(mask.flatten(2), estimate >= threshold - 1e-9)


def test_a_linear_layer_of_many_dimensions_finds_the_largest_values_not_magnitudes():
    a, w = torch.randn(4, 2000), torch.randn(500, 2000)
    mask = predicted_mask(LinearProducts(), a, w, 0.9, "layer")
    output = a @ w.T
    assert int(mask[0].sum()) == 50
    # estimate and truth correlate by sqrt(299 / (299 + 2000)) = 0.36, the top tenth lies 1.75 deviations up
    assert output[mask].mean() > 0.45 * output.std()


def test_the_projection_belongs_to_the_name_of_the_layer():
    a, w = torch.randn(4, 100), torch.randn(50, 100)
    one, same, other = (predicted_mask(LinearProducts(), a, w, 0.5, name) for name in ("a", "a", "b"))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("sample", [0, 3])
def test_nan_in_any_sample_names_the_layer(sample):
    a, w = torch.randn(4, 10), torch.randn(5, 10)
    a[sample, 2] = float("nan")
    with pytest.raises(NotFinite, match="layer 'head'"):
        predicted_mask(LinearProducts(), a, w, 0.5, "head")


def test_an_empty_batch_has_an_empty_mask():
    assert predicted_mask(
        Conv2dProducts(), torch.randn(0, 3, 6, 6), torch.randn(4, 3, 3, 3), 0.5, "x"
    ).shape == (0, 4, 4, 4)
