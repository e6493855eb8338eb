"""`tune` measures what a model meets, says so, and leaves the model and the process as they were."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

import torchswat
from torchswat import sparsify_, tune, tuning
from torchswat.engine import info, plan
from torchswat.engine.loader import engine
from torchswat.engine.shape import Choice
from torchswat.engine.timings import Timing
from torchswat.errors import InvalidValue
from torchswat.schedules import Cubic

pytestmark = [
    pytest.mark.skipif(not info()["available"], reason="the native engine is not built here"),
    pytest.mark.filterwarnings("ignore:.*a training step of this model's sparse layers takes"),
]

MIXED = Timing((1.0, 2.0), (2.0, 1.0), (1.0, 2.0))


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The plan's file, absent, and a process that knows nothing."""
    path = tmp_path / "plan.json"
    monkeypatch.setenv("TORCHSWAT_PLAN", str(path))
    plan.PLAN.forget()
    yield path
    plan.PLAN.forget()


@pytest.fixture
def raced(monkeypatch):
    """What is raced, by a race that always says the same."""
    calls = []

    def race(shape, sparsity, repeats):
        calls.append((str(shape), sparsity))
        return MIXED

    monkeypatch.setattr(tuning, "race", race)
    return calls


class Network(nn.Module):
    """Two convolutions of one size, dropout, batch norm, a linear layer that is met twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.norm, self.drop, self.head = nn.BatchNorm2d(4), nn.Dropout(), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, again: bool = False) -> torch.Tensor:
        random.random(), np.random.rand()  # noqa: NPY002 - a model may draw from anywhere
        x = self.drop(self.norm(self.two(self.one(x).relu()))).mean((2, 3))
        return self.head(self.head(x)[:8]) if again else self.head(x)


def test_every_layer_is_reported_and_every_bucket_raced_once(raced, file):
    seen = []
    model = sparsify_(Network(), sparsity=0.8)
    report = tune(model, torch.randn(16, 4, 8, 8), progress=lambda *done: seen.append(done))
    convolution, linear = "16x4x8x8-4x3x3-s11-p11", "16x4x1x1-4x1x1-s11-p00"
    assert raced == [(convolution, 0.8), (linear, 0.8)] and seen == [(1, 2), (2, 2)]
    assert [(layer.name, str(layer.shape)) for layer in report.layers] == [
        ("one", convolution),
        ("two", convolution),
        ("head", linear),
    ]
    assert report.file == file and set(plan.table()[plan.machine()]) == {
        plan.key_of(layer.shape, 0.8) for layer in report.layers
    }
    assert all(layer.choice == Choice(True, False, True) for layer in report.layers)
    assert all(plan.choose(layer.shape, 0.8) == layer.choice for layer in report.layers)
    lines = str(report).splitlines()
    assert len(lines) == 5 and lines[1].startswith("one") and "forward, grad_weight" in lines[1]
    assert "1.00 / 2.00" in lines[1] and str(file) in lines[-1]


def test_a_layer_that_meets_two_sizes_has_two_rows(raced):
    report = tune(sparsify_(Network()), {"x": torch.randn(16, 4, 8, 8), "again": True})
    assert Counter(layer.name for layer in report.layers) == {"one": 1, "two": 1, "head": 2}
    assert tune(sparsify_(Network()), (torch.randn(16, 4, 8, 8), True)).layers == report.layers


def test_the_largest_of_a_bucket_is_raced(raced):
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return sum(self.layer(x).sum() for x in inputs)

    small, large = torch.randn(97, 8), torch.randn(112, 8)
    for example in ((small, large), (large, small)):
        raced.clear()
        tune(sparsify_(Twice()), example)
        assert raced == [("112x8x1x1-8x1x1-s11-p00", 0.8)]


@pytest.mark.parametrize("training", [True, False])
def test_model_and_random_states_stay_as_they_are(training):
    model = sparsify_(Network(), sparsity=0.8, period=5)
    x = torch.randn(16, 4, 8, 8)
    model(x).sum().backward()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    counters = [layer.sparse.iteration for layer in (model.one, model.two, model.head)]
    hooks = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    tune(model, x, training=training)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))
    assert counters == [layer.sparse.iteration for layer in (model.one, model.two, model.head)]
    assert hooks == [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in model.modules()]
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]  # noqa: NPY002
    assert model.training and torch.is_grad_enabled()
    assert (torch.get_num_threads(), torch.get_default_dtype()) == (threads, default)


def test_a_schedule_is_tuned_at_all_its_sparsities(raced):
    model = sparsify_(nn.Sequential(nn.Linear(16, 8)), sparsity=Cubic(0.8, steps=1000))
    report = tune(model, torch.randn(32, 16))
    found = [layer.sparsity for layer in report.layers]
    assert found == sorted(set(found)) and found[-1] == 0.8 and found[0] > 0 and 8 <= len(found) <= 16


def test_without_a_file_the_timings_last_as_long_as_the_process(raced, monkeypatch, tmp_path):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "taken" / "plan.json"))
    report = tune(sparsify_(nn.Sequential(nn.Linear(16, 8))), torch.randn(32, 16))
    assert report.file is None and "not stored" in str(report)
    assert plan.choose(report.layers[0].shape, 0.8) == MIXED.choice()


def test_a_failing_forward_changes_nothing():
    model, x = sparsify_(Network()), torch.randn(16, 5, 8, 8)
    before = torch.get_rng_state()
    with pytest.raises(InvalidValue, match="'one' got an input of shape"):
        tune(model, x)
    assert torch.equal(torch.get_rng_state(), before) and plan.table() == {}


def test_what_cannot_be_tuned_is_said():
    with pytest.raises(InvalidValue, match=r"no sparse layer to tune; call torchswat\.sparsify_"):
        tune(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4))
    model = sparsify_(nn.Sequential(nn.Linear(4, 4)))
    with engine("reference"), pytest.raises(InvalidValue, match="compiled engine"):
        tune(model, torch.randn(2, 4))
    model.lock = __import__("threading").Lock()
    with pytest.raises(InvalidValue, match="cannot be copied"):
        tune(model, torch.randn(2, 4))


def test_a_tuned_model_computes_the_same():
    model = sparsify_(Network(), sparsity=0.5).eval()
    x = torch.randn(16, 4, 8, 8)
    before = model(x)
    report = tune(model, x)
    assert len(report.layers) == 3 and isinstance(report, torchswat.tuning.TuningReport)
    torch.testing.assert_close(model(x), before)
