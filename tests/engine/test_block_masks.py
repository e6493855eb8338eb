"""Sums and masks of blocks in plain torch, against the oracle."""

from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.engine.block_masks import Blocks, block_sums, mask_of_blocks

SIDES = st.sampled_from([1, 2, 4, 8])
SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3))


@given(st.tuples(SIDES, SIDES), SHAPES, st.sampled_from([1, 2, 3]), st.booleans(), st.integers(0, 9))
def test_the_largest_sums_are_those_of_the_definition(block, shape, groups, matrix, seed):
    draw = torch.Generator().manual_seed(seed)
    shape = (groups * shape[0], shape[1], *([] if matrix else shape[2:]))
    weight, blocks = torch.randn(shape, dtype=torch.float64, generator=draw), Blocks(*block, groups)
    sums = block_sums(weight, blocks)
    assert tuple(sums.shape) == blocks.grid(shape) and sums.numel() == blocks.count(shape)
    reference.check_close(sums.sum(), weight.abs().sum())
    kept = torch.from_numpy(reference.top_k(sums, 0.6))
    reference.check_mask(
        mask_of_blocks(kept, weight, blocks), reference.top_blocks(weight, 0.6, block, groups)
    )


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_sums_of_narrow_weights_are_float32(dtype, expected):
    sums = block_sums(torch.full((8, 8), 30000.0, dtype=dtype), Blocks(8, 8))
    assert sums.dtype == expected and sums.item() == pytest.approx(64 * 30000, rel=0.01)


def test_filters_are_added_first():
    """The order is a promise: the compiled kernel adds so, and sums of floats depend on it."""
    a, b, c, d = (np.float32(x) for x in (1.0, 1e-8, 3e-8, 4e-8))
    weight = torch.tensor([[a, b], [c, d]])
    assert block_sums(weight, Blocks(2, 2)).item() == (a + c) + (b + d) != (a + b) + (c + d)


def test_a_mask_lies_in_memory_as_its_weight_does():
    weight = torch.randn(4, 6, 3, 3).contiguous(memory_format=torch.channels_last)
    mask = mask_of_blocks(torch.ones(2, 3, 3, 3, dtype=torch.bool), weight, Blocks(2, 2))
    assert mask.stride() == weight.stride() and mask.all()
