"""From a finished run to files that others can use, and the proof that they predict the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

import torchswat
from torchswat.data import Dataset
from torchswat.data.dataset import Pictures
from torchswat.deploy.onnx import export_onnx, run_onnx
from torchswat.deploy.program import export_program
from torchswat.errors import InvalidData, UnknownName
from torchswat.files import write_atomically
from torchswat.runtime.network import Network, load
from torchswat.runtime.package import Package, save
from torchswat.runtime.trace import pruned
from torchswat.training.build import build_data, load_model, test_batches
from torchswat.training.checkpoint import Checkpoint
from torchswat.training.recipe import Recipe, make_recipe
from torchswat.training.reload import find_checkpoint

FORMATS = {
    "sparse": "network.safetensors",
    "dense": "dense.safetensors",
    "onnx": "network.onnx",
    "program": "network.pt2",
}
"""The file of each format; ``sparse`` is what `torchswat.load` reads."""


@dataclass
class Exported:
    """What was written, and how its predictions compare with those of the pruned network.

    Attributes
    ----------
    checkpoint : str
        What was exported.
    files : dict of str to dict
        By format: ``path``, ``bytes``, and ``smaller``, how many times than the dense state_dict.
    images : int
        Test images on which predictions were compared; 0 where that was not asked for.
    differing : int
        Predictions that differ, which rounding allows for ties only.
    accuracy : float or None
        Of the exported network, in per cent.
    """

    checkpoint: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: int = 0
    differing: int = 0
    accuracy: float | None = None


def export_run(
    run: Path,
    output: Path | None = None,
    formats: Sequence[str] = ("sparse",),
    *,
    root: Path | None = None,
    check: bool = True,
) -> Exported:
    """Export the best checkpoint of a run, or a checkpoint.

    Parameters
    ----------
    run : Path
        The folder of a run, or a checkpoint file.
    output : Path, optional
        Folder of the files; by default ``export`` in that of the run.
    formats : sequence of str, default ("sparse",)
        Among `FORMATS`.
    root : Path, optional
        Folder of the data sets, whose classes and colours go into the file; by default that of the training.
    check : bool, default True
        Compare predictions on all test images.

    Raises
    ------
    UnknownName, MissingData, InvalidData, MissingDependency
        For an unknown format, a run or data that are not there, or packages that are not installed.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownName.of("format", name, FORMATS)
    file = find_checkpoint(run)
    checkpoint = Checkpoint.load(file)
    changes = {} if root is None else {"root": str(root)}
    recipe = make_recipe({**checkpoint.recipe, "data": {**checkpoint.recipe["data"], **changes}})
    dataset = build_data(recipe)
    model = pruned(load_model(recipe, dataset, checkpoint))
    folder = output or (run if run.is_dir() else run.parent) / "export"
    path = folder / FORMATS["sparse"]
    save(
        model,
        path,
        input_shape=dataset.shape,
        classes=dataset.classes,
        mean=dataset.mean,
        std=dataset.std,
        resize=dataset.test.view.resize if isinstance(dataset.test, Pictures) else 0,
        provenance=_provenance(recipe, checkpoint),
    )
    network = load(path)
    _write_others(model, network.package, folder, formats)
    if "sparse" not in formats:
        path.unlink()
    dense = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    exported = Exported(str(file))
    for name in formats:
        size = (folder / FORMATS[name]).stat().st_size
        exported.files[name] = {"path": str(folder / FORMATS[name]), "bytes": size, "smaller": dense / size}
    if check:
        _compare(model, network, recipe, dataset, exported)
    return exported


def _provenance(recipe: Recipe, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "torchswat": torchswat.__version__,
        "model": recipe.model.name,
        "data": recipe.data.name,
        "recipe": recipe.name,
        "algorithm": recipe.sparse.algorithm,
        "sparsity": recipe.sparse.sparsity,
        "seed": recipe.seed,
        "epoch": checkpoint.progress.epoch,
        "step": checkpoint.progress.step,
    }


def _write_others(model: nn.Module, package: Package, folder: Path, formats: Sequence[str]) -> None:
    if "dense" in formats:
        state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
        write_atomically(folder / FORMATS["dense"], safetensors.torch.save(state))
    if "onnx" in formats:
        file = folder / FORMATS["onnx"]
        export_onnx(model, file, package.graph.input_shape)
        pictures = torch.randn(3, *package.graph.input_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected = model(pictures)
        if not torch.allclose(
            run_onnx(file, pictures), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())
        ):
            raise InvalidData(f"ONNX Runtime computes something else from {file} than torch does")
    if "program" in formats:
        export_program(package, folder / FORMATS["program"])


@torch.no_grad()
def _compare(
    model: nn.Module, network: Network, recipe: Recipe, dataset: Dataset, exported: Exported
) -> None:
    right = 0
    for images, labels in test_batches(recipe, dataset):
        found = network(images).argmax(1)
        exported.differing += int((found != model(images).argmax(1)).sum())
        exported.images += len(labels)
        right += int((found == labels).sum())
    exported.accuracy = 100 * right / max(1, exported.images)
