"""What lies in folders: results of experiments, runs, benchmarks. Only files are read, no training code."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from torchswat.errors import InvalidData, MissingData

Row = dict[str, Any]

_SCALES = ("smoke", "cpu", "paper")
_SKIPPED = {"checkpoints", "tensorboard"}


@dataclass(frozen=True)
class Result:
    """One reproduced figure: what ``result.json`` says, its panels as SVG, and its data as text."""

    path: Path
    facts: Row
    panels: list[str]
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Run:
    """One training, finished or not."""

    path: Path
    recipe: Row
    epochs: list[dict[str, float]]
    summary: Row | None
    versions: list[Row]
    sights: list[dict[str, str]]
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.path.name

    @property
    def place(self) -> str:
        """Network and data in words; runs of one place are compared."""
        model, data = self.recipe["model"], self.recipe["data"]
        width = f" x{model['width']}" if model.get("width") else ""
        return f"{model['name']}{width}, {data['name']}"

    @property
    def algorithm(self) -> str:
        """Algorithm, with the scope where it is not the whole tensor, and the block where it is not one weight."""
        sparse = self.recipe["sparse"]
        if sparse["algorithm"] == "dense" or sparse["sparsity"] == 0:
            return "dense"
        block = sparse.get("block", [1, 1])  # runs of earlier versions have none
        how = [] if sparse["scope"] == "nchw" else [sparse["scope"]]
        how += [] if list(block) == [1, 1] else ["blocks {} x {}".format(*block)]
        return sparse["algorithm"] + (f" ({', '.join(how)})" if how else "")

    @property
    def sparsity(self) -> str:
        """Sparsity in words."""
        share = self.recipe["sparse"]["sparsity"]
        if self.algorithm == "dense":
            return ""
        return "by layer" if isinstance(share, dict) else f"{100 * share:g} %"

    @property
    def accuracy(self) -> float | None:
        """Test accuracy in per cent after the last epoch there is."""
        return self.epochs[-1]["test_accuracy"] if self.epochs else None


@dataclass
class Found:
    """Everything that was found."""

    results: dict[str, Result] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    benchmarks: list[tuple[Path, Row]] = field(default_factory=list)
    claims: dict[str, Row] = field(default_factory=dict)


def discover(folders: Sequence[Path]) -> Found:
    """Read what lies in `folders` and below.

    Raises
    ------
    MissingData
        A folder is not there, or nothing of ours is in any of them.
    InvalidData
        A file of ours cannot be read; the message names it.
    """
    found = Found()
    for folder in folders:
        if not folder.is_dir():
            raise MissingData(f"{folder} is not a folder")
        for path, files in _walk(folder):
            if "result.json" in files:
                _take_result(found, path)
            if "recipe.yaml" in files:
                run = _read_run(path)
                found.runs.setdefault(run.name, run)
            for name in sorted(files):
                if name.endswith(".json"):
                    _take_json(found, path / name)
    if not (found.results or found.runs or found.benchmarks):
        where = ", ".join(map(str, folders))
        raise MissingData(
            f"no run, no reproduced figure and no benchmark in {where}. Make some with `torchswat train`, "
            "`torchswat reproduce` or `torchswat bench`, and give their folder."
        )
    return found


def _walk(folder: Path) -> Iterator[tuple[Path, set[str]]]:
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED)
        yield Path(path), set(files)


def _take_result(found: Found, path: Path) -> None:
    """Take a figure, unless the same figure is there at a larger scale."""
    facts = _json(path / "result.json")
    if not isinstance(facts, dict) or "figure" not in facts:
        return
    figure = facts["figure"]
    known = found.results.get(figure)
    if known and _SCALES.index(known.facts["scale"]) > _SCALES.index(facts["scale"]):
        return
    drawn = sorted(path.glob("panel-*.svg"), key=lambda panel: (len(panel.name), panel.name))
    panels = [_text(panel) for panel in drawn or [path / "figure.svg"]]
    found.results[figure] = Result(path, facts, panels, _table(path / "data.csv"))


def _take_json(found: Found, path: Path) -> None:
    """Take a record of a benchmark, or the list of claims; anything else is not ours."""
    if path.name == "claims.json":
        found.claims |= {claim["name"]: claim for claim in _json(path)}
    elif path.name not in ("result.json", "summary.json", "versions.json", "plan.json"):
        record = _json(path)
        if isinstance(record, dict) and "benchmark" in record and "rows" in record:
            found.benchmarks.append((path, record))


def _read_run(path: Path) -> Run:
    try:
        recipe = yaml.safe_load(_text(path / "recipe.yaml"))
    except yaml.YAMLError as error:
        raise InvalidData(f"{path / 'recipe.yaml'} is not YAML: {' '.join(str(error).split())}") from None
    table = _table(path / "metrics.csv")
    epochs = [
        {key: float(value) for key, value in row.items() if value} for row in table
    ]  # empty: not measured
    failed = path / "failed.json"
    return Run(
        path,
        recipe,
        epochs,
        _json(path / "summary.json") if (path / "summary.json").exists() else None,
        _json(path / "versions.json") if (path / "versions.json").exists() else [],
        _table(path / "analysis.csv"),
        _json(failed)["problem"] if failed.exists() else "",
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData(f"{path} cannot be read: {error}") from None


def _json(path: Path) -> Any:
    try:
        return json.loads(_text(path))
    except ValueError as error:
        raise InvalidData(f"{path} is not JSON: {error}") from None


def _table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where it is not there. A line that is being written is left out."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
