"""Damaged files in the folder of a run: it continues from what is whole, or says what is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from torchswat.errors import InvalidData, TorchswatError
from torchswat.training.checkpoint import Checkpoint, list_checkpoints
from torchswat.training.loop import Trainer, resume, train
from torchswat.training.recover import recover, whole_checkpoints
from torchswat.training.reload import evaluate_saved, find_checkpoint
from torchswat.training.run_folder import RunFolder

from .test_resume import results

DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbage": lambda path: path.write_bytes(b"\xff\xfe\x00 {[garbage\n\xff,1\n"),
    "null": lambda path: path.write_bytes(b"null\n"),
    "gone": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A run of three epochs that nobody disturbed."""
    return make_run(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """The same run, killed when all its epochs were over but nothing was summarised."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Trainer, "_finish", die)
        make_run(folder := tmp_path_factory.mktemp("killed") / "run")
    assert len(list_checkpoints(folder / "checkpoints")) >= 3
    return folder


def die(self: Trainer) -> None:
    raise Killed


def make_run(folder: Path) -> Path:
    from torchswat.training.recipe import make_recipe

    from .conftest import TINY

    recipe = make_recipe(
        {**TINY, "checkpoint": {"every_steps": 4, "keep": 3}, "analysis": {"every_steps": 5}}
    )
    train(recipe, folder)
    return folder


@pytest.fixture
def run(killed, tmp_path) -> Path:
    return shutil.copytree(killed, tmp_path / "run")


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name != "gone"])
@pytest.mark.parametrize("count", [1, 2])
def test_it_continues_from_the_newest_that_is_whole(damage, count, run, whole, caplog):
    *_, kept = list_checkpoints(run / "checkpoints")[:-count]
    damaged = list_checkpoints(run / "checkpoints")[-count:]
    for path in damaged:
        DAMAGE[damage](path)
    step = Checkpoint.load(kept).progress.step
    with caplog.at_level(logging.WARNING, "torchswat"):
        resume(run)
    assert f"continuing from {kept.name}, after step {step}" in caplog.text
    assert all(path.name in caplog.text for path in damaged)
    assert results(run) == results(whole)
    names = {path.name for path in (run / "checkpoints").iterdir()}
    assert {f"{path.name}.damaged" for path in damaged} <= names
    assert kept.name in json.loads((run / "versions.json").read_text())[-1]["notes"][0]


def test_what_was_found_is_shown_on_the_console(run, capsys):
    from rich.console import Console

    list_checkpoints(run / "checkpoints")[-1].write_bytes(b"")
    resume(run, console=Console(width=200))
    assert "note: step-000000018.safetensors cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_checkpoint_left_is_said_and_nothing_is_begun_anew(damage, run):
    for path in list_checkpoints(run / "checkpoints"):
        DAMAGE[damage](path)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    with pytest.raises(InvalidData, match=r"3 epoch\(s\) are recorded, but .*train --recipe .*--output"):
        resume(run)
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after


@pytest.mark.parametrize("rows, folder, starts", [(0, True, True), (1, True, True), (1, False, False)])
def test_a_run_killed_before_its_first_checkpoint_starts_again(rows, folder, starts, run):
    """The row of the first epoch is written before the first checkpoint: one row may stand there alone."""
    for path in list_checkpoints(run / "checkpoints"):
        path.unlink()
    if not folder:
        (run / "checkpoints").rmdir()
    RunFolder(run).truncate_metrics(rows)
    if starts:
        found = recover(RunFolder(run))
        assert found.checkpoint is None and "starts at its beginning" in found.notes[0]
    else:
        with pytest.raises(InvalidData, match="there is no checkpoint"):
            recover(RunFolder(run))


def test_the_best_of_those_left_takes_the_place_of_a_damaged_best(run):
    folder = RunFolder(run)
    newest = list_checkpoints(folder.checkpoints)[-1]
    saved = Checkpoint.load(newest)
    older = list_checkpoints(folder.checkpoints)[0]
    step = Checkpoint.load(older).progress.step
    changed = replace(saved, progress=replace(saved.progress, best_step=step, best_accuracy=100.0))
    changed.save(newest)
    older.write_bytes(b"")
    found = recover(folder)
    assert found.checkpoint == newest and "now it is that of step" in found.notes[0]
    rows = {row.step: row.test_accuracy for row in folder.metrics()}
    left = [int(path.stem[5:]) for path in whole_checkpoints(folder.checkpoints)]
    assert found.progress.best_accuracy == max(rows[step] for step in left if step in rows)
    assert rows[found.progress.best_step] == found.progress.best_accuracy
    assert resume(run).best.sparse == found.progress.best_accuracy


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize(
    "name",
    [
        "recipe.yaml",
        "data.json",
        "versions.json",
        "metrics.csv",
        "metrics.jsonl",
        "analysis.csv",
        "plan.json",
        "summary.json",
        ".lock",
    ],
)
def test_any_damaged_file_is_named_or_does_no_harm(name, damage, run, whole):
    path = run / name
    path.touch()
    DAMAGE[damage](path)
    try:
        resume(run)
    except (TorchswatError, OSError) as error:
        assert name in str(error) and "\n" not in str(error)
    else:
        assert results(run)[:2] == results(whole)[:2]


@pytest.mark.parametrize(
    "before, after, refused",
    [
        ("epochs: 3", "epochs: 4", "optimizer.epochs"),
        ("seed: 0", "seed: 1", "seed"),
        ("keep: 3", "keep: 1", None),
        ("about: ''", "about: words", None),
    ],
)
def test_a_recipe_that_was_changed_since(before, after, refused, run, whole):
    text = (run / "recipe.yaml").read_text()
    assert text.count(before) == 1
    (run / "recipe.yaml").write_text(text.replace(before, after))
    if refused:
        with pytest.raises(InvalidData, match=f"recipe.yaml differs .* in {refused}: a run continues"):
            resume(run)
    else:
        resume(run)
        assert results(run)[1:] == results(whole)[1:]


@pytest.mark.parametrize("which", ["best", "newest"])
def test_evaluation_names_the_damaged_file_and_the_others(which, run):
    folder = RunFolder(run)
    newest = list_checkpoints(folder.checkpoints)[-1]
    path = find_checkpoint(run) if which == "best" else newest
    path.write_bytes(path.read_bytes()[:-1])
    others = whole_checkpoints(folder.checkpoints)
    assert path not in others and others
    with pytest.raises(InvalidData, match="These are whole") as caught:
        evaluate_saved(run)
    assert str(path) in str(caught.value) and all(str(other) in str(caught.value) for other in others)
    assert evaluate_saved(others[0])["images"] == 100
