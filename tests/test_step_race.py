"""A step of a layer is raced with its settings, and leaves no trace but its times."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import pytest
import torch
from torch import nn

import torchswat
from torchswat import step_race
from torchswat.engine import info, plan
from torchswat.engine.shape import Shape

pytestmark = pytest.mark.skipif(not info()["available"], reason="the native engine is not built here")
SHAPES = {
    "map": Shape((16, 8, 6, 6), (8, 8, 3, 3), (1, 1), (1, 1)),
    "strided": Shape((16, 8, 7, 7), (12, 8, 3, 3), (2, 2), (1, 1)),
    "matrix": Shape((16, 8, 1, 1), (4, 8, 1, 1), (1, 1), (0, 0)),
}


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "plan.json"))
    plan.PLAN.forget()
    yield
    plan.PLAN.forget()


def settings(**kwargs: object):
    return torchswat.sparsify_(nn.Linear(8, 4), sparsity=0.8, **kwargs).sparse


@pytest.mark.parametrize("algorithm", ["swat", "saw", "forward-weight"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_both_ways_are_timed_under_no_grad_and_no_random_state_moves(shape, algorithm):
    layer, before = settings(algorithm=algorithm), torch.get_rng_state()
    with torch.no_grad():
        sparse, dense = step_race.race_step(layer, shape, 0.8)
    assert 0 < sparse < 1e4 and 0 < dense < 1e4
    assert torch.equal(before, torch.get_rng_state())


def test_a_large_product_is_raced_with_fewer_samples_and_counted_whole(monkeypatch):
    """Per sample the time stays of the same order."""
    shape = SHAPES["map"]
    whole = step_race.race_step(settings(), Shape((512, *shape.input[1:]), shape.weight, (1, 1), (1, 1)), 0.8)
    monkeypatch.setattr(step_race, "_MOST_MULTIPLY_ADDS", 1)
    fewer = step_race.race_step(settings(), Shape((512, *shape.input[1:]), shape.weight, (1, 1), (1, 1)), 0.8)
    assert fewer[1] > whole[1] / 20


def test_layers_alike_are_raced_once_and_others_apart(monkeypatch):
    raced = []
    monkeypatch.setattr(
        step_race, "race_step", lambda *layer: raced.append(layer) or (1.0, float(len(raced)))
    )
    shape, seldom = SHAPES["map"], settings(period=4)
    layers = [
        (settings(), shape, 0.8),
        (settings(), shape, 0.8),
        (seldom, shape, 0.8),
        (settings(), shape, 0.5),
        (settings(block=(2, 2)), shape, 0.8),
    ]
    step_race.race_steps(layers)
    assert len(raced) == 4
    found = [step_race.measured(*layer) for layer in layers]
    assert found == [(1.0, 1.0), (1.0, 1.0), (1.0, 2.0), (1.0, 3.0), (1.0, 4.0)]
    assert step_race.measured(settings(method="sample"), shape, 0.8) is None


def test_tune_measures_what_the_summary_says(monkeypatch):
    monkeypatch.setattr(step_race, "race_step", lambda *_: (2.0, 3.0))
    model = torchswat.sparsify_(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)), sparsity=0.5)
    torchswat.tune(model, torch.randn(32, 16))
    found = torchswat.summary(model, torch.randn(32, 16)).expected
    assert (found.sparse, found.dense, found.tuned, found.speedup) == (4.0, 6.0, True, 1.5)
