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
from torchswat.errors import InvalidData, MissingData, UnknownName
from torchswat.training.reload import evaluate_saved

HAS_ONNX = all(
    __import__("importlib.util").util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime")
)


def test_predictions_on_the_whole_test_set(run: Path, tmp_path: Path):
    exported = export_run(run, tmp_path)
    assert exported.images == 355 and exported.differing == 0
    assert exported.accuracy == pytest.approx(evaluate_saved(run)["accuracy"])
    assert exported.files["sparse"]["smaller"] > 3  # of so few weights the description takes its share
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


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not all installed")
def test_onnx_takes_any_number_of_pictures(run: Path, tmp_path: Path):
    from torchswat.deploy.onnx import run_onnx

    export_run(run, tmp_path, ["onnx", "sparse"], check=False)
    network = torchswat.load(tmp_path / "network.safetensors")
    for pictures in (1, 7):
        x = torch.randn(pictures, 1, 8, 8)
        assert torch.allclose(run_onnx(tmp_path / "network.onnx", x), network(x), atol=1e-4)


@pytest.mark.skipif(not HAS_ONNX, reason="onnx, onnxscript and onnxruntime are not all installed")
def test_another_result_of_onnx_is_noticed(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torchswat.deploy.export.run_onnx", lambda path, x: torch.zeros(3, 10))
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
    assert "355 test images: 0 differ" in done.stdout
    done = subprocess.run([*command, "--json", "--no-check"], capture_output=True, text=True)
    assert json.loads(done.stdout)["files"]["sparse"]["path"] == str(tmp_path / FORMATS["sparse"])
    done = subprocess.run([*command, "-f", "tflite"], capture_output=True, text=True)
    assert done.returncode == 2 and "unknown format" in done.stderr
