"""Lemma B.1: tried on all masks there are."""

from __future__ import annotations

from math import comb
from pathlib import Path

import pytest
import torch

from torchswat.analysis import masked_angle
from torchswat.experiments import lemma
from torchswat.experiments.outcome import Work
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_all_masks_are_all_and_different(kept):
    masks = lemma.all_masks(4, kept)
    assert len({tuple(mask.tolist()) for mask in masks}) == len(masks) == comb(4, kept)
    assert (masks.sum(1) == kept).all()


def test_it_holds():
    findings = EXPERIMENTS["lemma-b1"].make(Work(SCALES["smoke"], [], Path())).findings
    assert {finding.claim: finding.holds for finding in findings} == {
        "lemma-b1.least": True,
        "lemma-b1.cosine": True,
    }


def test_it_would_be_seen_if_it_did_not(monkeypatch):
    """The smallest entries instead of the largest turn a vector further."""
    smallest = lambda vectors, sparsity, scope: lemma.select(1 / (vectors.abs() + 1e-9), sparsity, scope)  # noqa: E731
    vectors = lemma._vectors()[:5]
    worse = masked_angle(vectors, smallest(vectors, 0.5, "chw"))
    assert (worse > masked_angle(vectors, lemma.select(vectors, 0.5, "chw"))).all()
    assert torch.isfinite(worse).all()
