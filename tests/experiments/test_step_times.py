"""Steps that were timed: kept, and added up over a schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.convert import sparse_layers
from torchswat.experiments import step_times
from torchswat.experiments.scales import Training, scale_of
from torchswat.experiments.step_times import over_epochs, parts, path_of, seconds_of_an_epoch
from torchswat.training.build import build_data
from torchswat.training.recipe import load_recipe

SMOKE = scale_of("smoke", seeds=1)
SWAT = Training("resnet18", "cifar10", "swat", 0.8, 0)
DENSE = Training("resnet18", "cifar10", "dense", 0.0, 0)
START = Training("resnet18", "cifar10", "swat", 0.8, 0, settings=("sparse.dense_from=1",))
BFLOAT16 = Training("resnet18", "cifar10", "dense", 0.0, 0, settings=("precision=bfloat16",))

TIMES = {
    "steps_per_epoch": 10,
    "data_ms": 5.0,
    "steps": {
        "dense float32": {"ms": 95.0, "macs": 3e9},
        "swat 0.8 float32": {"ms": 45.0, "macs": 1e9},
        "dense end of swat 0.8 float32": {"ms": 85.0, "macs": 3e9},
    },
}


def test_what_was_timed_is_kept(tmp_path, monkeypatch):
    first = step_times.step_times([SWAT, DENSE, START], SMOKE, tmp_path, repeats=1)
    recipe = SWAT.recipe(SMOKE)
    assert path_of(recipe, tmp_path).name == "measured-steps-resnet-digitsx8-digits-b32.json"
    assert first["steps_per_epoch"] == 192 // 32 and first["data_ms"] > 0
    dense, swat = first["steps"]["dense float32"], first["steps"]["swat 0.8 float32"]
    assert dense["ms"] > 0 and swat["ms"] > 0 and dense["layout"] in ("nchw", "channels_last")
    assert dense["macs"] / swat["macs"] == pytest.approx(5, rel=0.02)  # all layers sparse: 1 / (1 - S)
    monkeypatch.setattr(step_times, "race", None)
    assert step_times.step_times([SWAT, DENSE, START], SMOKE, tmp_path, repeats=1) == first
    end = first["steps"]["dense end of swat 0.8 float32"]
    assert end["ms"] > 0 and end["macs"] == dense["macs"] and len(first["steps"]) == 3
    assert seconds_of_an_epoch(tmp_path)(recipe) == pytest.approx(6 * (swat["ms"] + first["data_ms"]) / 1000)


def test_a_kind_of_step_that_is_new_is_timed_with_the_others(tmp_path):
    step_times.step_times([SWAT, DENSE], SMOKE, tmp_path, repeats=1)
    assert step_times.read_step_times([SWAT, BFLOAT16], SMOKE, tmp_path) is not None
    assert step_times.read_step_times([SWAT, DENSE, START], SMOKE, tmp_path) is None
    again = step_times.step_times([SWAT, DENSE, START], SMOKE, tmp_path, repeats=1)
    assert step_times.read_step_times([SWAT, DENSE, START], SMOKE, tmp_path) == again


def test_bfloat16_is_left_out_where_the_processor_has_none(tmp_path, monkeypatch):
    monkeypatch.setattr(step_times, "bfloat16_absent", lambda: "no bfloat16 here")
    found = step_times.step_times([DENSE, BFLOAT16], SMOKE, tmp_path, repeats=1)
    assert set(found["steps"]) == {"dense float32"} and found["remarks"] == ["no bfloat16 here"]


def test_a_step_of_a_dense_end_keeps_everything():
    """What is timed as one computes what a dense network does."""
    recipe = START.recipe(SMOKE)
    dataset = build_data(recipe)
    dense_model, late = (step_times._model(each, dataset) for each in (DENSE.recipe(SMOKE), recipe))
    for _, layer in sparse_layers(late):
        layer.sparse.iteration = step_times._LATE
    images = torch.randn(4, *dataset.shape)
    assert torch.allclose(late.train()(images), dense_model.train()(images), atol=1e-4)


def test_a_dense_end_has_dense_steps():
    recipe = load_recipe("cifar-paper", ["optimizer.epochs=3", "sparse.dense_from=2"])
    passed = over_epochs(recipe, TIMES)
    assert passed and [macs for _, macs in passed] == [1e10, 2e10, 5e10]
    assert [seconds for seconds, _ in passed] == pytest.approx([0.5, 1.0, 1.9])


@given(st.integers(2, 20), st.data())
def test_a_dense_end_lies_between_sparse_and_dense(epochs, data):
    end = data.draw(st.integers(1, epochs - 1))
    base = [f"optimizer.epochs={epochs}"]
    sparse, dense, mixed = (
        over_epochs(load_recipe("cifar-paper", [*base, *more]), TIMES)
        for more in ([], ["sparse.algorithm=dense"], [f"sparse.dense_from={end}"])
    )
    assert sparse and dense and mixed and len(mixed) == epochs
    assert mixed[:end] == sparse[:end] and sparse[-1] < mixed[-1] < dense[-1]
    assert sum(parts(load_recipe("cifar-paper", [*base, f"sparse.dense_from={end}"])).values()) == epochs


def test_steps_that_were_not_timed_have_no_seconds(tmp_path):
    assert over_epochs(load_recipe("cifar-paper", ["sparse.sparsity=0.7"]), TIMES) is None
    assert seconds_of_an_epoch(tmp_path)(SWAT.recipe(SMOKE)) is None
