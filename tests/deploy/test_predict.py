"""Pictures in, names and probabilities out; through the command line too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import torchswat
from torchswat import data
from torchswat.deploy.export import export_run
from torchswat.deploy.predict import Reader, find_pictures, predict
from torchswat.errors import InvalidData, InvalidValue, MissingData
from torchswat.runtime.package import About, Package


def test_pixels_arrive_as_they_are_in_the_data_set(model: Path, pictures: list[Path]):
    reader, images = Reader(torchswat.load(model)), data.load("digits").test.images  # type: ignore[attr-defined]
    for number, file in enumerate(pictures):
        assert torch.equal(reader.read(file), images[number])
        assert torch.equal(reader.read(file.read_bytes()), images[number])


def test_guesses_are_those_of_the_network(model: Path, pictures: list[Path], tmp_path: Path):
    network = torchswat.load(model)
    (tmp_path / "no.png").write_text("hello")
    files = [*pictures[:3], tmp_path / "no.png", *pictures[3:]]
    pixels = torch.stack([Reader(network).read(file) for file in pictures])
    expected = network.probabilities(pixels)
    found = list(predict(network, files, top=3))
    assert [file for file, _ in found] == files
    assert isinstance(found.pop(3)[1], InvalidData)
    for (_, guesses), row in zip(found, expected, strict=True):
        assert not isinstance(guesses, InvalidData) and len(guesses) == 3
        assert [guess.number for guess in guesses] == row.topk(3).indices.tolist()
        assert guesses[0].name == str(guesses[0].number)
        assert guesses[0].probability == pytest.approx(float(row.max()), rel=1e-4)


def test_colours_and_sizes(model: Path, tmp_path: Path):
    Image.new("RGB", (40, 20), (255, 0, 0)).save(tmp_path / "red.png")
    pixels = Reader(torchswat.load(model)).read(tmp_path / "red.png")
    assert pixels.shape == (1, 8, 8) and pixels.unique().tolist() == [76]  # 0.299 of 255


def test_the_centre_is_seen_where_the_training_saw_it(model: Path, tmp_path: Path):
    package = torchswat.load(model).package
    network = torchswat.load(model)
    network.package = Package(package.graph, package.tensors, About(resize=8))
    picture = np.zeros((8, 24), np.uint8)
    picture[:, 8:16] = 200
    Image.fromarray(picture).save(tmp_path / "wide.png")
    assert Reader(network).read(tmp_path / "wide.png").unique().tolist() == [200]


def test_networks_that_see_no_pictures(tmp_path: Path):
    torchswat.save(torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1)), tmp_path / "it", input_shape=(2, 4, 4))
    with pytest.raises(InvalidValue, match="1 or 3 channels"):
        Reader(torchswat.load(tmp_path / "it"))


def test_folders(pictures: list[Path], tmp_path: Path):
    assert find_pictures([pictures[0].parent]) == pictures
    assert find_pictures(pictures[1:3]) == pictures[1:3]
    with pytest.raises(MissingData, match="holds no images"):
        find_pictures([tmp_path])
    with pytest.raises(MissingData, match="no image"):
        find_pictures([tmp_path / "none.png"])


def torchswat_(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchswat", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_command(model: Path, pictures: list[Path], tmp_path: Path):
    done = torchswat_("predict", model, pictures[0].parent, "--top", 2, "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row["image"] for row in rows] == list(map(str, pictures))
    assert all(len(row["guesses"]) == 2 for row in rows)

    (tmp_path / "no.png").write_text("hello")
    done = torchswat_("predict", model, pictures[0], tmp_path / "no.png")
    assert done.returncode == 1 and "%" in done.stdout and str(tmp_path / "no.png") not in done.stdout
    assert f"torchswat: {tmp_path / 'no.png'} is not a readable image" in done.stderr
    done = torchswat_("predict", model, tmp_path / "no.png", "--json")
    assert done.returncode == 1 and "not a readable" in json.loads(done.stdout)[0]["error"]

    done = torchswat_("predict", tmp_path / "no.png", pictures[0])
    assert done.returncode == 2 and "Traceback" not in done.stderr and "safetensors" in done.stderr


def test_names_are_shown_as_they_are_and_whole(model: Path, pictures: list[Path], tmp_path: Path):
    strange = tmp_path / ("[red]" + "a long name " * 15 + "[bold].png")
    strange.write_bytes(pictures[0].read_bytes())
    assert str(strange) in torchswat_("predict", model, strange).stdout


def test_pictures_too_large_are_refused_in_one_voice(model: Path, tmp_path: Path):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "large.png")
    done = torchswat_("predict", model, tmp_path / "large.png")
    assert done.returncode == 1 and not done.stdout
    assert len(done.stderr.splitlines()) == 1 and "more than the 67108864 allowed" in done.stderr


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("dense", "no network of torchswat"),
        ("checkpoint", "'torchswat checkpoint 1'; this version reads 'torchswat network 2'"),
        ("folder", "is a folder"),
    ],
)
def test_other_files_of_a_run_are_told_from_a_network(run: Path, tmp_path: Path, kind: str, words: str):
    exported = export_run(run, tmp_path, ["dense"], check=False)
    files = {"dense": exported.files["dense"]["path"], "checkpoint": exported.checkpoint, "folder": run}
    with pytest.raises((InvalidData, MissingData), match=words):
        torchswat.load(files[kind])
