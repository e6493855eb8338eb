"""`summary` names every layer of any model, what it is and why, and changes nothing."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportIndexIssue=false

from __future__ import annotations

import copy
import io
import json
import pickle
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import torchswat
from torchswat import expectation, sparsify_, summary
from torchswat.convert import SETTINGS
from torchswat.engine import info
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue
from torchswat.expectation import Expected
from torchswat.schedules import Cubic

compiled = pytest.mark.skipif(not info()["available"], reason="the native engine is not built here")


@pytest.fixture(autouse=True)
def by_the_cost_model(monkeypatch):
    monkeypatch.setenv("TORCHSWAT_PLAN", "model")


class OwnLinear(nn.Linear):
    """A subclass, which may compute something else."""


def every_kind() -> nn.Module:
    return nn.ModuleDict(
        {
            "stem": nn.Conv2d(3, 16, 3, padding=1),
            "norm": nn.BatchNorm2d(16),
            "relu": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
            "grouped": nn.Conv2d(16, 16, 3, groups=4),
            "dilated": nn.Conv2d(16, 16, 3, dilation=2),
            "line": nn.Conv1d(4, 4, 3),
            "up": nn.ConvTranspose2d(4, 4, 3),
            "groups": nn.GroupNorm(2, 4),
            "drop": nn.Dropout(),
            "own": OwnLinear(4, 4),
            "attention": nn.MultiheadAttention(8, 2),
            "dwide": nn.Linear(4, 4).double(),
            "head": nn.Linear(4, 4),
            "last": nn.Linear(4, 2),
        }
    )


def by_name(found: torchswat.summaries.Summary) -> dict:
    return {layer.name: layer for layer in found.layers}


@pytest.mark.filterwarnings("ignore:.*subclasses of Conv2d or Linear")
def test_every_layer_is_named_with_what_it_is_and_why():
    model = sparsify_(every_kind(), sparsity={"head": 0.5, "[!d]*": 0.8}, skip=("last",))
    layers = by_name(summary(model))
    with_weights = {name.rpartition(".")[0] for name, _ in model.named_parameters()}
    assert with_weights | {"relu", "pool", "drop"} == set(layers)
    states = {name: layer.state for name, layer in layers.items()}
    assert {name for name, state in states.items() if state == "sparse"} == {"stem", "grouped", "head"}
    assert {name for name, state in states.items() if state == "switched"} == {"norm", "relu", "pool"}
    for name, why in {
        "line": "Conv1d is not covered",
        "up": "ConvTranspose2d is not covered",
        "groups": "GroupNorm is not covered",
        "drop": "has no weights",
        "own": "a subclass of Linear",
        "attention.out_proj": "a subclass of Linear",
        "dwide": "no pattern of the sparsities fits",
        "dilated": "no pattern of the sparsities fits",
        "last": "skip: 'last'",
    }.items():
        assert states[name] == "dense" and why in layers[name].why, layers[name]
    assert layers["head"].asked == 0.5 and layers["stem"].asked == 0.8


@compiled
def test_the_kernels_in_use_and_why():
    kinds = {
        "plain": nn.Conv2d(4, 4, 3),
        "dilation=(9, 9)": nn.Conv2d(4, 4, 3, dilation=9),
        "float64": nn.Linear(4, 4).double(),
        "bfloat16": nn.Linear(4, 4).bfloat16(),
        "on meta": nn.Linear(4, 4, device="meta"),
    }
    model = sparsify_(nn.Sequential(*kinds.values()))
    for layer, words in zip(summary(model).layers, kinds, strict=True):
        assert ("compiled" if words == "plain" else f"torch: {words}") in layer.kernels.replace(
            " on selected operands", ""
        )
    depthwise = sparsify_(nn.Conv2d(4, 4, 3, groups=4))
    assert summary(depthwise).layers[0].kernels == summary(model).layers[0].kernels + ", depthwise"
    dilated = sparsify_(nn.Conv2d(4, 4, 3, dilation=2))
    assert summary(dilated).layers[0].kernels == summary(model).layers[0].kernels + ", weight gradient dense"
    with engine("reference"):
        assert all("compiled (" not in layer.kernels for layer in summary(model).layers)
    assert "'meprop' selects operands" in summary(sparsify_(nn.Linear(2, 2), "meprop")).layers[0].kernels


def test_sparsity_asked_in_force_and_real():
    model = sparsify_(nn.Sequential(nn.Linear(100, 10)), sparsity=Cubic(0.8, 10))
    (layer,) = summary(model).layers
    assert layer.asked == 0.8 and layer.in_force is layer.weights is layer.activations is None
    for _ in range(6):
        model(torch.randn(10, 100)).sum().backward()
    found = summary(model)
    (layer,) = found.layers
    assert found.iteration == 6 and found.algorithm == "swat"
    assert layer.in_force == pytest.approx(Cubic(0.8, 10)(5))
    assert layer.weights == pytest.approx(1 - layer.in_force, abs=0.01)
    assert layer.activations == pytest.approx(1 - layer.in_force, abs=0.01)
    assert layer.nonzero == 1
    torchswat.prune_(model)
    assert by_name(summary(model))["0"].nonzero == pytest.approx(layer.weights, abs=0.001)


def test_a_network_that_was_never_pruned_shows():
    """Also as a plain one, as a checkpoint of another library makes it."""
    model = sparsify_(nn.Sequential(nn.Linear(10, 10)), sparsity=0.8)
    plain = nn.Sequential(nn.Linear(10, 10))
    for prune, nonzero in ((False, 1.0), (True, 0.2)):
        plain.load_state_dict((torchswat.prune_(model) if prune else model).state_dict())
        assert summary(plain).layers[0].nonzero == pytest.approx(nonzero)


@pytest.mark.parametrize("algorithm", ["dense", "swat"])
def test_what_sparsify_was_told_goes_with_the_model(algorithm):
    model = sparsify_(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)), algorithm, skip=("first",))
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    copies.append(torch.load(file, weights_only=False))
    for one in (model, *copies):
        assert (
            one.state_dict().keys() == nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)).state_dict().keys()
        )
        why = summary(one).layers[0].why
        assert why == ("skip: 'first'" if algorithm == "swat" else "the algorithm is 'dense'")
    torchswat.desparsify_(model)
    assert SETTINGS not in vars(model) and summary(model).algorithm is None
    assert summary(model).layers[0].why == "sparsify_ was not called"


def test_a_model_that_forbids_attributes():
    class Frozen(nn.Sequential):
        def __setattr__(self, name: str, value: object) -> None:
            if name not in ("training",) and not name.startswith("_"):
                raise AttributeError(f"no attribute {name}")
            super().__setattr__(name, value)

    model = sparsify_(Frozen(nn.Linear(4, 4), nn.Linear(4, 4)), skip=("last",))
    assert [layer.why for layer in summary(model).layers] == ["", "skip: 'last'"]


def test_the_settings_nearest_to_a_layer_count():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), "head": nn.Linear(4, 4)})
    sparsify_(model, skip=("last",))
    sparsify_(model["body"], skip=("first",))
    whys = {name: layer.why for name, layer in by_name(summary(model)).items()}
    assert whys == {"body.0": "skip: 'first'", "body.1": "", "head": "skip: 'last'"}
    torchswat.desparsify_(model["body"])
    assert by_name(summary(model))["body.1"].why == "made dense, or added, after sparsify_"


@pytest.mark.filterwarnings("ignore:.*subclasses of Conv2d or Linear")
def test_parametrized_layers_say_so():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4))
    assert by_name(summary(sparsify_(model)))["0"].why == "its weight is computed by a parametrization"


def test_fused_layers_say_in_what():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    torchswat.fuse_(sparsify_(model))
    found = summary(nn.ModuleDict({"body": model}))
    assert [layer.state for layer in found.layers] == ["sparse", "fused", "fused", "sparse"]
    assert found.layers[1].why == "in body" and found.count("fused") == 2
    torchswat.unfuse_(model)
    assert [layer.state for layer in summary(model).layers] == ["sparse", "switched", "switched", "sparse"]


# ---- with an example ---------------------------------------------------------------------------------------


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.Dropout(), nn.Conv2d(32, 32, 3, groups=2))


@compiled
def test_an_example_tells_which_products_run_sparse_and_the_speed(monkeypatch):
    model = sparsify_(convolutions(), sparsity=0.9)
    example = torch.randn(64, 32, 16, 16)
    monkeypatch.setenv("TORCHSWAT_PLAN", "sparse")
    found = summary(model, example)
    first, grouped = found.layers[0], found.layers[2]
    assert first.expected.runs_sparse == ("forward", "grad_input", "grad_weight")
    half = summary(sparsify_(nn.Conv2d(16, 16, 3), sparsity=0.9), example[:, :16]).layers[0]
    assert grouped.expected.dense == 2 * half.expected.dense
    assert found.expected.sparse == first.expected.sparse + grouped.expected.sparse
    assert not found.expected.tuned
    assert found.expected.speedup == found.expected.dense / found.expected.sparse > 1
    saw = summary(sparsify_(convolutions(), "saw", 0.9), example)
    assert saw.layers[0].expected.runs_sparse == ("grad_input", "grad_weight")


@compiled
def test_the_model_and_the_random_state_stay_as_they_were():
    model = sparsify_(nn.Sequential(*convolutions(), nn.BatchNorm2d(32)), sparsity=0.9)
    example = torch.randn(64, 32, 8, 8)
    before = copy.deepcopy((model.state_dict(), torchswat.sparse_state(model))), torch.get_rng_state()
    summary(model, example)
    after = (model.state_dict(), torchswat.sparse_state(model)), torch.get_rng_state()
    for ours, theirs in zip(before[0], after[0], strict=True):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert torch.equal(before[1], after[1]) and all(p.grad is None for p in model.parameters())


@compiled
def test_one_warning_for_a_model_that_is_slower(monkeypatch):
    """Thin layers: the selection costs more than products could save."""
    model = sparsify_(nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 4)), sparsity=0.5)
    with pytest.warns(UserWarning, match="method='sample'.*period=10.*skip=.*a larger batch") as said:
        found = summary(model, torch.randn(4, 16))
    assert len(said) == 1 and found.expected.speedup < 1
    assert "the cost model (torchswat.tune measures)" in str(said[0].message)
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        summary(model, torch.randn(4, 16))  # once
        model(torch.randn(4, 16)).sum().backward()
        summary(sparsify_(nn.Sequential(nn.Linear(16, 8))))  # nothing is known without an example
    sampled = sparsify_(nn.Sequential(nn.Linear(16, 8)), sparsity=0.5, method="sample", period=10)
    with pytest.warns(UserWarning) as said:
        summary(sampled, torch.randn(4, 16))
    assert "method=" not in str(said[0].message) and "period=" not in str(said[0].message)


@compiled
def test_tune_warns_too(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "plan.json"))
    model = sparsify_(nn.Sequential(nn.Linear(16, 8)), sparsity=0.5)
    with pytest.warns(UserWarning, match="by the tuned plan, a training step") as said:
        torchswat.tune(model, torch.randn(4, 16))
    assert said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert summary(model, torch.randn(4, 16)).expected.tuned


@settings(max_examples=30, deadline=None)
@given(
    times=st.lists(
        st.tuples(st.floats(0.01, 10), st.floats(0.01, 10), st.booleans()), min_size=1, max_size=5
    ),
)
def test_totals_are_sums(times):
    found = expectation.total(Expected(*time) for time in times)
    assert found.sparse == pytest.approx(sum(time[0] for time in times))
    assert found.dense == pytest.approx(sum(time[1] for time in times))
    assert found.tuned == all(time[2] for time in times)
    assert expectation.total([]) is None


@compiled
@pytest.mark.parametrize("cheaper", [{"period": 10}, {"method": "sample"}])
def test_cheaper_selections_are_expected_to_be_faster(cheaper):
    example = torch.randn(64, 32, 16, 16)
    one = summary(sparsify_(convolutions(), sparsity=0.9), example).expected
    other = summary(sparsify_(convolutions(), sparsity=0.9, **cheaper), example).expected
    assert other.sparse < one.sparse and other.dense == one.dense


def test_an_example_that_does_not_fit_is_refused():
    with pytest.raises(InvalidValue, match="Sequential does not run on the example"):
        summary(nn.Sequential(nn.Conv1d(3, 3, 3)), torch.randn(1, 4, 8))


@pytest.mark.filterwarnings(
    "ignore:.*subclasses of Conv2d or Linear", "ignore:.*a training step of this model"
)
def test_a_table_and_plain_numbers():
    model = sparsify_(every_kind())
    found = summary(model)
    text = str(found)
    assert all(layer.name in text and layer.state in text for layer in found.layers)
    assert "algorithm swat, iteration 0" in text and "6 sparse" in text
    plain = json.loads(json.dumps(found.to_dict()))
    assert [layer["name"] for layer in plain["layers"]] == [layer.name for layer in found.layers]

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"y": self.layer(x) * scale}

    for example in (torch.randn(4, 8), (torch.randn(4, 8), 2.0), {"x": torch.randn(4, 8)}):
        assert (
            "expected of a training step" in str(summary(sparsify_(Two()), example))
            or not info()["available"]
        )
