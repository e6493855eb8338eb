"""Figures 9a to 9d, against numbers that were found without this package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from torchswat.experiments.angles import needed_shares
from torchswat.experiments.outcome import Work
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES


def made(figure: str):
    outcome = EXPERIMENTS[figure].make(Work(SCALES["smoke"], [], Path()))
    assert all(finding.holds for finding in outcome.findings), outcome.findings
    return outcome.rows


def test_the_distribution_of_angles():
    rows = {row["what"]: row for row in made("9a")}
    assert rows["top-k 0.8"]["peak"] == pytest.approx(36.4, abs=0.5)
    assert rows["top-k 0.9"]["mean"] == pytest.approx(48.5, abs=0.2)
    assert rows["two random vectors"]["mean"] == pytest.approx(90, abs=0.1)
    assert rows["two random vectors"]["deviation"] == pytest.approx(np.degrees(1 / np.sqrt(1000)), abs=0.05)


def test_the_share_needed_is_the_least():
    share, dimension = float(needed_shares(50, 30, trials=1)[0]), 50
    from torchswat.analysis import angle
    from torchswat.experiments.angles import _normal

    vector = _normal(1, dimension, seed=dimension)
    kept = round(share * dimension)
    assert float(angle(vector, 1 - kept / dimension)) <= 30 < float(angle(vector, 1 - (kept - 1) / dimension))


def test_shares_and_deviations():
    at = {row["degrees"]: row for row in made("9b") if row["dimension"] == 1000}
    assert [at[d]["percent"] for d in (20, 30, 40)] == pytest.approx([41.8, 27.2, 16.5], abs=0.3)
    assert all(at[d]["deviation"] < 1.2 for d in at)


def test_the_angle_falls_with_the_share():
    rows = made("9d")
    means = [row["mean"] for row in rows]
    assert means == sorted(means, reverse=True)
    assert all(row["low"] <= row["mean"] <= row["high"] for row in rows)
    assert all(row["mean"] == pytest.approx(row["expected"], abs=0.6) for row in rows)
