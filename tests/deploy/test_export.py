"""Files made of a run: all of them predict what the trained network does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import torchswat
from torchswat.deploy.export import FORMATS, export_run
from torchswat.errors import InvalidData, InvalidValue, MissingData, UnknownName
from torchswat.training import loop
from torchswat.training.recipe import load_recipe
from torchswat.training.reload import evaluate_saved

HAS_ONNX = all(
    __import__("importlib.util").util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")
)
with_onnx = pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not all installed")


def test_predictions_on_the_whole_test_set(run: Path, tmp_path: Path):
    exported = export_run(run, tmp_path)
    file = exported.files["sparse"]
    assert exported.images == 355 and file["differing"] == 0 and 0 < file["largest_gap"] < 1e-3
    assert exported.accuracy == file["accuracy"] == pytest.approx(evaluate_saved(run)["accuracy"])
    assert file["smaller"] > 3  # of so few weights the description takes its share
    about = torchswat.load(tmp_path / "network.safetensors").package.about
    assert about.classes == tuple("0123456789") and len(about.mean) == 1
    assert about.provenance["sparsity"] == 0.8 and about.provenance["data"] == "digits"


def test_a_dense_state_dict_with_exact_zeros(run: Path, tmp_path: Path):
    exported = export_run(run, tmp_path, ["dense"], check=False)
    assert [file.name for file in tmp_path.iterdir()] == ["dense.safetensors"]
    assert exported.images == 0
    state = safetensors.torch.load_file(tmp_path / "dense.safetensors")
    model = torchswat.models.create("resnet-digits", width=16).eval()
    model.load_state_dict(state)
    assert 0.75 < float((state["layer1.0.conv1.weight"] == 0).float().mean()) < 0.85
    x = torch.randn(3, 1, 8, 8)
    export_run(run, tmp_path, ["sparse"], check=False)
    assert torch.allclose(model(x), torchswat.load(tmp_path / "network.safetensors")(x), atol=1e-5)


@pytest.mark.parametrize("name", ["dense", pytest.param("onnx", marks=with_onnx), "program"])
def test_every_format_is_read_again_and_predicts_the_same(run: Path, tmp_path: Path, name: str):
    exported = export_run(run, tmp_path, [name])
    file = exported.files[name]
    assert file["differing"] == 0 and file["largest_gap"] < 1e-3
    assert file["accuracy"] == exported.accuracy


def test_a_file_that_predicts_something_else_is_noticed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def changed(path: Path):
        network = torchswat.load(path)
        return lambda images: network(images).roll(1, dims=1)

    monkeypatch.setattr("torchswat.deploy.export.load", changed)
    with pytest.raises(InvalidData, match=r"something else than the trained network: \d+ of 355"):
        export_run(run, tmp_path)


def test_files_of_before_stay(run: Path, tmp_path: Path):
    export_run(run, tmp_path, ["sparse"], check=False)
    before = (tmp_path / "network.safetensors").read_bytes()
    export_run(run, tmp_path, ["dense"], check=False)
    assert (tmp_path / "network.safetensors").read_bytes() == before


def test_a_dense_forward_pass_keeps_all_weights(tmp_path: Path):
    """SAW is sparse backward only: pruned, its network would be another."""
    recipe = load_recipe("digits-demo", ["optimizer.epochs=1", "model.width=8", "sparse.algorithm=saw"])
    loop.train(recipe, tmp_path / "run")
    exported = export_run(tmp_path / "run")
    assert exported.files["sparse"]["differing"] == 0
    network = torchswat.load(exported.files["sparse"]["path"])
    assert (network.package.tensors["layer1.0.conv1.weight"] != 0).all()


@pytest.mark.parametrize("algorithm", ["dsg", "random", "forward-activation"])
def test_a_forward_pass_that_no_file_holds(tmp_path: Path, algorithm: str):
    recipe = load_recipe(
        "digits-demo", ["optimizer.epochs=1", "model.width=8", f"sparse.algorithm={algorithm}"]
    )
    loop.train(recipe, tmp_path / "run")
    with pytest.raises(InvalidValue, match=f"trained with '{algorithm}'.*--no-check"):
        export_run(tmp_path / "run")
    assert not (tmp_path / "run" / "export").exists()
    assert export_run(tmp_path / "run", check=False).files["sparse"]["bytes"] > 0


@with_onnx
def test_onnx_takes_any_number_of_pictures(run: Path, tmp_path: Path):
    from torchswat.deploy.onnx import open_onnx

    export_run(run, tmp_path, ["onnx", "sparse"], check=False)
    network = torchswat.load(tmp_path / "network.safetensors")
    for pictures in (1, 7):
        x = torch.randn(pictures, 1, 8, 8)
        assert torch.allclose(open_onnx(tmp_path / "network.onnx")(x), network(x), atol=1e-4)


@with_onnx
def test_another_result_of_onnx_is_noticed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchswat.deploy.export.open_onnx", lambda path: lambda x: torch.zeros(3, 10))
    with pytest.raises(InvalidData, match="something else"):
        export_run(run, tmp_path, ["onnx"], check=False)


def test_what_is_not_there(run: Path, tmp_path: Path):
    with pytest.raises(UnknownName, match="did you mean 'sparse'"):
        export_run(run, tmp_path, ["spars"])
    with pytest.raises(MissingData):
        export_run(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command(run: Path, tmp_path: Path):
    command = [sys.executable, "-m", "torchswat", "export", str(run), "-o", str(tmp_path)]
    done = subprocess.run([*command, "-f", "dense", "-f", "sparse"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("; 0 predictions differ") == 2 and "all 355 test images" in done.stdout
    done = subprocess.run([*command, "--json", "--no-check"], capture_output=True, text=True)
    assert json.loads(done.stdout)["files"]["sparse"]["path"] == str(tmp_path / FORMATS["sparse"])
    done = subprocess.run([*command, "-f", "tflite"], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown format" in done.stderr
