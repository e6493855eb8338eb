"""Concatenations of CHWN tensors: bitwise torch's, and CHWN again."""

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

from torchswat import desparsify_, fuse_, fused, sparsify_
from torchswat.concatenation import concatenate
from torchswat.engine import ops
from torchswat.engine.loader import engine
from torchswat.models.densenet import DenseNet

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("torchswat.engine._native") is None, reason="the native engine is not built here"
)


sizes = st.tuples(st.integers(2, 9), st.integers(1, 5), st.integers(1, 5))  # N, H, W
channels = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@given(sizes, channels, st.sampled_from([1, -3]), st.data())
def test_numbers_gradients_and_layout(size, channels, dim, data):
    n, h, w = size
    plain = [torch.randn(n, c, h, w) for c in channels]
    chosen = data.draw(st.integers(0, len(plain) - 1))  # one is enough, the others have any layout
    leaves = [x.clone().requires_grad_() for x in plain]
    chwn = [ops.to_chwn(x) if i % 2 else x for i, x in enumerate(leaves)]
    chwn[chosen] = ops.to_chwn(leaves[chosen])
    result = concatenate(chwn, dim)
    assert type(result) is Tensor and ops.is_chwn(result)
    assert torch.equal(result, torch.cat(plain, 1))
    gradient = torch.randn_like(result)
    result.backward(gradient)
    for leaf, expected in zip(leaves, gradient.split(channels, 1), strict=True):
        assert torch.equal(leaf.grad, expected)


def test_any_other_concatenation_is_torchs():
    chwn = ops.to_chwn(torch.randn(4, 2, 3, 3))
    nchw = chwn.contiguous()
    assert concatenate([nchw, nchw]).is_contiguous()
    wider = concatenate([chwn, torch.ones(4, 1, 3, 3, dtype=torch.float64)])
    assert wider.dtype == torch.float64 and torch.equal(wider[:, :2].float(), nchw)
    rows = torch.randn(2, 3, 4)
    assert torch.equal(concatenate([rows, rows], -3), torch.cat([rows, rows], -3))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        concatenate([chwn, ops.to_chwn(torch.randn(4, 2, 5, 3))])


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
def test_every_batch_norm_between_sparse_layers_gets_the_engines_layout(make, monkeypatch):
    model = sparsify_(make(), "swat", 0.5)
    fuse_(model)
    check_training(model, torch.randn(8, 3, 12, 12))
    seen: dict[str, bool] = {}
    one_pass = fused.recomputable

    def looking(norm: nn.Module, x: Tensor, *rest: object):
        seen[str(len(seen))] = ops.is_chwn(x)
        return one_pass(norm, x, *rest)

    monkeypatch.setattr(fused, "recomputable", looking)
    model(torch.randn(8, 3, 12, 12))
    assert seen and all(seen.values())


@needs_native
def test_a_batch_norm_converts_where_a_sparse_layer_behind_it_would(monkeypatch):
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 3))
    fuse_(sparsify_(model, "swat", 0.5))
    seen = []
    forward = type(model[2]).forward_recomputing
    monkeypatch.setattr(
        type(model[2]),
        "forward_recomputing",
        lambda layer, x, info: (seen.append(ops.is_chwn(x)), forward(layer, x, info))[1],
    )
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


def test_desparsify_undoes_everything():
    model = DenseNet((2, 1), growth=4)
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    sparsify_(sparsify_(model, "swat", 0.5), "swat", 0.8)
    fuse_(model)
    desparsify_(model)
    assert {name: set(vars(m)) for name, m in model.named_modules()} == before
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("sparsity", [lambda iteration: 0.0])
def test_at_no_sparsity_it_is_torch_bit_for_bit(sparsity):
    model = DenseNet((2, 2), growth=4)
    plain, x = copy.deepcopy(model), torch.randn(4, 3, 8, 8)
    fuse_(sparsify_(model, "swat", sparsity))
    for one in (model, plain):
        one(x).square().mean().backward()
    for parameter, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(parameter.grad, other.grad)
