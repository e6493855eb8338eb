"""Sparse layers as autograd sees them: adjoints, gradcheck with masks fixed, odd uses, clear refusals."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import reference
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.grad import conv2d_input, conv2d_weight
from torch.utils.checkpoint import checkpoint

import torchswat
from torchswat.algorithms import ALGORITHMS
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue

INF = float("inf")


def sparse(layer: nn.Module, algorithm="swat", sparsity=0.6, **settings) -> nn.Module:
    """Return the layer made sparse; another stands behind it, since some algorithms leave the last dense."""
    return torchswat.sparsify_(nn.Sequential(layer, nn.Linear(1, 1)), algorithm, sparsity, **settings)[0]


def gradients(layer: nn.Module, input: Tensor, gradient: Tensor) -> list[Tensor]:
    layer.zero_grad()
    input = input.detach().requires_grad_()
    layer(input).backward(gradient)
    return [t.grad for t in (input, *layer.parameters()) if t.grad is not None]


# ---- the products with masks held fixed --------------------------------------------------------------------

geometries = st.builds(
    dict,
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    groups=st.sampled_from([1, 2]),
)


def operands(groups: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 4, 7, 6, dtype=torch.float64, generator=draw)
    return a, torch.randn(6, 4 // groups, 3, 2, dtype=torch.float64, generator=draw)


def fixed_point(shape: torch.Size, sparsity: float = 0.6) -> Tensor:
    """Return values that selection leaves as they are: k of them far from zero, the others zero."""
    values = torch.randn(shape, dtype=torch.float64)
    values += values.sign()
    return values * torch.from_numpy(reference.top_k(values, sparsity))


@given(geometries, st.integers(0, 99))
def test_the_three_products_are_adjoint(geometry, seed):
    """<conv(x, w), g> = <x, dX> = <w, dW>, on operands that the selection leaves as they are."""
    a, w = (fixed_point(t.shape) for t in operands(geometry["groups"], seed))
    layer = nn.Conv2d(4, 6, (3, 2), bias=False, **geometry).double()
    layer.weight.data = w
    layer = sparse(layer)
    output = layer(a).detach()
    g = torch.randn_like(output)
    for gradient, operand in zip(gradients(layer, a, g), (a, w), strict=True):
        reference.check_close((gradient * operand).sum(), (output * g).sum(), 1e-10)


def test_the_three_products_of_a_linear_layer_are_adjoint():
    layer, a = sparse(nn.Linear(7, 3, bias=False).double()), fixed_point(torch.Size((5, 7)))
    layer.weight.data = fixed_point(layer.weight.shape)
    output = layer(a).detach()
    g = torch.randn_like(output)
    for gradient, operand in zip(gradients(layer, a, g), (a, layer.weight), strict=True):
        reference.check_close((gradient * operand).sum(), (output * g).sum())


@given(geometries, st.integers(0, 99))
def test_swat_agrees_with_torch_on_masked_operands(geometry, seed):
    a, w = operands(geometry["groups"], seed)
    layer = nn.Conv2d(4, 6, (3, 2), bias=False, **geometry).double()
    layer.weight.data = w
    layer = sparse(layer)
    g = torch.randn_like(layer(a))
    grad_input, grad_weight = gradients(layer, a, g)
    masked_a, masked_w = (t * torch.from_numpy(reference.top_k(t, 0.6)) for t in (a, w))
    reference.check_close(layer(a), torch.conv2d(a, masked_w, None, **geometry))
    reference.check_close(grad_input, conv2d_input(a.shape, masked_w, g, **geometry))
    reference.check_close(grad_weight, conv2d_weight(masked_a, w.shape, g, **geometry))


@pytest.mark.parametrize(
    "geometry", [{}, {"stride": (2, 1), "padding": (1, 2)}, {"groups": 2, "dilation": (1, 2)}]
)
def test_gradcheck_with_masks_held_fixed(geometry):
    """Where the small step of the check changes no mask, the estimate is the true derivative."""
    layer = sparse(nn.Conv2d(4, 6, (3, 2), **geometry).double())
    a, w = (fixed_point(t.shape) for t in operands(geometry.get("groups", 1), 1))
    mask_a, mask_w = a != 0, w != 0

    def masked(a: Tensor, w: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": w * mask_w, "bias": bias}, (a * mask_a,))

    assert torch.autograd.gradcheck(masked, (a.requires_grad_(), w.requires_grad_(), layer.bias))


def test_gradcheck_of_dense_passes_and_of_swat_does_not():
    """SWAT's gradients are a straight-through estimate, so a check that could not fail would be no check."""
    input = torch.randn(2, 3, 5, 5).double().requires_grad_()

    def check(algorithm: str) -> bool:
        layer = sparse(nn.Conv2d(3, 4, 3).double(), algorithm)
        return torch.autograd.gradcheck(
            lambda x, w: torch.func.functional_call(layer, {"weight": w}, (x,)),
            (input, layer.weight),
            raise_exception=False,
        )

    assert check("dense") and not check("swat")


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "dense"])
def test_a_second_derivative_is_refused(algorithm):
    layer = sparse(nn.Conv2d(3, 4, 3), algorithm)
    input = torch.randn(1, 3, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(layer(input).square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="a second derivative of a sparse layer"):
        grad.sum().backward()


def test_what_was_saved_is_freed_by_the_backward_pass():
    layer, input = sparse(nn.Linear(4, 4)), torch.randn(2, 4, requires_grad=True)
    output = layer(input)
    output.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        output.sum().backward()


@pytest.mark.parametrize("which", ["auto", "reference"])
def test_the_backward_pass_frees_the_memory_of_what_was_saved(which):
    """Not only what depends on the graph: a step's peak is in its backward pass, whose graph is alive."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    torchswat.sparsify_(model, sparsity=0.5)
    saved, alive = [], []
    with engine(which):
        loss = model(torch.randn(16, 3, 8, 8)).sum()
        nodes = [loss.grad_fn]
        while nodes:  # each node's own references are looked at, as autograd holds them
            node = nodes.pop()
            tensors = getattr(node, "saved_tensors", ())
            saved += [t.untyped_storage()._weak_ref() for t in tensors if t is not None]
            nodes += [before for before, _ in node.next_functions if before is not None]
        del node, tensors
        loss.backward()
    owned = {parameter.data_ptr() for parameter in model.parameters()}
    alive = [ref for ref in saved if not torch.UntypedStorage._expired(ref)]
    alive = [ref for ref in alive if torch.UntypedStorage._new_with_weak_ptr(ref).data_ptr() not in owned]
    assert len(saved) > 6 and not alive


def test_what_is_made_again_is_what_was_kept():
    """A tensor that was changed in place is no longer what batch norm says that it is, so it is kept."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    torchswat.sparsify_(model, sparsity=0.5)
    input, found = torch.randn(128, 3, 8, 8), []  # a smaller ReLU is torch's own, which refuses this itself

    def touch(module: nn.Module, inputs: tuple[Tensor]) -> None:
        inputs[0].detach().add_(0)

    for hooks in ([], [touch]):
        handles = [model[3].register_forward_pre_hook(hook) for hook in hooks]
        model.zero_grad()
        model(input).square().sum().backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        for handle in handles:
            handle.remove()
    for again, kept in zip(*found, strict=True):
        assert torch.equal(again, kept)


def test_the_dense_activation_is_not_kept_alive():
    layer = sparse(nn.Conv2d(3, 4, 3))
    input = torch.randn(1, 3, 5, 5)
    watched = weakref.ref(input)
    output = layer(input)
    del input
    gc.collect()
    assert output.requires_grad and watched() is None


def test_an_infinity_that_is_dropped_leaves_zero_and_not_nan():
    layer = sparse(nn.Linear(2, 2, bias=False), "forward-activation", 0.75)
    output = layer(torch.tensor([[INF, INF], [INF, 1.0]]))
    assert output[0].isinf().all() and output[1].eq(0).all()


STRIDES = "turned", "gapped", "expanded", "permuted"


def with_strides(x: Tensor, how: str) -> Tensor:
    """Return `x` with strides that belong to no memory format."""
    if how == "turned":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if how == "gapped":
        return torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)[..., ::2].copy_(x)
    if how == "expanded":
        return x[:1].expand(x.shape)
    order = list(range(x.dim()))[::-1]
    return (
        torch.zeros([*x.shape[:-1], 2 * x.shape[-1]], dtype=x.dtype)
        .permute(order)
        .contiguous()
        .permute(order)[..., ::2]
        .copy_(x)
    )


@pytest.mark.parametrize("how", STRIDES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("algorithm", ["swat", "random", "forward-activation"])
@pytest.mark.parametrize("kind", ["conv", "grouped", "linear"])
def test_gradients_do_not_depend_on_the_strides_of_the_input(how, dtype, algorithm, kind):
    """What is saved for backward is read again in the order in which it was written."""
    layer = {
        "conv": lambda: nn.Conv2d(4, 6, 3, padding=1),
        "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
        "linear": lambda: nn.Linear(6, 5),
    }[kind]()
    layer = sparse(layer.to(dtype), algorithm)
    x = torch.randn((5, 6) if kind == "linear" else (3, 4, 5, 6), dtype=dtype)
    odd = with_strides(x, how)
    plain = odd.contiguous()
    gradient = torch.randn_like(layer(plain))
    found = []
    for input in (plain, odd):
        layer.sparse.iteration = 0
        leaf = input.detach().as_strided(input.size(), input.stride()).requires_grad_()
        layer.zero_grad()
        layer(leaf).backward(gradient)
        found.append([leaf.grad, layer.weight.grad.clone()])
    for ours, expected in zip(found[1], found[0], strict=True):
        reference.check_close(ours, expected, 1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize("transform", ["grad", "vmap", "jvp", "trace"])
def test_transforms_of_torch_are_refused_with_what_to_call(transform):
    layer, x = sparse(nn.Conv2d(3, 4, 3)), torch.randn(2, 3, 5, 5)
    run = {
        "grad": lambda: torch.func.grad(lambda x: layer(x).sum())(x),
        "vmap": lambda: torch.func.vmap(layer)(x[None]),
        "jvp": lambda: torch.func.jvp(layer, (x,), (x,)),
        "trace": lambda: torch.jit.trace(layer, (x,)),
    }[transform]
    with pytest.raises(InvalidValue, match=r"torchswat.desparsify_"):
        run()


# ---- how users call it -------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_channels_last_stays_channels_last_and_gives_the_same(algorithm):
    layer = sparse(nn.Conv2d(4, 6, 3, padding=1).double(), algorithm, scope="chw")
    input = torch.randn(3, 4, 6, 6).double()
    gradient = torch.randn(3, 6, 6, 6).double()
    torch.manual_seed(1)
    plain = [layer(input).detach(), *gradients(layer, input, gradient)]
    last = torch.channels_last
    torch.manual_seed(1)
    layer = layer.to(memory_format=last)
    input, gradient = input.contiguous(memory_format=last), gradient.contiguous(memory_format=last)
    if algorithm != "dense":
        layer.sparse.iteration = 0  # where random masks begin again
    ours = [layer(input).detach(), *gradients(layer, input, gradient)]
    for a, b in zip(ours, plain, strict=True):
        reference.check_close(a, b)
    if algorithm != "dsg":  # its mask has a layout of its own
        assert ours[0].is_contiguous(memory_format=last) and ours[1].is_contiguous(memory_format=last)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("frozen", ["weight", "bias", "both", "input"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(algorithm, frozen):
    layer = sparse(nn.Conv2d(3, 4, 3).double(), algorithm)
    input, gradient = torch.randn(2, 3, 6, 6).double(), torch.randn(2, 4, 4, 4).double()

    def run(weight: bool, bias: bool, of_input: bool) -> list[Tensor | None]:
        torch.manual_seed(1)
        layer.zero_grad()
        layer.weight.requires_grad_(weight)
        layer.bias.requires_grad_(bias)
        x = input.clone().requires_grad_(of_input)
        layer(x).backward(gradient)
        return [x.grad, layer.weight.grad, layer.bias.grad]

    wanted = [frozen != "input", frozen not in ("weight", "both"), frozen not in ("bias", "both")]
    whole = run(True, True, True)
    part = run(wanted[1], wanted[2], wanted[0])
    for want, ours, theirs in zip(wanted, part, whole, strict=True):
        assert (ours is not None) == want
        if want and "random" not in algorithm:  # it draws fewer masks where fewer are needed
            reference.check_close(ours, theirs)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("algorithm", ["swat", "meprop", "random", "dsg"])
@pytest.mark.parametrize("period", [1, 3])
def test_gradient_checkpointing_changes_nothing(algorithm, period, reentrant):
    layer = sparse(nn.Conv2d(3, 4, 3), algorithm, period=period)
    twin = copy.deepcopy(layer)
    for step in range(5):
        input, gradient = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 4, 4)
        torch.manual_seed(step)
        expected = gradients(twin, input, gradient)
        torch.manual_seed(step)
        ours = gradients(checkpointed(layer, reentrant), input, gradient)
        for a, b in zip(ours, expected, strict=True):
            assert torch.equal(a, b)
    assert layer.sparse.iteration == twin.sparse.iteration == 5


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_recomputes_at_the_sparsity_of_its_iteration(reentrant):
    """A schedule may change the sparsity, and with it the products that run, in the next iteration."""
    layer = sparse(nn.Conv2d(3, 4, 3), sparsity=lambda iteration: (0.8, 0.0, 0.5)[iteration % 3])
    twin = copy.deepcopy(layer)
    for _ in range(4):
        input, gradient = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 4, 4)
        expected = gradients(twin, input, gradient)
        for a, b in zip(gradients(checkpointed(layer, reentrant), input, gradient), expected, strict=True):
            assert torch.equal(a, b)


def checkpointed(layer: nn.Module, reentrant: bool) -> nn.Module:
    """Return a module that runs `layer` under gradient checkpointing."""

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            result = checkpoint(self.layer, x, use_reentrant=reentrant)
            assert isinstance(result, Tensor)
            return result

    return Checkpointed()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_autocast_computes_in_bfloat16_and_keeps_gradients_in_float32(algorithm):
    model = torchswat.sparsify_(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5)), algorithm, 0.5
    )
    images = torch.randn(2, 3, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    for p in model.parameters():
        assert p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all()
    if algorithm != "random":
        reference.check_close(output, model(images), 0.05)


def test_autocast_leaves_float64_alone():
    layer, input = sparse(nn.Linear(6, 4).double()), torch.randn(3, 6).double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(input).dtype == nn.Linear(6, 4).double()(input).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_floats(dtype):
    layer = sparse(nn.Linear(20, 4).to(dtype), sparsity=0.5)
    input = torch.randn(8, 20).to(dtype)
    mask = reference.top_k(layer.weight, 0.5)
    reference.check_close(
        layer(input),
        reference.array(input) @ (reference.array(layer.weight) * mask).T + reference.array(layer.bias),
        0.02,
    )


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("training", [True, False])
def test_an_empty_batch_runs_as_it_does_in_torch(algorithm, training):
    layer = sparse(nn.Conv2d(3, 4, 3), algorithm).train(training)
    grads = gradients(layer, torch.randn(0, 3, 6, 6), torch.randn(0, 4, 4, 4))
    assert grads[0].shape == (0, 3, 6, 6) and not grads[1].any()
    layer = sparse(nn.Linear(3, 4), algorithm).train(training)
    assert layer(torch.randn(0, 3)).shape == (0, 4)


@pytest.mark.parametrize("shape", [(2, 4, 6, 6), (2, 3, 6), (3,), (1, 2, 3, 6, 6)], ids=str)
def test_a_convolution_refuses_a_wrong_shape_with_its_name(shape):
    model = torchswat.sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(InvalidValue, match=r"layer '0' got an input of shape .*allowed is \(N, 3, H, W\)"):
        model(torch.randn(shape))


@pytest.mark.parametrize("which", ["auto", "reference"])
def test_a_convolution_refuses_an_input_smaller_than_its_kernel(which):
    model = torchswat.sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3, padding=(1, 0), dilation=(2, 1))))
    with (
        engine(which),
        pytest.raises(InvalidValue, match="with padding 4 x 9; its kernel needs 5 x 3 at least"),
    ):
        model(torch.randn(1, 3, 2, 9))
    assert model(torch.randn(1, 3, 3, 3)).shape == (1, 4, 1, 1)


@pytest.mark.parametrize("shape", [(2, 4), ()], ids=str)
def test_a_linear_layer_refuses_a_wrong_shape_with_its_name(shape):
    model = torchswat.sparsify_(nn.Sequential(nn.Linear(3, 4)))
    with pytest.raises(InvalidValue, match=r"layer '0' got an input of shape .*allowed is \(\*, 3\)"):
        model(torch.randn(shape))


# ---- iterations and the last mask --------------------------------------------------------------------------


def test_training_forwards_are_counted_and_no_others():
    layer = sparse(nn.Linear(4, 4))
    for _ in range(3):
        layer(torch.randn(2, 4))
    layer.eval()
    layer(torch.randn(2, 4))
    assert layer.sparse.iteration == 3


@pytest.mark.parametrize("algorithm", ["swat", "forward-weight"])
def test_evaluation_runs_with_the_sparse_weights(algorithm):
    layer = sparse(nn.Linear(10, 10).double(), algorithm, 0.8).eval()
    input = torch.randn(3, 10).double()
    weight = reference.array(layer.weight) * reference.top_k(layer.weight, 0.8)
    with torch.no_grad():
        reference.check_close(layer(input), reference.array(input) @ weight.T + reference.array(layer.bias))


def change_in_place(p: Tensor) -> None:
    with torch.no_grad():
        p.neg_().add_(1)


def change_through_data(p: Tensor) -> None:
    p.data.copy_(torch.randn_like(p))


def replace_data(p: Tensor) -> None:
    p.data = torch.randn_like(p)


@pytest.mark.parametrize("change", [change_in_place, change_through_data, replace_data])
@pytest.mark.parametrize("training", [True, False])
def test_a_changed_weight_is_selected_anew(change, training):
    """However it was changed: a mask of other weights must not live on into the next step or evaluation."""
    layer = sparse(nn.Linear(10, 10), sparsity=0.8)
    layer(torch.randn(2, 10))
    change(layer.weight)
    layer.train(training)
    layer(torch.randn(2, 10))
    reference.check_mask(layer.selected_weights(0.8), reference.top_k(layer.weight, 0.8))
    identity = torch.eye(10)
    with torch.no_grad():
        used = (layer.eval()(identity) - layer.bias).T
    reference.check_close(used, torch.where(layer.selected_weights(0.8), layer.weight, 0), 1e-5)


def test_the_first_search_reaches_a_layer_that_was_dense_until_then():
    layer = sparse(nn.Linear(10, 10), sparsity=lambda iteration: 0.0 if iteration < 3 else 0.8, period=20)
    for _ in range(4):
        layer(torch.randn(2, 10)).sum().backward()
    expected = reference.top_k(layer.weight, 0.8)
    reference.check_mask(layer.selected_weights(0.8), expected)
    kept = layer.weight.detach().abs()[torch.from_numpy(expected)]
    assert float(layer.sparse.selectors["weight"].threshold) == float(kept.min())


def test_a_schedule_out_of_range_names_the_layer():
    layer = sparse(nn.Linear(4, 4), sparsity=lambda iteration: 80)
    with pytest.raises(InvalidValue, match="scheduled sparsity of layer '0' is 80"):
        layer(torch.randn(2, 4))


@pytest.mark.parametrize("method", ["histogram", "sample"])
@pytest.mark.parametrize("period", [1, 3])
@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_threshold_and_density_are_of_the_weight_as_it_was_selected_from(method, period, kind):
    layer = nn.Conv2d(5, 7, 3, padding=1) if kind == "conv" else nn.Linear(50, 33)
    model = torchswat.sparsify_(nn.Sequential(layer), sparsity=0.7, method=method, period=period)
    inputs = torch.randn(4, 5, 6, 6) if kind == "conv" else torch.randn(4, 50)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    for number in range(5):
        weight = layer.weight.detach().clone()
        model(inputs.requires_grad_()).square().sum().backward()
        optimizer.step()
        selector = layer.sparse.selectors["weight"]
        assert not torch.equal(weight, layer.weight)
        kept = weight.abs() >= selector.threshold
        assert float(selector.density) == pytest.approx(float(kept.float().mean()))
        if number % period == 0:
            reference.check_mask(kept, reference.top_k(weight, 0.7))


@pytest.mark.parametrize("algorithm", ["swat", "random", "forward-weight"])
@pytest.mark.parametrize(
    "settings", [{}, {"scope": "chw"}, {"period": 3}, {"period": 3, "scope": "hw"}], ids=str
)
def test_the_weight_mask_is_what_an_evaluation_uses(algorithm, settings):
    """Both select from the weights as they are now, at the thresholds of the last iteration of training."""
    layer = sparse(nn.Conv2d(3, 4, 3, bias=False), algorithm, 0.6, **settings)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.3)
    image = torch.randn(2, 3, 5, 5)
    for _ in range(5):
        layer.train()(image).square().sum().backward()
        optimizer.step()
        layer.eval()
        mask = layer.selected_weights(0.6)
        with torch.no_grad():
            expected = torch.conv2d(image, torch.where(mask, layer.weight, 0))
            reference.check_close(layer(image), expected, 1e-5)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("scope", ["nchw", "chw"])
def test_an_evaluation_repeats_and_leaves_what_is_remembered_alone(algorithm, scope):
    layer = sparse(nn.Conv2d(3, 4, 3), algorithm, scope=scope, period=2)
    image = torch.randn(2, 3, 5, 5)
    for _ in range(3):
        layer(image).sum().backward()
    state = getattr(layer, "sparse_state", torch.zeros(1)).clone()
    layer.eval()
    outputs = [
        layer(torch.randn_like(image).sign() * image).detach() * 0 + layer(image).detach() for _ in range(3)
    ]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert torch.equal(state, getattr(layer, "sparse_state", torch.zeros(1)))


def test_the_mask_of_a_weight_that_is_mostly_zero_keeps_exactly_k():
    model = torchswat.sparsify_(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), sparsity=0.5)
    with torch.no_grad():
        model[0].weight[1:] = 0
    model(torch.randn(2, 4, 5, 5)).sum().backward()
    reference.check_mask(model[0].selected_weights(0.5), reference.top_k(model[0].weight, 0.5))


def test_changing_the_weight_between_forward_and_backward_is_refused_as_torch_does():
    layer = sparse(nn.Conv2d(3, 4, 3))
    output = layer(torch.randn(2, 3, 5, 5, requires_grad=True))
    with torch.no_grad():
        layer.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_every_pass_selects_from_the_weights_as_they_are():
    """Averaged weights are swapped in through ``.data``, which leaves no sign of it."""
    layer = sparse(nn.Linear(64, 64, bias=False), sparsity=0.8, period=4)
    x, weight = torch.randn(8, 64), layer.weight

    def expected(values: Tensor) -> Tensor:
        return x @ torch.where(torchswat.select(values, 0.8), values, 0).T

    layer(x)
    before = weight.data.clone()
    threshold = layer.sparse.selectors["weight"].threshold.clone()
    for _ in range(2):
        weight.data.copy_(torch.randn(64, 64))
        layer.sparse.selectors["weight"].period = 1
        reference.check_close(layer.eval()(x), expected(weight.data), 1e-5)
        layer.sparse.selectors["weight"].period = 4
    assert torch.equal(layer.sparse.selectors["weight"].threshold, threshold)  # an evaluation moves none
    weight.data.copy_(before)
    reference.check_close(layer.train()(x), expected(before), 1e-5)
