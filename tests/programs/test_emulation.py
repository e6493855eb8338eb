"""The emulation itself, on cases that can be worked out by hand, and that the comparison can fail."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
from comparing import SPARSITY, Setting, check_alike, check_steps, one_pass
from emulation import emulate_, largest
from hypothesis import given
from hypothesis import strategies as st
from test_user_networks import shared_relu
from torch import nn


def test_of_equal_magnitudes_the_lowest_indices_are_kept():
    assert largest(torch.tensor([[1.0, -2.0], [2.0, 2.0]]), 0.5).tolist() == [[0.0, -2.0], [2.0, 0.0]]
    assert largest(torch.ones(10), 0.8).tolist() == [1.0] * 2 + [0.0] * 8


@given(st.integers(1, 60), st.sampled_from([0.1, 0.5, 0.7, 0.8, 0.9]), st.integers(0, 9))
def test_it_keeps_what_the_reference_of_the_tests_keeps(entries, sparsity, seed):
    values = torch.randn(entries, generator=torch.Generator().manual_seed(seed)).mul(3).round()
    assert (largest(values, sparsity) == values * torch.from_numpy(reference.top_k(values, sparsity))).all()


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.Linear(6, 5)], ids=str)
def test_a_layer_does_what_the_reference_of_the_tests_does(layer):
    layer = copy.deepcopy(layer).double()
    is_conv = isinstance(layer, nn.Conv2d)
    x = torch.randn((4, 3, 6, 6) if is_conv else (4, 6), dtype=torch.float64, requires_grad=True)
    products = reference.Convolution((3, 3), (2, 2), (1, 1)) if is_conv else reference.FullyConnected()
    output = emulate_(nn.Sequential(layer), SPARSITY)(x)
    gradient = torch.randn_like(output)
    output.backward(gradient)
    truth = reference.run("swat", products, x, layer.weight, layer.bias, gradient, SPARSITY)
    for actual, expected in (
        (output, truth.output),
        (x.grad, truth.grad_input),
        (layer.weight.grad, truth.grad_weight),
        (layer.bias.grad, truth.grad_bias),
    ):
        reference.check_close(actual, expected)


@pytest.mark.parametrize("other", [0.0, 0.7])
def test_the_comparison_complains_about_another_sparsity(other):
    model, x, classes = shared_relu(), torch.randn(8, 3, 12, 12), torch.randint(10, (8,))
    one, two = (emulate_(copy.deepcopy(model), sparsity) for sparsity in (SPARSITY, other))
    expected, actual = one_pass(one, x, classes), one_pass(two, x, classes)
    for name in ("output", "grad of the input", "grad of a.weight", "grad of b.weight"):
        with pytest.raises(AssertionError, match=name):
            check_alike(actual[name], expected[name], 1e-2, name)
    setting = Setting("reference", "sparse", fused=False, dtype=torch.float32)
    with pytest.raises(AssertionError, match="the loss of step 0"):
        check_steps(two, one, x, classes, setting)
