"""Networks whose weights are selected in blocks, against the emulation: outputs, gradients and ten steps."""

from __future__ import annotations

import pytest
import reference
import torch
from comparing import Setting, check_network
from emulation import largest_blocks
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

SIDES = st.sampled_from([1, 2, 4, 8])


@given(
    st.tuples(SIDES, SIDES), st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]), st.integers(0, 9)
)
def test_the_emulation_keeps_what_the_reference_of_the_tests_keeps(block, filters, channels, groups, seed):
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(groups * filters, channels, 2, 1, generator=draw).mul(3).round()
    expected = weight * torch.from_numpy(reference.top_blocks(weight, 0.7, block, groups))
    assert (largest_blocks(weight, 0.7, block, groups) == expected).all()


def network() -> nn.Module:
    """Sizes that blocks do not divide, groups, a depthwise convolution, 1x1 and 3x3, and linear layers."""
    return nn.Sequential(
        *(nn.Conv2d(3, 9, 3, padding=1), nn.BatchNorm2d(9), nn.ReLU()),
        *(nn.Conv2d(9, 15, 3, padding=1, groups=3), nn.ReLU(), nn.Conv2d(15, 15, 3, groups=15)),
        *(nn.Conv2d(15, 10, 1, bias=False), nn.BatchNorm2d(10), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(160, 13), nn.ReLU(), nn.Linear(13, 10)),
    )


@pytest.mark.parametrize("block", [(1, 2), (2, 2), (4, 1), (2, 8)])
def test_a_network_with_blocks(setting: Setting, block: tuple[int, int]):
    check_network(network, (8, 3, 6, 6), setting, block)
