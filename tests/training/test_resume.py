"""A run that is killed, stopped or starved of disk goes on bit for bit as if nothing had happened."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

from torchswat.errors import CheckpointError, InvalidValue
from torchswat.training.checkpoint import Checkpoint, list_checkpoints
from torchswat.training.interrupt import Interrupted
from torchswat.training.loop import Trainer, resume, train
from torchswat.training.recipe import Recipe

from .conftest import write_recipe


def results(run: Path) -> tuple[bytes, list[dict[str, str]], list[dict], dict]:
    """Everything of a finished run that may not depend on its interruptions: bits, metrics, final table."""
    timed = {"seconds", "images_per_second", "data_seconds"}
    with (run / "metrics.csv").open() as file:
        table = [{key: row[key] for key in row if key not in timed} for row in csv.DictReader(file)]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: line[key] for key in line if key not in timed} for line in lines]
    summary = json.loads((run / "summary.json").read_text())
    del summary["seconds"]
    return list_checkpoints(run / "checkpoints")[-1].read_bytes(), table, lines, summary


def wait_for(process, condition) -> None:
    """Wait until `condition()`, as long as the process lives."""
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.001)


def reached(run: Path, step: int):
    """A condition: the run has written a checkpoint at `step` or later."""
    return lambda: any(int(path.stem[5:]) >= step for path in list_checkpoints(run / "checkpoints"))


@pytest.mark.parametrize(
    "sparse", [{"algorithm": "dense"}, {}, {"algorithm": "random"}, {"block": (2, 2)}], ids=str
)
def test_killed_in_the_middle_of_an_epoch(sparse, tiny, start, tmp_path):
    recipe = tiny(sparse=sparse, optimizer={"epochs": 4})
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start("train", "--recipe", write_recipe(recipe, tmp_path), "--output", killed)
    wait_for(process, reached(killed, step=8))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    newest = Checkpoint.load(list_checkpoints(killed / "checkpoints")[-1])
    assert 0 < newest.progress.epoch < 4 and not (killed / "summary.json").exists()

    resume(killed)
    train(recipe, whole)
    assert results(killed) == results(whole)


def test_killed_after_metrics_were_written_but_not_the_checkpoint(tiny, tmp_path, monkeypatch):
    """The row of an epoch is on disk, the checkpoint that follows it is not: no row may come twice."""
    recipe, broken, whole = tiny(), tmp_path / "broken", tmp_path / "whole"

    class Killed(BaseException):
        pass

    def die(self: Checkpoint, path: Path) -> None:
        if self.progress.epoch == 2:
            raise Killed
        save(self, path)

    save = Checkpoint.save
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Checkpoint, "save", die)
        train(recipe, broken)
    assert len((broken / "metrics.jsonl").read_text().splitlines()) == 2
    with (broken / "metrics.csv").open("a") as file:
        file.write("3,18,0.0")  # and a row was torn
    resume(broken)
    train(recipe, whole)
    assert results(broken) == results(whole)


def test_killed_before_the_first_checkpoint_starts_again(tiny, tmp_path):
    recipe, begun, whole = tiny(), tmp_path / "begun", tmp_path / "whole"
    Trainer(recipe, begun, None).begin()
    resume(begun)
    train(recipe, whole)
    assert results(begun) == results(whole)


def test_a_finished_run_is_only_read(tiny, tmp_path):
    first = train(tiny(optimizer={"epochs": 1, "milestones": []}), tmp_path / "run")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert resume(tmp_path / "run") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_terminated_then_on_a_full_disk_then_finished(tiny, start, tmp_path):
    """SIGTERM saves and exits with 130; a file size limit then stands for the full disk; then all is well."""
    recipe = tiny(optimizer={"epochs": 15}, checkpoint={"every_steps": None})
    run = tmp_path / "run"
    process = start("train", "--recipe", write_recipe(recipe, tmp_path), "--output", run)
    wait_for(process, reached(run, step=1))
    process.terminate()
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert f"torchswat train --resume {run}" in errors and "Traceback" not in errors
    newest = list_checkpoints(run / "checkpoints")[-1]
    before = {path: path.read_bytes() for path in list_checkpoints(run / "checkpoints")}
    assert f"step {Checkpoint.load(newest).progress.step}," in errors

    limit = len(newest.read_bytes()) // 2
    starved = start(
        "train", "--resume", run, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    )
    _, errors = starved.communicate(timeout=120)
    assert starved.returncode == 1, errors
    assert "cannot write" in errors and str(newest) in errors and "Traceback" not in errors
    assert {path: path.read_bytes() for path in (run / "checkpoints").iterdir()} == before

    resume(run)
    train(recipe, tmp_path / "whole")
    assert results(run) == results(tmp_path / "whole")


def test_no_space_left_keeps_the_checkpoint_before(tiny, tmp_path, monkeypatch):
    recipe, full, whole = tiny(), tmp_path / "full", tmp_path / "whole"
    calls = []

    def no_space(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 12:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    fsync = os.fsync
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="No space left on device"):
        patch.setattr(os, "fsync", no_space)
        train(recipe, full)
    assert all(path.name.startswith("step-") for path in (full / "checkpoints").iterdir())
    resume(full)
    train(recipe, whole)
    assert results(full) == results(whole)


def test_another_number_of_processes_is_refused(tiny, tmp_path, monkeypatch):
    recipe, run = tiny(), tmp_path / "run"
    stop_after_one_step(monkeypatch)
    with pytest.raises(Interrupted):
        train(recipe, run)
    newest = list_checkpoints(run / "checkpoints")[-1]
    saved = Checkpoint.load(newest)
    two = Checkpoint(saved.recipe, saved.progress, 2, saved.model, saved.optimizer, saved.ranks * 2)
    two.save(newest)
    with pytest.raises(InvalidValue, match="2 process"):
        resume(run)


def test_an_interrupted_run_is_saved_where_it_stood(tiny, tmp_path, monkeypatch):
    recipe, run = tiny(checkpoint={"every_steps": None}), tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after_one_step(patch)
        with pytest.raises(Interrupted, match=r"after step 1, .*--resume"):
            train(recipe, run)
    copy = shutil.copytree(run, tmp_path / "copy")
    resume(run)
    resume(copy)
    train(recipe, tmp_path / "whole")
    assert results(run) == results(copy) == results(tmp_path / "whole")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("steps", [1, 8, 14])
def test_muon_with_averaged_weights_and_a_dense_end(precision, steps, tiny, tmp_path, monkeypatch):
    """Interrupted in the first epoch, in the second, and in the third, which is dense."""
    optimizer = {"name": "muon", "schedule": "cosine", "warmup": 0.2, "milestones": [], "average": 0.9}
    optimizer |= {"head_lr": 1.0, "bias_lr": 0.1, "other_momentum": 0.5, "first_epochs": 2}
    recipe = tiny(
        optimizer=optimizer, sparse={"dense_from": 2, "ramp": 5}, precision=precision, checkpoint={"keep": 1}
    )
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        stop_after(steps, patch)
        train(recipe, tmp_path / "run")
    resume(tmp_path / "run")
    train(recipe, tmp_path / "whole")
    assert results(tmp_path / "run") == results(tmp_path / "whole")
    assert all(float(row["average_accuracy"]) > 0 for row in results(tmp_path / "run")[1])


def test_a_network_that_starts_from_its_data(tiny, tmp_path, monkeypatch):
    """Killed before its first checkpoint it sees the data again; after it, the filters are in there."""
    data = {"name": "synthetic", "options": {"shape": [3, 16, 16]}, "train_limit": 96}
    recipe = tiny(
        model={"name": "airbench", "width": 2}, data=data, optimizer={"epochs": 1, "milestones": []}
    )
    for name in ("begun", "stopped"):
        if name == "begun":
            Trainer(recipe, tmp_path / name, None).begin()
        else:
            with monkeypatch.context() as patch, pytest.raises(Interrupted):
                stop_after(1, patch)
                train(recipe, tmp_path / name)
        resume(tmp_path / name)
    train(recipe, tmp_path / "whole")
    assert results(tmp_path / "begun") == results(tmp_path / "stopped") == results(tmp_path / "whole")


def stop_after_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM while it takes its first step."""
    stop_after(1, monkeypatch)


def stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Send this process SIGTERM while it takes step number `steps`."""

    def step(self: Trainer, images, labels) -> None:
        take_step(self, images, labels)
        if self.progress.step + 1 == steps:
            signal.raise_signal(signal.SIGTERM)

    take_step = Trainer._step
    monkeypatch.setattr(Trainer, "_step", step)


def test_the_comparison_can_fail(tiny, tmp_path):
    """Another seed gives other bits: `results` is not blind."""
    one: Recipe = tiny(optimizer={"epochs": 1, "milestones": []})
    train(one, tmp_path / "one")
    train(one.model_copy(update={"seed": 1}), tmp_path / "two")
    first, second = results(tmp_path / "one"), results(tmp_path / "two")
    assert first[0] != second[0] and first[1] != second[1] and first[3] != second[3]
