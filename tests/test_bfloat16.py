"""Sparse layers under bfloat16 autocast, against an emulation in float64 with the roundings written out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchswat import sparse_layers, sparsify_
from torchswat.batch_norm import recomputable
from torchswat.engine import info, layout
from torchswat.engine.arguments import kept_count
from torchswat.engine.loader import engine
from torchswat.engine.state import density, threshold
from torchswat.errors import NotFinite

pytestmark = pytest.mark.skipif(info()["engine"] != "native", reason="the native engine is not built here")

ROUNDING = 2.0**-8
OF_TORCH = 4 * ROUNDING
"""Of torch's dense products, which round more than once on processors that do not multiply bfloat16."""


@pytest.fixture(params=["sparse", "dense"])
def plan(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("TORCHSWAT_PLAN", request.param)
    yield request.param


def autocast() -> torch.autocast:
    return torch.autocast("cpu", torch.bfloat16)


def selected(tensor: Tensor, sparsity: float) -> Tensor:
    """Return the tensor with zeros but for its k largest, and all that are as large as the k-th."""
    threshold = tensor.abs().flatten().sort(descending=True).values[kept_count(tensor.numel(), sparsity) - 1]
    return torch.where(tensor.abs() >= threshold, tensor, 0)


def rounded(tensor: Tensor) -> Tensor:
    return tensor.float().bfloat16().double()


def expected(
    layer: nn.Conv2d | nn.Linear, x: Tensor, gradient: Tensor, sparsity: float
) -> tuple[Tensor, ...]:
    """Return output, and gradients of input, weight and bias, in float64."""
    x, weight = rounded(x.detach()), rounded(selected(layer.weight.detach(), sparsity))
    bias = None if layer.bias is None else layer.bias.detach().double()
    gradient, kept = gradient.double(), selected(x, sparsity)
    if isinstance(layer, nn.Linear):
        rows, kept, gradient = x.flatten(0, -2), kept.flatten(0, -2), gradient.flatten(0, -2)
        y = F.linear(x, weight, bias)
        return y, (gradient @ weight).view_as(x), gradient.T @ kept.view_as(rows), gradient.sum(0)
    geometry: tuple = layer.stride, layer.padding, layer.dilation, False, (0, 0), layer.groups
    y = F.conv2d(x, weight, bias, *geometry[:3], layer.groups)
    backward = torch.ops.aten.convolution_backward
    of_x = backward(gradient, x, weight, None, *geometry, (True, False, False))[0]
    of_weight = backward(gradient, kept, weight, None, *geometry, (False, True, False))[1]
    return y, of_x, of_weight, gradient.sum((0, 2, 3))


def worst(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().double() - wanted).abs().max() / wanted.abs().max())


LAYERS = {
    "3x3": (nn.Conv2d(12, 20, 3, padding=1), (18, 12, 9, 8)),
    "3x3 of odd channels": (nn.Conv2d(7, 5, 3, padding=1), (16, 7, 8, 8)),
    "3x3 strided": (nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), (16, 8, 12, 12)),
    "1x1": (nn.Conv2d(16, 33, 1), (16, 16, 7, 7)),
    "1x1 strided": (nn.Conv2d(16, 8, 1, stride=2), (32, 16, 8, 8)),
    "5x5": (nn.Conv2d(4, 6, 5, padding=2), (6, 4, 11, 10)),
    "groups": (nn.Conv2d(12, 20, 3, padding=1, groups=4), (18, 12, 9, 8)),
    "depthwise": (nn.Conv2d(12, 12, 3, padding=1, groups=12), (18, 12, 9, 8)),
    "depthwise strided": (nn.Conv2d(5, 5, 5, stride=2, padding=2, groups=5, bias=False), (32, 5, 9, 8)),
    "rows": (nn.Linear(24, 17), (32, 24)),
    "tokens": (nn.Linear(24, 16, bias=False), (4, 6, 24)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_a_layer_multiplies_rounded_operands(name: str, sparsity: float, plan: str) -> None:
    layer, size = copy.deepcopy(LAYERS[name][0]), LAYERS[name][1]
    model = sparsify_(nn.Sequential(layer), sparsity=sparsity)
    x = torch.randn(size, requires_grad=True)
    with autocast():
        y = model(x)
    gradient = torch.randn(y.shape).bfloat16()
    y.backward(gradient)
    wanted = expected(layer, x, gradient, sparsity)
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.float32
    own = plan == "sparse" or "depthwise" in name
    most = ROUNDING if own else OF_TORCH
    assert worst(y, wanted[0]) <= most and worst(x.grad, wanted[1]) <= most
    rounding = 1e-5 if own else OF_TORCH
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32
    assert worst(layer.weight.grad, wanted[2]) <= rounding
    if layer.bias is not None:
        assert layer.bias.grad is not None and worst(layer.bias.grad, wanted[3]) <= rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("order", [layout.NCHW, layout.CHANNELS_LAST, layout.CHWN])
def test_layouts_and_dtypes_of_inputs(dtype: torch.dtype, order: int, plan: str) -> None:
    model = sparsify_(nn.Sequential(nn.Conv2d(6, 8, 3, padding=1)), sparsity=0.8)
    x = torch.randn(16, 6, 8, 8).to(dtype)
    with autocast():
        plain = model(x)
        laid = layout.empty_in(order, x.shape, x).copy_(x).requires_grad_()
        y = model(laid)
    y.backward(torch.ones_like(y))
    assert torch.equal(y, plain) and laid.grad is not None and laid.grad.dtype == dtype
    if plan == "sparse":
        assert layout.is_chwn(y)


@pytest.mark.parametrize("algorithm", ["swat", "saw", "forward-weight"])
def test_rows_of_the_table(algorithm: str, plan: str) -> None:
    layer = nn.Conv2d(8, 8, 3, padding=1)
    model = sparsify_(nn.Sequential(layer), algorithm, sparsity=0.7)
    x = torch.randn(16, 8, 8, 8)
    with autocast():
        y = model(x)
    gradient = torch.randn(y.shape).bfloat16()
    y.backward(gradient)
    weights = 0.0 if algorithm == "saw" else 0.7
    assert worst(y, expected(layer, x, gradient, weights)[0]) <= OF_TORCH
    activations = 0.0 if algorithm == "forward-weight" else 0.7
    assert layer.weight.grad is not None
    assert worst(layer.weight.grad, expected(layer, x, gradient, activations)[2]) <= OF_TORCH


@pytest.mark.parametrize("option", [{"scope": "chw"}, {"period": 3}, {"method": "sample"}])
def test_other_selections_train(option: dict, plan: str) -> None:
    model = sparsify_(
        nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 8, 1)), sparsity=0.8, **option
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x, losses = torch.randn(16, 8, 8, 8), []
    for _ in range(8):
        with autocast():
            loss = (model(x).float() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


def test_an_odd_batch_and_layers_without_kernels_run_in_float32() -> None:
    for layer, size in (
        (nn.Conv2d(4, 4, 3, padding=1), (5, 4, 8, 8)),
        (nn.Conv2d(4, 4, 3, padding=9, dilation=9), (4, 4, 8, 8)),
    ):
        model = sparsify_(nn.Sequential(layer), sparsity=0.5)
        x = torch.randn(size, requires_grad=True)
        with autocast():
            y = model(x)
        wide = sparsify_(nn.Sequential(copy.deepcopy(layer)), sparsity=0.5)(x.detach())
        y.float().sum().backward()
        assert y.dtype == torch.bfloat16 and worst(y, wide.detach().double()) <= ROUNDING
        assert x.grad is not None


def test_density_and_threshold_are_those_of_rounded_inputs() -> None:
    model = sparsify_(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), sparsity=0.8)
    x = torch.randn(16, 8, 8, 8)
    with autocast():
        model(x)
    ((_, layer),) = sparse_layers(model)
    kept = selected(x.bfloat16(), 0.8)
    assert threshold(layer.sparse_state, "activation") == float(kept[kept != 0].abs().min())
    found = density(layer.sparse_state, "activation")
    assert found == pytest.approx(int(kept.count_nonzero()) / x.numel())
    assert density(layer.sparse_state, "weight") == pytest.approx(0.2, abs=0.01)


def test_the_reference_engine_and_evaluation_agree() -> None:
    model = sparsify_(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), sparsity=0.8)
    x = torch.randn(16, 8, 8, 8)
    with autocast(), torch.no_grad():
        y = model.eval()(x)
        with engine("reference"):
            reference = model(x)
    assert y.dtype == reference.dtype == torch.bfloat16 and worst(y, reference.double()) <= 4 * ROUNDING


def test_a_nan_is_named() -> None:
    model = sparsify_(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1)), sparsity=0.5)
    x = torch.randn(4, 2, 8, 8)
    x[1, 1, 2, 3] = torch.nan
    with autocast(), pytest.raises(NotFinite, match="input of layer '0' has NaN"):
        model(x)


def test_a_step_saves_less_than_half_of_the_bytes_of_dense_bfloat16() -> None:
    sizes = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    dense = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1))
    totals = []
    for model in (copy.deepcopy(dense), sparsify_(dense, sparsity=0.8)):
        sizes.clear()
        x = torch.randn(32, 16, 16, 16).bfloat16()
        with autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            y = model(x)
        totals.append(sum(sizes))
        y.float().sum().backward()
    assert totals[1] < 0.5 * totals[0]


def test_autocast_of_half_precision_stays_as_it_was() -> None:
    model = sparsify_(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), sparsity=0.5)
    with torch.autocast("cpu", torch.float16):
        y = model(torch.randn(4, 4, 8, 8))
    assert y.dtype == torch.float16


def test_gradient_checkpointing_repeats_the_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    model = sparsify_(
        nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)), sparsity=0.8
    )
    again, x = copy.deepcopy(model), torch.randn(8, 4, 8, 8)
    with autocast():
        model(x).float().square().sum().backward()
        y = checkpoint(again, x.clone().requires_grad_(), use_reentrant=False)
        y.float().square().sum().backward()
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and torch.equal(p.grad, q.grad)


def test_compiled_layers_compute_in_float32() -> None:
    layer = nn.Conv2d(4, 4, 3, padding=1)
    model = sparsify_(nn.Sequential(layer), sparsity=0.5)
    x = torch.randn(4, 4, 8, 8)
    wide = sparsify_(nn.Sequential(copy.deepcopy(layer)), sparsity=0.5)(x)
    with autocast():
        y = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
    assert y.dtype == torch.bfloat16 and worst(y, wide.detach().double()) <= ROUNDING


def test_rows_may_be_changed_in_place(plan: str) -> None:
    model = sparsify_(nn.Sequential(nn.Linear(16, 16), nn.ReLU(inplace=True), nn.Linear(16, 4)), sparsity=0.5)
    with autocast():
        y = model(torch.randn(32, 16))
    y.float().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("samples", [4, 5])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 6, 3, groups=6), nn.Linear(6, 5)], ids=str
)
def test_bfloat16_read_outside_of_autocast_is_multiplied_as_inside(
    layer: nn.Module, samples: int, plan: str
) -> None:
    model = sparsify_(nn.Sequential(copy.deepcopy(layer)), sparsity=0.8)
    x = torch.randn(samples, 6, *([] if isinstance(layer, nn.Linear) else [5, 5])).bfloat16()
    found = []
    for enabled in (True, False):
        model.zero_grad()
        source = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = model(source)
        y.sum().backward()
        found.append((y, source.grad, *(parameter.grad for parameter in model.parameters())))
    for inside, outside in zip(*found, strict=True):
        assert inside.dtype == outside.dtype and torch.equal(inside, outside)


def test_an_input_that_is_rounded_here_is_saved_and_not_recomputed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHSWAT_PLAN", "sparse")
    layer: Any = sparsify_(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1)), sparsity=0.8)[0]
    norm = nn.BatchNorm2d(8)
    x = layout.as_chwn(torch.randn(16, 8, 6, 6)).requires_grad_()
    relu, recompute = recomputable(norm, x, None, True, "whole")
    assert recompute is not None and recompute.x.dtype == torch.float32
    gradients = []
    for known in (recompute, None):
        layer.zero_grad()
        with autocast():
            y = layer.forward_recomputing(relu.detach().requires_grad_(), known)
        y.sum().backward()
        gradients.append(layer.weight.grad)
    assert torch.equal(*gradients)


@pytest.fixture
def flushed() -> Iterator[None]:
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor cannot flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


@pytest.mark.usefixtures("flushed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "layer", [nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 8, 2), nn.Linear(6, 5)], ids=str
)
def test_zeros_are_not_kept_where_subnormal_numbers_are_flushed(
    layer: nn.Conv2d | nn.Linear, dtype: torch.dtype, plan: str
) -> None:
    layer = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.copy_(layer.weight.masked_fill(torch.rand_like(layer.weight) < 0.9, 0))
    model = sparsify_(nn.Sequential(layer), sparsity=0.5)
    x = torch.randn(16, 6, *([] if isinstance(layer, nn.Linear) else [5, 5]))
    x = x.masked_fill(torch.rand_like(x) < 0.9, 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        y = model(x)
    y.sum().backward()
    ((_, sparse),) = sparse_layers(model)
    for name, tensor in (("weight", layer.weight), ("activation", x)):
        share = int(tensor.count_nonzero()) / tensor.numel()
        assert density(sparse.sparse_state, name) == pytest.approx(share)


@pytest.mark.parametrize("layer", [nn.Conv2d(6, 8, 3, padding=1), nn.Linear(6, 5)], ids=str)
def test_one_graph_of_torch_compile(layer: nn.Module) -> None:
    model = sparsify_(nn.Sequential(copy.deepcopy(layer)), sparsity=0.8)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    x = torch.randn(4, 6, *([] if isinstance(layer, nn.Linear) else [5, 5]))
    with autocast():
        assert compiled(x).dtype == torch.bfloat16
