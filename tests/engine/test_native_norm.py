"""Batch norm with residual and ReLU against torch's own modules in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from chwn_layout import CACHED_FLOATS, DTYPES, chwn, empty_chwn, kernel, rounding, unpack_bits
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch.nn import functional

fast = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
sizes = st.tuples(st.integers(2, 70), st.integers(1, 9), st.integers(1, 8), st.integers(1, 8))
EPSILON, MOMENTUM = 1e-5, 0.1
NARROW = {2: torch.bfloat16, 1: torch.uint8}


def address(x: torch.Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def bitmask(channels: int, length: int) -> torch.Tensor:
    return torch.empty(channels, (length + 63) // 64, dtype=torch.int64)


class Case:
    """One batch norm (+ residual) (+ ReLU), run natively forward and backward and by torch in float64."""

    def __init__(
        self,
        size: tuple[int, int, int, int],
        relu: bool,
        residual: bool,
        shift: float = 0.0,
        kept_bytes: int | None = None,  # whole
        dtype: torch.dtype = torch.float32,
    ) -> None:
        n, c, h, w = size
        generator = torch.Generator().manual_seed(n + 100 * c)
        self.dtype = dtype
        self.x = chwn((torch.randn(size, generator=generator) * 2 + shift).to(dtype))
        self.residual = chwn(torch.randn(size, generator=generator).to(dtype)) if residual else None
        self.grad_y = chwn(torch.randn(size, generator=generator).to(dtype))
        self.weight = torch.rand(c, generator=generator) + 0.5
        self.bias = torch.randn(c, generator=generator)
        self.size, self.relu, self.length = size, relu, n * h * w
        self.kept_bytes = kept_bytes or dtype.itemsize
        whole = self.kept_bytes == dtype.itemsize
        self.kept = self.x if whole else chwn(self.x.to(NARROW[self.kept_bytes]))
        self.step, self.low = torch.zeros(2, c)
        self.running = [torch.zeros(c), torch.ones(c)]

    def run(self, native: ModuleType, threads: int = 1) -> None:
        c = self.size[1]
        self.y, self.grad_x, grad_residual = (empty_chwn(self.size, self.dtype) for _ in range(3))
        self.grad_residual = grad_residual if self.residual is not None else None
        self.positive = bitmask(c, self.length) if self.relu else None
        self.mean, self.inverse, self.grad_weight, self.grad_bias = torch.empty(4, c)
        self.scale, self.shift = torch.empty(2, c)
        kernel(native, "batch_norm_forward", self.dtype)(
            self.x.data_ptr(), c, self.length, self.weight.data_ptr(), self.bias.data_ptr(), EPSILON,
            address(self.residual), self.relu, self.y.data_ptr(), address(self.positive),
            self.mean.data_ptr(), self.inverse.data_ptr(), self.scale.data_ptr(), self.shift.data_ptr(),
            self.running[0].data_ptr(), self.running[1].data_ptr(), MOMENTUM, self.kept_bytes,
            self.kept.data_ptr(), self.step.data_ptr(), self.low.data_ptr(), threads,
        )  # fmt: skip
        self.backward(native, address(self.positive), 0, 0, threads)

    def backward(self, native: ModuleType, positive: int, scale: int, shift: int, threads: int) -> None:
        kernel(native, "batch_norm_backward", self.dtype)(
            self.grad_y.data_ptr(), positive, scale, shift, self.kept_bytes, self.kept.data_ptr(),
            self.step.data_ptr(), self.low.data_ptr(), self.size[1], self.length, self.weight.data_ptr(),
            self.mean.data_ptr(), self.inverse.data_ptr(), self.grad_x.data_ptr(),
            address(self.grad_residual), self.grad_weight.data_ptr(), self.grad_bias.data_ptr(), threads,
        )  # fmt: skip

    def expected(self) -> dict[str, torch.Tensor]:
        x = self.x.double().requires_grad_()
        weight, bias = self.weight.double().requires_grad_(), self.bias.double().requires_grad_()
        running_mean, running_variance = torch.zeros_like(bias), torch.ones_like(bias)
        y = functional.batch_norm(x, running_mean, running_variance, weight, bias, True, MOMENTUM, EPSILON)
        if self.residual is not None:
            y = y + self.residual.double()
        if self.relu:
            # The bits decide, so that an entry at the ReLU's edge is judged as float32 judged it.
            assert self.positive is not None
            n, c, h, w = self.size
            through = unpack_bits(self.positive, c, self.length).view(c, h, w, n).permute(3, 0, 1, 2)
            assert (y.detach()[through] > -1e-5).all() and (y.detach()[~through] < 1e-5).all()
            y = y * through
        y.backward(self.grad_y.double())
        assert x.grad is not None and weight.grad is not None and bias.grad is not None
        return {
            "y": y.detach(),
            "grad_x": x.grad,
            "grad_weight": weight.grad,
            "grad_bias": bias.grad,
            "running_mean": running_mean,
            "running_variance": running_variance,
        }

    def found(self) -> dict[str, torch.Tensor]:
        mean, variance = self.running
        names = ("y", "grad_x", "grad_weight", "grad_bias")
        return {name: getattr(self, name) for name in names} | {
            "running_mean": mean,
            "running_variance": variance,
        }


def assert_near(found: torch.Tensor, expected: torch.Tensor, name: str, tolerance: float = 1e-5) -> None:
    off = (found.double() - expected).abs() - rounding(found.dtype) * expected.abs()
    worst = off.max() / expected.abs().max().clamp(min=1)
    assert worst < tolerance, f"{name} is off by {worst:.1e}"


def check_training(
    native: ModuleType,
    size: tuple[int, int, int, int],
    relu: bool,
    residual: bool,
    threads: int,
    dtype: torch.dtype,
) -> None:
    case = Case(size, relu, residual, dtype=dtype)
    case.run(native, threads)
    expected = case.expected()
    for name, value in case.found().items():
        # few entries a channel: the gradient cancels to almost nothing, so what is left is rounding
        assert_near(value, expected[name], name, 1e-5 if case.length > 16 else 1e-3)
    if case.grad_residual is not None:
        masked = case.grad_y.clone()
        if case.positive is not None:
            n, c, h, w = size
            through = unpack_bits(case.positive, c, case.length)
            masked = masked * through.view(c, h, w, n).permute(3, 0, 1, 2)
        assert torch.equal(case.grad_residual, masked)


@fast
@given(
    size=sizes,
    relu=st.booleans(),
    residual=st.booleans(),
    threads=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
)
@example(size=(128, 3, 16, 16), relu=True, residual=True, threads=2, dtype=torch.float32)
@example(size=(128, 3, 16, 16), relu=True, residual=True, threads=2, dtype=torch.bfloat16)
@example(size=(3, 2, 1, 1), relu=True, residual=False, threads=1, dtype=torch.float32)
def test_training_matches_torch(
    native: ModuleType,
    size: tuple[int, int, int, int],
    relu: bool,
    residual: bool,
    threads: int,
    dtype: torch.dtype,
) -> None:
    check_training(native, size, relu, residual, threads, dtype)


@fast
@given(size=sizes, threads=st.integers(1, 3), dtype=st.sampled_from(DTYPES))
@example(size=(128, 3, 16, 16), threads=2, dtype=torch.float32)
@example(size=(128, 3, 16, 16), threads=2, dtype=torch.bfloat16)
def test_what_the_relu_let_through_is_told_by_bits_or_by_the_input(
    native: ModuleType, size: tuple[int, int, int, int], threads: int, dtype: torch.dtype
) -> None:
    case = Case(size, relu=True, residual=False, dtype=dtype)
    case.run(native, threads)
    by_bits = {name: value.clone() for name, value in case.found().items()}
    for gradient in (case.grad_x, case.grad_weight, case.grad_bias):
        gradient.fill_(float("nan"))
    case.backward(native, 0, case.scale.data_ptr(), case.shift.data_ptr(), threads)
    for name, value in case.found().items():  # one entry let through more or less would be off by far more
        assert_near(value, by_bits[name].double(), name, 1e-5 if case.length > 16 else 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_narrow_input_cannot_tell_what_the_relu_let_through(native: ModuleType, dtype: torch.dtype) -> None:
    case = Case((4, 3, 2, 2), relu=True, residual=False, kept_bytes=1, dtype=dtype)
    case.run(native)
    with pytest.raises(ValueError, match="cannot be told from a narrow input"):
        case.backward(native, 0, case.scale.data_ptr(), case.shift.data_ptr(), 1)


def test_a_residual_needs_the_bits(native: ModuleType) -> None:
    case = Case((4, 3, 2, 2), relu=True, residual=True)
    case.run(native)
    with pytest.raises(ValueError, match="needs the bits"):
        case.backward(native, 0, case.scale.data_ptr(), case.shift.data_ptr(), 1)


@pytest.mark.parametrize("size", [(32, 48, 40, 40), (24, 64, 37, 37)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_beyond_the_cache(
    native: ModuleType, size: tuple[int, int, int, int], residual: bool, dtype: torch.dtype
) -> None:
    size = (size[0], size[1] * 4 // dtype.itemsize, *size[2:])
    assert torch.Size(size).numel() * dtype.itemsize > 4 * CACHED_FLOATS
    check_training(native, size, True, residual, 2, dtype)


def test_a_large_mean_loses_nothing(native: ModuleType) -> None:
    case = Case((64, 2, 8, 8), relu=False, residual=False, shift=1000.0)
    case.run(native)
    x = case.x.double()
    assert_near(case.inverse, (x.var((0, 2, 3), unbiased=False) + EPSILON).rsqrt(), "inverse deviation", 1e-6)
    assert_near(case.mean, x.mean((0, 2, 3)), "mean", 1e-6)
    assert_near(case.y, case.expected()["y"], "y", 1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_change_no_bit(native: ModuleType, dtype: torch.dtype) -> None:
    first, second = (Case((37, 5, 9, 9), True, True, dtype=dtype) for _ in range(2))
    first.run(native, 1)
    second.run(native, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.found().values(), second.found().values(), strict=True)
    )
    assert first.positive is not None and second.positive is not None
    assert torch.equal(first.positive, second.positive)


@pytest.mark.parametrize("dtype", DTYPES)
def test_outputs_may_be_the_gradients_own_memory(native: ModuleType, dtype: torch.dtype) -> None:
    case, again = (Case((20, 3, 4, 5), True, True, dtype=dtype) for _ in range(2))
    case.run(native)
    again.run(native)
    assert again.grad_residual is not None and case.grad_residual is not None
    gradient, other = again.grad_y.clone(), again.x.clone()
    for grad_x, grad_residual in ((gradient, other), (other, gradient)):
        gradient.copy_(case.grad_y)
        kernel(native, "batch_norm_backward", dtype)(
            gradient.data_ptr(), address(case.positive), 0, 0, dtype.itemsize, case.x.data_ptr(), 0, 0, 3,
            case.length,
            case.weight.data_ptr(), case.mean.data_ptr(), case.inverse.data_ptr(), grad_x.data_ptr(),
            grad_residual.data_ptr(), case.grad_weight.data_ptr(), case.grad_bias.data_ptr(), 1,
        )  # fmt: skip
        assert torch.equal(grad_x, case.grad_x)
        assert torch.equal(grad_residual, case.grad_residual)


@fast
@given(size=sizes, relu=st.booleans(), residual=st.booleans(), dtype=st.sampled_from(DTYPES))
def test_fixed_statistics(
    native: ModuleType, size: tuple[int, int, int, int], relu: bool, residual: bool, dtype: torch.dtype
) -> None:
    case = Case(size, relu, residual, dtype=dtype)
    c = size[1]
    y = empty_chwn(size, dtype)
    kernel(native, "affine_forward", dtype)(
        case.x.data_ptr(), c, case.length, case.weight.data_ptr(), case.bias.data_ptr(),
        address(case.residual), relu, y.data_ptr(), 0, 1,
    )  # fmt: skip
    expected = case.x.double() * case.weight.view(-1, 1, 1) + case.bias.view(-1, 1, 1)
    if case.residual is not None:
        expected = expected + case.residual
    assert_near(y, expected.relu() if relu else expected, "y")


@pytest.mark.parametrize("n", [1, 5, 64, 127, 4096, 10_001, 2 * CACHED_FLOATS + 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_relu_and_its_gradient_from_bits(native: ModuleType, n: int, dtype: torch.dtype) -> None:
    x, gradient = torch.randn(n).to(dtype), torch.randn(n).to(dtype)
    x[0], gradient[0] = float("nan"), 3.0
    if n > 4:
        x[1:4] = torch.tensor([0.0, -0.0, float("inf")])
    y, back, bits = torch.empty_like(x), torch.empty_like(x), bitmask(1, n)
    kernel(native, "relu_forward", dtype)(x.data_ptr(), n, y.data_ptr(), bits.data_ptr(), 2)
    kernel(native, "relu_backward", dtype)(gradient.data_ptr(), bits.data_ptr(), n, back.data_ptr(), 2)
    assert torch.equal(unpack_bits(bits, 1, n)[0], ~(x <= 0))
    assert torch.equal(y.nan_to_num(7.0), x.relu().nan_to_num(7.0))
    assert torch.equal(back, torch.where(x <= 0, 0.0, gradient).to(dtype))


# ---- the input kept narrower -------------------------------------------------------------------------------


def deviations(case: Case) -> torch.Tensor:
    """Return what the backward pass takes for x - mean, in float64."""
    if case.kept_bytes == case.dtype.itemsize:
        return case.x.double() - case.mean.double().view(-1, 1, 1)
    if case.kept_bytes == 2:
        return case.kept.double()
    step, low = (t.double().view(-1, 1, 1) for t in (case.step, case.low))
    return case.kept * step + low


@fast
@given(
    size=sizes,
    relu=st.booleans(),
    residual=st.booleans(),
    threads=st.integers(1, 3),
    how=st.sampled_from([(1, torch.float32), (2, torch.float32), (1, torch.bfloat16)]),
    shift=st.sampled_from([0.0, 100.0]),
)
@example(size=(32, 48, 40, 40), relu=True, residual=True, threads=2, how=(1, torch.float32), shift=0.0)
@example(size=(24, 64, 37, 37), relu=True, residual=False, threads=2, how=(2, torch.float32), shift=0.0)
@example(size=(32, 96, 40, 40), relu=True, residual=False, threads=2, how=(1, torch.bfloat16), shift=0.0)
def test_a_narrow_copy_of_the_input(
    native: ModuleType,
    size: tuple[int, int, int, int],
    relu: bool,
    residual: bool,
    threads: int,
    how: tuple[int, torch.dtype],
    shift: float,
) -> None:
    kept_bytes, dtype = how
    whole, case = (Case(size, relu, residual, shift, kept, dtype) for kept in (None, kept_bytes))
    whole.run(native, threads)
    case.run(native, threads)
    for name in ("y", "mean", "inverse"):
        assert torch.equal(getattr(case, name), getattr(whole, name))
    exact = case.x.double() - case.mean.double().view(-1, 1, 1)
    error = (deviations(case) - exact).abs()
    if kept_bytes == 2:
        allowed = exact.abs() / 256 + 1e-6 * (1 + shift)
    else:
        x = case.x.double()
        width = x.amax((0, 2, 3)) - x.amin((0, 2, 3))
        allowed = (width / 509).view(-1, 1, 1) + 1e-6 * (1 + shift)
    assert (error <= allowed).all(), f"off by {float((error - allowed).max())} more than allowed"
    check_gradients_of_kept(case)


def check_gradients_of_kept(case: Case) -> None:
    """Complain unless the gradients are those of the formula for what was kept of the input."""
    g, (_, c, _, _) = case.grad_y.double(), case.size
    if case.positive is not None:
        through = unpack_bits(case.positive, c, case.length)
        n, _, h, w = case.size
        g = g * through.view(c, h, w, n).permute(3, 0, 1, 2)
    inverse = case.inverse.double().view(-1, 1, 1)
    normalised = deviations(case) * inverse
    sums = {"grad_weight": (g * normalised).sum((0, 2, 3)), "grad_bias": g.sum((0, 2, 3))}
    projected, mean = (t.view(-1, 1, 1) / case.length for t in sums.values())
    expected = case.weight.double().view(-1, 1, 1) * inverse * (g - mean - normalised * projected)
    assert_near(case.grad_x, expected, "grad_x", 1e-5 if case.length > 16 else 1e-3)
    for name, value in sums.items():
        assert_near(getattr(case, name), value, name, 1e-5)


def test_a_channel_without_spread_is_kept_exactly(native: ModuleType) -> None:
    case = Case((8, 3, 2, 2), False, False, kept_bytes=1)
    case.x.fill_(7.0)
    case.run(native)
    assert (deviations(case) == 0).all() and torch.isfinite(case.grad_x).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kept_bytes", [1, 2])
def test_a_nan_is_not_hidden_by_rounding(native: ModuleType, kept_bytes: int, dtype: torch.dtype) -> None:
    case = Case((8, 2, 3, 3), True, False, kept_bytes=kept_bytes, dtype=dtype)
    case.x[1, 0, 2, 2] = float("nan")
    case.run(native)
    assert case.grad_x[:, 0].isnan().all() and not case.grad_x[:, 1].isnan().any()


# ---- bfloat16 entries --------------------------------------------------------------------------------------


def affine(
    native: ModuleType, case: Case, x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Return relu(x * scale + shift) as the kernel for the dtype of `x` computes it."""
    y = torch.empty_like(x)
    kernel(native, "affine_forward", x.dtype)(
        x.data_ptr(),
        case.size[1],
        case.length,
        scale.data_ptr(),
        shift.data_ptr(),
        0,
        True,
        y.data_ptr(),
        0,
        1,
    )
    return y


@fast
@given(size=sizes)
@example(size=(128, 3, 16, 16))
def test_what_is_recomputed_is_what_it_was(native: ModuleType, size: tuple[int, int, int, int]) -> None:
    case = Case(size, relu=True, residual=False, dtype=torch.bfloat16)
    case.run(native)
    assert torch.equal(affine(native, case, case.x, case.scale, case.shift), case.y)
    wide = affine(native, case, case.x.float(), case.scale, case.shift)
    assert torch.equal(wide.bfloat16(), case.y)


@pytest.mark.parametrize("n", [1, 32, 37])
def test_ties_are_rounded_to_even(native: ModuleType, n: int) -> None:
    case = Case((n, 6, 1, 1), relu=True, residual=False, dtype=torch.bfloat16)
    x, scale = torch.ones_like(case.x), torch.ones(6)
    half, less = 2.0**-8, 2.0**-22  # half a step of bfloat16 at one, and what breaks a tie
    shift = torch.tensor([half, half + less, half - less, 3 * half, 3 * half - less, 3 * half + less])
    expected = torch.tensor([1.0, 1 + 2 * half, 1.0, 1 + 4 * half, 1 + 2 * half, 1 + 4 * half])
    assert torch.equal(affine(native, case, x, scale, shift), expected.view(6, 1, 1).expand(n, 6, 1, 1))


def test_every_bfloat16_goes_through_relu_and_a_maximum_of_one(native: ModuleType) -> None:
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    y, bits, winner = torch.empty_like(x), bitmask(1, len(x)), torch.empty(len(x), dtype=torch.uint8)
    native.relu_forward_bf16(x.data_ptr(), len(x), y.data_ptr(), bits.data_ptr(), 1)
    assert ((y == x.relu()) | (x.isnan() & y.isnan())).all()
    assert torch.equal(unpack_bits(bits, 1, len(x))[0], ~(x <= 0))
    for n in (len(x), len(x) - 5):
        geometry = 1, 1, 1, n, 1, 1, 0
        native.max_pool_forward_bf16(x.data_ptr(), *geometry, y.data_ptr(), winner.data_ptr(), 1)
        same = y.view(torch.int16) == x.view(torch.int16)
        assert (same | (x.isnan() & y.isnan()))[:n].all()


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("residual", [False, True])
def test_what_is_not_finite_stays_so(native: ModuleType, special: float, residual: bool) -> None:
    case = Case((40, 2, 3, 3), relu=True, residual=residual, dtype=torch.bfloat16)
    operand = case.residual if residual else case.x
    assert operand is not None
    operand[[1, 33, 39], 0, 2, 2] = special
    case.run(native)
    assert case.y[:, 1].isfinite().all() and case.grad_x[:, 1].isfinite().all()
    if not residual:
        assert case.y[:, 0].isnan().all() and case.grad_x[:, 0].isnan().all()
        return
    found = case.y[[1, 33, 39], 0, 2, 2]
    expected = torch.tensor(special).relu().bfloat16().expand(3)
    assert torch.equal(found.nan_to_num(7.0), expected.nan_to_num(7.0))


def test_the_result_may_be_the_input_or_the_residual(native: ModuleType) -> None:
    case = Case((20, 3, 4, 5), True, True, dtype=torch.bfloat16)
    case.run(native)
    assert case.residual is not None
    for own in ("x", "residual"):
        again = Case((20, 3, 4, 5), True, True, dtype=torch.bfloat16)
        y = getattr(again, own)
        assert again.residual is not None
        native.batch_norm_forward_bf16(
            again.x.data_ptr(), 3, again.length, again.weight.data_ptr(), again.bias.data_ptr(), EPSILON,
            again.residual.data_ptr(), True, y.data_ptr(), 0, case.mean.data_ptr(), case.inverse.data_ptr(),
            0, 0, 0, 0, MOMENTUM, 2, 0, 0, 0, 1,
        )  # fmt: skip
        assert torch.equal(y, case.y)
