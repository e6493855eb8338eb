"""Evaluation counts every image once and leaves no trace in the training."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from torchswat.convert import sparsify_
from torchswat.training.evaluate import batch_sums, evaluate, means


@given(size=st.integers(1, 7), seed=st.integers(0, 99))
def test_the_batch_size_does_not_matter(size, seed):
    torch.manual_seed(seed)
    images, labels = torch.randn(13, 4), torch.randint(0, 3, (13,))
    model = nn.Linear(4, 3)
    sums = evaluate(model, list(zip(images.split(size), labels.split(size), strict=True)))
    whole = cross_entropy(model(images), labels).item()
    correct = (model(images).argmax(1) == labels).double().mean().item()
    assert means(sums) == (pytest.approx(whole, rel=1e-5), pytest.approx(100 * correct))
    assert sums[2] == 13


def test_mode_and_random_numbers_are_as_before():
    model = sparsify_(nn.Sequential(nn.Linear(8, 4)), "random", 0.5)
    batches = [(torch.randn(2, 8), torch.tensor([0, 1]))]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    evaluate(model, batches)
    assert model.training and torch.equal(torch.get_rng_state(), before)
    evaluate(model.eval(), batches)
    assert not model.training


def test_batch_norm_is_in_evaluation_mode():
    model = nn.Sequential(nn.BatchNorm1d(2))
    evaluate(model, [(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]))])
    assert model[0].num_batches_tracked == 0


def test_sums_are_float64():
    assert batch_sums(torch.tensor(1.0), torch.eye(2), torch.tensor([0, 1])).dtype == torch.float64
