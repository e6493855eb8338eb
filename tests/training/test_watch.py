"""Live analysis: what is recorded is what the step selected, and recording changes nothing."""

from __future__ import annotations

import csv

import pytest
import reference
import torch
from torch import nn

import torchswat
from torchswat.analysis import angle, angle_between
from torchswat.convert import sparse_layers
from torchswat.training.loop import resume, train
from torchswat.training.run_folder import RunFolder
from torchswat.training.watch import Watch


def read(folder) -> list[dict[str, str]]:
    with (folder / "analysis.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def small(algorithm: str = "swat", **settings) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5))
    return torchswat.sparsify_(model, algorithm, 0.75, **settings)


def test_it_sees_what_was_selected():
    model, images = small(), torch.randn(4, 3, 6, 6)
    expected = float(angle(model[0].weight, 0.75)), float(angle(images, 0.75))
    watch = Watch(model)
    with watch.looking():
        model(images).sum().backward()
    sights = {(s.layer, s.operand): s for s in watch.sights(7)}
    assert set(sights) == {(layer, operand) for layer in "03" for operand in ("weight", "activation")}
    weight = sights["0", "weight"]
    assert (weight.step, weight.sparsity, weight.density) == (7, 0.75, 0.25)
    assert weight.threshold == pytest.approx(
        float(model[0].weight.detach().abs().flatten().sort().values[162])
    )
    assert (weight.angle, sights["0", "activation"].angle) == pytest.approx(expected)


def test_of_weights_in_blocks_it_sees_the_sum_and_the_angle_of_whole_blocks():
    model, images = small(block=(2, 2)), torch.randn(4, 3, 6, 6)
    weight = model[0].weight.detach().clone()
    watch = Watch(model)
    with watch.looking():
        model(images).sum().backward()
    (sight,) = (s for s in watch.sights(1) if (s.layer, s.operand) == ("0", "weight"))
    mask = torch.from_numpy(reference.top_blocks(weight, 0.75, (2, 2)))
    assert sight.density == mask.double().mean()
    assert sight.threshold is not None and sight.threshold > float(weight.abs().max())
    assert sight.angle == pytest.approx(
        float(angle_between(weight.flatten(), (weight * mask).flatten())), rel=1e-6
    )


def test_hooks_are_gone_afterwards_even_after_an_error():
    model = small()
    with pytest.raises(ZeroDivisionError), Watch(model).looking():
        raise ZeroDivisionError
    assert not any(layer._forward_pre_hooks for _, layer in sparse_layers(model))


def test_random_masks_and_gradients_have_no_angle():
    for algorithm, operands in (("random", {"weight", "activation"}), ("meprop", {"gradient"})):
        watch = Watch(model := small(algorithm))
        with watch.looking():
            model(torch.randn(4, 3, 6, 6)).sum().backward()
        sights = watch.sights(1)
        assert {s.operand for s in sights} == operands and all(s.angle is None for s in sights)
        assert all((s.threshold is None) == (algorithm == "random") for s in sights)
        assert all(s.density == pytest.approx(0.25, abs=0.02) for s in sights)


def test_only_the_quantities_asked_for():
    watch = Watch(model := small(), ("density",))
    with watch.looking():
        model(torch.randn(4, 3, 6, 6)).sum().backward()
    assert all(s.angle is None and s.threshold is None and s.density for s in watch.sights(1))


def test_a_run_records_every_so_many_steps_and_trains_as_if_it_did_not(tiny, tmp_path):
    plain = train(tiny(), tmp_path / "plain")
    watched = train(tiny(analysis={"every_steps": 4}), tmp_path / "watched")
    assert watched.last == plain.last
    first, second = (RunFolder(tmp_path / name).metrics() for name in ("plain", "watched"))
    assert [row.train_loss for row in first] == [row.train_loss for row in second]
    rows = read(tmp_path / "watched")
    assert sorted({int(row["step"]) for row in rows}) == [4, 8, 12, 16]
    assert {row["operand"] for row in rows} == {"weight", "activation"}
    assert not (tmp_path / "plain" / "analysis.csv").exists()
    events = (tmp_path / "watched" / "tensorboard").glob("*")
    assert any(b"angle/weight/" in file.read_bytes() for file in events)


def test_a_resumed_run_records_each_step_once(tiny, tmp_path):
    recipe = tiny(analysis={"every_steps": 2})
    train(recipe, tmp_path / "whole")
    train(recipe, tmp_path / "torn")
    folder = RunFolder(tmp_path / "torn")
    whole = (tmp_path / "whole" / "analysis.csv").read_text()
    (tmp_path / "torn" / "summary.json").unlink()
    newest = folder.latest_checkpoint()
    assert newest is not None
    newest.unlink()  # it stopped between a record and its checkpoint, and in the middle of a line
    with (tmp_path / "torn" / "analysis.csv").open("a") as file:
        file.write("99,conv")
    folder.truncate_metrics(2)
    resume(tmp_path / "torn")
    assert (tmp_path / "torn" / "analysis.csv").read_text() == whole
