"""Figures 6b and 9e, from the records of runs."""

from __future__ import annotations

import math

import pytest

from torchswat.errors import InvalidData
from torchswat.experiments.live import sights
from torchswat.experiments.outcome import Trained, Work
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES


def made(figure: str, folder, threshold=lambda step: 0.1, angle: float = 30.0) -> dict[str, bool | None]:
    trained = []
    for training in EXPERIMENTS[figure].needs(SCALES["cpu"]):
        run = folder / training.folder_name(SCALES["cpu"])
        run.mkdir(exist_ok=True)
        lines = ["step,layer,operand,sparsity,threshold,angle,density"]
        for step in range(10, 1010, 10):
            lines += [
                f"{step},{layer},{o},0.7,{threshold(step)},{angle},0.3"
                for layer in ("a", "b")
                for o in ("weight", "activation")
            ]
        (run / "analysis.csv").write_text("\n".join(lines) + "\n")
        trained.append(Trained(training, run, 50.0, 50.0, (50.0,)))
    outcome = EXPERIMENTS[figure].make(Work(SCALES["cpu"], trained, folder))
    assert len(outcome.rows) == 3 * 100 * 4
    return {finding.claim: finding.holds for finding in outcome.findings}


def test_thresholds_that_stay_and_thresholds_that_move(tmp_path):
    assert made("6b", tmp_path) == {"6b.threshold": True}
    settles = made("6b", tmp_path, lambda step: 0.1 + math.exp(-step / 10))
    assert settles == {"6b.threshold": True}, "what happens in the first tenth does not count"
    assert made("6b", tmp_path, lambda step: step / 1000) == {"6b.threshold": False}


def test_angles_below_and_above_the_bound(tmp_path):
    assert made("9e", tmp_path) == {"9e.angle": True}
    assert made("9e", tmp_path, angle=36.1) == {"9e.angle": False}


def test_a_run_without_a_record_is_named(tmp_path):
    (training, *_) = EXPERIMENTS["9e"].needs(SCALES["cpu"])
    with pytest.raises(InvalidData, match="recorded no thresholds"):
        sights(Trained(training, tmp_path, 50.0, 50.0, ()))
