"""The plan: what is measured is kept, read again, versioned, and never in the way of the work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import BUILT
from torch import nn

from torchswat import select, sparsify_
from torchswat.engine import plan
from torchswat.engine.loader import engine
from torchswat.engine.packed import ALL_DENSE, ALL_SPARSE, Choice, PackedConv2dProducts, Shape
from torchswat.engine.plan import Timing, choose, followed, path, products_for, table
from torchswat.engine.products import Conv2dProducts

SHAPE = Shape((4, 3, 8, 8), (5, 3, 3, 3), (1, 1), (1, 1))
POINTWISE = Shape((4, 3, 8, 8), (5, 3, 1, 1), (1, 1), (0, 0))
MIXED = Timing((1.0, 2.0), (2.0, 1.0), (1.0, 2.0))
CHOSEN = Choice(True, False, True)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Shape, float]]:
    """What is measured, by a measurement that always says the same."""
    calls = []

    def measure(shape: Shape, sparsity: float) -> Timing:
        calls.append((shape, sparsity))
        return MIXED

    monkeypatch.setattr(plan, "measure", measure)
    plan._known.cache_clear()
    return calls


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "folder" / "plan.json"
    monkeypatch.setenv("TORCHSWAT_PLAN", str(path))
    return path


def restart() -> None:
    """Forget what a process remembers."""
    plan._known.cache_clear()


def test_a_shape_is_measured_once_a_machine(measured, file):
    assert choose(SHAPE, 0.8) == CHOSEN
    restart()
    assert choose(SHAPE, 0.8) == choose(SHAPE, 0.8) == CHOSEN
    assert len(measured) == 1
    assert choose(POINTWISE, 0.8) == CHOSEN and len(measured) == 2
    (rows,) = table().values()
    threads = torch.get_num_threads()
    assert sorted(rows) == [f"4x3x8x8-5x{rest}-S0.80-t{threads}" for rest in ("1x1-s11-p00", "3x3-s11-p11")]
    assert all(timing == MIXED for timing in rows.values())
    assert [p.name for p in file.parent.iterdir()] == ["plan.json"]  # no temporary file is left


def test_sparsities_are_measured_in_steps(measured, file):
    for sparsity in (0.8, 0.81, 0.8499, 0.85, 0.02):
        choose(SHAPE, sparsity)
    assert [sparsity for _, sparsity in measured] == pytest.approx([0.8, 0.85, 0.0])


def test_threads_are_measured_apart(measured, file, monkeypatch):
    choose(SHAPE, 0.8)
    monkeypatch.setattr("torch.get_num_threads", lambda: 77)
    choose(SHAPE, 0.8)
    assert len(measured) == 2 and any(key.endswith("-t77") for rows in table().values() for key in rows)


def test_measurements_of_another_machine_are_kept_and_not_believed(measured, file, monkeypatch):
    choose(SHAPE, 0.8)
    restart()
    monkeypatch.setattr(plan, "VERSION", plan.VERSION + 1)
    choose(SHAPE, 0.8)
    assert len(measured) == 2 and len(table()) == 2


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
def test_the_machine_is_that_of_the_engine_that_runs():
    with engine("reference"):
        assert "reference" in plan.machine()
    with engine("native"):
        assert "reference" not in plan.machine()


@pytest.mark.parametrize(
    "content",
    [
        *("", "[]", "{", "null", '{"a": 1}', '{"a": {"b": {"forward": [1, 2]}}}', "\x00\xff"),
        '{"MACHINE": {"KEY": {"forward": [1], "grad_input": [1, 2], "grad_weight": [1, 2]}}}',
        '{"MACHINE": {"KEY": {"forward": ["a", "b"], "grad_input": [1, 2], "grad_weight": [1, 2]}}}',
        '{"MACHINE": {"KEY": {"forward": null, "grad_input": [1, 2], "grad_weight": [1, 2]}}}',
    ],
)
def test_a_damaged_file_is_measured_again(measured, file, content):
    choose(SHAPE, 0.8)
    ((name, rows),) = table().items()
    file.write_bytes(content.replace("MACHINE", name).replace("KEY", next(iter(rows))).encode("latin-1"))
    restart()
    assert table() == {}
    assert choose(SHAPE, 0.8) == CHOSEN and len(measured) == 2
    assert json.loads(file.read_text())[name] and table()[name] == rows


def test_a_folder_that_cannot_be_made_is_no_hindrance(measured, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "taken" / "plan.json"))
    assert choose(SHAPE, 0.8) == choose(SHAPE, 0.8) == CHOSEN
    assert len(measured) == 1  # remembered as long as the process lasts


def test_a_folder_in_the_place_of_the_file_is_left_as_it_is(measured, tmp_path, monkeypatch):
    folder = tmp_path / "plan"
    (folder / "kept").mkdir(parents=True)
    monkeypatch.setenv("TORCHSWAT_PLAN", str(folder))
    assert choose(SHAPE, 0.8) == CHOSEN
    assert [p.name for p in tmp_path.iterdir()] == ["plan"]


@pytest.mark.parametrize(("asked", "choice"), [("sparse", ALL_SPARSE), ("dense", ALL_DENSE)])
def test_a_plan_that_is_asked_for_is_not_measured(measured, monkeypatch, asked, choice):
    monkeypatch.setenv("TORCHSWAT_PLAN", asked)
    assert choose(SHAPE, 0.8) == choice and not measured


def test_the_file_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHSWAT_PLAN")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert path() == tmp_path / "torchswat" / "plan.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert path() == tmp_path / "home" / ".cache" / "torchswat" / "plan.json"


@pytest.mark.skipif(not BUILT, reason="the native engine is not built here")
def test_a_run_takes_what_it_was_made_with(measured, monkeypatch, tmp_path):
    monkeypatch.delenv("TORCHSWAT_PLAN")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    choose(SHAPE, 0.8)
    own = tmp_path / "run" / "plan.json"
    with followed(own):
        assert path() == own and choose(SHAPE, 0.8) == CHOSEN
        assert len(measured) == 1  # it begins with what the machine knows
        choose(POINTWISE, 0.8)
    assert path() == tmp_path / "torchswat" / "plan.json"
    (tmp_path / "torchswat" / "plan.json").unlink()
    restart()
    with followed(own):
        choose(SHAPE, 0.8)
        choose(POINTWISE, 0.8)
    assert len(measured) == 2
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "other.json"))
    with followed(own):
        assert path() == tmp_path / "other.json"


def test_the_products_are_those_of_the_choice(monkeypatch):
    monkeypatch.setenv("TORCHSWAT_PLAN", "dense")
    assert type(products_for(SHAPE, 0.8)) is Conv2dProducts  # no change of layout pays
    changing = products_for(SHAPE, 0.8, inner=True)  # the layout came with the input
    assert isinstance(changing, PackedConv2dProducts) and changing.choice == ALL_DENSE
    dense = products_for(POINTWISE, 0.8)
    assert isinstance(dense, PackedConv2dProducts) and dense.choice == ALL_DENSE
    monkeypatch.setenv("TORCHSWAT_PLAN", "sparse")
    sparse = products_for(SHAPE, 0.8)
    assert isinstance(sparse, PackedConv2dProducts) and sparse.choice == ALL_SPARSE


@pytest.mark.parametrize("shape", [SHAPE, POINTWISE])
@pytest.mark.parametrize("sparsity", [0.0, 0.8, 0.95])
def test_a_real_measurement(shape, sparsity):
    timing = plan.measure(shape, sparsity)
    for pair in (timing.forward, timing.grad_input, timing.grad_weight):
        assert all(0 < milliseconds < 1e5 for milliseconds in pair)


def test_maps_too_wide_for_the_kernels_offsets_run_dense(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHSWAT_PLAN", str(tmp_path / "plan.json"))
    layer = sparsify_(nn.Sequential(nn.Conv2d(2, 64, 1, stride=2, bias=False)), sparsity=0.5)
    x = torch.randn(2, 2, 3, 4300)
    y = layer(x)
    mask = select(layer[0].weight, 0.5)
    expected = F.conv2d(x, torch.where(mask, layer[0].weight, 0), stride=2)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    (timing,) = plan.table(tmp_path / "plan.json")[plan.machine()].values()
    assert not timing.choice().grad_weight
