"""Random convolutions and linear layers in float32, as each engine and plan runs them, against float64."""

from __future__ import annotations

import copy

import pytest
import torch
from comparing import SPARSITY, Setting, check_alike
from emulation import emulate_
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchswat

several_examples = settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.integers(1, 3)

convolutions = st.builds(
    dict,
    groups=st.sampled_from([1, 1, 1, 2, 4]),
    inputs=st.sampled_from([1, 2, 3, 8, 17]),
    outputs=st.sampled_from([1, 2, 5, 16, 33]),
    kernel_size=st.tuples(sizes, sizes),
    stride=st.tuples(sizes, sizes),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1), (2, 2)]),
    bias=st.booleans(),
    padding_mode=st.sampled_from(["zeros", "zeros", "reflect", "circular", "replicate"]),
)


def check_layer(layer: nn.Module, x: Tensor, setting: Setting) -> None:
    """Complain unless output and gradients are those of the emulation in float64."""
    layer, x = layer.to(setting.dtype), x.to(setting.dtype)
    sparse = torchswat.sparsify_(nn.Sequential(copy.deepcopy(layer)), sparsity=SPARSITY)
    emulated = emulate_(nn.Sequential(copy.deepcopy(layer).double()), SPARSITY)
    gradient = torch.randn_like(emulated(x.double())).to(setting.dtype)
    found = []
    for model in (sparse, emulated):
        dtype = next(model.parameters()).dtype
        leaf = x.detach().to(dtype, copy=True).requires_grad_()
        output = model(leaf)
        output.backward(gradient.to(dtype))
        found.append([output.detach(), leaf.grad, *(p.grad for p in model.parameters())])
    for actual, expected in zip(*found, strict=True):
        check_alike(actual.double(), expected, 1e-10 if setting.dtype == torch.float64 else 1e-5)


@several_examples
@given(convolutions, st.integers(1, 17), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_convolutions(setting: Setting, geometry: dict, batch: int, height: int, width: int, last: bool):
    if setting.fused or setting.plan == "tuned":
        pytest.skip("a single layer has nothing to fuse, and random sizes are not worth a measurement")
    options = geometry.copy()
    groups = options["groups"]
    inputs, outputs = options.pop("inputs") * groups, options.pop("outputs") * groups
    if options["padding_mode"] != "zeros":  # torch allows no more there
        assume(all(p < side for p, side in zip(options["padding"], (height, width), strict=True)))
    reach = [d * (k - 1) for d, k in zip(options["dilation"], options["kernel_size"], strict=True)]
    padded = [side + 2 * p for side, p in zip((height, width), options["padding"], strict=True)]
    assume(all(side > r for side, r in zip(padded, reach, strict=True)))
    x = torch.randn(batch, inputs, height, width)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    check_layer(nn.Conv2d(inputs, outputs, **options), x, setting)


@several_examples
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3), st.integers(1, 70), st.integers(1, 70), st.booleans()
)
def test_linear_layers(setting: Setting, leading: list[int], inputs: int, outputs: int, bias: bool):
    if setting.fused or setting.plan == "tuned":
        pytest.skip("a single layer has nothing to fuse, and random sizes are not worth a measurement")
    check_layer(nn.Linear(inputs, outputs, bias), torch.randn(*leading, inputs), setting)
