"""``torchswat reproduce``: what it prints and writes."""

from __future__ import annotations

import csv
import json
import sys

import pytest

from torchswat import cli
from torchswat.experiments.registry import EXPERIMENTS, experiments


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["torchswat", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        output, errors = capsys.readouterr()
        return int(ended.value.code or 0), output, errors

    return call


def test_an_exact_figure(run, tmp_path):
    code, output, errors = run("reproduce", "lemma-b1", "--output", "out")
    assert code == 0, errors
    assert output.count("reproduced ") == 2 and "torchswat report out" in output
    folder = tmp_path / "out" / "lemma-b1"
    assert {path.name for path in folder.iterdir()} == {
        *("data.csv", "result.json", "figure.svg", "figure.png", "panel-1.svg")
    }
    result = json.loads((folder / "result.json").read_text())
    assert result["exact"] and result["command"] == "torchswat reproduce lemma-b1 --scale cpu"
    assert {claim["verdict"] for claim in result["claims"]} == {"reproduced"}
    assert result["circumstances"]["torch"]
    with (folder / "data.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 12


def test_a_trained_figure_at_smoke_scale(run, tmp_path):
    code, output, errors = run("reproduce", "2c", "--scale", "smoke", "--seeds", "1")
    assert code == 0, errors
    assert output.count("not run ") == 3
    result = json.loads((tmp_path / "runs/reproduction/2c/result.json").read_text())
    assert len(result["runs"]) == 4 and any("epochs 2 (paper: 50)" in c for c in result["reductions"])
    for name in result["runs"]:
        assert (tmp_path / "runs/reproduction/runs" / name / "summary.json").exists()
        assert (tmp_path / "runs/reproduce" / name / "checkpoints").is_dir()


def test_a_dry_run_says_what_is_there_and_starts_nothing(run, tmp_path):
    code, output, errors = run("reproduce", "time-to-accuracy", "2c", "--scale", "smoke", "--dry-run")
    assert code == 0, errors
    assert [line.split()[1:4] for line in output.splitlines() if line.startswith("2c")] == [["0", "of", "8"]]
    assert "swat 80 %, dense from 1" in output and "unknown" in output and "first times steps" in output
    code, output, _ = run("reproduce", "9a", "--dry-run")
    assert code == 0 and output == "Nothing is trained for these: they take minutes.\n"
    assert not list(tmp_path.iterdir())


def test_verdicts_and_forecasts_as_json(run):
    code, output, errors = run("reproduce", "lemma-b1", "--output", "out", "--json")
    (result,) = json.loads(output)
    assert code == 0 and {claim["verdict"] for claim in result["claims"]} == {"reproduced"}, errors
    assert "torchswat report out" in errors
    code, output, _ = run("reproduce", "2c", "--scale", "smoke", "--dry-run", "--json")
    first, *_, last = json.loads(output)
    assert code == 0 and first["what"] == "2c" and (first["runs"], first["finished"]) == (8, 0)
    assert last["what"] == "together, shared runs once" and last["epochs"] == 16


def test_results_of_a_part_of_the_runs(run, tmp_path):
    """One seed is made; two are asked for, and nothing more is trained."""
    code, _, errors = run("reproduce", "2b", "--scale", "smoke", "--seeds", "1")
    assert code == 0, errors
    asked = (
        "reproduce",
        "2b",
        "3",
        "--scale",
        "smoke",
        "--runs",
        "runs/reproduction/runs",
        "--output",
        "out",
    )
    code, output, errors = run(*asked, "--no-train")  # the records alone are enough
    assert code == 0, errors
    assert "(5 of 10 runs)" in output and "Over what the Top-K is counted (3 of 18 runs)" in output
    result = json.loads((tmp_path / "out/2b/result.json").read_text())
    assert len(result["runs"]) == len(result["missing"]) == 5
    assert all("-s0-" in name for name in result["runs"]) and all("-s1-" in n for n in result["missing"])
    assert (tmp_path / "out/2b/panel-1.svg").exists() and result["claims"][0]["verdict"] == "not run"
    code, output, _ = run(*asked, "--dry-run")
    (line,) = (line for line in output.splitlines() if line.startswith("2b"))
    assert "5 of 10" in line and line.split()[4] == "10" and line.endswith(" h")
    code, output, errors = run("report", "out")
    assert code == 0 and "5 of 10 runs are not made yet" in (tmp_path / "report.html").read_text(), errors


def test_of_nothing_nothing_is_drawn(run, tmp_path):
    code, output, errors = run("reproduce", "9e", "--scale", "smoke", "--no-train")
    assert code == 0 and "(0 of 2 runs)" in output, errors
    assert not (tmp_path / "runs/reproduction/9e").exists()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["9f"], "unknown figure '9f': did you mean"),
        (["9a", "--scale", "big"], "unknown scale 'big'"),
        (["9d", "--set", "optimizer.lrr=1"], "did you mean 'optimizer.lr'?"),
    ],
)
def test_mistakes(run, arguments, message):
    code, _, errors = run("reproduce", *arguments)
    assert code == 2 and message in errors and "Traceback" not in errors


def test_names_of_several_figures():
    assert [e.figure for e in experiments(["9"])] == ["9a", "9b", "9c", "9d", "9e"]
    assert [e.figure for e in experiments(["all"])] == list(EXPERIMENTS)
    assert [e.figure for e in experiments(["5"])] == ["5"]


@pytest.mark.slow
def test_everything_at_smoke_scale_and_a_page_of_it(run, tmp_path):
    code, _, errors = run("reproduce", "all", "--scale", "smoke", "--jobs", "2")
    assert code == 0, errors
    assert {path.parent.name for path in tmp_path.glob("runs/reproduction/*/result.json")} == set(EXPERIMENTS)
    code, output, errors = run("report", "runs/reproduction")
    assert code == 0 and f"{len(EXPERIMENTS)} figures" in output, errors
