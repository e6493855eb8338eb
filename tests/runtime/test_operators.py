"""Programs of torch.export: the sparse convolution as an operation of torch, saved and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from torchswat.deploy.program import export_program
from torchswat.engine.loader import engine
from torchswat.errors import InvalidValue
from torchswat.runtime.operators import SparseConv2d, sparse_conv2d, with_sparse_convolutions
from torchswat.runtime.trace import pruned

from .conftest import same_up_to_rounding


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_program_computes_the_same(small_model: nn.Module, tmp_path: Path):
    network = pruned(small_model)
    assert any(isinstance(layer, SparseConv2d) for layer in with_sparse_convolutions(network).modules())
    export_program(network, tmp_path / "it.pt2", (1, 8, 8))
    program = torch.export.load(tmp_path / "it.pt2").module()
    for pictures in (1, 4, 17):
        x = torch.randn(pictures, 1, 8, 8)
        same_up_to_rounding(program(x), network(x))
    with engine("reference"):
        same_up_to_rounding(program(x), network(x))


def arguments(relu: bool = True) -> tuple:
    weight = torch.randn(4, 3, 3, 3) * (torch.rand(4, 3, 3, 3) < 0.3)
    kept = weight != 0
    bits = (torch.nn.functional.pad(kept.flatten(), (0, 4)).view(-1, 8) * 2 ** torch.arange(8)).sum(1)
    sizes = [4, 3, 3, 3], [2, 1], [1, 1]
    x, residual = torch.randn(2, 3, 6, 6), torch.randn(2, 4, 3, 6)
    return (x, weight[kept], bits.to(torch.uint8), torch.randn(4), residual, *sizes, relu)


def test_torch_finds_nothing_wrong_with_it():
    torch.library.opcheck(sparse_conv2d, arguments(), test_utils=("test_schema", "test_faketensor"))


def test_bits_that_do_not_fit():
    values = arguments()
    with pytest.raises(InvalidValue, match="bits are set"):
        sparse_conv2d(values[0], values[1][:-1], *values[2:])
