"""The cost model: a fit finds the costs that made the samples, and the stored costs agree with races."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.bench import calibrate
from torchswat.bench.calibrate import KINDS, Sample, agreement, fit, nonnegative_least_squares, random_shape
from torchswat.engine import info, plan_model
from torchswat.engine.plan_costs import COSTS, FITTED
from torchswat.engine.plan_model import PRODUCTS, WAYS, estimate, kind_of
from torchswat.engine.shape import Shape
from torchswat.engine.timings import Timing, multiply_adds

RACED = {
    "avx512": Path(__file__).parent / "races.jsonl",  # AMD Zen 5; one thread
    "avx512bf16": Path(__file__).parent / "races-bf16.jsonl",  # AMD Zen 5; one thread
    "avx2": Path(__file__).parent / "races-avx2.jsonl",  # AMD EPYC of family 25, model 1; one thread
}
"""Some of the races that the stored costs were fitted to."""


def raced(isa: str = "avx512") -> list[Sample]:
    return [Sample.of_line(line) for line in RACED[isa].read_text().splitlines()]


def shapes(count: int) -> list[Shape]:
    draw = random.Random(0)
    return [random_shape(draw) for _ in range(count)]


@pytest.mark.parametrize("isa", RACED)
def test_the_stored_costs_agree_with_races(isa):
    found = agreement(COSTS[isa], raced(isa))["all"]
    assert found.clear > 300
    assert found.agreed > 0.9 and found.wrongly_sparse < 0.04 and found.time < 1.1


def test_costs_that_are_wrong_do_not_agree():
    swapped = dict(COSTS["avx512"])
    for kind in KINDS:
        for product in PRODUCTS:
            dense = swapped[kind, product, "dense"]
            swapped[kind, product, "dense"] = tuple(cost / 10 for cost in dense)
    assert agreement(swapped, raced())["all"].agreed < 0.7


def test_every_kind_has_its_costs():
    every = {(kind, product, way) for kind in KINDS for product in PRODUCTS for way in WAYS}
    assert {kind_of(shape) for shape in shapes(300)} == set(KINDS)
    assert set(FITTED) == set(COSTS)
    for costs in COSTS.values():
        assert set(costs) == every
        assert all(cost >= 0 for row in costs.values() for cost in row)


def test_costs_are_found_again():
    """Times that the model made are fitted to within a few percent, though single costs may differ."""
    samples = [Sample(shape, 0.8, 1, estimate(shape, 0.8, threads=1)) for shape in shapes(250)]
    costs = fit(samples)
    for sample in samples:
        for product in PRODUCTS:
            expected = getattr(sample.timing, product)
            again = plan_model.estimate_pair(costs, sample.shape, product, 0.8, 1)
            assert again == pytest.approx(expected, rel=0.15)


@given(st.integers(0, 1000), st.sampled_from([0.5, 0.8, 0.95]))
def test_more_work_takes_no_less_time(seed, sparsity):
    shape = random_shape(random.Random(seed))
    n, *rest = shape.input
    larger = Shape((2 * n, *rest), shape.weight, shape.stride, shape.padding)
    small, large = estimate(shape, sparsity, 1), estimate(larger, sparsity, 1)
    sparser, slower = estimate(shape, sparsity + 0.04, 1), estimate(shape, sparsity, 4)
    for product in PRODUCTS:
        times = getattr(small, product)
        assert all(0 < a <= b * 1.0001 for a, b in zip(times, getattr(large, product), strict=True))
        assert getattr(sparser, product)[0] <= times[0] >= getattr(slower, product)[0]


def test_least_squares_without_negative_costs():
    draw = np.random.default_rng(0)
    matrix, costs = draw.random((60, 4)), np.array([0.5, 0.0, 2.0, 0.1])
    np.testing.assert_allclose(nonnegative_least_squares(matrix, matrix @ costs), costs, atol=1e-3)
    assert (nonnegative_least_squares(matrix, -matrix @ costs) == 0).all()
    assert (nonnegative_least_squares(matrix * [1, 1, 0, 1], np.ones(60)) >= 0).all()  # a cost of nothing


def test_a_sample_survives_its_file():
    sample = Sample(shapes(1)[0], 0.8, 2, Timing((1.0, 2.0), (0.5, 0.25), (3.0, 4.0)))
    assert Sample.of_line(sample.line()) == sample


@pytest.mark.skipif(not info()["available"], reason="the native engine is not built here")
def test_samples_are_small_enough_and_of_one_thread(monkeypatch):
    monkeypatch.setattr(calibrate, "_MOST", 1e6)  # multiply-adds
    threads = torch.get_num_threads()
    rows = list(calibrate.samples(0.3))
    assert rows and all(row.threads == 1 and multiply_adds(row.shape) < 1e6 for row in rows)
    assert torch.get_num_threads() == threads


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr("sys.argv", ["calibrate", "--seconds", "0", *map(str, arguments)])
    calibrate.main()


def test_costs_are_written_as_a_module(tmp_path, monkeypatch, capsys):
    output = tmp_path / "costs.py"
    run(monkeypatch, "--samples", RACED["avx512"], "--output", output)
    written: dict = {}
    exec(output.read_text(), written)
    isa = (info()["isa"] or "plain").removesuffix("bf16")
    others = COSTS.keys() - {isa}
    assert {name: written["COSTS"][name] for name in others} == {name: COSTS[name] for name in others}
    assert set(written["COSTS"][isa]) == set(COSTS["avx512"]) and "agreed" in capsys.readouterr().out


def test_too_few_samples_are_refused(tmp_path, monkeypatch, capsys):
    few = tmp_path / "few.jsonl"
    few.write_text("".join(RACED["avx512"].read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(SystemExit):
        run(monkeypatch, "--samples", few, "--output", tmp_path / "costs.py")
    assert "measure for longer" in capsys.readouterr().err and not (tmp_path / "costs.py").exists()
