"""Gradients that overflow go on, so that a GradScaler skips the step; a NaN in a forward pass is an error."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import torchswat
from torchswat.algorithms import ALGORITHMS
from torchswat.engine.loader import engine
from torchswat.errors import NotFinite

WRONG = [float("inf"), -float("inf"), float("nan")]


def network(algorithm: str, **settings: object) -> nn.Sequential:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
    return torchswat.sparsify_(nn.Sequential(*layers), algorithm, 0.5, **settings)


@pytest.mark.parametrize("body", ["auto", "reference"])
@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_gradient_that_is_not_finite_reaches_every_weight(algorithm, wrong, body):
    with engine(body):
        model = network(algorithm)
        y = model(torch.randn(16, 3, 8, 8))
        gradient = torch.randn_like(y)
        gradient[0] = wrong
        y.backward(gradient)
    assert not any(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("algorithm", ["swat", "meprop", "saw", "dsg"])
def test_a_scaler_skips_the_step_and_the_next_one_counts(algorithm):
    model = network(algorithm)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    weights = copy.deepcopy(model.state_dict())
    handle = torchswat.count_steps_(model, optimizer)
    for expected in (0, 0, 1):
        optimizer.zero_grad()
        x = torch.randn(16, 3, 8, 8)
        loss = model(x).square().mean() * (1e3 if expected == 0 else 1.0)
        if expected:
            scaler.update(1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        moved = any(not torch.equal(ours, weights[name]) for name, ours in model.state_dict().items())
        assert moved == bool(expected)
        assert all(layer.sparse.iteration == expected for _, layer in torchswat.sparse_layers(model))
    handle.remove()
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_what_is_remembered_of_gradients_is_of_those_that_can_be_selected_from():
    model = network("meprop", period=2)
    selector = model[3].sparse.selectors["gradient"]
    model(torch.randn(16, 3, 8, 8)).backward(torch.randn(16, 4))
    density, threshold = selector.density, selector.threshold
    model(torch.randn(16, 3, 8, 8)).backward(torch.full((16, 4), float("nan")))
    assert selector.density == density and torch.equal(selector.threshold, threshold)


@settings(max_examples=25, deadline=None)
@given(
    algorithm=st.sampled_from(["swat", "meprop", "forward-activation"]),
    where=st.integers(0, 16 * 3 * 64 - 1),
    sign=st.sampled_from([1.0, -1.0]),
)
def test_infinities_are_the_largest_entries(algorithm, where, sign):
    """They are kept; only NaN cannot be selected from."""
    model = network(algorithm)
    x = torch.randn(16, 3, 8, 8)
    x.view(-1)[where] = sign * float("inf")
    model(x).sum().backward()  # an infinity where all weights that meet it are zero may leave no trace
    with torch.no_grad():
        model[0].weight[0, 0, 0, 0] = sign * float("inf")
    if algorithm == "swat":
        assert torchswat.prune_(model)[0].weight[0, 0, 0, 0] == sign * float("inf")


@pytest.mark.parametrize("algorithm", ["swat", "forward-activation", "random"])
def test_nan_to_select_from_stays_an_error(algorithm):
    model = network(algorithm)
    with pytest.raises(NotFinite, match="input of layer '0'"):
        model(torch.full((16, 3, 8, 8), float("nan")))
    if algorithm == "swat":
        with torch.no_grad():
            model[0].weight[0, 0, 0, 0] = float("nan")
        with pytest.raises(NotFinite, match="weight of layer '0'"):
            model(torch.randn(16, 3, 8, 8))
