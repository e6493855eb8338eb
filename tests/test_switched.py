"""Batch norm, ReLU and pooling of the engine against torch's own, alone and fused; undoing it all."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import importlib.util
import pickle

import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchswat import fuse_, sparsify_, switched
from torchswat.engine import ops
from torchswat.engine.loader import engine
from torchswat.models.resnet import PaddingShortcut
from torchswat.switched import ChwnBatchNorm2d, ChwnMaxPool2d, ChwnReLU, restore_, switch_

needs_native = pytest.mark.skipif(
    importlib.util.find_spec("torchswat.engine._native") is None, reason="the native engine is not built here"
)


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(switched, "_FEW_ENTRIES", 0)


@pytest.mark.parametrize("few", [True, False])
def test_a_small_relu_is_torchs_own(monkeypatch, few):
    monkeypatch.setattr(switched, "_FEW_ENTRIES", 13 if few else 12)
    relu = nn.ReLU()
    switch_(relu)
    x = torch.randn(3, 4, requires_grad=True)
    y = relu(x)
    assert ("ReluBackward" in type(y.grad_fn).__name__) == few
    y.sum().backward()
    assert torch.equal(x.grad, (x > 0).float())


class Chwn(nn.Module):
    """What a sparse layer does to its input as far as its neighbours see it: the layout."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.to_chwn(x)


def passes(model: nn.Module, x: Tensor, gradient: Tensor | None = None) -> dict[str, Tensor]:
    """Return output, all gradients and all buffers after one pass forward and backward."""
    model.zero_grad()
    x = x.clone().requires_grad_()
    output = model(x)
    gradient = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    output.backward(gradient)
    found = {"output": output.detach(), "input": x.grad}
    found |= {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return found | {name: b.clone() for name, b in model.named_buffers()}


def check_same(model: nn.Module, x: Tensor, relative: float = 1e-5) -> None:
    """Complain unless the switched `model`, and fused, does what torch does in float64, twice in a row."""
    plain = copy.deepcopy(model).double()
    switch_(model)
    fused = copy.deepcopy(model)
    fuse_(fused)
    for _ in range(2):
        expected = passes(plain, x.double())
        for one in (model, fused):
            actual = passes(one, x)
            assert actual.keys() == expected.keys()
            for name, value in actual.items():
                reference.check_close(value, expected[name], relative)


def shifted(*size: int) -> Tensor:
    """Return values with a mean and a deviation that are not 0 and 1, and with negative ones."""
    return 2 * torch.randn(size) + 0.5


def norm(channels: int, **settings) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(channels, **settings)
    if layer.affine:
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    return layer


sizes = st.tuples(st.integers(1, 40), st.integers(1, 6), st.integers(1, 9), st.integers(1, 9))

# ---- the same numbers --------------------------------------------------------------------------------------


@given(sizes, st.booleans(), st.sampled_from([0.0, 0.1, 1.0]), st.sampled_from([1e-5, 0.1]), st.booleans())
def test_batch_norm(size, affine, momentum, eps, relu):
    n, c, h, w = size
    assume(n * h * w > 3)  # of fewer values the gradient is next to nothing: what is left is rounding
    layers = [Chwn(), norm(c, affine=affine, momentum=momentum, eps=eps), *[nn.ReLU()] * relu]
    check_same(nn.Sequential(*layers), shifted(*size), relative=1e-4 if n * h * w < 8 else 1e-5)


@pytest.mark.parametrize("settings", [{"momentum": None}, {"track_running_stats": False}])
def test_batch_norms_that_the_kernels_do_not_do(settings):
    check_same(nn.Sequential(Chwn(), norm(4, **settings), nn.ReLU()), shifted(6, 4, 5, 5))


def test_evaluation_uses_the_running_statistics():
    model = nn.Sequential(Chwn(), norm(4), nn.ReLU())
    check_same(model, shifted(6, 4, 5, 5))
    twin = plain_copy(model).double()
    x = shifted(6, 4, 5, 5)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    reference.check_close(model.eval()(x), twin.eval()(x.double()), 1e-6)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, before[name])


@given(sizes, st.booleans(), st.booleans())
def test_evaluation_keeps_the_layout(size, affine, grad):
    norm = nn.BatchNorm2d(size[1], affine=affine)
    norm(torch.randn(4, size[1], 3, 3))
    norm.eval()
    twin = copy.deepcopy(norm)
    switch_(twin)
    x = ops.to_chwn(torch.randn(size)).requires_grad_(grad)
    ours, theirs = twin(x), norm(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert ops.is_chwn(ours)
    if grad:
        gradient = torch.randn(size)
        found, expected = (torch.autograd.grad(y, x, gradient)[0] for y in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def plain_copy(model: nn.Module) -> nn.Module:
    twin = copy.deepcopy(model)
    restore_(twin)
    return twin


def test_frozen_parameters_get_no_gradient():
    model = nn.Sequential(Chwn(), norm(4), nn.ReLU())
    model[1].weight.requires_grad_(False)
    check_same(model, shifted(6, 4, 5, 5))
    assert model[1].weight.grad is None and model[1].bias.grad is not None


def test_one_value_a_channel_is_refused_as_by_torch():
    model = nn.Sequential(Chwn(), norm(4))
    switch_(model)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(shifted(1, 4, 1, 1))


@given(sizes, st.booleans())
def test_relu(size, inplace):
    check_same(nn.Sequential(Chwn(), nn.ReLU(inplace)), shifted(*size))


def test_relu_passes_nan_on_as_torch_does():
    x = shifted(6, 4, 5, 5)
    x[3, 2, 1, 0], x[0, 0, 0, 0] = float("nan"), float("inf")
    model = nn.Sequential(Chwn(), nn.ReLU())
    switch_(model)
    torch.testing.assert_close(model(x), x.relu(), equal_nan=True, rtol=0, atol=0)


@given(sizes, st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 1), (3, 3, 0)]), st.booleans())
def test_max_pool(size, geometry, ceil_mode):
    kernel, stride, padding = geometry
    assume(min(size[2:]) + 2 * padding >= kernel)
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=ceil_mode)
    check_same(nn.Sequential(Chwn(), nn.ReLU(), pool), shifted(*size))


@pytest.mark.parametrize("settings", [{"dilation": 2}, {"stride": (2, 1)}, {"padding": (1, 0)}])
def test_max_pools_that_the_kernels_do_not_do(settings):
    check_same(nn.Sequential(Chwn(), nn.MaxPool2d(3, **settings)), shifted(5, 3, 8, 8))


@given(sizes, st.sampled_from([2, (2, 1), (1, 3), 4]), st.booleans())
def test_average_pool(size, kernel, ceil_mode):
    rows, columns = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    assume(size[2] >= rows and size[3] >= columns)
    check_same(nn.Sequential(Chwn(), nn.AvgPool2d(kernel, ceil_mode=ceil_mode)), shifted(*size))


@pytest.mark.parametrize("settings", [{"stride": 1}, {"padding": 1}, {"divisor_override": 3}])
def test_average_pools_that_the_kernels_do_not_do(settings):
    check_same(nn.Sequential(Chwn(), nn.AvgPool2d(3, **settings)), shifted(5, 3, 8, 8))


@given(sizes, st.sampled_from([1, (1, 1), (None, 1), 2]))
def test_averages_over_the_map(size, output_size):
    check_same(nn.Sequential(Chwn(), nn.AdaptiveAvgPool2d(output_size)), shifted(*size))


@needs_native
@pytest.mark.parametrize(
    "pool", [nn.AvgPool2d(2), nn.AvgPool2d((2, 4)), nn.AdaptiveAvgPool2d(1), PaddingShortcut(4, 8, 2)]
)
def test_average_pools_and_shortcuts_keep_the_layout(pool):
    model = nn.Sequential(Chwn(), pool)
    switch_(model)
    assert ops.is_chwn(model(shifted(6, 4, 8, 8)))


@given(sizes, st.integers(1, 3), st.integers(0, 4))
def test_padding_shortcut(size, stride, new_channels):
    shortcut = PaddingShortcut(size[1], size[1] + new_channels, stride)
    check_same(nn.Sequential(Chwn(), shortcut), shifted(*size))


def test_a_maximum_over_a_window_larger_than_the_kernels():
    check_same(nn.Sequential(Chwn(), nn.MaxPool2d(20)), shifted(8, 4, 20, 20))


def test_max_pool_returns_indices_where_asked():
    pool = nn.MaxPool2d(2, return_indices=True)
    x = shifted(5, 3, 8, 8)
    expected = pool(x)
    switch_(pool)
    for actual, wanted in zip(pool(ops.to_chwn(x)), expected, strict=True):
        assert torch.equal(actual, wanted)


@needs_native
@pytest.mark.parametrize("ceil_mode", [False, True])
def test_the_layout_is_kept(ceil_mode):
    model = nn.Sequential(Chwn(), norm(4), nn.ReLU(), nn.MaxPool2d(2, ceil_mode=ceil_mode), nn.ReLU(True))
    switch_(model)
    x = shifted(6, 4, 8, 8)
    for layer in model:
        x = layer(x)
        assert ops.is_chwn(x)


def test_inputs_in_any_other_layout_or_number():
    model = nn.Sequential(norm(4), nn.ReLU(), nn.MaxPool2d(2))
    check_same(copy.deepcopy(model), shifted(6, 4, 8, 8))
    check_same(copy.deepcopy(model).double(), shifted(6, 4, 8, 8).double(), 1e-12)
    last = shifted(6, 4, 8, 8).contiguous(memory_format=torch.channels_last)
    check_same(model, last)
    switch_(model)
    assert model(shifted(1, 4, 8, 8)).shape == (1, 4, 4, 4)
    assert model[1](torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


def test_the_reference_engine_gives_the_same():
    model = nn.Sequential(Chwn(), norm(4), nn.ReLU(), nn.MaxPool2d(2))
    switch_(model)
    twin = copy.deepcopy(model)
    x = shifted(6, 4, 8, 8)
    actual = passes(model, x)
    with engine("reference"):
        expected = passes(twin, x)
    for name, value in actual.items():
        reference.check_close(value, expected[name], 1e-5)


class Residual(nn.Module):
    """A block that adds in place, rectifies in place, and uses one ReLU three times."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.again, self.relu = norm(4), norm(4), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm(ops.to_chwn(x)))
        out = self.again(out)
        out += x
        return self.relu(self.relu(out) - 0.1)


def test_a_residual_block_with_everything_in_place():
    check_same(Residual(), shifted(6, 4, 5, 5))


class Twice(nn.Module):
    """One batch norm for two inputs, read by a ReLU both times."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.relu = norm(4), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(ops.to_chwn(x))) - self.relu(self.norm(ops.to_chwn(x.flip(0) * x)))


def test_a_batch_norm_that_is_used_twice():
    check_same(Twice(), shifted(6, 4, 5, 5))


def test_gradients_may_be_expanded_or_of_any_layout():
    model = nn.Sequential(Chwn(), norm(4), nn.ReLU(), nn.MaxPool2d(2))
    plain = copy.deepcopy(model)
    switch_(model)
    x = shifted(6, 4, 8, 8)
    weights = torch.randn(6, 4, 4, 4).contiguous(memory_format=torch.channels_last)
    for loss in (lambda y: (y * weights).sum(), lambda y: y.sum()):
        grads = []
        for one in (model, plain):
            leaf = x.clone().requires_grad_()
            loss(one(leaf)).backward()
            grads.append(leaf.grad)
        scale = 1e-5 * float(x.abs().max())
        torch.testing.assert_close(*grads, rtol=0, atol=scale)


# ---- undoing, copying --------------------------------------------------------------------------------------


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(8, 8, 1))


def test_restore_undoes_everything():
    model = network()
    before = {name: (type(m), set(vars(m))) for name, m in model.named_modules()}
    text = repr(model)
    switch_(model)
    assert [type(m) for m in model][1:4] == [ChwnBatchNorm2d, ChwnReLU, ChwnMaxPool2d]
    switch_(model)  # a second time changes nothing
    restore_(model)
    assert {name: (type(m), set(vars(m))) for name, m in model.named_modules()} == before
    assert repr(model) == text


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_do_the_same(duplicate):
    model = sparsify_(network(), "swat", 0.5)
    x = torch.randn(6, 3, 9, 9)
    twin = duplicate(model)
    expected, actual = passes(model, x), passes(twin, x)
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert torch.equal(value, expected[name])


@settings(max_examples=10)
@given(st.integers(2, 20))
def test_a_last_smaller_batch(n):
    model = nn.Sequential(Chwn(), norm(4), nn.ReLU(), nn.MaxPool2d(2))
    plain = copy.deepcopy(model)
    switch_(model)
    for batch in (n, 1, n):
        x = shifted(batch, 4, 6, 6)
        reference.check_close(model(x), plain(x), 1e-4)
    reference.check_close(model[1].running_var, plain[1].running_var, 1e-5)
    assert model[1].num_batches_tracked == 3


def test_a_batch_norm_of_rounded_chwn_tensors_under_autocast():
    """What a sparse layer returns under autocast: statistics in float32, the output rounded."""
    norm = nn.BatchNorm2d(4).train()
    switched_norm = copy.deepcopy(norm)
    switched_norm.__class__ = ChwnBatchNorm2d
    x = torch.randn(4, 5, 6, 16).permute(3, 0, 1, 2).to(torch.bfloat16)
    ours, theirs = (x.clone().requires_grad_() for _ in range(2))
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = switched_norm(ours), norm(theirs.float())
    gradient = torch.randn(y.shape)
    y.backward(gradient.to(torch.bfloat16))
    expected.backward(gradient)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected.detach(), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=3e-2, atol=3e-2)
    torch.testing.assert_close(switched_norm.running_mean, norm.running_mean)
    torch.testing.assert_close(switched_norm.running_var, norm.running_var)
