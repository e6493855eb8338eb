"""The KServe v2 inference protocol over HTTP: tensors in, tensors out, as existing clients speak it.

JSON, and its extension for binary tensors. One version a model, ``1``; float32 inputs and outputs. The protocol is
described at https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchswat import __version__
from torchswat.runtime.graph import Graph

INPUT, OUTPUT, VERSION = "images", "scores", "1"
LENGTH_HEADER = "inference-header-content-length"
_DATATYPE = "FP32"


class Mistake(ValueError):
    """A request that the protocol, or the model, does not allow."""


def server() -> dict[str, Any]:
    """Return what ``GET /v2`` answers."""
    return {"name": "torchswat", "version": __version__, "extensions": ["binary_tensor_data"]}


def metadata(name: str, graph: Graph, outputs: Sequence[int]) -> dict[str, Any]:
    """Return what ``GET /v2/models/NAME`` answers."""
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "torchswat",
        "inputs": [{"name": INPUT, "datatype": _DATATYPE, "shape": [-1, *graph.input_shape]}],
        "outputs": [{"name": OUTPUT, "datatype": _DATATYPE, "shape": [-1, *outputs]}],
    }


@dataclass(frozen=True)
class Inference:
    """A request for inference.

    Attributes
    ----------
    id : str or None
        The client's name of it, which the answer repeats.
    images : Tensor of shape (N, C, H, W)
        float32.
    binary : bool
        Whether the answer's tensor comes as bytes behind the JSON.
    """

    id: str | None
    images: Tensor
    binary: bool


def read(content: bytes, header_length: str | None, graph: Graph, most: int) -> Inference:
    """Return what a body asks for.

    Parameters
    ----------
    content : bytes
        The body.
    header_length : str or None
        The value of `LENGTH_HEADER`: bytes of JSON, behind which the tensor's bytes lie.
    graph : Graph
        Of the model.
    most : int
        Images in a request, at most.

    Raises
    ------
    Mistake
        With what is wrong and what is allowed.
    """
    text, raw = content, b""
    if header_length is not None:
        if not header_length.isdecimal() or int(header_length[:18]) > len(content):
            raise Mistake(f"{LENGTH_HEADER} is {header_length!r:.40}; the body has {len(content)} bytes")
        text, raw = content[: int(header_length)], content[int(header_length) :]
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Mistake(f"the body is no JSON: {error}") from None
    inputs = body.get("inputs") if isinstance(body, dict) else None
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Mistake(f"a request needs one input, {INPUT!r}, with shape, datatype and data")
    images = _tensor(inputs[0], raw, graph, most)
    name = body.get("id")
    return Inference(name if isinstance(name, str) else None, images, _is_binary(body))


def _tensor(tensor: Mapping[str, Any], raw: bytes, graph: Graph, most: int) -> Tensor:
    shape: Any = tensor.get("shape")
    datatype = tensor.get("datatype")
    wanted = list(graph.input_shape)
    if tensor.get("name") != INPUT:
        raise Mistake(f"the input is called {tensor.get('name')!r:.60}; allowed is {INPUT!r}")
    if datatype != _DATATYPE:
        raise Mistake(f"the datatype is {datatype!r:.60}; allowed is {_DATATYPE!r}")
    if not _fits(shape, wanted, most):
        raise Mistake(
            f"the shape is {shape!r:.80}; allowed is [N, {', '.join(map(str, wanted))}], N from 1 to {most}"
        )
    size = _parameters(tensor).get("binary_data_size")
    if size is not None and size != len(raw):
        raise Mistake(f"binary_data_size is {size!r:.40}; behind the JSON lie {len(raw)} bytes")
    try:
        if size is None:
            values = np.asarray(tensor.get("data"), np.float32).ravel()
        else:
            values = np.frombuffer(raw, "<f4")
    except (ValueError, TypeError, OverflowError):
        raise Mistake("data must be a list of numbers, flat or nested, or bytes of float32") from None
    if values.size != math.prod(shape):
        raise Mistake(f"there are {values.size} entries of data; the shape {shape} has {math.prod(shape)}")
    return torch.from_numpy(values.reshape(shape).copy())


def _fits(shape: Any, wanted: list[int], most: int) -> bool:
    is_sizes = (
        isinstance(shape, list) and len(shape) == len(wanted) + 1 and all(type(size) is int for size in shape)
    )
    return is_sizes and shape[1:] == wanted and 1 <= shape[0] <= most


def _is_binary(body: Mapping[str, Any]) -> bool:
    outputs = body.get("outputs")
    if outputs is None:
        return bool(_parameters(body).get("binary_data_output"))
    if not isinstance(outputs, list) or [isinstance(o, dict) and o.get("name") for o in outputs] != [OUTPUT]:
        raise Mistake(f"outputs must name {OUTPUT!r} alone, or be left out")
    return bool(_parameters(outputs[0]).get("binary_data"))


def _parameters(values: Mapping[str, Any]) -> Mapping[str, Any]:
    parameters = values.get("parameters")
    return parameters if isinstance(parameters, dict) else {}


def answer(name: str, asked: Inference, scores: Tensor) -> tuple[bytes, dict[str, str]]:
    """Return the body and the headers of an answer with `scores`, float32 (N, classes)."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": _DATATYPE, "shape": list(scores.shape)}
    values = scores.contiguous().numpy()
    raw = values.astype("<f4").tobytes() if asked.binary else b""
    if asked.binary:
        output["parameters"] = {"binary_data_size": len(raw)}
    else:
        output["data"] = values.ravel().tolist()
    body: dict[str, Any] = {"model_name": name, "model_version": VERSION, "outputs": [output]}
    if asked.id is not None:
        body["id"] = asked.id
    text = json.dumps(body).encode()
    if not asked.binary:
        return text, {"content-type": "application/json"}
    return text + raw, {"content-type": "application/octet-stream", LENGTH_HEADER: str(len(text))}
