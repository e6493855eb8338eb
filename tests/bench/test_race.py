"""Contestants in turns, and what is made of their times."""

from __future__ import annotations

import time

import pytest

from torchswat.bench.race import faster, median, race, spread


def test_contestants_take_turns_and_the_first_round_is_not_timed():
    order: list[str] = []
    rounds: list[int] = []
    samples = race(
        {"a": lambda: order.append("a"), "b": lambda: order.append("b")},
        repeats=2,
        tick=lambda: rounds.append(len(order)),
    )
    assert order == ["a", "b"] * 3 and rounds == [2, 4, 6]
    assert {name: len(times) for name, times in samples.items()} == {"a": 2, "b": 2}


def test_times_are_milliseconds():
    (sample,) = race({"sleep": lambda: time.sleep(0.02)}, repeats=1)["sleep"]
    assert sample >= 20


def test_median_spread_and_the_faster_one():
    assert median([1.0, 5.0, 3.0]) == 3
    assert spread([8.0, 10.0, 12.0]) == pytest.approx(0.2) and spread([4.0]) == 0
    assert faster({"slow": [3.0, 3.0, 1.0], "fast": [2.0, 2.0, 9.0]}) == "fast"


def test_in_turns_each_runs_before_it_is_timed_and_another_begins():
    order = []
    contestants = {name: lambda name=name: order.append(name) for name in "ab"}
    assert {name: len(times) for name, times in race(contestants, 2, in_turns=True).items()} == {
        "a": 2,
        "b": 2,
    }
    assert "".join(order) == "aabb" + "bbaa" + "aabb"
