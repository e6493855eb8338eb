"""Batch norm, ReLU, pools, sums and concatenation of bfloat16 tensors under autocast, switched and fused.

The reference is plain torch in float32 on the same, rounded inputs. What runs as one operation is rounded once.
"""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportCallIssue=false, reportReturnType=false, reportOperatorIssue=false, reportPrivateImportUsage=false

from __future__ import annotations

import contextlib
import copy
import importlib.util

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from torchswat import BatchNormReLU2d, fuse_, sparsify_, switched
from torchswat import fused as operations
from torchswat.batch_norm import recomputable
from torchswat.concatenation import concatenate
from torchswat.engine import ops
from torchswat.engine.batch_norm import NORM_INPUTS
from torchswat.engine.loader import engine
from torchswat.models.resnet import PaddingShortcut
from torchswat.switched import switch_

ROUNDING = 2.0**-8  # of a result to bfloat16, relative
ENGINES = ["auto", "reference"]
sizes = st.tuples(st.integers(2, 70), st.integers(1, 5), st.integers(1, 8), st.integers(1, 8))
needs_native = pytest.mark.skipif(
    importlib.util.find_spec("torchswat.engine._native") is None, reason="the native engine is not built here"
)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch) -> None:
    monkeypatch.setattr(switched, "_FEW_ENTRIES", 0)


def autocast(dtype: torch.dtype = torch.bfloat16) -> torch.autocast:
    return torch.autocast("cpu", dtype)


def chwn(*size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return ops.to_chwn((2 * torch.randn(size) + 0.5).to(dtype))


def norm(channels: int) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels)
    nn.init.normal_(layer.weight)
    nn.init.normal_(layer.bias)
    return layer


def passes(model: nn.Module, gradient: Tensor, *inputs: Tensor) -> dict[str, Tensor]:
    """Return output, gradients and buffers of one pass."""
    model.zero_grad()
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    y = model(*inputs)
    y.backward(gradient.to(y.dtype))
    found = {"output": y.detach()} | {f"input {i}": x.grad for i, x in enumerate(inputs)}
    found |= {name: p.grad for name, p in model.named_parameters()}
    return found | {name: b.clone() for name, b in model.named_buffers()}


def assert_rounded(found: Tensor, exact: Tensor, name: str, tolerance: float = 2e-4) -> None:
    """Complain unless a bfloat16 result is the float32 one, rounded; or a float32 one is near it."""
    off = (found.float() - exact).abs() - ROUNDING * exact.abs() * (found.dtype == torch.bfloat16)
    worst = float(off.max() / exact.abs().max().clamp(min=1)) if off.numel() else 0.0
    assert worst < tolerance, f"{name} is off by {worst:.1e}"


def test_the_comparison_can_fail():
    exact = torch.tensor([1 + ROUNDING * 0.9])
    assert_rounded(exact.bfloat16(), exact, "rounded")
    for wrong in (torch.tensor([1.02]).bfloat16(), exact + 1e-3):
        with pytest.raises(AssertionError, match="is off"):
            assert_rounded(wrong, exact, "wrong")


def check(model: nn.Module, *inputs: Tensor, tolerance: float = 2e-4, chwn_output: bool = True) -> None:
    """Complain unless `model` does under autocast what a plain float32 one does with the same inputs."""
    plain = copy.deepcopy(model)
    switch_(model)
    wide = [x.float() for x in inputs]
    gradient = torch.randn(copy.deepcopy(plain)(*wide).shape).bfloat16()
    expected = passes(plain, gradient.float(), *wide)
    with autocast():
        actual = passes(model, gradient, *inputs)
    assert actual.keys() == expected.keys()
    assert actual["output"].dtype == torch.bfloat16
    assert not chwn_output or ops.is_chwn(actual["output"])
    for name, value in actual.items():
        of_input = name == "output" or name.startswith("input")
        assert value.dtype == (torch.bfloat16 if of_input else expected[name].dtype), name
        assert_rounded(value, expected[name], name, tolerance)


# ---- one after the other -----------------------------------------------------------------------------------


@needs_native
@given(sizes)
def test_batch_norm(size):
    assume(size[0] * size[2] * size[3] > 8)  # of fewer values the gradient is next to nothing
    check(norm(size[1]), chwn(*size))


@needs_native
@given(sizes, st.booleans())
def test_relu(size, inplace):
    check(nn.Sequential(nn.Identity(), nn.ReLU()), chwn(*size))
    x = chwn(*size)
    expected = x.relu()
    relu = nn.ReLU(inplace=True)
    switch_(relu)
    assert relu(x) is x and torch.equal(x, expected)


@needs_native
@given(sizes, st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1)]))
def test_max_pool(size, geometry):
    kernel, stride, padding = geometry
    assume(min(size[2:]) + 2 * padding >= kernel)
    check(nn.MaxPool2d(kernel, stride, padding), chwn(*size))


@needs_native
@given(sizes, st.sampled_from([2, (2, 1), (1, 3)]))
def test_average_pool(size, kernel):
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    assume(size[2] >= rows and size[3] >= columns)
    check(nn.AvgPool2d(kernel), chwn(*size))
    check(nn.AdaptiveAvgPool2d(1), chwn(*size))


@needs_native
@given(sizes, st.integers(1, 3), st.integers(0, 4))
def test_padding_shortcut(size, stride, new_channels):
    check(PaddingShortcut(size[1], size[1] + new_channels, stride), chwn(*size))


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("size", [(1, 3, 4, 4), (6, 3, 5, 5)])
@pytest.mark.parametrize("layout", ["chwn", "nchw", "channels_last"])
def test_every_layout_and_engine(which, size, layout):
    x = chwn(*size)
    if layout != "chwn":
        x = x.contiguous(memory_format=torch.channels_last if layout != "nchw" else torch.contiguous_format)
    with engine(which):
        for layer in (norm(3), nn.ReLU(), nn.MaxPool2d(2), nn.AvgPool2d(2)):
            check(layer, x, tolerance=0.01, chwn_output=False)  # torch rounds more often


# ---- fused -------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, channels: int, relu: bool = True) -> None:
        super().__init__()
        self.norm, self.relu = norm(channels), nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.relu(self.norm(x) + residual)


def fused(model: nn.Module) -> nn.Module:
    switch_(model)
    assert fuse_(model).fused
    return model


@needs_native
@given(sizes, st.booleans())
def test_a_fused_chain_is_rounded_once(size, relu):
    n, c, h, w = size
    assume(n * h * w > 8)
    check(fused(Block(c, relu)), chwn(*size), chwn(*size))
    check(fused(nn.Sequential(norm(c), nn.ReLU())), chwn(*size))


@needs_native
def test_a_fused_chain_is_one_node():
    x, residual = chwn(6, 4, 5, 5).requires_grad_(), chwn(6, 4, 5, 5).requires_grad_()
    with autocast():
        for y in (fused(Block(4))(x, residual), fused(nn.Sequential(norm(4), nn.ReLU()))(x)):
            assert "BatchNorm" in type(y.grad_fn).__name__ and y.dtype == torch.bfloat16 and ops.is_chwn(y)


@needs_native
def test_what_a_layer_recomputes_its_input_from():
    layer, x = norm(4), chwn(40, 4, 5, 5).requires_grad_()
    with autocast():
        y, info = recomputable(layer, x, None, True, "whole")
    assert info is not None and info.x.dtype == torch.bfloat16 and ops.is_chwn(info.x)
    assert info.scale.dtype == info.shift.dtype == torch.float32
    again = (info.x.double() * info.scale.view(-1, 1, 1) + info.shift.view(-1, 1, 1)).float().relu()
    different = again.bfloat16() != y
    assert different.float().mean() < 1e-3  # float64 breaks a few ties that float32 does not see
    torch.testing.assert_close(again, y.float(), rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("which", ENGINES)
def test_norm_inputs_of_bfloat16(which):
    x, gradient = chwn(16, 4, 8, 8), torch.randn(16, 4, 8, 8).bfloat16()
    whole = BatchNormReLU2d(4)
    with engine(which), autocast():
        found = {}
        for name in NORM_INPUTS:
            layer = copy.deepcopy(whole)
            layer.norm_input = name
            found[name] = passes(layer, gradient, x)
    for key, value in found["whole"].items():
        assert torch.equal(found["bfloat16"][key], value), key  # it is of two bytes already
        scale = float(value.float().abs().max())
        torch.testing.assert_close(found["int8"][key], value, rtol=2 * ROUNDING, atol=0.05 * scale)
    assert torch.equal(found["int8"]["output"], found["whole"]["output"])


@pytest.mark.parametrize("norm_input", NORM_INPUTS)
def test_bytes_that_are_saved(norm_input):
    layer, x, storages = BatchNormReLU2d(4, norm_input=norm_input), chwn(16, 4, 8, 8).requires_grad_(), {}
    owned = {t.untyped_storage().data_ptr() for t in (*layer.parameters(), *layer.buffers())}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with autocast(), torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        layer(x)
        saved = sum(size for place, size in storages.items() if place not in owned)
    assert saved <= x.numel() * (min(2, NORM_INPUTS[norm_input]) + 1 / 8) + 4 * 4 * 4


# ---- mixed types -------------------------------------------------------------------------------------------

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16, None], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("other", DTYPES, ids=str)
@pytest.mark.parametrize("how", ["switched", "fused"])
def test_types_of_results_are_torchs(cast, dtype, other, how):
    plain = Block(4)
    model = copy.deepcopy(plain)
    switch_(model)
    if how == "fused":
        fuse_(model)
    x, residual, gradient = (
        chwn(6, 4, 5, 5, dtype=dtype),
        chwn(6, 4, 5, 5, dtype=other),
        torch.randn(6, 4, 5, 5),
    )
    with autocast(cast) if cast is not None else contextlib.nullcontext():
        expected, actual = (passes(m, gradient, x, residual) for m in (plain, model))
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype, name
        torch.testing.assert_close(actual[name], value, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_residual_whose_memory_holds_something_else(dtype):
    block, x, residual = fused(Block(4)), chwn(6, 4, 5, 5, dtype=dtype), chwn(6, 4, 5, 5, dtype=dtype)
    with autocast() if dtype == torch.bfloat16 else contextlib.nullcontext():
        expected = block(x, -residual)
        lazily = torch._neg_view(residual)
        assert lazily.is_neg()
        torch.testing.assert_close(block(x, lazily), expected, rtol=0.02, atol=0.02)


def test_concatenation():
    x, y = chwn(5, 2, 3, 3), torch.randn(5, 4, 3, 3).bfloat16()
    with autocast():
        both, mixed = concatenate([x, y]), concatenate([x, y.float()])
    assert both.dtype == torch.bfloat16 and ops.is_chwn(both)
    assert torch.equal(both, torch.cat([x, y], 1))
    assert mixed.dtype == torch.float32


@given(sizes, st.sampled_from([torch.contiguous_format, torch.channels_last]))
def test_layouts_of_bfloat16(size, memory_format):
    x = torch.randn(size).bfloat16().contiguous(memory_format=memory_format).requires_grad_()
    y = ops.to_chwn(x)
    assert ops.is_chwn(y) and torch.equal(y, x)
    gradient = chwn(*size)
    y.backward(gradient)
    assert torch.equal(x.grad, gradient) and x.grad.is_contiguous(memory_format=memory_format)


# ---- between sparse layers ---------------------------------------------------------------------------------


def network() -> nn.Sequential:
    convolution = nn.Conv2d(4, 8, 3, padding=1, bias=False)
    again = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    return nn.Sequential(
        *(convolution, nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(again, nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )


@pytest.mark.parametrize("norm_input", NORM_INPUTS)
@pytest.mark.parametrize("fuse", [False, True])
def test_a_sparse_network_trains_under_autocast(norm_input, fuse):
    torch.manual_seed(2)
    wide = sparsify_(network(), sparsity=0.5, norm_input=norm_input)
    narrow = copy.deepcopy(wide)
    if fuse:
        assert fuse_(narrow).fused
    x = torch.randn(32, 4, 8, 8)
    wide(x).square().sum().backward()
    with autocast():
        y = narrow(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    for parameter, exact in zip(narrow.parameters(), wide.parameters(), strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        off = (parameter.grad - exact.grad).norm() / exact.grad.norm()
        assert off < 0.3


# ---- compiled by torch, and where layouts change -----------------------------------------------------------


@pytest.mark.parametrize("backend", ["aot_eager", "torchswat"])
def test_a_graph_of_torch_does_the_same(backend):
    block = Block(4)
    switch_(block)
    twin = copy.deepcopy(block)
    compiled = torch.compile(twin, backend=backend, fullgraph=True)
    x, residual, gradient = chwn(6, 4, 5, 5), chwn(6, 4, 5, 5), torch.randn(6, 4, 5, 5)
    with autocast():
        expected, actual = passes(block, gradient, x, residual), passes(compiled, gradient, x, residual)
    for name, value in expected.items():
        found = actual.get(name, actual.get(f"_orig_mod.{name}"))
        assert found.dtype == value.dtype
        torch.testing.assert_close(found, value, rtol=0.02, atol=0.02)


@needs_native
def test_a_chain_before_a_sparse_layer_is_converted_and_recomputed(monkeypatch):
    model = nn.Sequential(norm(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1, bias=False))
    sparsify_(model, sparsity=0.5)
    assert fuse_(model).fused[0].recomputed == ("2",)
    original, found = operations.recomputable, []
    monkeypatch.setattr(operations, "recomputable", lambda *a: (found.append(original(*a)), found[-1])[1])
    x = torch.randn(32, 8, 8, 8).bfloat16().requires_grad_()
    with autocast():
        y = model(x)
    y.sum().backward()
    ((_, info),) = found
    assert info is not None and ops.is_chwn(info.x) and info.x.dtype == torch.bfloat16
    assert y.dtype == torch.bfloat16 and ops.is_chwn(y)
    assert x.grad is not None and x.grad.is_contiguous()
