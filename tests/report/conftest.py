"""A folder with a run, an unfinished run, a figure and a benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchswat.experiments.claims import write_claims
from torchswat.experiments.outcome import Work
from torchswat.experiments.registry import EXPERIMENTS
from torchswat.experiments.runs import train_or_continue
from torchswat.experiments.scales import SCALES, Training


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """Two real runs, dense and SWAT, of a second each."""
    folder = tmp_path_factory.mktemp("runs")
    for training in (
        Training("resnet18", "cifar10", "dense", 0.0, 0),
        Training("resnet18", "cifar10", "swat", 0.8, 0),
    ):
        train_or_continue(folder / training.folder_name(SCALES["smoke"]), training.recipe(SCALES["smoke"]))
    return folder


@pytest.fixture
def everything(tmp_path: Path, trained: Path) -> list[Path]:
    """The folders of all that a page may show."""
    write_claims(tmp_path / "claims.json")
    EXPERIMENTS["9d"].record(Work(SCALES["cpu"], [], tmp_path), tmp_path / "9d", "torchswat reproduce 9d")
    rows = [
        {
            "network": "n",
            "how": "sample:1",
            "sparsity": s,
            "speed_up": 2.0,
            "limit": 1 / (1 - s),
            "samples": {"step": [1.0]},
        }
        for s in (0.5, 0.8)
    ]
    record = {
        "benchmark": "step",
        "circumstances": {"git_commit": "abc", "repeats": 3},
        "rows": rows,
        "remarks": ["<i>"],
    }
    (tmp_path / "step.json").write_text(json.dumps(record))
    return [tmp_path, trained]
