"""The file: round trips, and damaged or hostile ones refused without a crash or much memory."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torchswat
from torchswat.errors import InvalidData, InvalidValue, TorchswatError
from torchswat.runtime import container
from torchswat.runtime.graph import Graph, Input, node
from torchswat.runtime.package import KEY, Package, _checksum
from torchswat.runtime.trace import pruned

from .conftest import same_up_to_rounding, settle_

ABOUT = {
    "classes": [str(digit) for digit in range(10)],
    "mean": (0.5,),
    "std": (0.25,),
    "resize": 9,
    "provenance": {"sparsity": 0.8, "data": "digits"},
}


def test_a_round_trip(small_model: nn.Module, tmp_path: Path):
    torchswat.save(small_model, tmp_path / "it", input_shape=(1, 8, 8), **ABOUT)
    network = torchswat.load(tmp_path / "it")
    about = network.package.about
    assert about.classes == tuple("0123456789") and about.resize == 9
    assert (about.mean, about.std, about.provenance) == ((0.5,), (0.25,), ABOUT["provenance"])
    x = torch.randn(5, 1, 8, 8)
    same_up_to_rounding(network(x), pruned(small_model)(x))


def test_it_is_an_ordinary_safetensors_file(saved: Callable[..., Path]):
    tensors = safetensors.numpy.load_file(saved())
    assert tensors["conv1.weight/values"].dtype == np.float32
    assert tensors["conv1.weight/bits"].dtype == np.uint8


def test_the_same_network_makes_the_same_file(small_model: nn.Module, tmp_path: Path):
    for name in ("one", "two"):
        torchswat.save(small_model, tmp_path / name, input_shape=(1, 8, 8), **ABOUT)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_four_times_smaller_than_dense(tmp_path: Path):
    model = torchswat.sparsify_(settle_(torchswat.models.create("resnet18", width=32)), sparsity=0.8)
    torchswat.save(model, tmp_path / "sparse")
    (tmp_path / "dense").write_bytes(
        safetensors.numpy.save({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    )
    assert (tmp_path / "dense").stat().st_size > 4 * (tmp_path / "sparse").stat().st_size


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"classes": ["one"]}, "1 classes are named"),
        ({"mean": (0.5, 0.5), "std": (1.0, 1.0)}, "2 numbers for 1 colours"),
        ({"mean": (0.5,), "std": (0.0,)}, "more than 0"),
        ({"mean": (0.5,)}, "a std for every mean"),
        ({"mean": (float("nan"),), "std": (1.0,)}, "no number of JSON"),
        ({"resize": -1}, "allowed is 0 to"),
        ({"provenance": {"a": object()}}, "cannot be saved"),
    ],
)
def test_descriptions_that_do_not_fit(saved: Callable[..., Path], about: dict[str, Any], words: str):
    with pytest.raises(InvalidValue, match=words):
        saved(**about)


def test_an_input_shape_that_is_none(small_model: nn.Module, tmp_path: Path):
    with pytest.raises(InvalidValue, match="input_shape"):
        torchswat.save(small_model, tmp_path / "x", input_shape=(8, 8))
    assert not list(tmp_path.iterdir())


# ---- damaged and hostile files -----------------------------------------------------------------------------


def refused(path: Path, words: str | None = None) -> None:
    """Expect a clear error that names the file, and no memory that the file does not account for."""
    tracemalloc.start()
    with pytest.raises(InvalidData, match=words) as raised:
        torchswat.load(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(path) in str(raised.value)
    assert peak < 20 * path.stat().st_size + 2**23  # pytest has its share


def forge(path: Path, change: Callable[[dict[str, Any], dict[str, np.ndarray]], object]) -> None:
    """Change description and arrays, and put the checksum right, as an attacker would."""
    arrays, metadata = container.read(path)
    header = json.loads(metadata[KEY])
    del header["crc32"]
    change(header, arrays)
    header["crc32"] = _checksum(header, arrays)
    path.write_bytes(container.to_bytes(arrays, {KEY: json.dumps(header)}))


@pytest.fixture
def good(saved: Callable[..., Path]) -> bytes:
    """The content of a file with which nothing is wrong."""
    return saved(**ABOUT).read_bytes()


def test_every_truncation_is_refused(saved: Callable[..., Path]):
    path = saved()
    content = path.read_bytes()
    for length in [*range(0, 200, 7), *range(200, len(content), 997), len(content) - 1]:
        path.write_bytes(content[:length])
        refused(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_damage_is_noticed(good: bytes, tmp_path: Path, data: st.DataObject):
    path, content = tmp_path / "damaged", bytearray(good)
    length = int.from_bytes(content[:8], "little") + 8
    where = data.draw(st.integers(0, length - 1) | st.integers(0, len(content) - 1))
    flipped = data.draw(st.integers(1, 255))
    content[where] ^= flipped
    path.write_bytes(content)
    try:
        torchswat.load(path)
    except TorchswatError:
        return
    # Blanks between the words of the header may change without changing what it says.
    assert where < length and chr(flipped ^ content[where]) in " " + "\t\n\r"


def test_the_checksum_is_checked(saved: Callable[..., Path]):
    path = saved()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    refused(path, "checksum")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, a: h.update(format="torchswat network 3"), "this version reads"),
        (lambda h, a: h.pop("classes"), "lacks classes"),
        (lambda h, a: h.update(classes="0123456789"), "list of names"),
        (lambda h, a: h.update(mean=[1e300], std=[1]), "far from any"),
        (lambda h, a: h.update(mean=["0"], std=[1]), "list of numbers"),
        (lambda h, a: h.update(resize=10**9), "resize is"),
        (lambda h, a: h.update(provenance=[]), "provenance"),
        (lambda h, a: h.update(tensors=[]), "forms and shapes"),
        (lambda h, a: h["tensors"].update({"x": 1}), "are wanted"),
        (lambda h, a: h["tensors"]["fc.bias"].update(form="exec"), "none of"),
        (lambda h, a: h["tensors"]["fc.bias"].update(shape=[]), "have the shape"),
        (lambda h, a: h["tensors"]["fc.bias"].update(dtype="float16"), "dtype 'float16' is not allowed"),
        (lambda h, a: h["tensors"]["fc.weight"].update(dtype="int8"), "dtype 'int8' is not allowed"),
        (lambda h, a: h["tensors"]["fc.bias"].update(shape=[2**40]), "have the shape"),
        (lambda h, a: h["tensors"]["conv1.weight"].update(shape=[2**40, 1, 3, 3]), "node 'conv1'"),
        (lambda h, a: h["tensors"]["conv1.weight"].update(form="dense"), "on one side only"),
        (lambda h, a: a.update(more=np.zeros(1, np.uint8)), "on one side only"),
        (lambda h, a: h["network"]["inputs"][0].update(example=[1, 1, 2**16, 2**16]), "too many entries"),
        (lambda h, a: h["network"]["inputs"][0].update(example=[2**9, 1, 2**9, 2**9]), "too large"),
    ],
)
def test_forged_files_are_refused(saved: Callable[..., Path], change: Callable[..., object], words: str):
    path = saved()
    forge(path, change)
    refused(path, words)


OLD = {
    "input_shape": [2**14, 2, 2],
    "nodes": [
        {
            "name": "a",
            "operation": "conv2d",
            "inputs": ["input"],
            "settings": {"stride_h": 1, "stride_w": 1, "padding_h": 0, "padding_w": 0, "relu": 0},
        }
    ],
}
NEW = Graph(
    (Input("input", ("batch", 2**14, 2, 2), (1, 2**14, 2, 2)),),
    (node("Conv", ["input", "a.weight", "a.bias"], "a"),),
    ("a",),
)


@pytest.mark.parametrize(("number", "network"), [(1, OLD), (2, NEW.to_json())])
def test_claims_of_gigabytes_take_none(tmp_path: Path, number: int, network: dict[str, Any]):
    """A wide layer whose file claims to hold 4 GB of weights in a few bytes."""
    shape = [2**14, 2**14, 2, 2]
    dtype = {} if number == 1 else {"dtype": "float32"}
    for form, parts in {
        "bits": {"bits": np.zeros(8, np.uint8)},
        "offsets": {"offsets": np.zeros(1, np.uint16), "starts": np.zeros(2**14 + 1, np.int32)},
    }.items():
        values = np.ones(int(form == "offsets"), np.float32)
        arrays = {f"a.weight/{name}": part for name, part in {"values": values, **parts}.items()}
        arrays["a.bias/values"] = np.zeros(2**14, np.float32)
        tensors = {
            "a.weight": {"form": form, "shape": shape, **dtype},
            "a.bias": {"form": "dense", "shape": [2**14], **dtype},
        }
        format = f"torchswat network {number}"
        header: dict[str, Any] = {"format": format, "network": network, "tensors": tensors}
        header |= {"classes": [], "mean": [], "std": [], "resize": 0, "provenance": {}}
        header["crc32"] = _checksum(header, arrays)
        path = tmp_path / form
        path.write_bytes(container.to_bytes(arrays, {KEY: json.dumps(header)}))
        refused(path, "do not fit the shape|too large")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**41) | st.floats(allow_nan=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Return the paths of everything within a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, inner in items for found in places(inner, (*path, key)))]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.data())
def test_fuzzed_descriptions_load_or_are_refused(good: bytes, tmp_path: Path, data: st.DataObject):
    path = tmp_path / "fuzzed"
    path.write_bytes(good)

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        *way, last = data.draw(st.sampled_from(places(header)[1:]))
        at: Any = header
        for key in way:
            at = at[key]
        at[last] = data.draw(json_values)

    forge(path, change)
    try:
        network = torchswat.load(path)
        network(
            *(torch.zeros(x.example, dtype=getattr(torch, x.dtype)) for x in network.package.graph.inputs)
        )
    except (InvalidData, InvalidValue):  # by the values of an index, for example
        return


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_fuzzed_arrays_load_or_are_refused(good: bytes, tmp_path: Path, data: st.DataObject):
    path = tmp_path / "fuzzed"
    path.write_bytes(good)

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, array in arrays.items() if array.size)))
        array = np.frombuffer(arrays[name].tobytes(), np.uint8).copy()
        array[data.draw(st.integers(0, len(array) - 1))] = data.draw(st.integers(0, 255))
        arrays[name] = array.view(arrays[name].dtype).reshape(arrays[name].shape)

    forge(path, change)
    try:
        torchswat.load(path)(torch.zeros(1, 1, 8, 8))
    except (InvalidData, InvalidValue):
        return


def test_a_package_of_bytes_is_itself(saved: Callable[..., Path]):
    path = saved(**ABOUT)
    assert Package.read(path).to_bytes() == path.read_bytes()
