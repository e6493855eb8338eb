"""A trained network from its folder or from a checkpoint alone."""

from __future__ import annotations

import shutil

import pytest

from torchswat.errors import InvalidData, MissingData
from torchswat.training.checkpoint import list_checkpoints
from torchswat.training.loop import Trainer, train
from torchswat.training.reload import evaluate_saved, find_checkpoint


def test_run_checkpoint_and_pruned_agree_with_the_summary(tiny, tmp_path):
    summary = train(tiny(), tmp_path / "run")
    best = evaluate_saved(tmp_path / "run")
    assert (
        best["accuracy"] == summary.best.sparse
        and best["epoch"] == summary.best.epoch
        and best["images"] == 100
    )
    assert evaluate_saved(tmp_path / "run", pruned=True)["accuracy"] == summary.best.pruned
    last = list_checkpoints(tmp_path / "run" / "checkpoints")[-1]
    alone = shutil.copy(last, tmp_path / "alone.safetensors")
    shutil.rmtree(tmp_path / "run")
    assert evaluate_saved(alone)["accuracy"] == summary.last.sparse


def test_other_data_must_fit(tiny, tmp_path):
    train(tiny(optimizer={"epochs": 1, "milestones": []}), tmp_path / "run")
    with pytest.raises(InvalidData, match="does not fit"):
        evaluate_saved(tmp_path / "run", data="synthetic")


def test_what_cannot_be_found(tiny, tmp_path):
    with pytest.raises(MissingData, match="no checkpoint at"):
        evaluate_saved(tmp_path / "none")
    trainer = Trainer(tiny(), tmp_path / "begun", None)
    trainer.begin()
    with pytest.raises(MissingData, match="no checkpoint yet"):
        find_checkpoint(tmp_path / "begun")
