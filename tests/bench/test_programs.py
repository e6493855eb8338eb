"""The benchmark of programs: its list, its figures, and that two versions run in turns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import torchswat
from torchswat.bench.programs import run as bench
from torchswat.bench.programs.kinds import NewSizes, TrainingStep, sparse_models
from torchswat.bench.programs.listing import PROGRAMS
from torchswat.bench.programs.networks import UserResNet18, cnn, hugging_face, mlp
from torchswat.bench.programs.worker import milliseconds, settle
from torchswat.errors import InvalidValue, MissingData, MissingDependency, UnknownName

SOURCE = Path(torchswat.__file__).parents[1]


@pytest.mark.parametrize(
    "build, image", [(mlp, (1, 28, 28)), (cnn, (1, 28, 28)), (UserResNet18, (3, 32, 32))]
)
def test_the_networks_answer_with_ten_scores(build, image):
    assert build()(torch.randn(2, *image)).shape == (2, 10)


def test_the_user_s_resnet_has_as_many_parameters_as_ours():
    counts = [
        sum(p.numel() for p in model.parameters())
        for model in (UserResNet18(), torchswat.models.create("resnet18"))
    ]
    assert counts[0] == counts[1]


def test_every_hugging_face_network_can_be_built_and_run():
    pytest.importorskip("transformers", reason="no transformers (extra: programs)")
    for name, program in PROGRAMS.items():
        if name.startswith("hf-tiny"):
            assert isinstance(program, TrainingStep)
            assert program.build()(torch.randn(2, *program.batch[1:])).logits.shape == (2, 10)


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"pip install .torchswat\[programs\]"):
        hugging_face("ViT")


def test_patterns_choose_programs():
    assert bench.matching(["resnet20*"]) == ("resnet20-x16", "resnet20-x128")
    assert bench.matching([]) == tuple(PROGRAMS)
    quick = bench.matching([], quick=True)
    assert "mlp-x64" in quick and "vgg16-x128" not in quick
    assert bench.matching(["vgg16-x128"], quick=True) == ("vgg16-x128",)
    with pytest.raises(UnknownName, match="did you mean 'vgg16-x128'"):
        bench.matching(["vgg16-128"])


def test_the_same_seed_gives_sparse_copies_of_one_model():
    model = mlp()
    sparse = sparse_models(model, {"period": 3})["sparse"]
    assert torch.equal(sparse[1].weight, model[1].weight)  # type: ignore[union-attr, index]
    assert sparse[1].sparse.selectors["weight"].period == 3  # type: ignore[union-attr, index]


@pytest.mark.parametrize("training", [True, False])
def test_new_sizes_run_once_each(training):
    program = NewSizes("-", cnn, ((1, 1, 8, 8), (2, 1, 9, 9)), training)
    contestants = program.contestants()
    assert {"dense nchw", "dense channels_last", "sparse"} <= set(contestants)
    for run in contestants.values():
        run()


def test_it_settles_after_what_is_slow_at_first():
    calls: list[int] = []

    def step() -> None:
        calls.append(0)
        sum(range(300_000 if len(calls) < 8 else 30_000))

    assert settle(step, 1) < milliseconds(lambda: sum(range(300_000)), 3)
    assert len(calls) > 12


def test_figures_of_a_program():
    program = TrainingStep("-", mlp, (1, 1, 28, 28), {"dense": 1.5, "against": 0.99, "against unfused": 0.92})
    samples = {
        "dense nchw": [8.0, 10.0],
        "dense channels_last": [30.0, 30.0],
        "sparse": [6.0, 6.0],
        "fused": [4.0, 5.0],
        "against sparse": [5.0, 5.0],
    }
    rows = {row["contestant"]: row for row in bench._rows(program, samples)}
    assert rows["fused"]["speed_up"] == pytest.approx(2) and rows["sparse"]["speed_up"] == pytest.approx(1.5)
    assert rows["fused"]["speed_up_quartiles"] == pytest.approx([2, 2])
    assert rows["fused"]["asked"] == 1.5 and rows["sparse"]["asked"] is None
    assert rows["sparse"]["over_against"] == pytest.approx(5 / 6)
    assert (rows["fused"]["asked_over_against"], rows["sparse"]["asked_over_against"]) == (0.99, 0.92)
    assert rows["sparse"]["over_float32"] is None and rows["dense nchw"]["over_against"] is None


def test_figures_under_autocast_stand_beside_float32():
    program = TrainingStep("-", mlp, (1, 1, 28, 28), {"float32": 0.95}, autocast=True)
    samples = {"dense nchw": [8.0], "sparse": [5.0], "sparse float32": [4.0], "fused float32": [3.0]}
    rows = {row["contestant"]: row for row in bench._rows(program, samples)}
    assert rows["sparse"]["over_float32"] == pytest.approx(3 / 5)
    assert rows["sparse"]["asked_over_float32"] == 0.95


def test_two_versions_in_turns():
    names, ticks = ["layer-overhead"], []
    record = bench.bench_programs(names, 2, SOURCE, tick=lambda: ticks.append(None))
    assert len(ticks) == bench.rounds(names, 2)
    found = {row["contestant"]: row for row in record.rows}
    assert list(found) == ["dense F.conv2d", "dense nn.Conv2d", "sparse", "against sparse"]
    assert found["sparse"]["over_against"] > 0 and len(found["sparse"]["samples"]["step"]) == 2
    assert record.circumstances["against"]["engine"]["threads"] == record.circumstances["threads"]
    assert str(SOURCE) not in str(record.circumstances)


def test_a_process_that_fails_says_why(tmp_path):
    package = tmp_path / "torchswat"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('an old version that breaks')")
    with pytest.raises(InvalidValue, match="code 1: RuntimeError: an old version that breaks"):
        bench.bench_programs(["layer-overhead"], 1, tmp_path)


def test_a_place_without_torchswat(tmp_path):
    with pytest.raises(MissingData, match="has no torchswat"):
        bench.bench_programs(["layer-overhead"], 1, tmp_path)
    assert bench.source_folder(SOURCE) == SOURCE.resolve()
