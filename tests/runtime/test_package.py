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
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.package import KEY, About, Package, _checksum
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


def many_operations() -> Package:
    """A network of many kinds of operations, with whole numbers among its tensors."""
    draw = np.random.default_rng(0)
    tensors: dict[str, np.ndarray] = {
        "w": (draw.standard_normal((4, 2, 3, 3)) * (draw.random((4, 2, 3, 3)) < 0.5)).astype(np.float32),
        "t": draw.standard_normal((4, 4, 2, 2)).astype(np.float32),
        "places": np.array([2, 0, 1]),
        "sizes": np.array([0, 3, -1]),
        "scales": np.array([1, 1, 1.5, 2], np.float32),
        "starts": np.array([1]),
        "ends": np.array([2**40]),
        "axes": np.array([3]),
        "pads": np.array([0, 0, 1, 0, 0, 0, 0, 2]),
        "scale": np.array(0.1, np.float32),
        "zero": np.array(3, np.uint8),
        "q": draw.standard_normal((6, 7)).astype(np.float32),
        "mask": draw.random((3, 3)) < 0.7,
    }
    nodes = (
        node("Conv", ["input", "w"], "conv", group=2, pads=(1, 1, 1, 1)),
        node("ConvTranspose", ["conv", "t"], "up", strides=(2, 2), output_padding=(1, 0)),
        node("AveragePool", ["up"], "pool", kernel_shape=(2, 2), strides=(2, 1), ceil_mode=1),
        node("Resize", ["pool", "scales"], "wide", mode="linear"),
        node("Pad", ["wide", "pads"], "pad", mode="reflect"),
        node("Slice", ["pad", "starts", "ends", "axes"], "slice"),
        node("Gather", ["slice", "places"], "gather", axis=1),
        node("QuantizeLinear", ["gather", "scale", "zero"], "whole"),
        node("DequantizeLinear", ["whole", "scale", "zero"], "float"),
        node("Reshape", ["float", "sizes"], "rows"),
        node("LayerNormalization", ["rows"], "norm"),
        node("Attention", ["norm", "norm", "norm", "mask"], "attention"),
        node("TopK", ["attention", "places_k"], ["top", "at"], axis=-1),
        node("Softmax", ["top"], "soft"),
        node("MatMul", ["soft", "q"], "product"),
        node("ReduceMean", ["product", "last"], "mean"),
        node("Gelu", ["mean"], "gelu"),
    )
    tensors |= {"places_k": np.array([6]), "last": np.array([-1])}
    source = Input("input", ("batch", 4, "height", 5), (2, 4, 6, 5))
    return Package(Graph((source,), nodes, ("gelu", "at"), rows=True), tensors, About())


@pytest.fixture
def rich() -> bytes:
    """The content of a file with many operations."""
    content = many_operations().to_bytes()
    assert Package.checked(*container.from_bytes(content, "it")).output_shapes() == [(2, 3, 1), (2, 3, 6)]
    return content


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
        (lambda h, a: h["tensors"].update({"x": 1}), "are expected"),
        (lambda h, a: h["tensors"]["fc.bias"].update(form="exec"), "none of"),
        (lambda h, a: h["tensors"]["fc.bias"].update(shape=[]), "have the shape"),
        (lambda h, a: h["tensors"]["fc.bias"].update(dtype="float16"), "dtype 'float16' is not allowed"),
        (lambda h, a: h["tensors"]["fc.weight"].update(dtype="uint8"), "dtype 'uint8' is not allowed"),
        (lambda h, a: h["tensors"]["fc.weight"].update(dtype="int8"), "float32 is expected"),
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


LIMITED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)


def runs_or_is_refused(path: Path) -> None:
    """Load a forged file and run it; nothing but a clear error may come of it."""
    try:
        network = torchswat.load(path)
        # Sizes of a hostile example may be large: what is asked is whether it ends well, not how long it takes.
        if sum(np.prod(x.example, dtype=float) for x in network.package.graph.inputs) < 2**20:
            network(
                *(torch.zeros(x.example, dtype=getattr(torch, x.dtype)) for x in network.package.graph.inputs)
            )
    except (InvalidData, InvalidValue):
        return


@pytest.mark.parametrize("kind", ["good", "rich"])
@LIMITED
@given(st.data())
def test_fuzzed_descriptions_load_or_are_refused(
    kind: str, good: bytes, rich: bytes, tmp_path: Path, data: st.DataObject
):
    path = tmp_path / "fuzzed"
    path.write_bytes({"good": good, "rich": rich}[kind])

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        *way, last = data.draw(st.sampled_from(places(header)[1:]))
        at: Any = header
        for key in way:
            at = at[key]
        at[last] = data.draw(json_values)

    forge(path, change)
    runs_or_is_refused(path)


@LIMITED
@given(st.data())
def test_fuzzed_settings_load_or_are_refused(rich: bytes, tmp_path: Path, data: st.DataObject):
    """Values that are allowed, each by itself: kernels, strides, axes and modes that do not fit each other."""
    path = tmp_path / "fuzzed"
    path.write_bytes(rich)

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        each = data.draw(st.sampled_from(header["network"]["nodes"]))
        if data.draw(st.booleans()):
            each["operation"] = data.draw(st.sampled_from(sorted(OPERATIONS)))
            row = OPERATIONS[each["operation"]].settings
            each["settings"] = {key: setting.default for key, setting in row.items()}
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, len(each["inputs"]) - 1))
            each["inputs"][at] = data.draw(
                st.sampled_from(["input", "conv", "sizes", "w", "zero", "mask", ""])
            )
        for key, setting in OPERATIONS[each["operation"]].settings.items():
            number = st.integers(-3, 9)
            each["settings"][key] = data.draw(
                st.just(setting.default)
                | {"whole": number, "wholes": st.lists(number, max_size=5), "real": st.floats(-9, 9)}.get(
                    setting.kind, st.sampled_from(setting.choices or ("ij,jk->ik",))
                )
            )
        used = {name for n in header["network"]["nodes"] for name in n["inputs"]}
        for name in set(header["tensors"]) - used:  # else every other change is a tensor that nobody reads
            del header["tensors"][name]
            for part in [part for part in arrays if part.startswith(f"{name}/")]:
                del arrays[part]

    forge(path, change)
    runs_or_is_refused(path)


@pytest.mark.parametrize("kind", ["good", "rich"])
@LIMITED
@given(st.data())
def test_fuzzed_arrays_load_or_are_refused(
    kind: str, good: bytes, rich: bytes, tmp_path: Path, data: st.DataObject
):
    path = tmp_path / "fuzzed"
    path.write_bytes({"good": good, "rich": rich}[kind])

    def change(header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        name = data.draw(st.sampled_from(sorted(name for name, array in arrays.items() if array.size)))
        array = np.frombuffer(arrays[name].tobytes(), np.uint8).copy()
        array[data.draw(st.integers(0, len(array) - 1))] = data.draw(st.integers(0, 255))
        arrays[name] = array.view(arrays[name].dtype).reshape(arrays[name].shape)

    forge(path, change)
    runs_or_is_refused(path)


def test_a_package_of_bytes_is_itself(saved: Callable[..., Path]):
    path = saved(**ABOUT)
    assert Package.read(path).to_bytes() == path.read_bytes()
