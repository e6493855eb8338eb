"""The benchmark of programs: its list, its figures, and that two versions run in turns."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import torchswat
from torchswat import sparsify_, switched
from torchswat.bench.programs import run as bench
from torchswat.bench.programs.compiled import CompiledStep, check_inductor
from torchswat.bench.programs.kinds import NewSizes, TrainingStep, sparse_models
from torchswat.bench.programs.listing import PROGRAMS
from torchswat.bench.programs.networks import UserResNet18, cnn, hugging_face, mlp
from torchswat.bench.programs.overhead import SingleLayer, tiny_shape
from torchswat.bench.programs.worker import milliseconds, settle
from torchswat.convert import sparse_layers
from torchswat.engine.loader import native
from torchswat.engine.shape import Shape
from torchswat.errors import InvalidValue, MissingData, MissingDependency, UnknownName

needs_native = pytest.mark.skipif(native() is None, reason="the native engine is not built here")
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
    pytest.importorskip("transformers", reason="no transformers (extra: transformers)")
    for name, program in PROGRAMS.items():
        if name.startswith("hf-tiny"):
            assert isinstance(program, TrainingStep)
            assert program.build()(torch.randn(2, *program.batch[1:])).logits.shape == (2, 10)


def test_without_transformers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependency, match=r"pip install .torchswat\[transformers\]"):
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


def test_overhead_and_compiled_dense_in_the_figures():
    program = SingleLayer("-", partial(nn.Linear, 8, 8), (8, 8))
    samples = {
        "dense nchw": [8.0, 10.0],
        "compiled dense nchw": [6.0, 6.0],
        "fused": [4.0, 5.0],
        "tiny dense nchw": [2.0, 2.0],
        "tiny fused": [1.0, 1.0],
        "against fused": [4.0, 4.0],
        "against tiny fused": [2.0, 2.0],
    }
    rows = {row["contestant"]: row for row in bench._rows(program, samples)}
    assert rows["fused"]["speed_up"] == pytest.approx(2) and rows["tiny fused"]["speed_up"] == pytest.approx(
        2
    )
    assert rows["fused"]["over_compiled"] == pytest.approx(6 / 4.5)
    assert rows["fused"]["outside_kernels"] == pytest.approx(1 / 4.5)
    assert rows["fused"]["outside_kernels_quartiles"] == pytest.approx([0.2125, 0.2375])
    assert rows["dense nchw"]["outside_kernels"] == pytest.approx(2 / 9)
    assert rows["against fused"]["outside_kernels"] == pytest.approx(1 / 2)
    assert rows["tiny fused"]["outside_kernels"] is None


@pytest.mark.parametrize(
    "layer, batch", [(partial(nn.Conv2d, 4, 4, 3), (1, 4, 4, 4)), (partial(nn.Linear, 8, 8), (8, 8))]
)
def test_a_no_op_in_the_place_of_a_layer_answers_with_its_sizes(layer, batch):
    found = {name: run() for name, run in SingleLayer("-", layer, batch).contestants().items()}
    assert len(found) == 4
    sizes = {tuple(gradient.shape for gradient in gradients) for gradients in found.values()}
    assert len(sizes) == 1


@needs_native
def test_the_tiny_step_makes_the_same_calls_as_the_full_one(monkeypatch):
    """Of the compiled kernels and of torch's operations, one by one: what `StepOverhead` rests on."""
    monkeypatch.setattr(switched, "_FEW_ENTRIES", 0)  # what the program sets is undone afterwards
    program = PROGRAMS["step-overhead-resnet20-x16"]
    contestants, module, calls = program.contestants(), native(), []
    for name in dir(module):
        function = getattr(module, name)
        if callable(function) and not isinstance(function, type) and not name.startswith("_"):
            called = lambda *a, f=function, n=name, **k: (calls.append(n), f(*a, **k))[1]  # noqa: E731
            monkeypatch.setattr(module, name, called)

    def calls_of(step):
        step()
        calls.clear()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiled:
            step()
        names = Counter(event.name for event in profiled.events() or () if "::" in event.name)
        del names["aten::fill_"]  # which zero_ calls for large tensors only
        return list(calls), names

    for name in ("sparse", "fused"):
        full, tiny = calls_of(contestants[name]), calls_of(contestants[f"tiny {name}"])
        assert full[0] == tiny[0] and len(full[0]) > 100
        assert full[1] == tiny[1]


def test_the_sizes_of_a_tiny_network_are_those_that_its_layers_meet():
    full, tiny = ({}, {})
    for width, side, found in ((16, 32, full), (2, 8, tiny)):
        model = sparsify_(PROGRAMS["step-overhead-resnet20-x16"].build(width=width))
        for name, layer in sparse_layers(model):
            layer.register_forward_pre_hook(
                lambda layer, inputs, name=name, found=found: found.update({name: (layer, inputs[0].shape)})
            )
        model(torch.randn(16, 3, side, side))
    for name, (layer, size) in full.items():
        if size[2:]:
            shape = Shape(tuple(size), tuple(layer.weight.shape), layer.stride, layer.padding)
            expected = (tuple(tiny[name][1]), tuple(tiny[name][0].weight.shape))
            assert (tiny_shape(shape).input, tiny_shape(shape).weight) == expected


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.*is deprecated:DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)
def test_compiled_steps():
    contestants = CompiledStep("-", cnn, (2, 1, 8, 8)).contestants()
    layouts = [
        f"{kind} {layout}" for layout in ("nchw", "channels_last") for kind in ("dense", "compiled dense")
    ]
    assert list(contestants) == [*layouts, "compiled sparse", "sparse", "fused"]
    for run in contestants.values():
        run()


def test_without_a_c_compiler_the_error_says_so(monkeypatch):
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("No working C++ compiler found\nin 20 lines")

    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(MissingDependency, match=r"here \(No working C\+\+ compiler found\): it needs"):
        check_inductor()


def test_figures_under_autocast_stand_beside_float32():
    program = TrainingStep("-", mlp, (1, 1, 28, 28), {"float32": 0.95}, autocast=True)
    samples = {"dense nchw": [8.0], "sparse": [5.0], "sparse float32": [4.0], "fused float32": [3.0]}
    rows = {row["contestant"]: row for row in bench._rows(program, samples)}
    assert rows["sparse"]["over_float32"] == pytest.approx(3 / 5)
    assert rows["sparse"]["asked_over_float32"] == 0.95


@pytest.fixture
def other_version(tmp_path) -> Path:
    """A folder with a copy of the package, its compiled engine included where that is built."""
    package = shutil.copytree(
        SOURCE / "torchswat", tmp_path / "torchswat", ignore=shutil.ignore_patterns("_native*")
    )
    native = importlib.util.find_spec("torchswat.engine._native")
    if native is not None and native.origin is not None:
        shutil.copy(native.origin, package / "engine")
    return tmp_path


def test_two_versions_in_turns(other_version):
    names, ticks = ["layer-overhead"], []
    record = bench.bench_programs(names, 2, other_version, tick=lambda: ticks.append(None))
    assert len(ticks) == bench.rounds(names, 2)
    found = {row["contestant"]: row for row in record.rows}
    own = ["dense F.conv2d", "dense nn.Conv2d", "sparse", "no-op Function"]
    assert list(found) == [*own, "against sparse", "against no-op Function"]
    assert found["sparse"]["over_against"] > 0 and len(found["sparse"]["samples"]["step"]) == 2
    assert record.circumstances["against"]["engine"]["threads"] == record.circumstances["threads"]
    assert str(other_version) not in str(record.circumstances)


@needs_native
def test_a_version_without_its_compiled_engine_is_refused(other_version):
    for file in (other_version / "torchswat" / "engine").glob("_native*"):
        if file.is_file():
            file.unlink()
    with pytest.raises(MissingData, match=r"has no compiled engine that runs here \(.*pip install"):
        bench.bench_programs(["layer-overhead", "mlp-x64"], 1, other_version)


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
