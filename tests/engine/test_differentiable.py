"""SWAT's convolution as one operation: against the layers, and as compilers see it."""

from __future__ import annotations

import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchswat import sparsify_
from torchswat.engine.differentiable import kth_largest, swat_conv2d

# What torch's compiler warns of in itself.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")


def operands(x_size: tuple, weight_size: tuple) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight, bias = torch.randn(x_size), torch.randn(weight_size), torch.randn(weight_size[0])
    return x.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=60), st.data())
def test_kth_largest_is_that_of_a_sort(values, data):
    k = data.draw(st.integers(1, len(values)))
    expected = sorted((abs(v) for v in values), reverse=True)[k - 1]
    assert kth_largest(torch.tensor(values, dtype=torch.float32), k) == expected


def test_a_nan_is_the_largest():
    assert kth_largest(torch.tensor([1.0, float("nan"), 2.0]), 1).isnan()


@settings(max_examples=20)
@given(
    *(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5), st.sampled_from([1, 3])),
    *(st.integers(1, 2), st.integers(0, 1), st.sampled_from([0.3, 0.8])),
)
def test_it_computes_what_a_layer_computes(n, c, k, kernel, stride, padding, sparsity):
    torch.manual_seed(0)
    layer = sparsify_(nn.Conv2d(c, k, kernel, stride, padding), "swat", sparsity)
    x = torch.randn(n, c, 6, 5, requires_grad=True)
    inputs = [x, *layer.parameters()]
    expected = layer(x)
    gradient = torch.randn_like(expected)
    wanted = torch.autograd.grad(expected, inputs, gradient)
    limits = (kth_largest(t, t.numel() - int(sparsity * t.numel())) for t in (x, layer.weight))
    actual = swat_conv2d(x, layer.weight, layer.bias, *limits, [stride] * 2, [padding] * 2)[0]
    reference.check_close(actual, expected, 1e-5)
    for found, value in zip(torch.autograd.grad(actual, inputs, gradient), wanted, strict=True):
        reference.check_close(found, value, 1e-5)


def test_opcheck():
    x, weight, bias = operands((4, 3, 6, 5), (5, 3, 3, 3))
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    torch.library.opcheck(kth_largest, (x.detach(), 7))
    limits = torch.tensor(0.5), torch.tensor(0.7)
    torch.library.opcheck(swat_conv2d, (x, weight, bias, *limits, [1, 1], [1, 1]), test_utils=checks)


class Network(nn.Module):
    """Two sparse convolutions without state, as a user would write them by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (self.first, self.second):
            limits = (kth_largest(t, t.numel() // 5) for t in (x, layer.weight))
            x = swat_conv2d(x, layer.weight, layer.bias, *limits, [1, 1], [1, 1])[0].relu()
        return x


@pytest.mark.parametrize("backend", ["eager", "aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_training_step_compiles_to_one_graph(backend):
    torch.compiler.reset()
    model, x = Network(), torch.randn(4, 4, 6, 6)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    found = []
    for run in (model, compiled):
        model.zero_grad()
        run(x).square().mean().backward()
        found.append([p.grad.clone() for p in model.parameters()])  # type: ignore[union-attr]
    for eager, graph in zip(*found, strict=True):
        reference.check_close(graph, eager, 1e-5)


def test_it_exports():
    model, x = Network().eval(), torch.randn(4, 4, 6, 6)
    exported = torch.export.export(model, (x,))
    assert "torchswat.swat_conv2d" in exported.graph_module.code
    reference.check_close(exported.module()(x), model(x), 1e-6)
