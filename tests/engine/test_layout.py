"""Layouts of activations: what is recognised, and copies from any into any."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from operations import BODIES, body

from torchswat.engine import layout

sizes = st.tuples(*(st.integers(0, 7) for _ in range(4)))
orders = st.sampled_from([layout.NCHW, layout.CHANNELS_LAST, layout.CHWN])


@given(sizes, orders)
def test_what_is_made_in_a_layout_is_recognised(size, order):
    x = layout.empty_in(order, size, torch.empty(0))
    assert x.shape == size and not x._is_view()
    found = layout.layout_of(x)
    assert found == order or x.is_contiguous() or (layout.is_chwn(x) and found == layout.CHWN)
    assert layout.is_chwn(layout.empty_chwn(size, x))


@given(sizes)
def test_chwn_is_what_a_permutation_says(size):
    x = torch.randn(size)
    chwn = layout.as_chwn(x)
    assert chwn.permute(1, 2, 3, 0).is_contiguous() and torch.equal(chwn, x)
    assert layout.as_chwn(chwn) is chwn


@pytest.mark.parametrize("which", BODIES)
@given(sizes, orders, orders, st.booleans())
def test_copies_change_no_value(which, size, start, end, gapped):
    x = layout.empty_in(start, size, torch.empty(0)).normal_()
    if gapped:
        x = torch.cat([x, x], 1)[:, : size[1]]
    with body(which):
        chwn = layout.copy_to_chwn(x)
        back = layout.copy_from_chwn(chwn, end)
        for copy in (layout.copy_to_nchw(x), layout.copy_to_channels_last(x)):
            assert torch.equal(copy, x)
    assert torch.equal(chwn, x) and torch.equal(back, x)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (3, 4, 5), (1, 2, 3, 4, 5)], ids=str)
def test_other_ranks_are_not_chwn(shape):
    assert not layout.is_chwn(torch.randn(shape))


@given(sizes)
def test_a_channel_of_chwn_is_one_stretch_of_memory(size):
    strides = layout.chwn_strides(size)
    assert layout.empty_chwn(size, torch.empty(0)).stride() == strides and strides[0] == 1
