"""From a finished run to files that others can use, and the proof that they predict the same."""

from __future__ import annotations

import copy
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import torchswat
from torchswat.algorithms import ALGORITHMS
from torchswat.data import Dataset
from torchswat.data.dataset import Pictures
from torchswat.deploy.onnx import export_onnx, open_onnx
from torchswat.deploy.program import export_program, open_program
from torchswat.errors import InvalidData, InvalidValue, UnknownName
from torchswat.files import write_atomically
from torchswat.progress import Progress, counted
from torchswat.runtime.network import load
from torchswat.runtime.package import Package
from torchswat.runtime.saving import save
from torchswat.runtime.trace import pruned
from torchswat.training.build import load_model, test_batches
from torchswat.training.check_data import data_to_test
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

ROUNDING = 1e-3  # of the largest score: what the order of additions may change


@dataclass
class Exported:
    """What was written, and how it compares with the trained network as `evaluate` runs it.

    Attributes
    ----------
    checkpoint : str
        What was exported.
    files : dict of str to dict
        By format: ``path``, ``bytes``, and ``smaller``, how many times than the dense state_dict. Where
        predictions were compared also ``accuracy`` in per cent, ``differing``, how many predictions are
        others than the trained network's, which rounding allows for ties only, and ``largest_gap``, the
        largest difference between two scores.
    images : int
        Test images on which predictions were compared; 0 where that was not asked for.
    accuracy : float or None
        Of the trained network, in per cent.
    """

    checkpoint: str
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: int = 0
    accuracy: float | None = None


def export_run(
    run: Path,
    output: Path | None = None,
    formats: Sequence[str] = ("sparse",),
    *,
    root: Path | None = None,
    check: bool = True,
    progress: Progress | None = None,
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
        Compare predictions of every file with the trained network's on all test images.
    progress : callable, optional
        Called after every batch that was compared with the number done and the number of all.

    Raises
    ------
    UnknownName, MissingData, MissingDependency
        For an unknown format, a run or data that are not there, or packages that are not installed.
    InvalidValue
        With `check`, for an algorithm whose forward pass does more than leave the same weights out each time.
    InvalidData
        A file that was written predicts something else than the trained network.
    """
    for name in formats:
        if name not in FORMATS:
            raise UnknownName.of("format", name, FORMATS)
    file = find_checkpoint(run)
    checkpoint = Checkpoint.load(file)
    changes = {} if root is None else {"root": str(root)}
    recipe = make_recipe({**checkpoint.recipe, "data": {**checkpoint.recipe["data"], **changes}})
    if check:
        _refuse_others(recipe.sparse.algorithm)
    dataset = data_to_test(recipe)
    trained = load_model(recipe, dataset, checkpoint).eval()
    model = pruned(trained)
    folder = output or (run if run.is_dir() else run.parent) / "export"
    with tempfile.TemporaryDirectory() as aside:
        path = (folder if "sparse" in formats else Path(aside)) / FORMATS["sparse"]
        _save(model, path, recipe, checkpoint, dataset)
        package = Package.read(path)
    _write_others(model, package, folder, formats)
    exported = Exported(str(file))
    dense = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    for name in formats:
        size = (folder / FORMATS[name]).stat().st_size
        exported.files[name] = {"path": str(folder / FORMATS[name]), "bytes": size, "smaller": dense / size}
    if check:
        readers = {name: _READERS[name](folder / FORMATS[name], model) for name in formats}
        _compare(trained, readers, counted(test_batches(recipe, dataset), progress), exported)
    return exported


def _refuse_others(name: str) -> None:
    """Refuse algorithms whose forward pass no file can hold."""
    row = ALGORITHMS[name]
    if row.forward_activation or row.projected_output or row.forward_weight == "random":
        raise InvalidValue(
            f"a network trained with {name!r} ({row.summary}) does so when it answers, too, and an exported "
            "file does not: it would predict something else. --no-check writes it all the same."
        )


def _save(model: nn.Module, path: Path, recipe: Recipe, checkpoint: Checkpoint, dataset: Dataset) -> None:
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
        gap = float((open_onnx(file)(pictures) - expected).abs().max())
        if not gap <= ROUNDING * float(expected.abs().max()):
            raise InvalidData(f"ONNX Runtime computes something else from {file} than torch does")
    if "program" in formats:
        export_program(model, folder / FORMATS["program"], package.graph.input_shape)


# ---- the proof ---------------------------------------------------------------------------------------------

Run = Callable[[Tensor], Tensor]
"""From images, normalised, to scores."""


def _read_dense(path: Path, model: nn.Module) -> Run:
    again = copy.deepcopy(model)
    again.load_state_dict(safetensors.torch.load_file(path))
    return again


_READERS: dict[str, Callable[[Path, nn.Module], Run]] = {
    "sparse": lambda path, model: load(path),
    "dense": _read_dense,
    "onnx": lambda path, model: open_onnx(path),
    "program": lambda path, model: open_program(path),
}
"""Each format read again from its file, as its users do."""


@torch.no_grad()
def _compare(
    trained: nn.Module, readers: dict[str, Run], batches: Iterable[tuple[Tensor, Tensor]], exported: Exported
) -> None:
    """Compare the predictions of all files with the trained network's."""
    right, differing, gaps = Counter[str](), Counter[str](), dict.fromkeys(readers, 0.0)
    evaluated, largest = 0, 0.0
    for images, labels in batches:
        expected = trained(images)
        evaluated += int((expected.argmax(1) == labels).sum())
        largest = max(largest, float(expected.abs().max()))
        exported.images += len(labels)
        for name, run in readers.items():
            scores = run(images)
            right[name] += int((scores.argmax(1) == labels).sum())
            differing[name] += int((scores.argmax(1) != expected.argmax(1)).sum())
            gaps[name] = max(gaps[name], float((scores - expected).abs().max()))
    exported.accuracy = 100 * evaluated / exported.images
    for name in readers:
        exported.files[name] |= {
            "accuracy": 100 * right[name] / exported.images,
            "differing": differing[name],
            "largest_gap": gaps[name],
        }
        if not gaps[name] <= ROUNDING * largest:
            raise InvalidData(
                f"{exported.files[name]['path']} predicts something else than the trained network: "
                f"{differing[name]} of {exported.images} predictions differ, and scores of up to "
                f"{largest:.3g} by up to {gaps[name]:.3g}. Do not use it, and please report this."
            )
