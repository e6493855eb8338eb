"""Counts by hand for small layers, the paper's ratios for ResNet-18, and a model left as it was."""

# torch types every attribute of a module as "Tensor | Module"
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false, reportCallIssue=false
# pyright: reportReturnType=false, reportOperatorIssue=false, reportIndexIssue=false, reportOptionalMemberAccess=false

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import torchswat
from torchswat import models
from torchswat.accounting import COUNTS, Cost, Count, cost
from torchswat.algorithms import ALGORITHMS
from torchswat.convert import sparse_layers, sparse_state
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue, NotFinite


def convolution() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2, bias=False))


def one_layer(model: nn.Module, input: torch.Tensor):
    (layer,) = cost(model, input).layers
    return layer


def test_a_convolution_by_hand():
    """5 samples of 4 x 6 x 7 give 8 x 3 x 4 outputs of 2 * 3 * 3 products each: 8640 in each of the three."""
    layer = one_layer(convolution(), torch.randn(5, 4, 6, 7))
    assert (layer.name, layer.kind) == ("0", "Conv2d")
    for product in (layer.forward, layer.grad_input, layer.grad_weight):
        assert product == Count(8640, 8640, 8640)
    assert layer.macs.dense == 3 * 8640 and layer.macs.saving == 1
    assert layer.weights == Count(576, 576, 576)  # 8 * 2 * 3 * 3 floats
    assert layer.activations == Count(3360, 3360, 3360)  # 5 * 4 * 6 * 7 floats
    assert layer.prediction == layer.selection == layer.weight_positions == Count(0, 0, 0)


def test_a_linear_layer_by_hand():
    layer = one_layer(nn.Sequential(nn.Linear(10, 6)).double(), torch.randn(2, 3, 10).double())
    assert layer.kind == "Linear" and layer.forward.dense == 6 * 6 * 10
    assert layer.weights.dense == 480 and layer.activations.dense == 480


QUARTER = {  # which of forward, grad_input, grad_weight, weights, activations are a quarter at S = 0.75
    "dense": (1, 1, 1, 1, 1),
    "swat": (0.25, 0.25, 0.25, 0.25, 0.25),
    "saw": (1, 0.25, 0.25, 0.25, 0.25),
    "meprop": (1, 0.25, 0.25, 1, 1),
    "forward-activation": (0.25, 1, 1, 1, 1),
    "forward-weight": (0.25, 1, 1, 1, 1),
    "random": (0.25, 0.25, 0.25, 0.25, 0.25),
    "saw-random": (1, 0.25, 0.25, 0.25, 0.25),
    "dsg": (0.25, 0.25, 0.25, 1, 1),
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_saves_where_its_row_says(algorithm):
    """Sizes that 4 divides, so that the formula holds to the last entry; DSG's threshold is one sample's."""
    model = torchswat.sparsify_(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(2, 1)), algorithm, {"0": 0.75})
    layer = cost(model, torch.randn(1, 4, 6, 4)).layers[0]
    shares = [
        count.formula / count.dense
        for count in (layer.forward, layer.grad_input, layer.grad_weight, layer.weights, layer.activations)
    ]
    assert shares == pytest.approx(QUARTER[algorithm])
    for name in COUNTS:
        count = getattr(layer, name)
        assert count.measured == pytest.approx(count.formula)
    selected = {"weight": 288, "activation": 96, "gradient": 64}
    looked_at = sum(n for operand, n in selected.items() if ALGORITHMS[algorithm].selects(operand))
    if algorithm != "dsg":
        assert layer.selection.formula == looked_at
    assert (layer.prediction.formula > 0) == (algorithm == "dsg")


def test_positions_are_a_bitmask_or_offsets_whichever_is_smaller():
    for sparsity, weights in ((0.75, 800 / 8), (0.99, 4 * 8)):
        model = torchswat.sparsify_(nn.Sequential(nn.Linear(40, 20)), sparsity=sparsity)
        layer = one_layer(model, torch.randn(10, 40))
        assert layer.weight_positions.measured == pytest.approx(weights)
        assert layer.weight_positions.dense == 0


def test_measured_is_what_the_masks_really_keep():
    """With ties kept together, more is kept than the formula says: half of a ReLU's output is zero."""
    model = torchswat.sparsify_(nn.Sequential(nn.ReLU(), nn.Linear(64, 8)), sparsity=0.25, exact=False)
    with engine("reference"):  # the compiled engine does not keep zeros
        layer = one_layer(model, torch.randn(32, 64))
    assert layer.activations.formula == 0.75 * layer.activations.dense
    assert layer.activations.measured == layer.activations.dense
    assert layer.weights.measured == 0.75 * layer.weights.dense


def test_a_layer_that_runs_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert cost(nn.Sequential(layer, layer), torch.randn(2, 4)).total("macs").dense == 2 * 3 * 32


@pytest.fixture(scope="module", params=[0.5, 0.7, 0.8])
def resnet(request) -> tuple[float, Cost]:
    torch.manual_seed(0)
    model = models.create("resnet18", form="imagenet")
    with engine("reference"):  # the compiled engine does not keep the zeros that Top-K would
        return request.param, cost(
            torchswat.sparsify_(model, "swat", request.param), torch.randn(1, 3, 224, 224)
        )


def test_figure_7_operations(resnet):
    """2x, 3.3x and 5x fewer; 1.814 G multiply-accumulates forward, as published for ResNet-18."""
    sparsity, count = resnet
    macs = count.total("macs")
    assert count.total("forward").dense == pytest.approx(1.814e9, rel=0.001)
    assert macs.dense / macs.formula == pytest.approx(1 / (1 - sparsity))
    assert macs.saving == pytest.approx(1 / (1 - sparsity), rel=0.001)


def test_figure_8_bytes(resnet):
    """Weights 2x, 3.3x, 5x; activations "around 1.3x, 1.5x, 1.7x" over the paper's networks.

    Batch norm keeps its input whole, so 2 / (2 - S) bounds a network in which the two are equally large.
    """
    sparsity, count = resnet
    saving = count.total("activations").saving
    assert count.total("weights").saving == pytest.approx(1 / (1 - sparsity), rel=0.001)
    assert saving == pytest.approx({0.5: 1.305, 0.7: 1.487, 0.8: 1.598}[sparsity], abs=0.001)
    assert saving < 2 / (2 - sparsity)


def test_the_model_stays_as_it_was():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 16, 4)
    )
    model = torchswat.sparsify_(model, "random", 0.5, period=3)
    model(torch.randn(2, 3, 6, 6)).sum().backward()
    before = copy.deepcopy((model.state_dict(), sparse_state(model), [p.grad for p in model.parameters()]))
    masks = [layer.selected_weights(0.5) for _, layer in sparse_layers(model)]
    random_state = torch.get_rng_state()
    cost(model, torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(1)))
    after = (model.state_dict(), sparse_state(model), [p.grad for p in model.parameters()])
    for ours, theirs in zip(before[:2], after[:2], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    for mask, (_, layer) in zip(masks, sparse_layers(model), strict=True):
        assert torch.equal(mask, layer.selected_weights(0.5))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(module.training for module in model.modules())


def test_it_runs_under_no_grad_and_on_frozen_models():
    model = torchswat.sparsify_(convolution(), sparsity=0.5).requires_grad_(False)
    with torch.no_grad():
        assert cost(model, torch.randn(1, 4, 6, 6)).total("forward").saving == pytest.approx(2)


def test_a_table_and_plain_numbers():
    count = cost(torchswat.sparsify_(convolution(), sparsity=0.5), torch.randn(5, 4, 6, 7))
    text = str(count)
    assert "25.92 k" in text and "12.96 k" in text and "total" in text
    plain = json.loads(json.dumps(count.to_dict()))
    assert plain["batch"] == 5
    assert plain["total"]["macs"] == {"dense": 25920, "formula": 12960, "measured": 12960}
    assert plain["layers"][0]["name"] == "0"


def test_a_wrong_input_is_refused_with_its_shape():
    with pytest.raises(InvalidValue, match=r"Sequential does not run on an input of shape \(5, 3, 6, 7\)"):
        cost(convolution(), torch.randn(5, 3, 6, 7))


def test_nan_is_no_cost():
    model = torchswat.sparsify_(convolution())
    with pytest.raises(NotFinite, match="layer '0'"):
        cost(model, torch.full((1, 4, 6, 7), float("nan")))
