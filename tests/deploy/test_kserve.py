"""The KServe v2 protocol, spoken to a real service; and every mistake of a request is named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("uvicorn")

import torchswat
from torchswat.deploy import kserve
from torchswat.runtime.graph import Graph, Input, node

from .test_service import ask, serving

GRAPH = Graph(
    (Input("input", ("batch", 1, 8, 8), (1, 1, 8, 8)),), (node("Flatten", ["input"], "flat"),), ("flat",)
)


@pytest.fixture(scope="module")
def address(model: Path) -> Iterator[str]:
    with serving(f"digits={model}", f"other={model}") as where:
        yield where


def inference(images: np.ndarray, **more: Any) -> dict[str, Any]:
    tensor = {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "FP32",
        "data": images.ravel().tolist(),
    }
    return {"inputs": [tensor], **more}


def test_what_is_served(address: str):
    assert ask(address, "GET", "/v2")[1]["name"] == "torchswat"
    for path in (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/digits/ready",
        "/v2/models/other/versions/1/ready",
    ):
        assert ask(address, "GET", path)[0] == 200
    status, found = ask(address, "GET", "/v2/models/digits")
    assert status == 200 and found["versions"] == ["1"]
    assert found["inputs"] == [{"name": "images", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert found["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}]
    assert ask(address, "GET", "/v2/models/none")[0] == ask(address, "GET", "/v2/models/none/ready")[0] == 404


def test_tensors_in_and_out(address: str, model: Path):
    images = torch.randn(3, 1, 8, 8)
    expected = torchswat.load(model)(images)
    body = json.dumps(inference(images.numpy(), id="7")).encode()
    status, found = ask(address, "POST", "/v2/models/digits/infer", body)
    assert status == 200 and (found["id"], found["model_name"], found["model_version"]) == (
        "7",
        "digits",
        "1",
    )
    (output,) = found["outputs"]
    scores = torch.tensor(output["data"]).view(output["shape"])
    torch.testing.assert_close(scores, expected)


def test_binary_tensors(address: str, model: Path):
    import http.client

    images = torch.randn(2, 1, 8, 8)
    raw = images.numpy().tobytes()
    tensor = {
        "name": "images",
        "shape": [2, 1, 8, 8],
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(raw)},
    }
    wanted = {"name": "scores", "parameters": {"binary_data": True}}
    text = json.dumps({"inputs": [tensor], "outputs": [wanted]}).encode()
    connection = http.client.HTTPConnection(address, timeout=30)
    headers = {"Inference-Header-Content-Length": str(len(text))}
    connection.request("POST", "/v2/models/other/versions/1/infer", text + raw, headers)
    answer = connection.getresponse()
    content, length = answer.read(), int(answer.headers["Inference-Header-Content-Length"])
    connection.close()
    (output,) = json.loads(content[:length])["outputs"]
    scores = np.frombuffer(content[length:], "<f4").reshape(output["shape"])
    torch.testing.assert_close(torch.from_numpy(scores.copy()), torchswat.load(model)(images))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "x"}, "the input is called 'x'"),
        ({"datatype": "INT8"}, "datatype is 'INT8'"),
        ({"shape": [0, 1, 8, 8]}, "N from 1 to"),
        ({"shape": [1, 1, 9, 8]}, "allowed is [N, 1, 8, 8]"),
        ({"shape": [2, 1, 8, 8]}, "64 entries of data"),
        ({"data": ["a"] * 64}, "data must be"),
        ({"data": None}, "entries of data|data must be"),
        ({"parameters": {"binary_data_size": 3}}, "behind the JSON lie 0 bytes"),
    ],
)
def test_what_is_refused(change: dict[str, Any], words: str):
    body = inference(np.zeros((1, 1, 8, 8), np.float32))
    body["inputs"][0].update(change)
    with pytest.raises(kserve.Mistake, match=words.replace("[", r"\[")):
        kserve.read(json.dumps(body).encode(), None, GRAPH, 64)


def test_a_mistake_is_answered(address: str):
    status, found = ask(address, "POST", "/v2/models/digits/infer", b"{}")
    assert status == 400 and "one input" in found["error"]
    status, found = ask(address, "POST", "/v2/models/none/infer", b"{}")
    assert status == 404 and "digits, other" in found["error"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(
    tensor=st.fixed_dictionaries(
        {},
        optional={
            "name": st.just("images") | json_values,
            "datatype": st.just("FP32") | json_values,
            "shape": st.just([1, 1, 8, 8]) | json_values,
            "data": json_values,
            "parameters": json_values,
        },
    ),
    more=json_values,
    length=st.none() | st.text(max_size=4),
)
def test_no_request_breaks_it(tensor: dict[str, Any], more: Any, length: str | None):
    body = json.dumps({"inputs": [tensor], "outputs": more, "parameters": more}).encode()
    try:
        asked = kserve.read(body, length, GRAPH, 64)
    except kserve.Mistake:
        return
    assert asked.images.shape == (1, 1, 8, 8)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(content: bytes):
    with pytest.raises(kserve.Mistake):
        kserve.read(content, None, GRAPH, 64)
