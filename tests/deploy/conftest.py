"""A network for the digits, trained for a moment, its run, and pictures of digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from torchswat import data
from torchswat.training import loop
from torchswat.training.recipe import load_recipe


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    loop.train(load_recipe("digits-demo", ["optimizer.epochs=2", "model.width=16"]), folder)
    return folder


@pytest.fixture(scope="session")
def model(run: Path) -> Path:
    """The run's network as a file of ours."""
    from torchswat.deploy.export import export_run

    return Path(export_run(run, run.parent / "exported", check=False).files["sparse"]["path"])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Picture files of a few digits, grey, 8x8."""
    folder = tmp_path_factory.mktemp("pictures")
    test = data.load("digits").test
    files = []
    for number, image in enumerate(np.asarray(test.images[:12])):  # type: ignore[attr-defined]
        files.append(folder / f"{number:02}.png")
        Image.fromarray(image[0]).save(files[-1])
    return files
