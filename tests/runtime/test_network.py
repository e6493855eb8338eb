"""The network that `load` gives: equal to the one it came from, at any batch, from any thread."""

from __future__ import annotations

import copy
import gc
import pickle
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torchswat
from torchswat.engine.loader import engine
from torchswat.errors import InvalidData, InvalidValue, MissingData
from torchswat.runtime import session, steps
from torchswat.runtime.trace import pruned

from .conftest import same_up_to_rounding, settle_

NETWORKS = {
    "resnet18": {"width": 16},
    "resnet50": {"width": 8},
    "resnet20": {},
    "vgg16": {},
    "densenet121": {},
}


def some(*names: str) -> list[Any]:
    """Return these networks, and the others for those who have time."""
    return [*names, *(pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS if name not in names)]


@pytest.mark.parametrize("name", some("resnet20", "resnet50"))
def test_the_networks_of_the_registry(name: str, tmp_path: Path):
    model = settle_(torchswat.models.create(name, **NETWORKS[name]))
    torchswat.sparsify_(model, sparsity=0.8)
    torchswat.save(model, tmp_path / "it")
    network = torchswat.load(tmp_path / "it")
    reference = pruned(model)
    for pictures in (1, 3, 16, 20):
        x = torch.randn(pictures, 3, 32, 32)
        same_up_to_rounding(network(x), reference(x))


class Everything(nn.Module):
    """The operations and forms that no network of the registry has."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5), stride=(2, 1), padding=(0, 2))
        self.norm = nn.BatchNorm2d(3)
        self.pool, self.average = nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 2, 1)
        self.adaptive, self.relu = nn.AdaptiveAvgPool2d(3), nn.ReLU()
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(16 * 9, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 4)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.conv(self.relu(self.norm(x))))
        y = self.relu(x)
        return self.head(self.adaptive(torch.cat([self.average(x + y), self.average(y)], 1)))


def test_every_operation(tmp_path: Path):
    model = settle_(Everything())
    torchswat.save(model, tmp_path / "it", input_shape=(3, 15, 18))
    network = torchswat.load(tmp_path / "it")
    operations = {node.operation for node in network.package.graph.nodes}
    wanted = {"BatchNormalization", "Relu", "Add", "AveragePool", "AdaptiveAveragePool", "Concat"}
    assert operations >= wanted
    for pictures in (1, 4, 33):
        x = torch.randn(pictures, 3, 15, 18)
        same_up_to_rounding(network(x), model(x))


def test_the_plain_engine_does_the_same(saved: Callable[..., Path]):
    network, x = torchswat.load(saved()), torch.randn(6, 1, 8, 8)
    with engine("reference"):
        expected = network(x)
    same_up_to_rounding(network(x), expected)


@pytest.mark.parametrize("pictures", [0, 1, 255, 256, 600])
def test_any_number_of_pictures(saved: Callable[..., Path], pictures: int):
    network = torchswat.load(saved())
    x = torch.randn(pictures, 1, 8, 8)
    found = network(x)
    assert found.shape == (pictures, 10)
    if pictures:
        with engine("reference"):
            same_up_to_rounding(found, network(x))


def test_inputs_in_any_layout(saved: Callable[..., Path]):
    network, x = torchswat.load(saved()), torch.randn(8, 1, 8, 16)[..., ::2]
    assert torch.equal(network(x), network(x.contiguous()))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(1, 8, 8), r"takes \(N, 1, height, width\)"),
        (torch.zeros(1, 2, 8, 9), r"takes \(N, 1, height, width\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.float64), "takes float32"),
    ],
)
def test_inputs_that_are_refused(saved: Callable[..., Path], x: torch.Tensor, words: str):
    with pytest.raises(InvalidValue, match=words):
        torchswat.load(saved())(x)


def test_many_threads_at_once(saved: Callable[..., Path]):
    network = torchswat.load(saved())
    pictures = [torch.randn(1 + number % 20, 1, 8, 8) for number in range(60)]
    expected = [network(x) for x in pictures]
    fresh = torchswat.load(saved())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fresh, pictures))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_few_sizes_stay_prepared(saved: Callable[..., Path]):
    network = torchswat.load(saved())
    for pictures in range(1, 3 * session.MOST_SIZES):
        network(torch.zeros(pictures, 1, 8, 8))
    assert len(network._sessions._idle) <= session.MOST_SIZES


def test_weights_are_packed_once_for_all_who_ask_at_once(
    saved: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
):
    network, packings = torchswat.load(saved()), []
    for_rows = steps.lists.for_rows
    monkeypatch.setattr(
        steps.lists, "for_rows", lambda *arguments: packings.append(1) or for_rows(*arguments)
    )
    layers = sum(node.operation == "Conv" for node in network.package.graph.nodes)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(network, [torch.zeros(1, 1, 8, 8)] * 16))
    assert len(packings) in (0, layers, layers + 1)  # none in numpy; the product is dense or not


def test_lists_go_with_the_last_session_that_uses_them(saved: Callable[..., Path]):
    network = torchswat.load(saved())
    network(torch.zeros(1, 1, 8, 8))
    kept = dict(network._sessions._lists)
    for pictures in range(20, 20 + session.MOST_SIZES):
        network(torch.zeros(pictures, 1, 8, 8))
    names = set(kept)
    del kept
    gc.collect()
    assert not names & set(network._sessions._lists)


@pytest.mark.parametrize("name", ["resnet20", pytest.param("densenet121", marks=pytest.mark.slow)])
def test_memory_made_in_inference_mode_serves_everybody(name: str, tmp_path: Path):
    torchswat.save(settle_(torchswat.models.create(name)), tmp_path / "it")
    x = torch.randn(3, 3, 32, 32)
    with torch.inference_mode():
        network = torchswat.load(tmp_path / "it")
        first = network(x)
    assert torch.equal(network(x), first)


def test_copies_and_pickles(saved: Callable[..., Path]):
    network, x = torchswat.load(saved(mean=(0.5,), std=(0.25,))), torch.randn(3, 1, 8, 8)
    expected = network(x)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(again(x), expected) and not again.training
        assert again.package.about == network.package.about


def test_results_outlive_the_next_call(saved: Callable[..., Path]):
    network = torchswat.load(saved())
    first = network(torch.ones(2, 1, 8, 8))
    before = first.clone()
    network(torch.zeros(2, 1, 8, 8))
    assert torch.equal(first, before)


def test_probabilities_of_pixels(saved: Callable[..., Path]):
    network = torchswat.load(saved(mean=(0.5,), std=(0.25,)))
    pixels = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    found = network.probabilities(pixels)
    assert torch.allclose(found, network((pixels / 255 - 0.5) / 0.25).softmax(1), atol=1e-6)
    assert torch.allclose(found.sum(1), torch.ones(3))


def test_files_that_are_no_networks(tmp_path: Path):
    with pytest.raises(MissingData):
        torchswat.load(tmp_path / "none")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InvalidData, match="text"):
        torchswat.load(str(tmp_path / "text"))


def test_it_says_what_it_is(saved: Callable[..., Path]):
    assert re.search(r"\d+ operations, [\d,]+ of [\d,]+ weights", repr(torchswat.load(saved())))
