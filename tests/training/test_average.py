"""Averaged weights: the formula, what is copied, and what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from torchswat.convert import sparse_layers, sparsify_
from torchswat.training.average import AveragedWeights


@given(st.floats(0.1, 0.999), st.lists(st.floats(-10, 10), min_size=1, max_size=30))
def test_the_average_is_its_formula_and_lies_between_the_weights(decay, values):
    layer = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(layer.weight, values[0])
    average, expected = AveragedWeights(layer, decay), values[0]
    for step, value in enumerate(values, start=1):
        nn.init.constant_(layer.weight, value)
        average.update(layer, step)
        kept = min(decay, (step + 1) / (step + 10))
        expected = kept * expected + (1 - kept) * value
        assert layer.weight.item() == value
    assert average.model.weight.item() == pytest.approx(expected, abs=1e-9)
    assert min(values) - 1e-9 <= expected <= max(values) + 1e-9


def test_statistics_are_averaged_and_counts_and_states_copied():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    sparsify_(model, sparsity=0.5)
    average = AveragedWeights(model, 0.9)
    for step in range(1, 4):
        model(torch.randn(8, 2, 3, 3) + 5).sum().backward()
        average.update(model, step)
    assert average.model[1].num_batches_tracked == 3
    assert not torch.equal(average.model[1].running_mean, model[1].running_mean)
    assert [layer.sparse.iteration for _, layer in sparse_layers(average.model)] == [3, 3]
    assert average.model.state_dict().keys() == model.state_dict().keys()
