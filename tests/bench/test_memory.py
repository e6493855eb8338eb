"""The benchmark of memory: what is counted, and that nothing dense stays alive in a sparse network."""

# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

from torchswat import fuse_, models, sparsify_
from torchswat.bench import footprint, memory
from torchswat.bench.footprint import Setting, kept_bytes, measure, peak_bytes
from torchswat.bench.memory import bench_memory, rounds, settings
from torchswat.engine import info
from torchswat.engine.batch_norm import NORM_INPUTS
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue, UnknownName

ENGINES = ["auto", "reference"]


def totals(model: nn.Module, x: torch.Tensor) -> dict[str, int]:
    """Return the bytes that a forward pass of `model` on `x` keeps, by kind."""
    layers = kept_bytes(model, lambda: model(x).sum(), (x,))
    return {
        kind: sum(getattr(layer, kind) for layer in layers)
        for kind in ("activations", "weights", "parameters")
    }


# ---- counting ----------------------------------------------------------------------------------------------


def test_a_dense_network_counted_by_hand():
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    x = torch.randn(5, 8)
    layers = {layer.name: layer for layer in kept_bytes(model, lambda: model(x).sum(), (x,))}
    assert layers["0"].activations == 0  # the batch, which is there anyway
    assert layers["1"].activations == 4 * 5 * 16  # what the ReLU and the second layer share
    assert layers["2"].activations == 0 and layers["2"].parameters == 4 * 16 * 4
    assert sum(layer.weights for layer in layers.values()) == 0


def test_a_storage_of_which_a_part_is_used_counts_whole():
    class First(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x + 1)[:1].square()  # keeps what it squares: a row of ten

    model, x = First(), torch.randn(10, 8, requires_grad=True)
    (layer,) = kept_bytes(model, lambda: model(x).sum(), (x,))
    assert layer.activations == 4 * 10 * 8 and layer.kind == "First"


@pytest.mark.parametrize("which", ENGINES)
def test_of_weights_nothing_is_saved_and_the_kept_ones_are_read(which):
    model = sparsify_(nn.Sequential(nn.Conv2d(8, 16, 3), nn.Conv2d(16, 32, 3)), sparsity=0.75)
    with engine(which):
        found = totals(model, torch.randn(4, 8, 8, 8))
    entries = 16 * 32 * 9  # the first layer's input wants no gradient
    packed = which == "auto" and info()["isa"]
    assert found["weights"] == 0
    assert found["parameters"] == entries * (6 * 0.25 if packed else 4)


def test_masks_of_weights_are_saved_beside_them():
    model = sparsify_(nn.Sequential(nn.Conv2d(8, 16, 3)), "random", sparsity=0.75)
    assert totals(model, torch.randn(4, 8, 8, 8))["weights"] == 8 * 16 * 9


# ---- nothing dense stays alive -----------------------------------------------------------------------------


@pytest.mark.parametrize("which", ENGINES)
@pytest.mark.parametrize("norm_input", NORM_INPUTS)
@pytest.mark.parametrize("sparsity", [0.5, 0.8])
def test_a_sparse_residual_network_keeps_what_the_formula_says(which, norm_input, sparsity):
    """One dense activation more and the sum would be beyond the bound."""
    model, x = models.create("resnet8", width=8), torch.randn(32, 3, 32, 32)
    shapes: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
            module.register_forward_hook(
                lambda module, inputs, output, name=name: shapes.update({name: inputs[0].numel()})
            )
    model(x)
    for module in model.modules():
        module._forward_hooks.clear()
    convolutions = {name: n for name, n in shapes.items() if "conv" in name}
    norms = {name: n for name, n in shapes.items() if "bn" in name}
    bits = 1 / 8
    again = {name.replace("bn1", "conv2") for name in norms if "bn1" in name} | {"layer1.0.conv1"}
    if which == "auto" and norm_input == "whole" and info()["isa"]:  # made from batch norm's input again
        convolutions = {name: n for name, n in convolutions.items() if name not in again}
        bits_of = {name: bits for name in norms if "bn2" in name}
    else:
        bits_of = dict.fromkeys(norms, bits)
    bound = sum(n * (4 * (1 - sparsity) + bits) for n in convolutions.values())
    bound += sum(n * (NORM_INPUTS[norm_input] + bits_of.get(name, 0)) for name, n in norms.items())
    fuse_(sparsify_(model, sparsity=sparsity, norm_input=norm_input))
    with engine(which):
        found = totals(model, x)["activations"]
    slack = 0.01 * bound + 20_000  # starts of channels, statistics, the last layer
    smallest = 4 * min(norms.values())
    assert smallest > slack, "the bound must be tighter than one activation"
    assert 0.8 * bound < found < bound + slack


# ---- peak and settings -------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_the_peak_is_above_idle_by_what_a_step_allocates():
    def step() -> None:
        torch.ones(25_000_000).add_(1)  # 100 MB

    found = peak_bytes(step, "cpu")
    if found is None:
        pytest.skip("the peak cannot be reset here")
    idle, peak = found
    assert 90e6 < peak - idle < 130e6


def test_one_setting_in_this_process(monkeypatch):
    setting = Setting("resnet-digits", "digits", 8, "swat", 0.5, "int8", threads=torch.get_num_threads())
    found = measure(setting)
    assert found["peak"] is None or found["peak"] >= found["idle"] > 0
    assert {"conv1", "fc"} <= {layer["name"] for layer in found["layers"]}
    json.dumps(found)


def test_rows_and_comparisons(tiny, monkeypatch):
    """The processes are this one here; a fresh process each takes seconds."""
    monkeypatch.setattr(memory, "measure_apart", measure)
    ticks: list[None] = []
    arguments = (tiny,), (0.8,), ("whole", "int8"), ("dense", "swat", "saw")
    record = bench_memory(*arguments, batch_size=32, tick=lambda: ticks.append(None))
    assert len(ticks) == rounds(*arguments) == 4
    dense, whole, narrow, saw = record.rows
    assert [row["algorithm"] for row in record.rows] == ["dense", "swat", "swat", "saw"]
    assert dense["sparsity"] is None and dense["weights_beside"] == 0 and dense["fewer_weights"] == 1
    assert whole["fewer_activations"] == dense["activations"] / whole["activations"] > 1
    assert narrow["activations"] < whole["activations"] and saw["activations"] == pytest.approx(
        whole["activations"], rel=0.02
    )
    assert whole["fewer_weights"] > 3
    if whole["peak"] is not None:
        kept = whole["activations"] + whole["weights_beside"] - dense["activations"]
        assert whole["peak_by_bytes"] == dense["peak"] + kept


def test_targets_are_those_of_the_standard_networks():
    dense = Setting("vgg16", "cifar", 128)
    (setting,) = settings(dense, (0.8,), ("int8",), ("swat",))
    assert memory._target(memory.WEIGHT_TARGETS, setting) == 3.5
    assert memory._target(memory.WEIGHT_TARGETS, Setting("tiny", "cifar", 8, sparsity=0.8)) is None


@pytest.mark.slow
def test_a_fresh_process():
    setting = Setting("resnet-digits", "digits", 8, "swat", 0.5)
    assert footprint.measure_apart(setting)["layers"]
    with pytest.raises(RuntimeError, match="unknown model"):
        footprint.measure_apart(Setting("resnet19", "cifar", 8))


def test_what_is_refused(tiny):
    with pytest.raises(UnknownName, match="did you mean 'resnet18'"):
        bench_memory(["resnet_18"])
    with pytest.raises(InvalidValue, match=r"sparsity is 1\.5"):
        bench_memory([tiny], [1.5])
    with pytest.raises(InvalidValue, match="device is 'tpu'"):
        bench_memory([tiny], device="tpu")
