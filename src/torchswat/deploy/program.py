"""Export as a program of `torch.export`, whose sparse convolutions are this package's own operation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from torchswat.files import write_atomically
from torchswat.runtime.operators import Program
from torchswat.runtime.package import Package


def export_program(package: Package, path: Path) -> None:
    """Write a ``.pt2`` file that takes any number of images.

    It runs wherever torch does: ``import torchswat.runtime.operators``, then
    ``torch.export.load(path).module()(images)``. (Load only files that you trust: torch's loader is not
    made for others.)
    """
    tensors = {name: torch.from_numpy(tensor) for name, tensor in package.tensors.items()}
    program = Program(package.graph, tensors).eval()
    pictures = torch.zeros(2, *package.graph.input_shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of torch's own calls
        exported = torch.export.export(
            program, (pictures,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
        )
        content = io.BytesIO()
        torch.export.save(exported, content)
    write_atomically(path, content.getvalue())


def open_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the program in a file that `export_program` wrote; only for files that you trust."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()
