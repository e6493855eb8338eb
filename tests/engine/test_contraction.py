"""``x * scale + shift`` rounds the same in every kernel of an instruction set: recomputed inputs are equal.

The operands cancel: the shift is the rounded product with its sign turned. With one rounding (fused
multiply-add) what is left is the product's rounding error, with two it is zero: any kernel that rounded
otherwise would differ in sign.
"""

from __future__ import annotations

import platform
from types import ModuleType

import torch
from chwn_layout import chwn, empty_chwn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_native_grad_weight import compress
from torch import Tensor

fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))
Factors = tuple[Tensor, Tensor]


def cancelling(size: tuple[int, int, int, int], seed: int) -> tuple[Tensor, Factors]:
    """Return an input (N, C, H, W) in CHWN layout, mostly of one value a channel, with scale and shift."""
    draw = torch.Generator().manual_seed(seed)
    values, scale = torch.randn(2, size[1], generator=draw)
    x = values.view(1, -1, 1, 1).repeat(size[0], 1, *size[2:])
    x = torch.where(torch.rand(size, generator=draw) < 0.2, torch.randn(size, generator=draw), x)
    return chwn(x), (scale, -(values * scale))


def affine(native: ModuleType, x: Tensor, factors: Factors, relu: bool) -> tuple[Tensor, Tensor]:
    n, c, h, w = x.shape
    y, length = empty_chwn(tuple(x.shape)), n * h * w
    bits = torch.zeros(c, -(-length // 64), dtype=torch.int64)
    scale, shift = (factor.data_ptr() for factor in factors)
    at = y.data_ptr(), bits.data_ptr() if relu else 0, 1
    native.affine_forward(x.data_ptr(), c, length, scale, shift, 0, relu, *at)
    return y, bits


@fast
@given(size=sizes, seed=st.integers(0, 1000))
def test_one_rounding_where_the_set_has_fused_multiply_add_else_two(
    native: ModuleType, size: tuple[int, int, int, int], seed: int
) -> None:
    x, (scale, shift) = cancelling(size, seed)
    y, _ = affine(native, x, (scale, shift), relu=False)
    wide = x.double() * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
    twice = x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)
    if native.isa() == "plain" and platform.machine() in ("x86_64", "AMD64"):
        assert torch.equal(y, twice)
    elif native.isa() != "plain":
        cancelled = x * scale.view(-1, 1, 1) == -shift.view(-1, 1, 1)
        assert torch.equal(y[cancelled], wide[cancelled].float())


@fast
@given(size=sizes, seed=st.integers(0, 1000), threads=st.integers(1, 3))
def test_a_recomputed_input_is_bitwise_equal(
    native: ModuleType, size: tuple[int, int, int, int], seed: int, threads: int
) -> None:
    x, factors = cancelling(size, seed)
    y, _ = affine(native, x, factors, relu=True)
    kept = compress(native, y, 2.0**-149)
    again = compress(native, x, 2.0**-149, threads=threads, factors=factors)
    for ours, theirs in zip(vars(again).values(), vars(kept).values(), strict=True):
        assert torch.equal(ours, theirs)


@fast
@given(size=sizes, seed=st.integers(0, 1000))
def test_a_recomputed_sign_is_that_of_the_forward_pass(
    native: ModuleType, size: tuple[int, int, int, int], seed: int
) -> None:
    x, (scale, shift) = cancelling(size, seed)
    (n, c, h, w), gradient = size, chwn(torch.randn(size, generator=torch.Generator().manual_seed(seed)))
    _, bits = affine(native, x, (scale, shift), relu=True)
    statistics = torch.ones(c), torch.zeros(c), torch.ones(c)
    found = []
    for positive, by_sign in ((bits.data_ptr(), (0, 0)), (0, (scale.data_ptr(), shift.data_ptr()))):
        grads = empty_chwn(size), torch.empty(c), torch.empty(c)
        native.batch_norm_backward(
            gradient.data_ptr(), positive, *by_sign, 4, x.data_ptr(), 0, 0, c, n * h * w,
            *(t.data_ptr() for t in statistics), grads[0].data_ptr(), 0, grads[1].data_ptr(),
            grads[2].data_ptr(), 1,
        )  # fmt: skip
        found.append(grads)
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
