"""The operations as torch sees them: opcheck, every body against float64, and hostile operands."""

# the operations of torch.ops have no types
# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hostile
import pytest
import reference
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from operations import BODIES, Call, body, compiled, truth
from torch import Tensor, nn
from torch.library import opcheck

import torchswat
from torchswat.engine import layout, ops
from torchswat.engine.state import PRODUCTS, new_state
from torchswat.errors import InvalidValue, NotFinite

pairs = st.tuples(st.integers(1, 2), st.integers(1, 2))
sparsities = st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.99])
convolutions = st.builds(
    lambda n, c, h, w, **rest: Call((n, c * rest["groups"], h, w), **rest),
    *(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)),
    filters=st.sampled_from([2, 4, 6, 16]),
    kernel=st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 3])),
    stride=pairs,
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.sampled_from([(1, 1), (1, 1), (2, 1)]),
    groups=st.sampled_from([1, 1, 1, 2]),
    sparsity=sparsities,
    slots=st.integers(0, 7),
    products=st.integers(0, 7),
    bias=st.booleans(),
    exact=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float32, torch.float64]),
).map(compiled)
matrices = st.builds(
    Call,
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(1, 40),
    sparsity=sparsities,
    slots=st.integers(0, 7),
    products=st.integers(0, 7),
    bias=st.booleans(),
    exact=st.booleans(),
).map(compiled)
LAYOUTS = "plain", "channels last", "gapped", "chwn", "turned", "some channels"


def laid_out(x: Tensor, how: str) -> Tensor:
    """Return `x` in that layout; a matrix has two of them."""
    if x.dim() == 2:
        return x if how in ("plain", "chwn") else x.T.contiguous().T
    n, c, h, w = x.shape
    return {
        "plain": lambda: x,
        "channels last": lambda: x.contiguous(memory_format=torch.channels_last),
        "gapped": lambda: x.new_empty(n, c, h, 2 * w)[..., ::2].copy_(x),
        "chwn": lambda: layout.copy_to_chwn(x),
        "turned": lambda: x.transpose(2, 3).contiguous().transpose(2, 3),
        "some channels": lambda: x.new_empty(n, c + 2, h, w)[:, 1:-1].copy_(x),
    }[how]()


# ---- opcheck -----------------------------------------------------------------------------------------------

CALLS = {
    "convolution": Call((5, 6, 7, 8), 4, stride=(2, 1), padding=(1, 1)),
    "no bias": Call((5, 6, 7, 8), 4, (1, 1), bias=False),
    "dense products": Call((3, 4, 5, 6), 4, products=0),
    "groups": Call((3, 4, 5, 6), 4, groups=2),
    "dilation": Call((3, 4, 5, 6), 4, groups=2, dilation=(2, 1), products=0),
    "other numbers": Call((3, 4, 5, 6), 4, products=0, dtype=torch.float64),
    "no selected activation": Call((5, 6, 7, 8), 4, slots=1),
    "matrix": Call((9, 6), 4),
    "matrix without bias": Call((9, 6), 4, bias=False, products=3),
}
CHECKS = ["test_schema", "test_autograd_registration", "test_faketensor"]


@pytest.mark.parametrize("which", BODIES)
@pytest.mark.parametrize("kind", CALLS)
def test_opcheck_forward(which, kind):
    call = CALLS[kind]
    x, weight, bias = call.operands()
    tensors = x.requires_grad_(), weight.requires_grad_(), bias if bias is None else bias.requires_grad_()
    operands = *tensors, new_state(), None, None, None, *call.arguments()
    with body(which):
        # what is saved has no values behind the last one: only shapes are compared
        opcheck(torch.ops.torchswat.sparse_forward.default, operands, test_utils=CHECKS)


@pytest.mark.parametrize("which", BODIES)
@pytest.mark.parametrize("kind", CALLS)
def test_opcheck_backward(which, kind):
    call = CALLS[kind]
    x, weight, bias = call.operands()
    with body(which):
        y, saved, record = call.run(x, weight, bias)
        arguments = call.backward_arguments(torch.randn_like(y), x, weight, saved, record)
        opcheck(torch.ops.torchswat.sparse_backward.default, arguments, test_utils=CHECKS)


@pytest.mark.parametrize("which", BODIES)
def test_opcheck_layout(which):
    x = torch.randn(5, 6, 7, 8)
    with body(which):
        for operand in (x, x.clone().requires_grad_(), x[:, ::2], x[:, :1], layout.copy_to_chwn(x)):
            opcheck(torch.ops.torchswat.to_chwn.default, (operand,), test_utils=CHECKS)
            for to in range(3):
                opcheck(torch.ops.torchswat.to_layout.default, (operand.detach(), to), test_utils=CHECKS)


# ---- against float64 ---------------------------------------------------------------------------------------


def check(call: Call, which: str, how: str) -> None:
    """Compare output and gradients with float64, by autograd and by hand."""
    assume(call.fits())
    x, weight, bias = call.operands()
    leaves = [laid_out(x, how).detach().requires_grad_(), weight.requires_grad_()]
    leaves += [] if bias is None else [bias.requires_grad_()]
    with body(which):
        y, saved, record = call.run(leaves[0], weight, bias)
        gradient = torch.randn_like(y)
        found = [y, *torch.autograd.grad(y, leaves, gradient, retain_graph=True)]
        arguments = call.backward_arguments(gradient, leaves[0].detach(), weight.detach(), saved, record)
        by_hand = torch.ops.torchswat.sparse_backward(*arguments)
    expected = truth(call, x, weight, bias, gradient)
    scale = 1e-5 if call.dtype is torch.float32 else 1e-12
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == call.dtype
        error = (ours.double() - theirs).abs().max() / theirs.abs().max().clamp(min=1)
        assert error <= 10 * scale, f"error {float(error):.3g}"
    for ours, theirs in zip(by_hand, found[1:], strict=False):
        reference.check_same_bits(ours.contiguous(), theirs.contiguous())


@pytest.mark.parametrize("which", BODIES)
@settings(max_examples=40)
@given(convolutions, st.sampled_from(LAYOUTS))
def test_a_convolution_agrees_with_float64(which, call, how):
    check(call, which, how)


@pytest.mark.parametrize("which", BODIES)
@settings(max_examples=40)
@given(matrices, st.sampled_from(["plain", "turned"]))
def test_a_matrix_agrees_with_float64(which, call, how):
    check(call, which, how)


@pytest.mark.parametrize("which", BODIES)
def test_equal_magnitudes_are_kept_from_the_lowest_index_on(which):
    call = Call((3, 4, 5, 6), 4, (1, 1), sparsity=0.6)
    x = torch.ones(call.input)
    weight = torch.ones(call.weight_size)
    with body(which):
        for how in ("plain", "chwn", "channels last"):
            y, saved, record = call.run(laid_out(x, how), weight, None)
            expected = truth(call, x, weight, None, torch.ones_like(y))
            arguments = call.backward_arguments(torch.ones_like(y), laid_out(x, how), weight, saved, record)
            grads = torch.ops.torchswat.sparse_backward(*arguments)
            for ours, theirs in zip((y, *grads[:2]), expected[:3], strict=True):
                reference.check_close(ours, theirs, 1e-6)


@pytest.mark.parametrize("which", BODIES)
@settings(max_examples=20)
@given(convolutions, st.sampled_from(LAYOUTS), st.integers(0, 99))
def test_masks_that_are_given_are_used(which, call, how, seed):
    """In whatever layout they come."""
    assume(call.fits() and call.slots & 4)
    x, weight, bias = call.operands()
    draw = torch.Generator().manual_seed(seed)
    of_x, of_weight = (torch.rand(t.shape, generator=draw) < 0.4 for t in (x, weight))
    masks = laid_out(of_weight, how), laid_out(of_x, how)
    bare = Call(**{**vars(call), "sparsity": 0.0})
    call = Call(**{**vars(call), "exact": False})
    with body(which):
        y, saved, record = call.run(laid_out(x, how), weight, bias, masks)
        gradient = torch.randn_like(y)
        arguments = call.backward_arguments(gradient, laid_out(x, how), weight, saved, record)
        arguments[5] = masks[0]
        grads = torch.ops.torchswat.sparse_backward(*arguments)
    used = torch.where(of_weight, weight, 0)
    forward, back = (used if call.slots & slot else weight for slot in (1, 2))
    expected = [
        truth(bare, x, forward, bias, gradient)[0],
        truth(bare, x, back, bias, gradient)[1],
        truth(bare, torch.where(of_x, x, 0), weight, bias, gradient)[2],
    ]
    for ours, theirs in zip((y, *grads[:2]), expected, strict=True):
        reference.check_close(ours, theirs, 1e-4)


@pytest.mark.parametrize("which", BODIES)
@pytest.mark.parametrize("where", ["x", "weight"])
@pytest.mark.parametrize("products", [0, 7])
def test_a_nan_names_the_layer(which, where, products):
    call = Call((3, 4, 5, 6), 4, products=products)
    x, weight, bias = call.operands()
    (x if where == "x" else weight).view(-1)[7] = float("nan")
    with body(which), pytest.raises(NotFinite, match="of layer 'layer'"):
        call.run(x, weight, bias)


# ---- layout ------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 20), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))


@pytest.mark.parametrize("which", BODIES)
@given(sizes, st.sampled_from(LAYOUTS), st.integers(0, 2))
def test_changes_of_layout_change_no_value(which, size, how, to):
    x = laid_out(torch.randn(size), how)
    with body(which):
        ours = torch.ops.torchswat.to_chwn(x)
        back = torch.ops.torchswat.to_layout(ours, to)
    assert layout.is_chwn(ours) and torch.equal(ours, x) and torch.equal(back, x)
    assert (
        back.is_contiguous(),
        back.is_contiguous(memory_format=torch.channels_last),
        layout.is_chwn(back),
    )[to]


@given(sizes, st.sampled_from(LAYOUTS))
def test_a_gradient_goes_back_in_the_layout_that_its_input_came_in(size, how):
    x = laid_out(torch.randn(size), how).requires_grad_()
    gradient = layout.copy_to_chwn(torch.randn(size))
    (found,) = torch.autograd.grad(ops.as_chwn(x.clone()), x, gradient)
    assert torch.equal(found, gradient)


# ---- tensors that start between words -----------------------------------------------------------------------


def unaligned(tensor: Tensor) -> Tensor:
    """Return a copy that starts one byte behind a word; one without entries starts nowhere."""
    if not tensor.numel():
        return tensor
    room = torch.empty(8 + tensor.nbytes, dtype=torch.uint8).numpy()
    place = 1 + (-room.ctypes.data) % 8
    found = torch.frombuffer(room[place:].data, dtype=tensor.dtype, count=tensor.numel()).view(tensor.shape)
    assert found.data_ptr() % 8 == 1
    return found.copy_(tensor)


@pytest.mark.parametrize("which", BODIES)
@given(call=st.one_of(convolutions, matrices))
def test_tensors_may_start_anywhere(which, call):
    """Of a buffer from elsewhere, or a slice of one; the kernels read whole words, which C++ allows nowhere else."""
    assume(call.fits())
    x, weight, bias = call.operands()
    with body(which):
        expected = call.run(x, weight, bias)
        found = call.run(unaligned(x), unaligned(weight), bias)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-4)  # plain torch's products
        y, saved, record = expected
        gradient = torch.randn_like(y)
        arguments = call.backward_arguments(gradient, x, weight, saved, record)
        expected = torch.ops.torchswat.sparse_backward(*arguments)
        arguments[3:5] = unaligned(saved), unaligned(record)
        for mine, other in zip(torch.ops.torchswat.sparse_backward(*arguments), expected, strict=True):
            assert torch.equal(mine, other)


def test_hooks_on_saved_tensors_may_hand_out_slices():
    layer = torchswat.sparsify_(nn.Sequential(nn.Conv2d(3, 8, 3)), sparsity=0.5)
    x, grads = torch.randn(4, 3, 8, 8), []
    for unpack in (lambda tensor: tensor, lambda t: unaligned(t) if t.dtype is torch.uint8 else t):
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, unpack):
            grads.append(torch.autograd.grad(layer(x).square().sum(), layer[0].weight)[0])
    assert torch.equal(*grads)


# ---- hostile operands --------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", hostile.KINDS)
def test_hostile_operands_crash_nothing(what):
    """A process of its own makes thousands of calls: each gives a result or an exception with words."""
    script = Path(hostile.__file__)
    command = [sys.executable, "-X", "faulthandler", str(script), what, "150"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) > 0, "some calls must be accepted, or nothing was tried"


def test_a_crash_would_be_seen():
    command = [sys.executable, "-c", "import ctypes; ctypes.string_at(0)"]
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": "not saved"}, "recomputed"),
        ({"record": "sparse, not compressed"}, "damaged"),
        ({"record": "unknown"}, "damaged"),
        ({"saved": "short"}, "damaged"),
        ({"saved": "empty"}, "damaged"),
        ({"saved": "ones"}, "damaged"),
    ],
    ids=str,
)
@pytest.mark.parametrize("which", BODIES)
def test_a_damaged_record_is_refused(which, change, message):
    call = Call((5, 6, 7, 8), 4)
    x, weight, bias = call.operands()
    with body(which):
        y, saved, record = call.run(x, weight, bias)
        word = {"not saved": 16, "sparse, not compressed": 4, "unknown": 1 << 40}.get(
            change.get("record", "")
        )
        if word is not None:
            record[PRODUCTS] = word
        saved = {"short": saved[:64], "empty": saved[:0], "ones": torch.full_like(saved, 255)}.get(
            change.get("saved", ""), saved
        )
        arguments = call.backward_arguments(torch.randn_like(y), x, weight, saved, record)
        with pytest.raises(InvalidValue, match=message):
            torch.ops.torchswat.sparse_backward(*arguments)


def test_x_is_needed_where_no_activation_is_selected():
    call = Call((5, 6, 7, 8), 4, slots=3)
    x, weight, bias = call.operands()
    y, saved, record = call.run(x, weight, bias)
    arguments = call.backward_arguments(torch.randn_like(y), x, weight, saved, record)
    arguments[1] = None
    with pytest.raises(InvalidValue, match="x is None"):
        torch.ops.torchswat.sparse_backward(*arguments)


def test_more_than_there_is_room_for_is_refused():
    call = Call((5, 6, 7, 8), 4)
    x, weight, bias = call.operands()
    for which in BODIES:
        with body(which), pytest.raises(InvalidValue, match="there is room for"):
            call.run(x, weight, bias, (None, torch.ones_like(x, dtype=torch.bool)))
