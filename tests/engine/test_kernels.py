"""Single products on packed operands: both bodies against float64, any layout, threads, bad packs."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import reference
import torch
from conftest import instruction_sets
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from torchswat.engine import kernels as ops
from torchswat.engine import loader
from torchswat.engine.loader import engine
from torchswat.engine.packed import ALL_DENSE, ALL_SPARSE, Choice, PackedConv2dProducts, Shape
from torchswat.engine.topk import Selection
from torchswat.errors import InvalidValue

BODIES = ["reference", *(isa for isa in instruction_sets() if isa != "none")]


@contextmanager
def body(name: str) -> Iterator[None]:
    """Run the operations by plain torch or by the kernels of one instruction set."""
    if name == "reference":
        with engine("reference"):
            yield
        return
    module = importlib.import_module("torchswat.engine._native")
    before = module.isa()
    module.force(name)
    try:
        with engine("native"):
            yield
    finally:
        module.force(before)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def chwn(x: Tensor) -> Tensor:
    return x.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)


INPUT, WEIGHT, GEOMETRY = [5, 6, 7, 8], [4, 6, 3, 3], ([2, 1], [1, 1])


# ---- the products, by both bodies, against float64 ---------------------------------------------------------

kernels = st.sampled_from([1, 2, 3, 3, 5, 7])
shapes = st.builds(
    lambda n, c, h, w, k, r, s, stride, padding: Shape((n, c, h, w), (k, c, r, s), stride, padding),
    *(st.integers(1, 40), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12), st.integers(1, 20)),
    *(kernels, kernels),
    *(st.tuples(st.integers(1, 3), st.integers(1, 3)), st.tuples(st.integers(0, 3), st.integers(0, 3))),
)
sparsities = st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.9, 0.99])
selections = st.sampled_from(["limit", "mask", "counted"])
choices = st.one_of(
    st.just(ALL_SPARSE), st.builds(Choice, st.booleans(), st.booleans(), st.booleans()), st.just(ALL_DENSE)
)


def select(tensor: Tensor, sparsity: float, how: str) -> Selection:
    limit = float(tensor.abs().flatten().kthvalue(1 + int(sparsity * (tensor.numel() - 1))).values)
    mask = tensor.abs() >= limit
    if how == "mask":
        return Selection(mask)
    return Selection(limit=limit, count=int(mask.sum()) if how == "counted" else None)


def operands(shape: Shape, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    output = ops.output_size(list(shape.input), list(shape.weight), list(shape.stride), list(shape.padding))
    sizes = shape.input, shape.weight, output, shape.weight[:1]
    x, weight, gradient, bias = (torch.randn(size, generator=draw) for size in sizes)
    return x, weight, gradient, bias


def products(
    shape: Shape,
    choice: Choice,
    x: Tensor,
    weight: Tensor,
    gradient: Tensor,
    bias: Tensor | None,
    sparsity,
    how,
) -> list[Tensor]:
    """Return the three products as the layers compute them."""
    todo = PackedConv2dProducts.of(shape, choice)
    x = todo.adapt(x)
    of_x, of_weight = select(x, sparsity, how), select(weight, sparsity, how)
    return [
        todo.forward(x, todo.forward_weight(weight, of_weight), bias),
        todo.grad_input(gradient, todo.grad_input_weight(weight, of_weight), x),
        todo.grad_weight(gradient, todo.grad_weight_activation(x, of_x), weight),
    ]


def truth(
    shape: Shape, x: Tensor, weight: Tensor, gradient: Tensor, bias: Tensor | None, sparsity
) -> list[tuple[Tensor, Tensor]]:
    """Return the three products in float64, each with the same sums over absolute values: their scale."""
    masks = (select(t, sparsity, "mask").mask for t in (x, weight))
    sparse_x, sparse_weight = (torch.where(m, t, 0).double() for m, t in zip(masks, (x, weight), strict=True))
    geometry, g = (shape.stride, shape.padding), gradient.double()
    b = torch.zeros(shape.weight[0], dtype=torch.float64) if bias is None else bias.double()

    def three(x: Tensor, sparse_x: Tensor, weight: Tensor, g: Tensor, b: Tensor) -> tuple[Tensor, ...]:
        return (
            torch.conv2d(x, weight, b, *geometry),
            conv2d_input(x.shape, weight, g, *geometry),
            conv2d_weight(sparse_x, weight.shape, g, *geometry),
        )

    found = x.double(), sparse_x, sparse_weight, g, b
    return list(zip(three(*found), three(*(t.abs() for t in found)), strict=True))


def check_products(actual: list[Tensor], expected: list[tuple[Tensor, Tensor]], relative=1e-5) -> None:
    for ours, (theirs, scale) in zip(actual, expected, strict=True):
        assert ours.shape == theirs.shape
        error = (ours.double() - theirs).abs().max() / scale.max().clamp(min=1e-300)
        assert error <= relative, f"relative error {float(error):.3g}, allowed {relative:.3g}"


def fits(shape: Shape) -> bool:
    return all(shape.input[2 + i] + 2 * shape.padding[i] >= shape.weight[2 + i] for i in (0, 1))


@pytest.mark.parametrize("which", BODIES)
@given(shapes, choices, sparsities, selections, st.booleans())
def test_products_agree_with_float64(which, shape, choice, sparsity, how, biased):
    assume(fits(shape))
    x, weight, gradient, bias = operands(shape)
    arguments = x, weight, gradient, bias if biased else None
    with body(which):
        ours = products(shape, choice, *arguments, sparsity, how)
    check_products(ours, truth(shape, *arguments, sparsity))


@pytest.mark.parametrize("which", BODIES)
@pytest.mark.parametrize("choice", [ALL_SPARSE, ALL_DENSE])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3)])
def test_any_layout_of_input_and_gradient_gives_the_same(which, choice, kernel):
    shape = Shape((6, 5, 9, 8), (4, 5, *kernel), (2, 1), (0, 0))
    x, weight, gradient, bias = operands(shape)
    gapped = torch.randn(*shape.input[:3], 16)[..., ::2].copy_(x)
    everywhere = torch.randn(1, shape.weight[0], 1, 1).expand(gradient.shape)  # what a sum's backward gives
    with body(which):
        plain = products(shape, choice, x, weight, gradient, bias, 0.6, "mask")
        for layout in (chwn(x), x.contiguous(memory_format=torch.channels_last), gapped):
            other = gradient.contiguous(memory_format=torch.channels_last)
            for actual, expected in zip(
                products(shape, choice, layout, weight, other, bias, 0.6, "mask"), plain, strict=True
            ):
                reference.check_close(actual, expected, 1e-6)
        ours = products(shape, choice, x, weight, everywhere, bias, 0.6, "mask")
    check_products(ours, truth(shape, x, weight, everywhere, bias, 0.6))


@pytest.mark.parametrize("which", BODIES)
def test_operations_take_inputs_that_are_not_chwn(which):
    """Called by hand or by a compiler, which may lay tensors out as it likes."""
    x, weight = torch.randn(INPUT), torch.randn(WEIGHT)
    gradient = torch.randn(ops.output_size(INPUT, WEIGHT, *GEOMETRY))
    mask = x > 0
    with body(which):
        forward, backward = (ops.pack_weight(weight, None, 0.0, INPUT, *GEOMETRY, p) for p in (0, 1))
        reference.check_close(
            ops.conv2d_packed(x, *forward, None, WEIGHT, *GEOMETRY),
            torch.conv2d(x, weight, None, *GEOMETRY),
            1e-5,
        )
        reference.check_close(
            ops.conv2d_packed_grad_input(gradient, *backward, INPUT, WEIGHT, *GEOMETRY),
            conv2d_input(INPUT, weight, gradient, *GEOMETRY),
            1e-5,
        )
        for layout in (x, chwn(x)):
            compressed = ops.compress(layout, mask, 0.0)
            assert torch.equal(ops.expand(*compressed, INPUT), x * mask)
        reference.check_close(
            ops.conv2d_compressed_grad_weight(*compressed, gradient, INPUT, WEIGHT, *GEOMETRY),
            conv2d_weight(x * mask, WEIGHT, gradient, *GEOMETRY),
            1e-5,
        )


@pytest.mark.parametrize("which", BODIES[1:])  # plain torch promises nothing
@settings(max_examples=10)
@given(shapes, sparsities, selections)
def test_the_number_of_threads_changes_no_bit(which, shape, sparsity, how):
    assume(fits(shape))
    arguments = operands(shape)
    with body(which):
        results = []
        for count in (1, 2):
            with threads(count):
                results.append(products(shape, ALL_SPARSE, *arguments, sparsity, how))
    for one, two in zip(*results, strict=True):
        reference.check_same_bits(one, two)


# ---- layout and compression --------------------------------------------------------------------------------

sizes = st.tuples(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9))


LAYOUTS = "plain", "channels last", "gapped", "chwn", "some channels", "some channels last"


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """Return `x` (N, C, H, W) in that layout."""
    n, c, h, w = x.shape
    last = torch.channels_last
    return {
        "plain": x,
        "channels last": x.contiguous(memory_format=last),
        "gapped": torch.empty(n, c, h, 2 * w)[..., ::2].copy_(x),
        "chwn": chwn(x),
        "some channels": torch.empty(n, c + 2, h, w)[:, 1:-1].copy_(x),
        "some channels last": torch.empty(n, c + 2, h, w).to(memory_format=last)[:, 1:-1].copy_(x),
    }[layout]


@pytest.mark.parametrize("which", BODIES)
@given(sizes, st.sampled_from(LAYOUTS))
def test_changes_of_layout_change_no_value(which, size, layout):
    x = torch.randn(size)
    with body(which):
        ours = ops.to_chwn(laid_out(x, layout))
        last, first = ops.to_channels_last(ours), ops.to_nchw(ours)
    assert ops.is_chwn(ours) and torch.equal(ours, x)
    assert last.is_contiguous(memory_format=torch.channels_last) and torch.equal(last, x)
    assert first.is_contiguous() and torch.equal(first, x)


@given(sizes, sparsities, st.booleans())
def test_compressed_activations_have_one_form(size, sparsity, masked):
    x = chwn(torch.randn(size))
    selection = select(x, sparsity, "mask" if masked else "limit")
    forms = []
    for which in BODIES:
        with body(which):
            forms.append(ops.compress(x, selection.mask, selection.limit))
            back = ops.expand(*forms[-1], list(size))
        assert ops.is_chwn(back) and torch.equal(back, selection.kept(x))
    for form in forms[1:]:
        for actual, expected in zip(form, forms[0], strict=True):
            assert actual.dtype == expected.dtype and torch.equal(actual, expected)


@pytest.mark.parametrize("which", BODIES)
def test_a_nan_is_kept_by_a_limit(which):
    x = chwn(torch.randn(3, 4, 5, 6))
    x[1, 2, 3, 4] = float("nan")
    with body(which):
        values, *_ = ops.compress(x, None, 100.0)
    assert values.isnan().tolist() == [True]


@pytest.mark.parametrize("which", BODIES)
def test_other_numbers_run_in_plain_torch(which):
    shape = Shape((3, 4, 6, 5), (5, 4, 3, 2), (1, 2), (1, 0))
    arguments = [t.double() for t in operands(shape)]
    with body(which):
        ours = products(shape, ALL_SPARSE, *arguments, 0.5, "mask")
    assert all(t.dtype == torch.float64 for t in ours)
    check_products(ours, truth(shape, *arguments, 0.5), 1e-14)


# ---- packed for something else -----------------------------------------------------------------------------


@pytest.mark.skipif(len(BODIES) == 1, reason="the native engine is not built here")
@pytest.mark.parametrize(("packer", "reader"), [("native", "reference"), ("reference", "native")])
def test_weights_packed_by_the_other_engine_are_refused(packer, reader):
    x, weight = chwn(torch.randn(INPUT)), torch.randn(WEIGHT)
    gradient = chwn(torch.randn(ops.output_size(INPUT, WEIGHT, *GEOMETRY)))
    with engine(packer):
        packed = [ops.pack_weight(weight, None, 0.5, INPUT, *GEOMETRY, product) for product in (0, 1)]
    with engine(reader):
        with pytest.raises(InvalidValue, match="another engine"):
            ops.conv2d_packed(x, *packed[0], None, WEIGHT, *GEOMETRY)
        with pytest.raises(InvalidValue, match="another engine"):
            ops.conv2d_packed_grad_input(gradient, *packed[1], INPUT, WEIGHT, *GEOMETRY)


def test_weights_packed_for_another_shape_are_refused():
    packed = ops.pack_weight(torch.randn(4, 6, 1, 1), None, 0.0, INPUT, *GEOMETRY, ops.FORWARD)
    if loader.native() is None:
        pytest.skip("plain torch has no lists that depend on the shape")
    with pytest.raises(InvalidValue, match="pack them again"):
        ops.conv2d_packed(chwn(torch.randn(INPUT)), *packed, None, WEIGHT, *GEOMETRY)
