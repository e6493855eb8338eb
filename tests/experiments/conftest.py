"""Trainings that were never run: what figures are judged on, made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from torchswat.experiments.outcome import Outcome, Trained, Work
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES, Training

Judge = Callable[..., dict[str, bool | None]]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Make a figure of trainings with the accuracies that `accuracy_of` gives; return its findings."""

    def make(figure: str, accuracy_of: Callable[[Training], float], scale: str = "cpu", **more) -> dict:
        size = SCALES[scale]
        trained = [
            Trained(t, tmp_path / t.folder_name(size), accuracy_of(t), **{**_default(accuracy_of(t)), **more})
            for t in EXPERIMENTS[figure].needs(size)
        ]
        outcome = EXPERIMENTS[figure].make(Work(size, trained, tmp_path))
        check(outcome, trained)
        return {finding.claim: finding.holds for finding in outcome.findings}

    return make


def _default(accuracy: float) -> dict[str, object]:
    return {"pruned": accuracy, "curve": (accuracy / 2, 0.98 * accuracy, accuracy)}


def check(outcome: Outcome, trained: Sequence[Trained]) -> None:
    """A figure has data for each training, and axes with labels."""
    assert len(outcome.rows) == len(trained)
    assert all(panel.get_ylabel() for panel in outcome.figure.axes)
