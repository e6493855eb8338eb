"""Muon against what it says of singular values, in float64 and by another way; momentum against torch's SGD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchswat.training.muon import Muon, orthogonalized

shapes = st.tuples(st.integers(1, 24), st.integers(1, 24))


def with_singular_values_near_one(matrix: np.ndarray) -> np.ndarray:
    """The quintic five times on the singular values themselves (the iteration never computes them)."""
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    values = values / np.sqrt((matrix**2).sum())
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return (left * values) @ right


def by_hand(
    weight: np.ndarray, gradients: list[np.ndarray], lr: float, momentum: float, nesterov: bool
) -> np.ndarray:
    """Steps of Muon on filters, in float64."""
    velocity = np.zeros_like(weight)
    for gradient in gradients:
        velocity = momentum * velocity + gradient
        direction = gradient + momentum * velocity if nesterov else velocity
        weight = weight * np.sqrt(len(weight) / (weight**2).sum())
        rows = with_singular_values_near_one(direction.reshape(len(weight), -1))
        weight = weight - lr * rows.reshape(weight.shape)
    return weight


@given(shapes, st.integers(0, 999))
def test_the_iteration_is_its_polynomial_of_the_singular_values(shape, seed):
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = with_singular_values_near_one(matrix.numpy())
    np.testing.assert_allclose(orthogonalized(matrix).numpy(), expected, atol=1e-9)


@given(shapes, st.integers(0, 999), st.floats(1e-6, 1e6))
def test_an_update_has_singular_values_about_one_and_no_scale(shape, seed, scale):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    made = orthogonalized(matrix)
    torch.testing.assert_close(orthogonalized(scale * matrix), made, rtol=1e-3, atol=1e-3)
    large = torch.linalg.svdvals(matrix.double()) >= 0.01 * matrix.double().norm()
    values = torch.linalg.svdvals(made.double())
    assert (values < 1.22).all() and (values[large] > 0.67).all()


@pytest.mark.parametrize("shape", [(6, 3, 2, 2), (20, 2, 3, 3), (1, 4, 3, 3), (5, 7)])
@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_of_filters_are_those_of_the_publication(shape, nesterov):
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    gradients = [torch.randn(shape, dtype=torch.float64) for _ in range(4)]
    expected = by_hand(weight.detach().numpy(), [g.numpy() for g in gradients], 0.24, 0.6, nesterov)
    optimizer = Muon([weight], lr=0.24, momentum=0.6, nesterov=nesterov)
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()
        assert torch.equal(weight.grad, gradient)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@given(st.sampled_from([0.0, 0.5, 0.9]), st.booleans(), st.sampled_from([0.0, 0.1]), st.floats(1e-3, 1))
def test_the_other_groups_are_stochastic_gradient_descent(momentum, nesterov, decay, lr):
    nesterov = nesterov and momentum > 0
    torch.manual_seed(0)
    ours, theirs = (nn.Parameter(torch.arange(4.0)) for _ in range(2))
    settings = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    optimizers = Muon([ours], orthogonalize=False, **settings), torch.optim.SGD([theirs], **settings)
    for _ in range(3):
        ours.grad = torch.randn(4)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        torch.testing.assert_close(ours, theirs)


def test_filters_of_zeros_and_gradients_of_zeros_stay_finite():
    weight = nn.Parameter(torch.zeros(3, 2, 1, 1))
    optimizer = Muon([weight])
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert not weight.detach().any()
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    assert torch.isfinite(weight).all() and weight.detach().all()


def test_parameters_without_gradient_are_left_alone_and_a_closure_is_evaluated():
    used, unused = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))
    optimizer = Muon([used, unused], lr=0.1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()
        return loss

    assert optimizer.step(closure) == 4
    assert torch.equal(unused, torch.ones(2, 2)) and not torch.equal(used, torch.ones(2, 2))
    assert optimizer.state.keys() == {used}
