"""Batch norm and ReLU as one module: torch's own numbers, fewer bytes, and bounded errors where it rounds."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportOptionalMemberAccess=false
# pyright: reportCallIssue=false

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from torchswat import BatchNormReLU2d, sparsify_
from torchswat.batch_norm import recomputable
from torchswat.engine import ops
from torchswat.engine.batch_norm import NORM_INPUTS
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue, UnknownName

ENGINES = ["auto", "reference"]
sizes = st.tuples(st.integers(2, 9), st.integers(2, 5), st.integers(2, 6), st.integers(2, 6))
LAYOUTS = {
    "nchw": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "chwn": ops.to_chwn,
}


def passes(layer: nn.Module, x: Tensor, residual: Tensor | None, gradient: Tensor) -> dict[str, Tensor]:
    """Return output, gradients and buffers of one pass; a plain batch norm gets what the module fuses."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    residual = None if residual is None else residual.detach().requires_grad_()
    if isinstance(layer, BatchNormReLU2d):
        y = layer(x, residual)
    else:
        y = layer(x) if residual is None else layer(x) + residual
        y = y.relu()
    y.backward(gradient)
    found = {"output": y.detach(), "input": x.grad}
    if residual is not None:
        found["residual"] = residual.grad
    found |= {name: p.grad for name, p in layer.named_parameters()}
    return found | {name: b.clone() for name, b in layer.named_buffers()}


def pair(channels: int, **settings) -> tuple[BatchNormReLU2d, nn.BatchNorm2d]:
    """Return the module and torch's batch norm with the same parameters, which are not 1 and 0."""
    norm_input = settings.pop("norm_input", "whole")
    plain = nn.BatchNorm2d(channels, **settings)
    if plain.affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    fused = BatchNormReLU2d(channels, **settings, norm_input=norm_input)
    fused.load_state_dict(plain.state_dict())  # the same names
    return fused, plain


def chwn(*size: int) -> Tensor:
    return ops.to_chwn(torch.randn(size))


# ---- the same numbers --------------------------------------------------------------------------------------


@given(sizes, st.booleans(), st.booleans(), st.sampled_from(["nchw", "channels_last"]), st.booleans())
def test_bit_for_bit_what_torch_computes(size, residual, affine, layout, double):
    fused, plain = pair(size[1], affine=affine)
    x, other, gradient = torch.randn(3, *size)
    if double:
        x, other, gradient = x.double(), other.double(), gradient.double()
        fused, plain = fused.double(), plain.double()
    arguments = LAYOUTS[layout](x), other if residual else None, gradient
    actual, expected = passes(fused, *arguments), passes(plain, *arguments)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


@pytest.mark.parametrize("residual", [False, True])
def test_the_compiled_kernels_agree_with_float64(residual):
    fused, plain = pair(4)
    x, other, gradient = torch.randn(3, 8, 4, 6, 6)
    plain = plain.double()
    actual = passes(fused, ops.to_chwn(x), ops.to_chwn(other) if residual else None, gradient)
    expected = passes(plain, x.double(), other.double() if residual else None, gradient.double())
    for name, value in expected.items():
        torch.testing.assert_close(actual[name].double(), value.double(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("settings", [{"momentum": None}, {"track_running_stats": False}])
def test_settings_that_are_not_fused(settings):
    fused, plain = pair(4, **settings)
    arguments = torch.randn(6, 4, 5, 5), None, torch.randn(6, 4, 5, 5)
    actual, expected = passes(fused, *arguments), passes(plain, *arguments)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


def test_evaluation_and_broadcast_residuals():
    fused, plain = pair(4)
    x = torch.randn(6, 4, 5, 5)
    assert torch.equal(fused(x, torch.ones(1)), (plain(x) + 1).relu())
    assert torch.equal(fused.eval()(x), plain.eval()(x).relu())
    with torch.no_grad():
        assert torch.equal(fused.train()(x), plain.train()(x).relu())


def test_one_value_a_channel_is_refused_as_by_torch():
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        BatchNormReLU2d(4)(torch.randn(1, 4, 1, 1))


def test_small_floats():
    fused, plain = pair(4)
    x, gradient = torch.randn(2, 6, 4, 5, 5).bfloat16()
    actual, expected = passes(fused, x, None, gradient), passes(plain, x, None, gradient)
    for name, value in expected.items():
        assert torch.equal(actual[name], value), name


# ---- what is kept ------------------------------------------------------------------------------------------


def kept_bytes(layer: nn.Module, x: Tensor) -> int:
    """Return the bytes of the storages saved, but for parameters."""
    owned = {p.untyped_storage().data_ptr() for p in [*layer.parameters(), *layer.buffers()]}
    storages: dict[int, int] = {}

    def save(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in owned:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        y = layer(x)
        total = sum(storages.values())
    y.sum().backward()
    return total


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("norm_input", NORM_INPUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_keeps_its_input_in_so_many_bytes_and_a_bit_an_entry(which, norm_input, layout):
    x = LAYOUTS[layout](torch.randn(16, 4, 8, 8)).requires_grad_()
    with engine(which):
        found = kept_bytes(BatchNormReLU2d(4, norm_input=norm_input), x)
    entries = x.numel()
    assert found <= entries * (NORM_INPUTS[norm_input] + 1 / 8) + 4 * 4 * 4
    separate = kept_bytes(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()), x)
    assert separate >= 8 * entries  # the helper counts what is there


@pytest.mark.parametrize("which", ENGINES)
def test_neither_input_nor_output_stays_alive(which):
    layer, alive = BatchNormReLU2d(4, norm_input="int8"), []
    with engine(which):
        for layout in LAYOUTS.values():
            x = layout(torch.randn(16, 4, 8, 8, requires_grad=True)) * 1
            storages = [x.untyped_storage()._weak_ref()]
            y = layer(x)
            storages.append(y.untyped_storage()._weak_ref())
            node = y.grad_fn
            del x, y
            alive += [torch.UntypedStorage._expired(storage) for storage in storages]
            assert node is not None
    assert all(alive)


# ---- gradients where the input is rounded ------------------------------------------------------------------


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
def test_gradients_are_off_by_as_much_as_the_rounding_explains(which, layout, data):
    """The bound is what the formula of the gradient makes of the largest error of the normalised input."""
    norm_input = data.draw(st.sampled_from(["bfloat16", "int8"]))
    size = data.draw(st.sampled_from([(4, 3, 5, 5), (16, 2, 8, 8), (32, 4, 3, 3)]))
    shift = data.draw(st.sampled_from([0.0, 30.0]))
    fused, plain = pair(size[1], norm_input=norm_input)
    x, gradient = torch.randn(size) * 3 + shift, torch.randn(size)
    with engine(which):
        actual = passes(fused, LAYOUTS[layout](x), None, gradient)
    expected = passes(plain.double(), x.double(), None, gradient.double())
    torch.testing.assert_close(actual["output"].double(), expected["output"], rtol=1e-4, atol=1e-4)

    deviation = x.double() - x.double().mean((0, 2, 3), keepdim=True)
    sigma = (deviation.square().mean((0, 2, 3)) + fused.eps).sqrt()
    width = deviation.amax((0, 2, 3)) - deviation.amin((0, 2, 3))
    off = deviation.abs().amax((0, 2, 3)) / 256 if norm_input == "bfloat16" else width / 509
    off = off / sigma + 1e-5  # of the normalised input, a channel
    through = (expected["output"] > 0) * gradient.double()
    grad_weight = (actual["weight"].double() - expected["weight"]).abs()
    assert (grad_weight <= off * through.abs().sum((0, 2, 3)) + 1e-4).all()

    entries = x.numel() / size[1]
    most = deviation.abs().amax((0, 2, 3)) / sigma
    projection = expected["weight"].abs() / entries
    moved = off * projection + (most + off) * off * through.abs().sum((0, 2, 3)) / entries
    grad_x = (actual["input"].double() - expected["input"]).abs().amax((0, 2, 3))
    assert (grad_x <= plain.weight.detach().abs() / sigma * moved + 1e-4).all()
    assert torch.equal(actual["bias"].double() != 0, expected["bias"] != 0)


def test_the_bound_can_fail():
    """A copy of 4 bits would not pass: the rounding is as fine as it says."""
    fused, plain = pair(2, norm_input="int8")
    x, gradient = torch.randn(16, 2, 8, 8), torch.randn(16, 2, 8, 8)
    actual = passes(fused, x, None, gradient)["weight"]
    expected = passes(plain, x, None, gradient)["weight"]
    error = (actual - expected).abs().max()
    assert 0 < error < 0.5 * (x.max() - x.min()) / 510 * gradient.abs().sum() / 8


# ---- what goes on around it --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_input", NORM_INPUTS)
def test_a_second_derivative_is_refused(norm_input):
    x = torch.randn(6, 4, 5, 5, requires_grad=True)
    output = BatchNormReLU2d(4, norm_input=norm_input)(x)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative"):
        grad.sum().backward()


def sparse_network(norm_input: str) -> nn.Sequential:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
        *(
            nn.Conv2d(8, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
    )
    return sparsify_(model, sparsity=0.5, norm_input=norm_input)


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("norm_input", NORM_INPUTS)
def test_gradient_checkpointing_changes_no_gradient(which, reentrant, norm_input):
    model = sparse_network(norm_input)
    twin, x = copy.deepcopy(model), torch.randn(6, 3, 9, 9, requires_grad=True)
    with engine(which):
        model(x).square().sum().backward()
        checkpoint(twin, x, use_reentrant=reentrant).square().sum().backward()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert one.grad is not None and torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("which", ENGINES)
def test_a_sparse_network_trains_with_narrow_inputs_and_evaluates_as_ever(which):
    torch.manual_seed(1)
    models = {name: sparse_network(name) for name in NORM_INPUTS}
    for model in models.values():
        model.load_state_dict(models["whole"].state_dict())
    x = torch.randn(6, 3, 9, 9)
    with engine(which):
        outputs = {name: model(x) for name, model in models.items()}
        for output in outputs.values():
            output.square().sum().backward()
    for name, model in models.items():
        torch.testing.assert_close(outputs[name], outputs["whole"])  # only gradients see the rounding
        for parameter, whole in zip(model.parameters(), models["whole"].parameters(), strict=True):
            scale = float(whole.grad.abs().max())
            torch.testing.assert_close(parameter.grad, whole.grad, rtol=0, atol=0.05 * scale + 1e-5)


def test_names_are_checked():
    with pytest.raises(UnknownName, match="did you mean 'int8'"):
        BatchNormReLU2d(4, norm_input="int")
    with pytest.raises(UnknownName, match="did you mean 'bfloat16'"):
        sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3)), norm_input="bfloat")
    with pytest.raises(InvalidValue, match="'meprop' leaves batch norms as they are"):
        sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3)), "meprop", norm_input="int8")


def test_it_says_what_it_is():
    assert repr(BatchNormReLU2d(4, norm_input="int8")).endswith("norm_input='int8')")


# ---- whatever the parameters, torch's defaults and hooks are -----------------------------------------------


def test_another_number_of_channels_is_refused_as_by_torch():
    with pytest.raises(RuntimeError, match="running_mean should contain 6 elements not 4"):
        BatchNormReLU2d(4)(chwn(8, 6, 6, 6))
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(4, 4, 1))
    with pytest.raises(RuntimeError, match="running_mean should contain 4 elements not 6"):
        sparsify_(model, sparsity=0.5)(torch.randn(8, 3, 6, 6))


@pytest.mark.parametrize(
    "name, odd",
    [(name, odd) for name in ("weight", "bias") for odd in ("strided", "expanded", "float64")]
    + [(name, odd) for name in ("running_mean", "running_var") for odd in ("strided", "float64")],
)
def test_parameters_of_other_strides_and_dtypes(name, odd):
    fused, plain = pair(4)
    x, gradient = chwn(8, 4, 6, 6), torch.randn(8, 4, 6, 6)
    expanded = torch.ones(1).expand(4)
    changed = {"strided": torch.rand(8)[::2], "expanded": expanded, "float64": torch.ones(4).double()}[odd]
    for layer in (fused, plain):
        value = changed if odd == "expanded" else changed.clone(memory_format=torch.preserve_format)
        if odd == "strided":
            value = torch.stack([changed, changed], 1)[:, 0]
        setattr(layer, name, nn.Parameter(value) if name in ("weight", "bias") else value)
    outcomes = []
    for layer in (fused, plain):
        try:
            outcomes.append(passes(layer, x, None, gradient))
        except (RuntimeError, ValueError) as error:  # torch refuses some, and then so do we
            outcomes.append(str(error))
    if isinstance(outcomes[1], str):
        assert isinstance(outcomes[0], str)
        return
    for key, value in outcomes[1].items():
        torch.testing.assert_close(outcomes[0][key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_input", NORM_INPUTS)
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, "meta"])
def test_the_default_dtype_and_device_change_nothing(norm_input, default):
    """A float32 model computes the same: forward, backward, with residual, and between sparse layers."""
    x, other, gradient = chwn(8, 4, 6, 6), chwn(8, 4, 6, 6), torch.randn(8, 4, 6, 6)
    fused, _ = pair(4, norm_input=norm_input)
    model = sparsify_(sparse_body(), sparsity=0.6, norm_input=norm_input, method="sample")
    twins = copy.deepcopy((fused, model))
    expected = [passes(fused, x, None, gradient), passes(fused, x, other, gradient), training(model, x)]
    if default == "meta":
        with torch.device("meta"):
            actual = [passes(twins[0], x, None, gradient), passes(twins[0], x, other, gradient)]
            actual.append(training(twins[1], x))
    else:
        before = torch.get_default_dtype()
        torch.set_default_dtype(default)
        try:
            actual = [passes(twins[0], x, None, gradient), passes(twins[0], x, other, gradient)]
            actual.append(training(twins[1], x))
        finally:
            torch.set_default_dtype(before)
    for ours, theirs in zip(actual, expected, strict=True):
        for name, value in theirs.items():
            assert ours[name].dtype == value.dtype and torch.equal(ours[name], value), name


def sparse_body() -> nn.Sequential:
    first, last = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 4, 3, padding=1)
    behind = nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), last, *behind)


def training(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Return the output and all gradients of two passes."""
    for _ in range(2):
        model.zero_grad()
        y = model(x)
        y.backward(x[:, 0].flatten(1)[:, : y.shape[1]].contiguous())
    return {"output": y.detach()} | {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("norm_input", NORM_INPUTS)
def test_what_is_saved_may_come_back_in_another_layout(norm_input):
    """Hooks on saved tensors promise their values, not their strides."""
    fused, _ = pair(4, norm_input=norm_input)
    model = sparsify_(sparse_body(), sparsity=0.6, norm_input=norm_input)
    x, gradient = chwn(8, 4, 6, 6), torch.randn(8, 4, 6, 6)
    twins = copy.deepcopy((fused, model))
    expected = passes(fused, x, None, gradient), training(model, x)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone().contiguous(), lambda t: t):
        actual = passes(twins[0], x, None, gradient), training(twins[1], x)
    for ours, theirs in zip(actual, expected, strict=True):
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_recalibration_without_gradients(mode):
    fused, plain = pair(4)
    x = chwn(8, 4, 6, 6)
    with mode():
        ours, theirs = fused(x), plain(x).relu()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(fused.running_var, plain.running_var)
    with mode():  # or its input would live as long as it
        assert recomputable(fused, x, None, True, "whole")[1] is None


def test_an_output_is_recomputed_bitwise():
    x = chwn(8, 4, 6, 6).requires_grad_()
    fused, _ = pair(4)
    y, info = recomputable(fused, x, None, True, "whole")
    if info is None:
        pytest.skip("the native engine is not built here")
    assert type(y) is Tensor and not info.x.requires_grad
    again = torch.relu(torch.addcmul(info.shift.view(-1, 1, 1), info.x, info.scale.view(-1, 1, 1)))
    torch.testing.assert_close(again, y.detach(), rtol=1e-5, atol=1e-6)
    residual = torch.zeros_like(x)
    assert recomputable(fused, x, residual, True, "whole")[1] is None
    assert recomputable(fused, x, None, False, "whole")[1] is None
    assert recomputable(fused, x, None, True, "int8")[1] is None


def test_a_changed_input_spoils_no_gradient_of_a_layer_behind():
    conv = sparsify_(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1)), sparsity=0.5)
    fused, _ = pair(4)
    x = chwn(8, 4, 6, 6)

    def gradient(y: Tensor) -> Tensor:
        return torch.autograd.grad(conv(y).square().sum(), conv[0].weight)[0]

    expected = gradient(fused(x.clone()))
    y = fused(x)
    x.mul_(-3)
    assert torch.equal(gradient(y), expected)
