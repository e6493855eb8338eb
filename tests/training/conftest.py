"""A run that takes a second, and the command line as a real process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from torchswat.training.recipe import Recipe, make_recipe

TINY = {
    "name": "tiny",
    "model": {"name": "resnet-digits", "width": 8},
    "data": {"name": "digits", "batch_size": 32, "train_limit": 192, "test_limit": 100},
    "sparse": {"algorithm": "swat", "sparsity": 0.8, "period": 3, "skip": ["first"]},
    "optimizer": {"epochs": 3, "lr": 0.05, "milestones": [2]},
    "checkpoint": {"every_steps": 2},
    "threads": 1,
}


@pytest.fixture
def tiny() -> Callable[..., Recipe]:
    """A recipe of 3 epochs of 6 steps; values in it can be replaced, section by section."""

    def make(**sections: object) -> Recipe:
        merged = {
            key: {**TINY[key], **sections[key]}
            if isinstance(sections.get(key), dict)
            else sections.get(key, value)
            for key, value in TINY.items()
        }
        return make_recipe({**sections, **merged})

    return make


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start ``python -m torchswat ARGUMENTS``; what is still running when the test ends is killed."""
    processes: list[subprocess.Popen[str]] = []

    def run(
        *arguments: object, launcher: tuple[str, ...] = ("-W", "error", "-m"), **options
    ) -> subprocess.Popen[str]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
        process = subprocess.Popen(
            [sys.executable, *launcher, "torchswat", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            **options,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.communicate()


def write_recipe(recipe: Recipe, folder: Path) -> Path:
    """The recipe as a file that the command line takes."""
    path = folder / "tiny.yaml"
    path.write_text(recipe.to_yaml())
    return path
