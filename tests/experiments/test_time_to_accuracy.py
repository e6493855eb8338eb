"""Accuracy over seconds: which schedules are trained, who is compared with whom, and when a level is held."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchswat.experiments.outcome import Trained, Work
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.scales import SCALES, Training
from torchswat.experiments.step_times import path_of
from torchswat.experiments.time_to_accuracy import dense_at, reached

CPU = SCALES["cpu"]
FIGURE = EXPERIMENTS["time-to-accuracy"]
MS = {"swat 0.5": 700.0, "swat 0.7": 600.0, "swat 0.8": 550.0, "swat 0.9": 500.0, "saw 0.8": 800.0}


def timed(folder: Path, bfloat16: float | None = None, **ms: float) -> None:
    """Write times as a benchmark would: a dense step takes a second, reading the data nothing."""
    steps = {"dense": 1000.0, **MS, **ms}
    named = {f"{name} float32": value for name, value in steps.items()}
    named["dense end of swat 0.8 float32"] = 1000.0
    if bfloat16:
        named["dense bfloat16"] = named["dense end of swat 0.8 bfloat16"] = bfloat16
        named |= {"swat 0.8 bfloat16": 0.6 * bfloat16, "swat 0.8 2x2 bfloat16": 0.5 * bfloat16}
    facts = {
        "circumstances": {"repeats": 7, "processor": "a processor", "threads": 2, "engine": {"isa": "avx2"}},
        "batch_size": 2000,
        "steps_per_epoch": 25,
        "data_ms": 0.0,
        "steps": {n: {"ms": v, "spread": 0.01, "layout": "nchw", "macs": 1e12 * v} for n, v in named.items()},
        "remarks": [],
    }
    path_of(FIGURE.needs(CPU)[0].recipe(CPU), folder).write_text(json.dumps(facts))


def epochs_of(training: Training) -> int:
    return training.recipe(CPU).optimizer.epochs


def made(
    folder: Path, accuracy_of: Callable[[Training], float], there: Callable[[Training], bool] = lambda t: True
):
    trained = []
    for training in FIGURE.needs(CPU, folder):
        if there(training):
            end = accuracy_of(training)
            curve = tuple(
                end * (0.8 + 0.2 * (e + 1) / epochs_of(training)) for e in range(epochs_of(training))
            )
            trained.append(Trained(training, folder / training.folder_name(CPU), end, end, curve))
    outcome = FIGURE.make(Work(CPU, trained, folder))
    assert len(outcome.rows) == len(trained) and len(outcome.figure.axes) in (2, 3)
    holds = {finding.claim.partition(".")[2]: finding.holds for finding in outcome.findings}
    if not any("precision=bfloat16" in one.training.settings for one in trained):
        narrow = [holds.pop(claim) for claim in ("bfloat16", "bfloat16-start", "rounding", "blocks")]
        assert narrow == [None] * 4
    return outcome, holds


def test_dense_schedules_end_around_those_of_the_contenders(tmp_path):
    assert {epochs_of(t) for t in FIGURE.needs(CPU, tmp_path)} == {8}, "nothing was timed yet"
    timed(tmp_path)  # SWAT: 0.55 * 8 = 4.4 dense epochs; six of them sparse: 0.55 * 6 + 2 = 5.3
    needed = FIGURE.needs(CPU, tmp_path)
    short = [t for t in needed if t.algorithm == "dense" and t.settings and t.seed == 0]
    assert [epochs_of(t) for t in short] == [4, 5, 6]
    assert not any("bfloat16" in setting for t in needed for setting in t.settings)
    timed(tmp_path, bfloat16=600.0)
    narrow = [t for t in FIGURE.needs(CPU, tmp_path) if "precision=bfloat16" in t.settings and t.seed == 0]
    whole = [t for t in narrow if epochs_of(t) == 8]
    assert [t.algorithm for t in whole] == ["dense", "swat", "swat", "swat"]
    assert [epochs_of(t) for t in narrow if t.algorithm == "dense"] == [8, 4, 5, 6]  # 4.8 and 5.6
    assert [t for t in whole if "sparse.block=[2, 2]" in t.settings] == whole[-1:]


def test_bfloat16_is_judged_against_dense_bfloat16(tmp_path):
    timed(tmp_path, bfloat16=600.0)

    def found(training: Training, gain: float) -> float:
        if training.algorithm == "dense":
            return dense_of(training)
        blocks = "sparse.block=[2, 2]" in training.settings
        return (90.4 + gain + 0.1 * training.seed) - 0.9 * blocks  # dense bfloat16 reaches 90.4 in 4.8 epochs

    outcome, holds = made(tmp_path, lambda t: found(t, 0.6))
    assert holds["bfloat16"] is True and holds["bfloat16-start"] is False
    assert holds["rounding"] is True and holds["blocks"] is True
    assert "of dense bfloat16 in the same seconds" in outcome.findings[2].observed
    assert made(tmp_path, lambda t: found(t, 0.4))[1]["bfloat16"] is False
    off = lambda t: found(t, 0.6) - 0.4 * ("precision=bfloat16" in t.settings)  # noqa: E731
    assert made(tmp_path, off)[1]["rounding"] is False


def test_where_sparse_steps_are_no_faster_there_is_no_shorter_schedule(tmp_path):
    timed(tmp_path, **{"swat 0.8": 1200.0})
    assert not [t for t in FIGURE.needs(CPU, tmp_path) if t.algorithm == "dense" and t.settings]


def dense_of(training: Training) -> float:
    """More epochs, more accuracy: half a point each."""
    return 90 + 0.5 * (epochs_of(training) - 4) + 0.1 * training.seed


def test_points_above_dense_in_the_same_seconds(tmp_path):
    timed(tmp_path)  # at 4.4 epochs dense reaches 90.2

    def found(training: Training, gain: float) -> float:
        return dense_of(training) if training.algorithm == "dense" else 90.2 + gain + 0.1 * training.seed

    outcome, holds = made(tmp_path, lambda t: found(t, 1.1))
    assert holds == {"swat": True, "start": False, "90": True}  # the dense end takes as long as 5.3 epochs
    assert "91.40 % against 90.30 %" in outcome.findings[0].observed
    assert made(tmp_path, lambda t: found(t, 0.9))[1]["swat"] is False
    assert made(tmp_path, lambda t: found(t, 1.7))[1]["start"] is True
    assert made(tmp_path, lambda t: found(t, 1.1 + (3, -2, -1)[t.seed]))[1]["swat"] is False, "chance"


def test_partial_results_are_drawn_and_judge_nothing(tmp_path):
    timed(tmp_path)
    outcome, holds = made(tmp_path, dense_of, lambda t: t.seed == 0)
    assert holds == {"swat": None, "start": None, "90": True}
    assert all(row["training"].endswith(" (1 of 3 seeds)") for row in outcome.table)
    outcome, holds = made(tmp_path, dense_of, lambda t: t.algorithm == "swat" and not t.settings)
    assert holds == dict.fromkeys(("swat", "start", "90"))
    outcome, holds = made(tmp_path, dense_of, lambda t: t.algorithm == "dense")
    assert holds == dict.fromkeys(("swat", "start", "90"))


def test_the_table_says_when_a_level_is_first_held(tmp_path):
    timed(tmp_path)
    outcome, _ = made(tmp_path, lambda t: 92.0 if t.algorithm == "dense" else 90.5)
    by_kind = {row["training"]: row for row in outcome.table}
    assert by_kind["dense float32"]["minutes"] == "3.33" and by_kind["dense float32"]["to 92 %"] == "3.33"
    assert by_kind["SWAT 80 %"]["to 92 %"] == "–" and by_kind["SWAT 80 %"]["minutes"] == "1.83"
    assert by_kind["SWAT 80 %, dense after 6 epochs"]["minutes"] == "2.21"
    assert by_kind["dense float32, 4 epochs"]["operations (10¹²)"] == "100000.0"
    assert by_kind["dense float32"]["accuracy (%)"] == "92.00 ± 0.00"


@given(st.lists(st.floats(0, 100), min_size=1, max_size=10), st.floats(0, 100))
def test_a_level_that_is_held_is_not_left_again(curve, level):
    at = reached(curve, [float(place) for place in range(len(curve))], level)
    if at is None:
        assert curve[-1] < level
    else:
        assert min(curve[int(at) :]) >= level and (at == 0 or curve[int(at) - 1] < level)


@given(
    st.lists(
        st.tuples(st.floats(1, 100), st.floats(0, 100)), min_size=2, max_size=6, unique_by=lambda p: p[0]
    )
)
def test_dense_accuracy_is_that_of_the_schedules_at_their_ends(schedules):
    for seconds, accuracy in schedules:
        assert dense_at(seconds, schedules) == pytest.approx(accuracy)
    longest = max(schedules)
    assert dense_at(2 * longest[0], schedules) == longest[1]
    assert dense_at(min(schedules)[0] / 2, schedules) is None
