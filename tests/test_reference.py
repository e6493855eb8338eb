"""The truth itself: it must agree with torch where torch has the answer, and complain about what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from torch.nn.grad import conv2d_input, conv2d_weight

GEOMETRIES = [
    {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2)},
    {"groups": 2, "padding": (1, 0)},
]


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_the_tap_loops_agree_with_torch(geometry):
    groups = geometry.get("groups", 1)
    a, w = torch.randn(2, 4, 6, 7).double(), torch.randn(6, 4 // groups, 3, 2).double()
    output = torch.conv2d(a, w, None, **geometry)
    g = torch.randn_like(output)
    mine = reference.Convolution((3, 2), **geometry)
    A, W, G = reference.array(a), reference.array(w), reference.array(g)
    reference.check_close(mine.forward(A, W), output)
    reference.check_close(mine.grad_input(G, W, A), conv2d_input(a.shape, w, g, **geometry))
    reference.check_close(mine.grad_weight(G, A, W), conv2d_weight(a, w.shape, g, **geometry))


def test_top_k_on_hand_made_masks():
    rows = [[3.0, -3.0, 1.0, 3.0], [0.0, 0.0, 0.0, 0.0]]
    assert reference.top_k(rows, 0.5, "chw").tolist() == [[True, True, False, False]] * 2
    assert reference.top_k(rows, 0.75, "nchw").tolist() == [[True, True, False, False], [False] * 4]
    assert reference.kept_count(90, 0.7) == 27  # in floats 0.7 * 90 is 62.99999999999999


def test_close_complains():
    with pytest.raises(AssertionError, match="relative error"):
        reference.check_close([1.0, 2.0], [1.0, 2.0 + 1e-11])
    with pytest.raises(AssertionError, match="relative error"):
        reference.check_close([1.0, np.nan], [1.0, 2.0], relative=1.0)
    with pytest.raises(AssertionError, match="shape"):
        reference.check_close(np.ones((2, 1)), np.ones(2))


def test_same_bits_complains():
    with pytest.raises(AssertionError, match="1 of 2 entries differ"):
        reference.check_same_bits(torch.tensor([0.0, 1.0]), torch.tensor([-0.0, 1.0]))
    with pytest.raises(AssertionError):
        reference.check_same_bits(torch.zeros(2), torch.zeros(2).double())


def test_mask_complains():
    with pytest.raises(AssertionError, match="1 of 2 entries"):
        reference.check_mask(torch.tensor([True, False]), np.array([True, True]))
    with pytest.raises(AssertionError):
        reference.check_mask(torch.ones(2), np.array([True, True]))


def test_the_product_checks_complain_about_a_wrong_table():
    """A run of another algorithm is told from the right one in each of its four results."""
    torch.manual_seed(1)
    a, w, g = torch.randn(2, 3, 5, 5), torch.randn(4, 3, 3, 3), torch.randn(2, 4, 3, 3)
    products = reference.Convolution((3, 3))
    swat, saw, meprop = (reference.run(x, products, a, w, None, g, 0.5) for x in ("swat", "saw", "meprop"))
    for right, wrong, field in [
        (swat, saw, "output"),
        (swat, meprop, "grad_input"),
        (swat, meprop, "grad_weight"),
    ]:
        with pytest.raises(AssertionError, match="relative error"):
            reference.check_close(getattr(wrong, field), getattr(right, field))
