"""Convolutions of any geometry on the compiled kernels, against plain torch in float64 with masked operands."""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests import reference
from torchswat import sparse_layers, sparsify_
from torchswat.engine import info, layout
from torchswat.engine.state import PRODUCTS

pytestmark = [
    pytest.mark.skipif(info()["engine"] != "native", reason="the native engine is not built here"),
    pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths"),
]

SPARSITY = 0.7
PLANS = st.sampled_from(["sparse", "dense"])
DTYPES = st.sampled_from([torch.float32, torch.bfloat16])
PAIRS = st.tuples(st.integers(1, 4), st.integers(1, 5))


def check(layer: nn.Conv2d, x: Tensor, plan: str, dtype: torch.dtype) -> None:
    """Run a pass of a sparse layer and compare output and gradients with torch's on masked operands."""
    narrow = dtype is torch.bfloat16
    model = sparsify_(nn.Sequential(layer), sparsity=SPARSITY)
    ((_, sparse),) = sparse_layers(model)
    before, os.environ["TORCHSWAT_PLAN"] = os.environ["TORCHSWAT_PLAN"], plan
    try:
        x = x.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            y = model(x)
        g = torch.randn(y.shape).to(dtype)
        y.backward(g)
    finally:
        os.environ["TORCHSWAT_PLAN"] = before
    assert bool(sparse.sparse_state[PRODUCTS] & 7) == (plan == "sparse")
    mask = torch.from_numpy(reference.top_k(layer.weight, SPARSITY))
    assert torch.equal(sparse.selected_weights(SPARSITY), mask)
    w = (layer.weight.detach() * mask).to(dtype).double().requires_grad_()
    a, kept = (
        x.detach().double(),
        x.detach().abs() >= x.detach().abs()[torch.from_numpy(reference.top_k(x.detach(), SPARSITY))].min(),
    )
    b = None if layer.bias is None else layer.bias.detach().double()
    left, right, top, bottom = layer._reversed_padding_repeated_twice

    def convolve(a: Tensor, w: Tensor) -> Tensor:
        padded = F.pad(a, (left, right, top, bottom))
        return F.conv2d(padded, w, b, layer.stride, 0, layer.dilation, layer.groups)

    kept_a, a = a * kept, a.requires_grad_()
    expected = convolve(a, w)
    (grad_input,) = torch.autograd.grad(expected, a, g.double())
    (grad_weight,) = torch.autograd.grad(convolve(kept_a, w), w, g.double())
    tolerance = 2.0**-6 if narrow else 1e-5  # torch's dense products round more than once on some processors
    reference.check_close(y, expected, tolerance)
    reference.check_close(x.grad, grad_input, tolerance)
    reference.check_close(layer.weight.grad, grad_weight, tolerance)
    if layer.bias is not None:
        reference.check_close(layer.bias.grad, g.double().sum((0, 2, 3)), tolerance)


@given(PAIRS, st.sampled_from([2, 16, 18]), PAIRS, PLANS, DTYPES, st.sampled_from([3, 24]))
def test_padding_of_which_one_side_is_longer(kernel, samples, more, plan, dtype, channels):
    layer = nn.Conv2d(channels, 8, kernel, padding="same")
    size = samples, channels, kernel[0] + more[0], kernel[1] + more[1]
    check(layer, torch.randn(size), plan, dtype)


GROUPS = st.sampled_from(
    [(2, 3, 4), (3, 1, 2), (2, 17, 16), (4, 8, 33)]
)  # groups; channels and filters of each


@given(GROUPS, PAIRS, st.sampled_from([2, 18]), PAIRS, st.sampled_from([1, 2]), PLANS, DTYPES)
def test_groups(sizes, kernel, samples, more, stride, plan, dtype):
    groups, channels, filters = sizes
    layer = nn.Conv2d(
        groups * channels, groups * filters, kernel, stride, (kernel[0] // 2, 1), 1, groups, filters > 4
    )
    x = torch.randn(samples, groups * channels, kernel[0] + more[0], kernel[1] + more[1])
    check(layer, x, plan, dtype)


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 4)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    *(st.sampled_from([2, 18]), PAIRS, st.sampled_from([1, 2]), PLANS, DTYPES),
)
def test_dilation(dilation, kernel, stride, samples, more, groups, plan, dtype):
    padding = "same" if stride == (1, 1) else (1, 2)
    layer = nn.Conv2d(6 * groups, 8 * groups, kernel, stride, padding, dilation, groups)
    size = (d * (k - 1) + m for d, k, m in zip(dilation, kernel, more, strict=True))
    check(layer, torch.randn(samples, 6 * groups, *size), plan, dtype)


@pytest.mark.parametrize("plan", ["sparse", "dense"])
@pytest.mark.parametrize("order", [layout.NCHW, layout.CHANNELS_LAST, layout.CHWN])
def test_one_side_is_longer_in_every_layout(plan, order):
    x = torch.randn(16, 6, 9, 8)
    layer = nn.Conv2d(6, 8, (4, 2), padding="same", bias=False)
    check(layer, layout.empty_in(order, x.shape, x).copy_(x), plan, torch.float32)


@pytest.mark.parametrize("plan", ["sparse", "dense"])
def test_networks_that_pad_by_themselves_are_left_alone(plan, monkeypatch):
    monkeypatch.setenv("TORCHSWAT_PLAN", plan)
    first, second = nn.Conv2d(4, 8, (2, 4)), nn.Conv2d(4, 8, (2, 4), padding="same")
    second.load_state_dict(first.state_dict())
    by_hand = nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), first)
    same = nn.Sequential(second)
    x = torch.randn(16, 4, 7, 6)
    torch.testing.assert_close(sparsify_(by_hand, sparsity=0.5)(x), sparsify_(same, sparsity=0.5)(x))
