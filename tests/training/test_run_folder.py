"""The files of a run."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchswat.errors import InvalidData, InvalidValue, MissingData
from torchswat.training.plot import plot_curves
from torchswat.training.run_folder import EpochMetrics, RunFolder, choose_folder, versions

ROW = EpochMetrics(1, 11, 0.1, 2.5, 10.0, 2.25, 100 / 3, 1.5, 1000.0)


@given(kept=st.integers(0, 4), torn=st.text("0123456789.,", max_size=20))
def test_truncation_forgets_the_rest_and_repairs_torn_lines(kept, torn, tiny_folder):
    folder = tiny_folder()
    rows = [replace(ROW, epoch=epoch, train_loss=1 / epoch) for epoch in range(1, 5)]
    for row in rows:
        folder.append(row)
    for name in ("metrics.csv", "metrics.jsonl"):
        with (folder.path / name).open("a") as file:
            file.write(torn)
    folder.truncate_metrics(kept)
    assert folder.metrics() == rows[:kept]
    with (folder.path / "metrics.csv").open() as file:
        assert [(int(row["epoch"]), float(row["train_loss"])) for row in csv.DictReader(file)] == [
            (row.epoch, row.train_loss) for row in rows[:kept]
        ]


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    from torchswat.training.recipe import load_recipe

    return lambda: RunFolder.create(tmp_path_factory.mktemp("run") / "r", load_recipe("digits-demo"))


def test_metrics_of_older_versions_are_read(tiny_folder):
    """They do not say how long the training waited for its data."""
    folder = tiny_folder()
    old = {key: value for key, value in asdict(ROW).items() if key != "data_seconds"}
    (folder.path / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    assert folder.metrics() == [ROW] and ROW.data_seconds is None
    folder.truncate_metrics(1)  # as resuming does: from here on both files have all columns
    folder.append(replace(ROW, data_seconds=0.25))
    with (folder.path / "metrics.csv").open() as file:
        assert [row["data_seconds"] for row in csv.DictReader(file)] == ["", "0.25"]
    assert folder.metrics()[1].data_seconds == 0.25


def test_metrics_that_were_tampered_with(tiny_folder):
    folder = tiny_folder()
    folder.append(ROW)
    with pytest.raises(InvalidData, match="holds 1 epochs but the checkpoint has 2"):
        folder.truncate_metrics(2)
    (folder.path / "metrics.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(InvalidData, match="damaged"):
        folder.metrics()


def test_what_is_no_run_and_what_is_one_already(tiny_folder, tmp_path):
    with pytest.raises(MissingData, match="it holds no recipe"):
        RunFolder.open(tmp_path)
    folder = tiny_folder()
    with pytest.raises(InvalidValue, match="--resume"):
        RunFolder.create(folder.path, folder.recipe())


def test_a_recipe_that_is_none_is_an_error_that_names_the_file(tiny_folder):
    folder = tiny_folder()
    whole = (folder.path / "recipe.yaml").read_text()
    for text in (
        whole + "speed: 1\n",
        "[",
        whole.replace("epochs:", "epo:"),
        whole.partition("epochs:")[0] + "epo",
    ):
        (folder.path / "recipe.yaml").write_text(text)
        with pytest.raises(InvalidData, match=r"recipe\.yaml cannot be used: "):
            folder.recipe()


def test_every_start_is_noted(tiny_folder):
    folder = tiny_folder()
    folder.record_versions(1)
    folder.record_versions(2)
    noted = json.loads((folder.path / "versions.json").read_text())
    assert [entry["processes"] for entry in noted] == [1, 2]
    assert noted[0]["torch"] == torch.__version__ and noted[0]["processor"]


def test_versions_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert versions()["git_commit"] is None


def test_a_new_folder_is_named_after_the_recipe(tiny_folder):
    assert str(choose_folder(tiny_folder().recipe())).endswith("-digits-demo")


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_curves_are_drawn(epochs, tmp_path):
    rows = [replace(ROW, epoch=epoch) for epoch in range(1, epochs + 1)]
    picture = plot_curves(rows, tmp_path, "title of it")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
