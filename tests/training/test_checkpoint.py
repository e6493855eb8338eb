"""Checkpoint files: whole or not there, and every bit comes back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from torchswat.errors import CheckpointError, InvalidData, MissingData
from torchswat.training.checkpoint import (
    Checkpoint,
    Progress,
    checkpoint_path,
    discard_old,
    list_checkpoints,
    load_optimizer_tensors_,
    optimizer_tensors,
    write_atomically,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def make(**changes) -> Checkpoint:
    shared = torch.randn(3, 2)
    strided = torch.randn(4, 4).t()[::2]
    values = {
        "recipe": {"name": "x", "sparse": {"sparsity": 0.8}},
        "progress": Progress(step=7, epoch=1, step_in_epoch=2, best_accuracy=100 / 3, best_step=5),
        "processes": 2,
        "model": {
            "weight": shared,
            "tied": shared,
            "strided": strided,
            "count": torch.tensor(3),
        },
        "optimizer": {"weight/momentum_buffer": torch.randn(3, 2)},
        "ranks": [
            {"rng/torch": torch.get_rng_state()},
            {"sparse/a.threshold": torch.tensor([1e-40, float("inf")])},
        ],
    }
    return Checkpoint(**{**values, **changes})


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.recipe, one.progress, one.processes) == (other.recipe, other.progress, other.processes)
    for mine, theirs in zip(
        [one.model, one.optimizer, *one.ranks], [other.model, other.optimizer, *other.ranks], strict=True
    ):
        assert mine.keys() == theirs.keys()
        for name in mine:
            assert mine[name].dtype == theirs[name].dtype and mine[name].shape == theirs[name].shape
            assert torch.equal(
                mine[name].contiguous().reshape(-1).view(torch.uint8),
                theirs[name].contiguous().reshape(-1).view(torch.uint8),
            )


def test_round_trip(tmp_path):
    saved = make()
    saved.save(tmp_path / "a.safetensors")
    assert_same(Checkpoint.load(tmp_path / "a.safetensors"), saved)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_comparison_can_fail():
    with pytest.raises(AssertionError):
        assert_same(make(), make(model={}))
    zero, minus_zero = torch.zeros(1), -torch.zeros(1)
    with pytest.raises(AssertionError):
        assert_same(
            make(model={"w": zero}, optimizer={}, ranks=[]),
            make(model={"w": minus_zero}, optimizer={}, ranks=[]),
        )


@given(dtype=st.sampled_from(DTYPES), shape=st.lists(st.integers(0, 4), max_size=4), seed=st.integers(0, 999))
def test_every_dtype_and_shape_comes_back(dtype, shape, seed, tmp_path_factory):
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    path = tmp_path_factory.mktemp("c") / "c.safetensors"
    saved = make(model={"t": tensor})
    saved.save(path)
    assert_same(Checkpoint.load(path), saved)


def test_the_bytes_are_a_function_of_the_content(tmp_path):
    saved = make()
    for name in ("a", "b"):
        saved.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_it_is_an_ordinary_safetensors_file(tmp_path):
    make().save(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["torchswat"])["progress"]["step"] == 7
        assert file.get_tensor("model/weight").shape == (3, 2)


@given(data=st.data())
def test_any_damaged_byte_and_any_truncation_is_noticed(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("c") / "c.safetensors"
    saved = make()
    saved.save(path)
    content = bytearray(path.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content = content[:where]
    else:
        content[where] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        loaded = Checkpoint.load(path)
    except InvalidData as error:
        assert str(path) in str(error)
    else:  # white space in the header
        assert_same(loaded, saved)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 64])
def test_what_is_no_safetensors_file(content, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(InvalidData, match="truncated or no safetensors file"):
        Checkpoint.load(path)


def test_somebody_elses_safetensors_file(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors")
    with pytest.raises(InvalidData, match="no checkpoint of torchswat"):
        Checkpoint.load(tmp_path / "x.safetensors")
    with pytest.raises(MissingData):
        Checkpoint.load(tmp_path / "y.safetensors")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_what_was_there(call, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    make().save(path)
    before = path.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    owner = os if call == "fsync" else Path
    with (
        monkeypatch.context() as patch,
        pytest.raises(CheckpointError, match=r"cannot write .*No space"),
    ):
        patch.setattr(owner, call, fail)
        make(progress=Progress()).save(path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot write"):
        write_atomically(tmp_path / "file" / "x", b"1")


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (1, 2, 30, 400):
        checkpoint_path(tmp_path, step).write_bytes(b"")
    assert [path.name for path in list_checkpoints(tmp_path)][-1] == "step-000000400.safetensors"
    discard_old(tmp_path, keep=1, best_step=2)
    assert list_checkpoints(tmp_path) == [checkpoint_path(tmp_path, step) for step in (2, 400)]
    discard_old(tmp_path, keep=5, best_step=2)
    assert len(list_checkpoints(tmp_path)) == 2


def test_optimizer_buffers_go_by_name_of_parameter():
    def trained() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 2))
        model = model.to(memory_format=torch.channels_last)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(2, 3, 3, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    one, other = trained(), trained()
    step(*one)
    tensors = optimizer_tensors(*one)
    assert set(tensors) == {
        f"{name}/momentum_buffer" for name in ("0.weight", "0.bias", "2.weight", "2.bias")
    }
    other[0].load_state_dict(one[0].state_dict())
    load_optimizer_tensors_(*other, {name: tensor.clone() for name, tensor in tensors.items()})
    for model, optimizer in (one, other):
        step(model, optimizer)
    for mine, theirs in zip(one[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(InvalidData, match=r"'3\.weight'"):
        load_optimizer_tensors_(*other, {"3.weight/momentum_buffer": torch.ones(1)})
