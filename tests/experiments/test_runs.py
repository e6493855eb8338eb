"""Trainings of experiments as real processes: run once, continued, shared; what broke off is a result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from rich.console import Console

from torchswat.errors import InvalidData, TorchswatError
from torchswat.experiments.runs import (
    complete,
    copy_records,
    finished,
    is_finished,
    read,
    train_or_continue,
)
from torchswat.experiments.scales import Training, scale_of

SMOKE = scale_of("smoke", seeds=1)
SWAT = Training("resnet18", "cifar10", "swat", 0.5, 0)


def test_runs_are_made_once_side_by_side_and_in_order(tmp_path, capsys):
    trainings = [SWAT, Training("resnet18", "cifar10", "dense", 0.0, 0), replace(SWAT, sparsity=0.8)]
    console = Console(width=200)
    trained = complete(trainings, SMOKE, tmp_path, jobs=2, console=console)
    assert [each.training for each in trained] == trainings
    assert all(len(each.curve) == 2 and not each.problem for each in trained)
    assert capsys.readouterr().out.count(" %") == 3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert complete(trainings, SMOKE, tmp_path, jobs=2, console=console) == trained
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before

    copy_records(trained, tmp_path / "records")
    copied = {path.name for path in (tmp_path / "records" / trained[0].folder.name).iterdir()}
    assert copied == {"recipe.yaml", "metrics.csv", "summary.json", "versions.json", "analysis.csv"}


def test_records_are_enough_to_read_a_run(tmp_path):
    folder = tmp_path / SWAT.folder_name(SMOKE)
    train_or_continue(folder, SWAT.recipe(SMOKE))
    records = tmp_path / "records"
    copy_records([read(SWAT, folder)], records)
    (known,) = finished([replace(SWAT, seed=1), SWAT], SMOKE, records)
    assert replace(known, folder=folder) == read(SWAT, folder) and len(known.curve) == 2
    recipe = records / folder.name / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("momentum: 0.9", "momentum: 0.8"))
    with pytest.raises(InvalidData, match=r"differs in optimizer\.momentum"):
        finished([SWAT], SMOKE, records)


def test_a_training_that_breaks_off_is_a_result(tmp_path):
    wild = scale_of("smoke", settings=("optimizer.lr=1e30",))
    folder = tmp_path / SWAT.folder_name(wild)
    train_or_continue(folder, SWAT.recipe(wild))
    found = read(SWAT, folder)
    assert is_finished(folder) and found.accuracy == 10 and "has NaN" in found.problem
    assert found.row()["problem"] == found.problem


def test_a_stopped_run_is_continued(tmp_path):
    recipe, folder = SWAT.recipe(SMOKE), tmp_path / SWAT.folder_name(SMOKE)
    train_or_continue(folder, recipe)
    whole = read(SWAT, folder)
    (folder / "summary.json").unlink()
    sorted((folder / "checkpoints").iterdir())[-1].unlink()
    assert not is_finished(folder)
    train_or_continue(folder, recipe)
    assert read(SWAT, folder) == whole


def test_a_run_that_cannot_be_made_is_an_error(tmp_path):
    lost = scale_of("smoke", settings=("data.name=imagenet", f"data.root={tmp_path}/nowhere"))
    with pytest.raises(TorchswatError, match="could not be made"):
        complete([SWAT], lost, tmp_path / "runs", jobs=1, console=Console(quiet=True))


def test_damage_is_named(tmp_path):
    folder = tmp_path / "run"
    train_or_continue(folder, SWAT.recipe(SMOKE))
    (folder / "summary.json").write_text("{}")
    with pytest.raises(InvalidData, match="Delete the folder"):
        read(SWAT, folder)


def test_an_interrupted_command_goes_on_where_it_stopped(tmp_path):
    command = [
        *(
            sys.executable,
            "-W",
            "error",
            "-m",
            "torchswat",
            "reproduce",
            "9e",
            "--scale",
            "smoke",
            "--seeds",
            "1",
        ),
        *("--runs", tmp_path / "runs", "--output", tmp_path / "out", "--set", "optimizer.epochs=400"),
    ]
    environment = {**os.environ, "COLUMNS": "200"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    while not list(tmp_path.glob("runs/*/checkpoints/*")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors
    (folder,) = (tmp_path / "runs").iterdir()
    epochs = len((folder / "metrics.jsonl").read_text().splitlines())
    assert 0 < epochs < 400 and not (tmp_path / "out" / "9e").exists()
    time.sleep(0.2)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == epochs, "a process was left behind"
    assert json.loads((tmp_path / "out" / "claims.json").read_text())
