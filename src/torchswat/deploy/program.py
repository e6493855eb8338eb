"""Export as a program of `torch.export`, whose sparse convolutions are this package's own operation."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from torchswat.files import write_atomically
from torchswat.runtime.operators import with_sparse_convolutions


def export_program(model: nn.Module, path: Path, input_shape: Sequence[int]) -> None:
    """Write a plain, pruned network as a ``.pt2`` file that takes any number of images of `input_shape`, (C, H, W).

    It runs wherever torch does: ``import torchswat.runtime.operators``, then
    ``torch.export.load(path).module()(images)``. (Load only files that you trust: torch's loader is not
    made for others.)
    """
    images = torch.zeros(2, *input_shape)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's exporter warns of torch's own calls
        program = with_sparse_convolutions(model)
        shapes = ({0: torch.export.Dim("n", min=1)},)
        exported = torch.export.export(program, (images,), dynamic_shapes=shapes)
        content = io.BytesIO()
        torch.export.save(exported, content)
    write_atomically(path, content.getvalue())


def open_program(path: Path) -> Callable[[Tensor], Tensor]:
    """Return the program in a file that `export_program` wrote; only for files that you trust."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(path).module()
