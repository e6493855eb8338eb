"""What the callbacks take and log, without any other library."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

import torchswat
from torchswat import Sparsity, sparsify_
from torchswat.errors import InvalidValue, UnknownName
from torchswat.integrations.measures import measures
from torchswat.integrations.options import make_sparse_, settings_of
from torchswat.schedules import Steps


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))


def train_a_step(model: nn.Module) -> None:
    model(torch.randn(4, 3, 8, 8)).square().sum().backward()


def test_the_means_are_those_of_the_layers():
    model = sparsify_(network(), sparsity={"0": 0.5, "3": 0.75})
    train_a_step(model)
    found = measures(model, by_layer=True)
    assert found["torchswat/sparsity"] == 0.625
    assert found["torchswat/weight_density/0"] == 0.5 and found["torchswat/weight_density/3"] == 0.25
    assert found["torchswat/weight_density"] == 0.375
    for operand in ("weight", "activation"):
        for name, layer in torchswat.sparse_layers(model):
            selector = layer.sparse.selectors[operand]
            assert found[f"torchswat/{operand}_density/{name}"] == selector.density
            assert found[f"torchswat/{operand}_threshold/{name}"] == float(selector.threshold)
    assert measures(model) == {name: x for name, x in found.items() if name.count("/") == 1}


def test_thresholds_by_row_are_a_mean():
    model = sparsify_(network(), sparsity=0.5, scope="chw")
    train_a_step(model)
    rows = dict(torchswat.sparse_layers(model))["0"].sparse.selectors["weight"].rows
    assert rows is not None and rows.numel() == 8
    found = measures(model, by_layer=True)["torchswat/weight_threshold/0"]
    assert found == pytest.approx(float(rows.mean()))


@pytest.mark.parametrize("algorithm", ["swat", "random", "meprop", "dsg"])
def test_the_savings_are_those_of_cost(algorithm):
    model, x = sparsify_(network(), algorithm, 0.8), torch.randn(2, 3, 8, 8)
    train_a_step(model)
    total = torchswat.cost(model, x).total
    found = measures(model, x)
    assert found["torchswat/macs_saving"] == total("macs").saving > 1
    assert found["torchswat/weight_bytes_saving"] == total("weights").saving
    assert found["torchswat/activation_bytes_saving"] == total("activations").saving
    assert ("torchswat/weight_threshold" in found) == (algorithm == "swat")


def test_a_schedule_that_is_at_zero_keeps_all():
    model = sparsify_(network(), sparsity=Steps(((0, 0.75), (1, 0.0))))
    train_a_step(model)
    assert measures(model)["torchswat/weight_density"] == 0.25
    train_a_step(model)
    found = measures(model)
    assert found["torchswat/sparsity"] == 0 and found["torchswat/weight_density"] == 1
    assert "torchswat/weight_threshold" not in found


def test_before_the_first_step_and_of_a_dense_model_there_is_nothing():
    assert measures(sparsify_(network())) == {} == measures(network())


def test_settings_are_checked_when_they_are_given():
    assert settings_of(None, {}) is None
    assert settings_of("saw", {}) == Sparsity("saw")
    assert settings_of(Sparsity("saw"), {}) == Sparsity("saw")
    assert settings_of(None, {"skip": ("first",)}) == Sparsity(skip=("first",))
    with pytest.raises(UnknownName, match=r"unknown option 'sparsty': did you mean 'sparsity'\?"):
        settings_of(None, {"sparsty": 0.5})
    with pytest.raises(InvalidValue, match=r"all the settings are in one Sparsity object; scope must"):
        settings_of(Sparsity(), {"scope": "chw"})
    with pytest.raises(InvalidValue, match=r"sparsity is 80"):
        settings_of(None, {"sparsity": 80})


def test_a_model_is_made_sparse_once():
    model, settings = network(), Sparsity(sparsity=0.5)
    make_sparse_(model, settings)
    train_a_step(model)
    make_sparse_(model, Sparsity(sparsity=0.5))
    make_sparse_(model, None)
    assert [layer.sparse.iteration for _, layer in torchswat.sparse_layers(model)] == [1, 1]
    with pytest.raises(InvalidValue, match="sparse layers already, of other settings than the callback's"):
        make_sparse_(model, Sparsity(sparsity=0.6))
    part = nn.Sequential(sparsify_(network(), sparsity=0.5))  # a part that its owner made sparse
    with pytest.raises(InvalidValue, match="leave the options of the callback out"):
        make_sparse_(part, settings)


WITHOUT = """
import sys
sys.modules["lightning"] = sys.modules["transformers"] = None  # importing them fails as where they are absent
from torchswat.errors import MissingDependency
from torchswat.integrations import LightningCallback, TrainerCallback
for make in (LightningCallback, lambda **options: TrainerCallback(None, **options)):
    try:
        make(sparsity=0.8)
    except MissingDependency as error:
        print(error)
"""


def test_without_the_library_the_callback_says_what_to_install():
    run = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    first, second = run.stdout.splitlines()
    assert "lightning" in first and first.endswith('pip install "torchswat[lightning]"')
    assert "transformers" in second and second.endswith('pip install "torchswat[transformers]"')


def test_importing_the_integrations_imports_no_library():
    code = "import sys, torchswat.integrations; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"torch", "lightning", "transformers"}.isdisjoint(run.stdout.split())
    with pytest.raises(AttributeError, match="no attribute 'KerasCallback'"):
        torchswat.integrations.KerasCallback  # noqa: B018
