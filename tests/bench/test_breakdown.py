"""A step is split without gaps, and the model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import record_function

from torchswat import models, sparsify_
from torchswat.bench.breakdown import KINDS, breakdown
from torchswat.bench.step import _Step


def test_every_kind_of_a_sparse_step():
    model = sparsify_(models.create("resnet-digits"), sparsity=0.8)
    parts = breakdown(_Step(model, torch.randn(16, 1, 8, 8), torch.randint(10, (16,))), model)
    assert list(parts) == [*KINDS, "rest"]
    for kind in (
        "products",
        "packing",
        "compressing",
        "selection",
        "batch norm",  # with the ReLUs and sums that are fused with it
        "optimizer",
        "rest",
    ):
        assert parts[kind] > 0, kind
    for module in model.modules():
        assert "_selections" not in vars(module)


def test_work_belongs_to_the_innermost_kind_around_it():
    def step():
        with record_function("torchswat::compress"):
            torch.randn(300, 300) @ torch.randn(300, 300)  # the product is a product, the numbers are not
        torch.randn(300, 300)

    parts = breakdown(step, torch.nn.Identity())
    assert parts["products"] > 0 and parts["compressing"] > 0 and parts["rest"] > 0
    assert sum(parts.values()) == pytest.approx(parts["products"] + parts["compressing"] + parts["rest"])
