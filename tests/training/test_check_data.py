"""Broken image files are found before a training begins, and a resumed run sees the same data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from data.fabricate import write_pictures
from rich.console import Console

from torchswat.errors import InvalidData
from torchswat.training.check_data import data_of_run
from torchswat.training.interrupt import Interrupted
from torchswat.training.loop import resume, train
from torchswat.training.recipe import Recipe
from torchswat.training.reload import evaluate_saved
from torchswat.training.run_folder import RunFolder

from .conftest import write_recipe
from .test_resume import results, stop_after_one_step

QUIET = Console(quiet=True)


@pytest.fixture
def pets(tmp_path) -> Path:
    """12 + 6 images of two classes."""
    return write_pictures(tmp_path / "my pets", train=6, val=3)


@pytest.fixture
def recipe(tiny, pets):
    def make(**data: object) -> Recipe:
        section = {
            "name": str(pets),
            "batch_size": 4,
            "options": {"size": 8, "resize": 10},
            "train_limit": None,
            "test_limit": None,
        }
        return tiny(data={**section, **data}, checkpoint={"every_steps": None})

    return make


def break_files(pets: Path, *names: str) -> list[Path]:
    paths = [pets / name for name in names]
    for path in paths:
        path.write_bytes(path.read_bytes()[:-40])  # the header, and most of the pixels, are there
    return paths


BROKEN = ("train/cat/1.jpg", "train/dog/4.jpg", "val/dog/2.jpg")


def test_broken_files_stop_a_training_before_it_begins(recipe, pets, tmp_path):
    paths = break_files(pets, *BROKEN)
    with pytest.raises(InvalidData, match=r"3 image file\(s\) cannot be read") as caught:
        train(recipe(), tmp_path / "runs" / "one")
    assert all(str(path) in str(caught.value) for path in paths) and "--skip-broken" in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_many_broken_files_are_counted(recipe, pets):
    for number in range(100, 130):
        (pets / "train" / "cat" / f"{number}.png").write_bytes(b"no image")
    with pytest.raises(InvalidData, match=r"30 image file(.|\n)* and 10 more\n") as caught:
        data_of_run(recipe(), QUIET)
    assert len(str(caught.value).splitlines()) == 23


def test_a_bar_and_a_line_say_what_was_checked(recipe, pets, capsys):
    data_of_run(recipe(), Console(width=100))
    assert capsys.readouterr().out == "18 image files checked, 0 broken\n"
    break_files(pets, *BROKEN)
    data_of_run(recipe(broken_images="skip"), Console(width=100, force_terminal=True))
    output = capsys.readouterr().out
    assert "checking images" in output and "18/18" in output and "3 broken image files are left out" in output


def test_unchecked_files_end_a_run_when_they_are_needed(recipe, pets, tmp_path):
    (path, *_) = break_files(pets, *BROKEN)
    data_of_run(recipe(broken_images="unchecked"), QUIET)
    with pytest.raises(InvalidData, match="is not a readable image") as caught:
        train(recipe(broken_images="unchecked"), tmp_path / "run")
    assert path.parent.parent.parent.name in str(caught.value)


def test_a_run_without_them_is_resumed_without_them(recipe, pets, tmp_path, monkeypatch):
    """Also after the files were mended, or deleted: what was left out stays out."""
    break_files(pets, *BROKEN)
    run, chosen = tmp_path / "run", recipe(broken_images="skip")
    with monkeypatch.context() as patch:
        stop_after_one_step(patch)
        with pytest.raises(Interrupted):
            train(chosen, run)
    record = json.loads((run / "data.json").read_text())
    assert record["left_out"] == sorted(BROKEN)
    assert record["train"]["images"] == 10 and record["test"]["images"] == 5
    train(chosen, tmp_path / "whole")
    for number, change in enumerate((lambda path: None, mend, Path.unlink)):
        for name in BROKEN:
            change(pets / name)
        again = shutil.copytree(run, tmp_path / f"again{number}")
        resume(again)
        assert results(again) == results(tmp_path / "whole")
        assert json.loads((again / "data.json").read_text()) == record


def mend(path: Path) -> None:
    shutil.copy(path.with_name("0.jpg"), path)


def test_evaluation_leaves_them_out_too(recipe, pets, tmp_path):
    train(recipe(broken_images="skip"), tmp_path / "run")
    assert evaluate_saved(tmp_path / "run")["images"] == 6
    break_files(pets, *BROKEN)
    assert evaluate_saved(tmp_path / "run")["images"] == 5


def test_a_class_may_not_vanish(recipe, pets):
    break_files(pets, *(f"val/dog/{number}.jpg" for number in range(3)))
    with pytest.raises(InvalidData, match=r"no readable image is left of 1 class\(es\): 'dog'"):
        data_of_run(recipe(broken_images="skip"), QUIET)


@pytest.mark.parametrize("change", ["more", "fewer", "renamed"])
def test_a_data_set_that_changed_is_refused(change, recipe, pets, tmp_path, monkeypatch):
    stop_after_one_step(monkeypatch)
    with pytest.raises(Interrupted):
        train(recipe(), tmp_path / "run")
    first = pets / "train" / "cat" / "0.jpg"
    if change == "more":
        shutil.copy(first, first.with_name("another.jpg"))
    elif change == "fewer":
        first.unlink()
    else:
        first.rename(first.with_name("another.jpg"))
    with pytest.raises(InvalidData, match=r"has changed since the run began: 12 images .* then, 1\d images"):
        resume(tmp_path / "run")


def test_a_data_set_may_move_and_a_run_of_an_older_version_has_no_record(recipe, pets, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after_one_step(patch)
        with pytest.raises(Interrupted):
            train(recipe(name="my pets", root=str(tmp_path)), tmp_path / "run")
    record = (tmp_path / "run" / "data.json").read_text()
    (tmp_path / "run" / "data.json").unlink()
    pets.rename((tmp_path / "elsewhere").mkdir() or tmp_path / "elsewhere" / "my pets")
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(file.read_text().replace(f"root: {tmp_path}", f"root: {tmp_path / 'elsewhere'}"))
    resume(tmp_path / "run")
    assert (tmp_path / "run" / "data.json").read_text() == record
    assert RunFolder(tmp_path / "run").data_record()["left_out"] == []


def test_the_option_on_the_command_line(recipe, pets, start, tmp_path):
    break_files(pets, *BROKEN)
    file = write_recipe(recipe(), tmp_path)
    stopped = start("train", "--recipe", file, "--output", tmp_path / "run")
    _, errors = stopped.communicate(timeout=120)
    assert stopped.returncode == 2 and "Traceback" not in errors and "val/dog/2.jpg" in errors
    done = start("train", "--recipe", file, "--output", tmp_path / "run", "--skip-broken")
    output, errors = done.communicate(timeout=120)
    assert done.returncode == 0, errors
    assert "note: 3 broken image files are left out" in output
