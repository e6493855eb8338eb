"""``torchswat quantize``: a file and images in, a smaller file out that predicts alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import torchswat
from torchswat import cli, data
from torchswat.runtime.network import normalised


def torchswat_command(*words: str | Path) -> str:
    done = CliRunner().invoke(cli.app, [str(word) for word in words])
    assert done.exit_code == 0, done.output + str(done.exception)
    return done.output


def test_a_file_is_quantized_by_pictures(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "small.safetensors"
    words = "quantize", model, "--images", pictures[0].parent, "-o", output, "--json"
    found = json.loads(torchswat_command(*words))
    assert found["path"] == str(output) and found["images"] == len(pictures)
    assert found["bytes"] == output.stat().st_size and found["bytes_before"] == model.stat().st_size

    before, after = torchswat.load(model), torchswat.load(output)
    assert after.package.about.mean == before.package.about.mean
    test = data.load("digits").test
    x = normalised(test.images, before.package.about)  # type: ignore[attr-defined]
    same = before(x).argmax(1) == after(x).argmax(1)
    assert float(same.float().mean()) > 0.95
    assert "class" in torchswat_command("predict", output, pictures[0])


def test_the_name_of_the_file(model: Path, pictures: list[Path], tmp_path: Path) -> None:
    own = Path(shutil.copy(model, tmp_path / "mine.safetensors"))
    said = torchswat_command("quantize", own, "--images", pictures[0], "--images", pictures[1])
    assert (tmp_path / "mine-int8.safetensors").is_file() and "2 images" in said.replace("\n", " ")


def test_a_picture_that_is_none(model: Path, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_text("hello")
    done = CliRunner().invoke(cli.app, ["quantize", str(model), "--images", str(tmp_path)])
    assert done.exit_code and not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize("given", ["nothing", "empty"])
def test_images_that_are_not_there(model: Path, tmp_path: Path, given: str) -> None:
    if given == "empty":
        (tmp_path / given).mkdir()
    done = CliRunner().invoke(cli.app, ["quantize", str(model), "--images", str(tmp_path / given)])
    assert done.exit_code
