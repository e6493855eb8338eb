"""What is found in folders, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from torchswat.errors import InvalidData, MissingData
from torchswat.report.discover import discover


def test_everything_is_found(everything):
    found = discover(everything)
    assert set(found.results) == {"9d"} and len(found.runs) == 2 and len(found.claims) > 30
    assert [record["benchmark"] for _, record in found.benchmarks] == ["step"]
    dense, swat = sorted(found.runs.values(), key=lambda run: run.algorithm)
    assert (dense.algorithm, dense.sparsity, swat.algorithm, swat.sparsity) == ("dense", "", "swat", "80 %")
    assert dense.place == swat.place == "resnet-digits x8, digits"
    assert len(swat.epochs) == 2 and swat.sights and not dense.sights


def test_runs_say_how_they_selected(trained, tmp_path):
    source = next(trained.glob("*swat*"))
    for i, changes in enumerate([{}, {"scope": "chw"}, {"block": [2, 2]}, {"block": None}]):
        shutil.copytree(source, tmp_path / str(i))
        path = tmp_path / str(i) / "recipe.yaml"
        recipe = yaml.safe_load(path.read_text())
        recipe["sparse"] |= changes
        if recipe["sparse"]["block"] is None:  # of a version that had none
            del recipe["sparse"]["block"]
        path.write_text(yaml.safe_dump(recipe))
    found = [run.algorithm for _, run in sorted(discover([tmp_path]).runs.items())]
    assert found == ["swat", "swat (chw)", "swat (blocks 2 x 2)", "swat"]


def test_an_unfinished_run_counts_as_far_as_it_went(trained, tmp_path):
    source = next(trained.glob("*swat*"))
    shutil.copytree(source, tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    with (tmp_path / "run" / "metrics.csv").open("a") as file:
        file.write("3,18,0.")  # it is being written
    (run,) = discover([tmp_path]).runs.values()
    assert run.summary is None and len(run.epochs) == 2


def test_of_two_results_the_one_at_the_larger_scale_counts(everything):
    folder = everything[0]
    shutil.copytree(folder / "9d", folder / "again")
    facts = json.loads((folder / "again" / "result.json").read_text())
    for scale, path in (("smoke", "again"), ("paper", "9d")):
        (folder / path / "result.json").write_text(json.dumps({**facts, "scale": scale}))
    assert discover([folder]).results["9d"].facts["scale"] == "paper"


def test_a_figure_of_an_older_version_has_no_panels(everything):
    panel = everything[0] / "9d" / "panel-1.svg"
    panel.unlink()
    (drawn,) = discover(everything).results["9d"].panels
    assert drawn == (everything[0] / "9d" / "figure.svg").read_text()


def test_nothing_and_nowhere(tmp_path):
    with pytest.raises(MissingData, match="no run, no reproduced figure and no benchmark"):
        discover([tmp_path])
    with pytest.raises(MissingData, match="is not a folder"):
        discover([tmp_path / "nowhere"])


@pytest.mark.parametrize("name", ["9d/result.json", "9d/panel-1.svg", "step.json"])
def test_damage_is_named(everything, name):
    (everything[0] / name).write_bytes(b"\xff{")
    with pytest.raises(InvalidData, match=name.partition("/")[2] or name):
        discover(everything)


def test_json_of_others_is_left_alone(everything):
    (everything[0] / "other.json").write_text("[1, 2]")
    (everything[0] / "result.json").write_text('{"mine": 1}')
    assert len(discover(everything).results) == 1
