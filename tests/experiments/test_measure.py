"""What is measured: bytes of real storages, and times that are kept."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from torchswat import sparsify_
from torchswat.experiments import measure
from torchswat.experiments.measure import kept_bytes, measured_steps


def test_each_storage_counts_once_and_parameters_do_not():
    images = torch.randn(4, 3, 8, 8)
    convolution = nn.Conv2d(3, 8, 3, padding=1)
    assert kept_bytes(convolution, images) == 0, "the images and the weight are there anyway"
    output = 4 * 8 * 64 * 4
    assert kept_bytes(nn.Sequential(convolution, nn.ReLU()), images) == output
    # ReLU keeps its output, which is the second convolution's input: one storage
    twice = nn.Sequential(convolution, nn.ReLU(), nn.Conv2d(8, 8, 3))
    assert kept_bytes(twice, images) == output


@pytest.mark.skipif(
    "not __import__('torchswat').engine.info()['isa']", reason="compressed by the engine alone"
)
def test_a_sparse_network_keeps_less():
    images = torch.randn(16, 16, 16, 16)
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(3)))
    dense = kept_bytes(model, images)
    assert kept_bytes(sparsify_(model, sparsity=0.8), images) < 0.6 * dense


def test_what_was_measured_is_kept(tmp_path, monkeypatch):
    first = measured_steps("resnet8", "cifar", (0.5, 0.8), batch_size=4, repeats=1, folder=tmp_path)
    assert first["dense_ms"] > 0 and first["0.8"]["ms"] > 0 and 0 <= first["selection_share"] < 1
    assert "git_commit" in first["circumstances"]
    monkeypatch.setattr(measure, "race", None)
    assert measured_steps("resnet8", "cifar", (0.5, 0.8), batch_size=4, repeats=1, folder=tmp_path) == first
