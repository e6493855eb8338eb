"""A step is split without gaps, and the model is as it was afterwards."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import record_function

from torchswat import models, sparsify_
from torchswat.bench.breakdown import _CALLS, KINDS, breakdown
from torchswat.bench.step import Step
from torchswat.engine.loader import native


def test_every_kind_of_a_sparse_step():
    module = native()
    if module is None:
        pytest.skip("the native engine is not built here")
    beginnings = tuple(name for names in _CALLS.values() for name in names)
    before = {name: getattr(module, name) for name in dir(module) if name.startswith(beginnings)}
    model = sparsify_(models.create("resnet-digits"), sparsity=0.8)
    parts = breakdown(Step(model, torch.randn(16, 1, 8, 8), torch.randint(10, (16,))))
    assert list(parts) == [*KINDS, "rest"]
    for kind in (
        "products",
        "saving",
        "selection",
        "batch norm",  # with the ReLUs and sums that are fused with it
        "optimizer",
        "rest",
    ):
        assert parts[kind] > 0, kind
    assert all(getattr(module, name) is function for name, function in before.items())


def test_work_belongs_to_the_innermost_kind_around_it():
    def step():
        with record_function("torchswat::saving"):
            torch.randn(300, 300) @ torch.randn(300, 300)  # the product is a product, the numbers are not
        torch.randn(300, 300)

    parts = breakdown(step)
    assert parts["products"] > 0 and parts["saving"] > 0 and parts["rest"] > 0
    assert sum(parts.values()) == pytest.approx(parts["products"] + parts["saving"] + parts["rest"])
