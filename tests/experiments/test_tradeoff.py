"""Figures 4, 5, 6a and pruning: the paper's limits, from both sides."""

from __future__ import annotations

import pytest

from torchswat.experiments.scales import Training

PAPER = {0.0: 0.0, 0.5: -0.1, 0.6: 0.2, 0.7: 0.5, 0.8: 1.7, 0.9: 4.0}


def losing(points: dict[float, float]):
    return lambda t: 90 - points[t.sparsity] + 0.1 * t.seed


def test_the_papers_own_losses_are_found_to_hold(judge):
    assert judge("4", losing(PAPER)) == dict.fromkeys(("4.50", "4.60", "4.70", "4.80"), True)


@pytest.mark.parametrize(
    "claim, sparsity, loss", [("4.50", 0.5, 0.1), ("4.60", 0.6, 0.6), ("4.70", 0.7, 0.7), ("4.80", 0.8, 2.0)]
)
def test_each_limit_can_be_broken(judge, claim, sparsity, loss):
    found = judge("4", losing({**PAPER, sparsity: loss}))
    assert [name for name, holds in found.items() if not holds] == [claim]


def test_saw_and_swat_have_limits_of_their_own(judge):
    def found(t: Training) -> float:
        return 90 - (2.2 if t.algorithm == "swat" and t.sparsity == 0.8 else PAPER[t.sparsity])

    assert judge("4", found)["4.80"] is True


def test_imagenet(judge):
    def found(t: Training) -> float:
        return 70 - {"dense": 0, "swat": 0.3 if t.sparsity < 0.6 else 2, "saw": 0.3, "dsg": 2.8}[t.algorithm]

    assert judge("5", found, "paper") == dict.fromkeys(("5.50", "5.70", "5.dsg", "5.rate"), True)
    slow = judge("5", lambda t: 70 - 3 * (t.algorithm == "swat"), "paper")
    assert slow == {"5.50": False, "5.70": False, "5.dsg": False, "5.rate": True}


def test_a_curve_that_rises_late_is_another_rate(judge, tmp_path):
    from torchswat.experiments.outcome import Trained
    from torchswat.experiments.tradeoff import _epochs_to_converge

    training = Training("resnet18", "imagenet", "swat", 0.5, 0)
    fast, slow = (
        Trained(training, tmp_path, 80, 80, curve)
        for curve in ((79.0, 79.5, 80.0, 80.0), (10.0, 20.0, 40.0, 80.0))
    )
    assert (_epochs_to_converge([fast]), _epochs_to_converge([slow])) == (1, 4)


def test_depth_and_width(judge):
    wide = {"swat": 0.4, "saw": 0.6}

    def found(t: Training) -> float:
        return 75 - (wide.get(t.algorithm, 0) if t.network == "wrn28-10" else -0.2 * (t.sparsity > 0))

    assert judge("6a", found) == {"6a.depth": True, "6a.width": True}
    assert judge("6a", lambda t: 75 - t.sparsity) == {"6a.depth": False, "6a.width": False}
    assert "6a.width" not in judge("6a", found, "smoke"), "one network stands for all there"


def test_pruning(judge):
    assert judge("inference", lambda t: 80.0) == {"inference.lossless": True}
    assert judge("inference", lambda t: 80.0, pruned=79.9) == {"inference.lossless": False}
