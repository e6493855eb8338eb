"""What is left to train, and how long it takes: from runs of the same kind, from timed steps, or not known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from torchswat.experiments.forecast import forecast
from torchswat.experiments.scales import SCALES, Training

SMOKE = SCALES["smoke"]
SWAT = Training("resnet18", "cifar10", "swat", 0.8, 0)
DENSE = Training("resnet18", "cifar10", "dense", 0.0, 0)


def begun(training: Training, folder: Path, seconds: list[float], finished: bool = True) -> None:
    """A run as its records tell of it."""
    path = folder / training.folder_name(SMOKE)
    path.mkdir(parents=True)
    (path / "recipe.yaml").write_text(training.recipe(SMOKE).to_yaml())
    rows = [f"{place},{took}" for place, took in enumerate(seconds, 1)]
    (path / "metrics.csv").write_text("\n".join(["epoch,seconds", *rows]) + "\n")
    if finished:
        (path / "summary.json").write_text("{}")


def test_nothing_is_known_without_runs(tmp_path):
    left = forecast([SWAT, replace(SWAT, seed=1)], SMOKE, tmp_path)
    assert (left.runs, left.finished, left.epochs, left.hours, left.unknown) == (2, 0, 4, 0.0, 2)
    assert left.time == "unknown"


def test_runs_of_the_same_kind_tell(tmp_path):
    begun(SWAT, tmp_path, [3000.0, 4200.0])
    others = [replace(SWAT, seed=1), replace(SWAT, settings=("optimizer.epochs=5",))]
    left = forecast([SWAT, *others], SMOKE, tmp_path)
    assert (left.runs, left.finished, left.epochs, left.hours, left.unknown) == (3, 1, 7, 7.0, 0)
    other_kinds = [replace(SWAT, sparsity=0.5), replace(SWAT, scope="hw"), DENSE]
    assert forecast(other_kinds, SMOKE, tmp_path).unknown == 3
    assert forecast([*others, DENSE], SMOKE, tmp_path).time == "7.0 h, and 1 run of unknown length"


def test_a_run_under_way_counts_as_far_as_it_came(tmp_path):
    begun(SWAT, tmp_path, [3600.0], finished=False)
    left = forecast([SWAT], SMOKE, tmp_path)
    assert (left.finished, left.epochs, left.hours) == (0, 1, 1.0)


def test_a_guess_is_asked_where_no_run_tells(tmp_path):
    begun(SWAT, tmp_path, [3600.0, 3600.0])
    dense_only = lambda recipe: 1800.0 if recipe.sparse.algorithm == "dense" else None  # noqa: E731
    left = forecast([replace(SWAT, seed=1), DENSE], SMOKE, tmp_path, [dense_only])
    assert left.hours == pytest.approx(2 + 1)


def test_what_two_figures_share_counts_once(tmp_path):
    same = replace(SWAT, data="cifar100")  # digits stand for both
    assert forecast([SWAT, same], SMOKE, tmp_path).runs == 1
