"""Batch norm with residual and ReLU against torch's own modules in float64."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from chwn_layout import CACHED_FLOATS, chwn, empty_chwn, unpack_bits
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
        kept_bytes: int = 4,
    ) -> None:
        n, c, h, w = size
        generator = torch.Generator().manual_seed(n + 100 * c)
        self.x = chwn(torch.randn(size, generator=generator) * 2 + shift)
        self.residual = chwn(torch.randn(size, generator=generator)) if residual else None
        self.grad_y = chwn(torch.randn(size, generator=generator))
        self.weight = torch.rand(c, generator=generator) + 0.5
        self.bias = torch.randn(c, generator=generator)
        self.size, self.relu, self.length, self.kept_bytes = size, relu, n * h * w, kept_bytes
        self.kept = self.x if kept_bytes == 4 else chwn(self.x.to(NARROW[kept_bytes]))
        self.step, self.low = torch.zeros(2, c)
        self.running = [torch.zeros(c), torch.ones(c)]

    def run(self, native: ModuleType, threads: int = 1) -> None:
        c = self.size[1]
        self.y, self.grad_x = empty_chwn(self.size), empty_chwn(self.size)
        self.grad_residual = empty_chwn(self.size) if self.residual is not None else None
        self.positive = bitmask(c, self.length) if self.relu else None
        self.mean, self.inverse, self.grad_weight, self.grad_bias = torch.empty(4, c)
        self.scale, self.shift = torch.empty(2, c)
        native.batch_norm_forward(
            self.x.data_ptr(), c, self.length, self.weight.data_ptr(), self.bias.data_ptr(), EPSILON,
            address(self.residual), self.relu, self.y.data_ptr(), address(self.positive),
            self.mean.data_ptr(), self.inverse.data_ptr(), self.scale.data_ptr(), self.shift.data_ptr(),
            self.running[0].data_ptr(), self.running[1].data_ptr(), MOMENTUM, self.kept_bytes,
            self.kept.data_ptr(), self.step.data_ptr(), self.low.data_ptr(), threads,
        )  # fmt: skip
        self.backward(native, address(self.positive), 0, 0, threads)

    def backward(self, native: ModuleType, positive: int, scale: int, shift: int, threads: int) -> None:
        native.batch_norm_backward(
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
    worst = (found.double() - expected).abs().max() / expected.abs().max().clamp(min=1)
    assert worst < tolerance, f"{name} is off by {worst:.1e}"


def check_training(
    native: ModuleType, size: tuple[int, int, int, int], relu: bool, residual: bool, threads: int
) -> None:
    case = Case(size, relu, residual)
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
@given(size=sizes, relu=st.booleans(), residual=st.booleans(), threads=st.integers(1, 3))
@example(size=(128, 3, 16, 16), relu=True, residual=True, threads=2)
@example(size=(3, 2, 1, 1), relu=True, residual=False, threads=1)
def test_training_matches_torch(
    native: ModuleType, size: tuple[int, int, int, int], relu: bool, residual: bool, threads: int
) -> None:
    check_training(native, size, relu, residual, threads)


@fast
@given(size=sizes, threads=st.integers(1, 3))
@example(size=(128, 3, 16, 16), threads=2)
def test_what_the_relu_let_through_is_told_by_bits_or_by_the_input(
    native: ModuleType, size: tuple[int, int, int, int], threads: int
) -> None:
    case = Case(size, relu=True, residual=False)
    case.run(native, threads)
    by_bits = {name: value.clone() for name, value in case.found().items()}
    for gradient in (case.grad_x, case.grad_weight, case.grad_bias):
        gradient.fill_(float("nan"))
    case.backward(native, 0, case.scale.data_ptr(), case.shift.data_ptr(), threads)
    for name, value in case.found().items():  # one entry let through more or less would be off by far more
        assert_near(value, by_bits[name].double(), name, 1e-5 if case.length > 16 else 1e-3)


def test_a_narrow_input_cannot_tell_what_the_relu_let_through(native: ModuleType) -> None:
    case = Case((4, 3, 2, 2), relu=True, residual=False, kept_bytes=2)
    case.run(native)
    with pytest.raises(ValueError, match="cannot be told from a narrow input"):
        case.backward(native, 0, case.scale.data_ptr(), case.shift.data_ptr(), 1)


@pytest.mark.parametrize("size", [(32, 48, 40, 40), (24, 64, 37, 37)])
@pytest.mark.parametrize("residual", [False, True])
def test_results_beyond_the_cache(
    native: ModuleType, size: tuple[int, int, int, int], residual: bool
) -> None:
    assert torch.Size(size).numel() > CACHED_FLOATS
    check_training(native, size, True, residual, 2)


def test_a_large_mean_loses_nothing(native: ModuleType) -> None:
    case = Case((64, 2, 8, 8), relu=False, residual=False, shift=1000.0)
    case.run(native)
    x = case.x.double()
    assert_near(case.inverse, (x.var((0, 2, 3), unbiased=False) + EPSILON).rsqrt(), "inverse deviation", 1e-6)
    assert_near(case.mean, x.mean((0, 2, 3)), "mean", 1e-6)
    assert_near(case.y, case.expected()["y"], "y", 1e-3)


def test_threads_change_no_bit(native: ModuleType) -> None:
    first, second = Case((37, 5, 9, 9), True, True), Case((37, 5, 9, 9), True, True)
    first.run(native, 1)
    second.run(native, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.found().values(), second.found().values(), strict=True)
    )
    assert first.positive is not None and second.positive is not None
    assert torch.equal(first.positive, second.positive)


def test_outputs_may_be_the_gradients_own_memory(native: ModuleType) -> None:
    case, again = Case((20, 3, 4, 5), True, True), Case((20, 3, 4, 5), True, True)
    case.run(native)
    again.run(native)
    assert again.grad_residual is not None and case.grad_residual is not None
    gradient, other = again.grad_y.clone(), again.x.clone()
    for grad_x, grad_residual in ((gradient, other), (other, gradient)):
        gradient.copy_(case.grad_y)
        native.batch_norm_backward(
            gradient.data_ptr(), address(case.positive), 0, 0, 4, case.x.data_ptr(), 0, 0, 3, case.length,
            case.weight.data_ptr(), case.mean.data_ptr(), case.inverse.data_ptr(), grad_x.data_ptr(),
            grad_residual.data_ptr(), case.grad_weight.data_ptr(), case.grad_bias.data_ptr(), 1,
        )  # fmt: skip
        assert torch.equal(grad_x, case.grad_x)
        assert torch.equal(grad_residual, case.grad_residual)


@fast
@given(size=sizes, relu=st.booleans(), residual=st.booleans())
def test_fixed_statistics(
    native: ModuleType, size: tuple[int, int, int, int], relu: bool, residual: bool
) -> None:
    case = Case(size, relu, residual)
    c = size[1]
    y = empty_chwn(size)
    native.affine_forward(
        case.x.data_ptr(), c, case.length, case.weight.data_ptr(), case.bias.data_ptr(),
        address(case.residual), relu, y.data_ptr(), 0, 1,
    )  # fmt: skip
    expected = case.x.double() * case.weight.view(-1, 1, 1) + case.bias.view(-1, 1, 1)
    if case.residual is not None:
        expected = expected + case.residual
    assert_near(y, expected.relu() if relu else expected, "y")


@pytest.mark.parametrize("n", [1, 5, 64, 127, 4096, 10_001, CACHED_FLOATS + 64])
def test_relu_and_its_gradient_from_bits(native: ModuleType, n: int) -> None:
    x, gradient = torch.randn(n), torch.randn(n)
    x[0], gradient[0] = float("nan"), 3.0
    if n > 4:
        x[1:4] = torch.tensor([0.0, -0.0, float("inf")])
    y, back, bits = torch.empty(n), torch.empty(n), bitmask(1, n)
    native.relu_forward(x.data_ptr(), n, y.data_ptr(), bits.data_ptr(), 2)
    native.relu_backward(gradient.data_ptr(), bits.data_ptr(), n, back.data_ptr(), 2)
    assert torch.equal(unpack_bits(bits, 1, n)[0], ~(x <= 0))
    assert torch.equal(y.nan_to_num(7.0), x.relu().nan_to_num(7.0))
    assert torch.equal(back, torch.where(x <= 0, 0.0, gradient))


# ---- the input kept narrower -------------------------------------------------------------------------------


def deviations(case: Case) -> torch.Tensor:
    """Return what the backward pass takes for x - mean, in float64."""
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
    kept_bytes=st.sampled_from([1, 2]),
    shift=st.sampled_from([0.0, 100.0]),
)
@example(size=(32, 48, 40, 40), relu=True, residual=True, threads=2, kept_bytes=1, shift=0.0)
@example(size=(24, 64, 37, 37), relu=True, residual=False, threads=2, kept_bytes=2, shift=0.0)
def test_a_narrow_copy_of_the_input(
    native: ModuleType,
    size: tuple[int, int, int, int],
    relu: bool,
    residual: bool,
    threads: int,
    kept_bytes: int,
    shift: float,
) -> None:
    whole, case = (Case(size, relu, residual, shift, bytes_kept) for bytes_kept in (4, kept_bytes))
    whole.run(native, threads)
    case.run(native, threads)
    for name in ("y", "mean", "inverse"):
        assert torch.equal(getattr(case, name), getattr(whole, name))
    exact = case.x.double() - case.mean.double().view(-1, 1, 1)
    error = (deviations(case) - exact).abs()
    if kept_bytes == 2:
        allowed = exact.abs() / 256 + 1e-6 * (1 + shift)
    else:
        width = case.x.amax((0, 2, 3)) - case.x.amin((0, 2, 3))
        allowed = (width.double() / 509).view(-1, 1, 1) + 1e-6 * (1 + shift)
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


@pytest.mark.parametrize("kept_bytes", [1, 2])
def test_a_nan_is_not_hidden_by_rounding(native: ModuleType, kept_bytes: int) -> None:
    case = Case((8, 2, 3, 3), True, False, kept_bytes=kept_bytes)
    case.x[1, 0, 2, 2] = float("nan")
    case.run(native)
    assert case.grad_x[:, 0].isnan().all() and not case.grad_x[:, 1].isnan().any()
