"""Selections as layers see them: the compiled search, count and mask against a plain sort, in any layout."""

from __future__ import annotations

import pytest
import torch
from conftest import BUILT
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from torchswat.engine import topk
from torchswat.engine.loader import engine
from torchswat.engine.topk import SMALLEST, Selection
from torchswat.selection import select

needs_native = pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)
LAYOUTS = ["plain", "first innermost", "reversed", "gapped"]


def draw(size: list[int], layout: str, coarse: bool = False) -> Tensor:
    """Return values laid out so; coarse ones have many ties and zeros."""
    x = torch.randn(size)
    x = (2 * x).round() if coarse else x
    if layout == "first innermost":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if layout == "reversed":
        return x.permute(*reversed(range(x.dim()))).contiguous().permute(*reversed(range(x.dim())))
    if layout == "gapped":
        return torch.empty(*size[:-1], 2 * size[-1])[..., ::2].copy_(x)
    return x


@given(sizes, st.sampled_from(LAYOUTS))
def test_the_order_of_memory_is_a_view_of_all_entries(size, layout):
    x = draw(size, layout)
    flat = topk.memory_order(x)
    if flat is None:
        assert layout == "gapped"
        return
    assert flat.data_ptr() == x.data_ptr() and flat.is_contiguous()
    assert torch.equal(flat.sort().values, x.flatten().sort().values)


@needs_native
@given(sizes, st.sampled_from(LAYOUTS), st.booleans(), st.floats(0, 1))
def test_the_kth_largest_and_what_is_counted(size, layout, coarse, part):
    x = draw(size, layout, coarse)
    k = 1 + int(part * (x.numel() - 1))
    found = topk.kth_largest(x, k)
    if found is None:
        assert topk.memory_order(x) is None and topk.count_kept(x, 1.0) is None
        return
    magnitudes = x.abs().flatten().sort(descending=True).values
    assert found.value == magnitudes[k - 1]
    assert (found.greater, found.equal) == (
        int((magnitudes > found.value).sum()),
        int((magnitudes == found.value).sum()),
    )
    assert topk.count_kept(x, found.value) == found


@given(sizes, st.sampled_from(LAYOUTS), st.booleans(), st.sampled_from([0.3, 0.5, 0.8, 0.99]))
def test_both_engines_select_the_same(size, layout, coarse, sparsity):
    """Ties go to the lowest index in the order of the shape, whatever the layout."""
    x = draw(size, layout, coarse)
    ours = select(x, sparsity)
    with engine("reference"):
        theirs = select(x, sparsity)
    assert torch.equal(ours, theirs)
    order = x.abs().flatten().sort(descending=True, stable=True).indices
    expected = torch.zeros(x.numel(), dtype=torch.bool)
    expected[order[: int(ours.sum())]] = True
    assert torch.equal(ours.flatten(), expected)


@given(sizes, st.sampled_from(LAYOUTS), st.booleans(), st.integers(0, 30))
def test_a_mask_by_a_threshold(size, layout, coarse, ties):
    x = draw(size, layout, coarse)
    threshold = float(x.abs().median())
    mask = topk.marked(x, threshold, ties)
    if mask is None:
        return
    assert mask.stride() == x.stride() or x.numel() == 1 or 1 in x.shape
    above, equal = (x.abs() > threshold).flatten(), (x.abs() == threshold).flatten()
    expected = above | (equal & (equal.cumsum(0) <= ties))
    assert torch.equal(mask.flatten(), expected)


@given(sizes, st.sampled_from(LAYOUTS), st.booleans())
def test_a_threshold_and_its_mask_keep_the_same(size, layout, coarse):
    x = draw(size, layout, coarse)
    by_threshold = Selection(threshold=float(x.abs().median()))
    by_mask = Selection(by_threshold.mask_of(x))
    assert torch.equal(by_threshold.mask_of(x), x.abs() >= by_threshold.threshold)
    assert torch.equal(by_threshold.kept(x), by_mask.kept(x))


def test_what_is_dropped_is_zero_even_where_it_was_infinite():
    x = torch.tensor([float("inf"), -2.0, float("nan")])
    assert Selection(torch.tensor([False, True, False])).kept(x).tolist() == [0, -2, 0]


def test_the_smallest_threshold_keeps_all_but_zeros():
    x = torch.tensor([0.0, -0.0, SMALLEST, -SMALLEST, 1.0])
    assert Selection(threshold=SMALLEST).mask_of(x).tolist() == [False, False, True, True, True]


@needs_native
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_numbers_are_not_for_the_kernels(dtype):
    x = torch.randn(4, 5).to(dtype)
    assert topk.kth_largest(x, 3) is None and topk.marked(x, 0.5) is None
    assert topk.count_kept(x, 0.5) is None and topk.sampled_threshold(x, 3, 10) is None


@needs_native
def test_a_sampled_threshold_is_near_and_repeats():
    x = torch.randn(20, 30, 10, 10)
    k = x.numel() // 5
    threshold = topk.sampled_threshold(x, k, 16384)
    assert threshold is not None and threshold == topk.sampled_threshold(x, k, 16384)
    assert int((x.abs() >= threshold).sum()) == pytest.approx(k, rel=0.06)  # four standard errors
