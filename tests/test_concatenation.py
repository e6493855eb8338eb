"""Concatenations of batch-innermost tensors: torch's numbers, the engine's layout."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportUnhashable=false

from __future__ import annotations

import copy
import importlib.util

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchswat import desparsify_, sparsify_
from torchswat.concatenation import Part, as_part
from torchswat.dataflow import readers_of
from torchswat.engine import ops
from torchswat.engine.loader import engine
from torchswat.models.densenet import DenseNet

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("torchswat.engine._native") is None, reason="the native engine is not built here"
)


def part(*size: int) -> Tensor:
    """Return a batch-innermost part (N, C, H, W)."""
    return as_part(nn.Identity(), (), ops.to_inner(torch.randn(size)))


sizes = st.tuples(st.integers(2, 9), st.integers(1, 5), st.integers(1, 5))  # N, H, W
channels = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(sizes, channels, st.sampled_from([1, -3]), st.data())
def test_numbers_gradients_and_layout(size, channels, dim, data):
    n, h, w = size
    plain = [torch.randn(n, c, h, w) for c in channels]
    chosen = data.draw(st.integers(0, len(plain) - 1))  # one part is enough, the others have any layout
    leaves = [x.clone().requires_grad_() for x in plain]
    inner = [ops.to_inner(x) if i % 2 else x for i, x in enumerate(leaves)]
    inner[chosen] = ops.to_inner(leaves[chosen]).as_subclass(Part)
    result = torch.cat(inner, dim=dim)
    assert type(result) is Tensor and ops.is_inner(result)
    assert torch.equal(result, torch.cat(plain, 1))
    gradient = torch.randn_like(result)
    result.backward(gradient)
    for leaf, expected in zip(leaves, gradient.split(channels, 1), strict=True):
        assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("function", [torch.cat, torch.concat, torch.concatenate])
def test_all_names_and_ways_to_call_it(function):
    a, b = part(4, 2, 3, 3), part(4, 3, 3, 3)
    expected = torch.cat([a.as_subclass(Tensor), b.as_subclass(Tensor)], 1)
    for result in (function([a, b], 1), function((a, b), dim=1), function(tensors=[a, b], dim=-3)):
        assert ops.is_inner(result) and torch.equal(result, expected)


def test_the_dimension_may_be_called_axis():
    parts = part(4, 2, 3, 3), part(4, 1, 3, 3)
    joined = torch.cat(parts, axis=1)
    assert torch.equal(joined, torch.cat([p.as_subclass(Tensor) for p in parts], 1)) and ops.is_inner(joined)


def test_any_other_concatenation_is_torchs():
    a = part(4, 2, 3, 3)
    plain = a.as_subclass(Tensor)
    for dim in (0, 2, -1):
        result = torch.cat([a, a], dim)
        assert type(result) is Tensor and torch.equal(result, torch.cat([plain, plain], dim))
    assert torch.equal(torch.cat([a, torch.ones(4, 1, 3, 3, dtype=torch.float64)], 1)[:, :2].float(), plain)
    out = torch.empty(4, 4, 3, 3)
    assert torch.cat([a, a], 1, out=out) is out and torch.equal(out, torch.cat([plain, plain], 1))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        torch.cat([a, part(4, 2, 5, 3)], 1)


def test_what_is_computed_from_a_part_is_an_ordinary_tensor():
    a = part(4, 2, 3, 3)
    for result in (a + 1, a.relu(), a[:2], a.detach(), torch.stack([a, a])):
        assert type(result) is Tensor
    assert torch.equal(a.mul(2), a.as_subclass(Tensor) * 2)


def test_other_layouts_and_outputs_are_left_as_they_are():
    for output in (torch.randn(4, 2, 3, 3), (torch.ones(1),), None):
        assert as_part(nn.Identity(), (), output) is None


# ---- in models ---------------------------------------------------------------------------------------------


class Branches(nn.Module):
    """Two branches that are concatenated, one of them behind a function of no module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1, bias=False)
        self.second = nn.Conv2d(3, 5, 3, padding=1, bias=False)
        self.norm, self.relu, self.last = nn.BatchNorm2d(9), nn.ReLU(), nn.Conv2d(9, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.first(x).sin(), self.second(x)], dim=1)
        return self.last(self.relu(self.norm(both)))


def test_readers_know_what_is_concatenated_and_who_reads_a_batch_norm():
    model = Branches()
    readers = readers_of(model)
    assert readers.concatenated == {model.second}
    assert readers.behind == {model.norm: {model.last}}
    network = DenseNet((2, 1), growth=4)
    names = {module: name for name, module in network.named_modules()}
    layers = "denseblock1.denselayer1", "denseblock1.denselayer2", "denseblock2.denselayer1"
    expected = {f"features.{layer}.conv2" for layer in layers}
    expected |= {"features.conv0", "features.transition1.pool"}
    readers = readers_of(network)
    assert {names[module] for module in readers.concatenated} == expected
    behind = {names[norm]: {names[r] for r in found} for norm, found in readers.behind.items()}
    assert behind["features.denseblock1.denselayer2.norm1"] == {"features.denseblock1.denselayer2.conv1"}
    assert behind["features.norm5"] == {"avgpool"}


def check_training(model: nn.Module, x: Tensor) -> None:
    """Complain unless the engine does what the reference does, in outputs and gradients."""
    twin = copy.deepcopy(model)
    model(x).square().mean().backward()
    with engine("reference"):
        twin(x).square().mean().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None and other.grad is not None, name
        reference.check_close(parameter.grad, other.grad, 1e-4)


@needs_native
@pytest.mark.parametrize("make", [Branches, lambda: DenseNet((3, 2), growth=4)])
def test_every_batch_norm_between_sparse_layers_gets_the_engines_layout(make):
    model = sparsify_(make(), "swat", 0.5)
    check_training(model, torch.randn(8, 3, 12, 12))
    seen = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.update({name: ops.is_inner(inputs[0])})
            )
    model(torch.randn(8, 3, 12, 12))
    assert seen and all(seen.values())


@needs_native
def test_a_batch_norm_converts_where_a_sparse_layer_behind_it_would(monkeypatch):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    sparsify_(model, "swat", 0.5)
    seen = []
    model[2].register_forward_pre_hook(lambda module, inputs: seen.append(ops.is_inner(inputs[0])))
    x = torch.randn(4, 3, 6, 6)
    model(x)
    with engine("reference"):
        model(x)
    monkeypatch.setenv("TORCHSWAT_PLAN", "dense")  # then torch's convolution runs, in the layout that comes
    model(x)
    assert seen == [True, False, False]


@pytest.mark.parametrize("size", [(4, 2, 6, 6), (4, 3, 2, 2)])
def test_inputs_that_do_not_fit_are_refused_as_without_a_batch_norm(size):
    model = sparsify_(nn.Sequential(nn.BatchNorm2d(size[1]), nn.ReLU(), nn.Conv2d(3, 4, 3)), "swat", 0.5)
    with pytest.raises(ValueError, match="layer '2' got an input of shape"):
        model(torch.randn(size))


def test_desparsify_takes_the_hooks_away():
    model = DenseNet((2, 1), growth=4)
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    desparsify_(sparsify_(sparsify_(model, "swat", 0.5), "swat", 0.8))
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("sparsity", [lambda iteration: 0.0])
def test_at_no_sparsity_it_is_torch_bit_for_bit(sparsity):
    model = DenseNet((2, 2), growth=4)
    plain, x = copy.deepcopy(model), torch.randn(4, 3, 8, 8)
    sparsify_(model, "swat", sparsity)
    for one in (model, plain):
        one(x).square().mean().backward()
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
