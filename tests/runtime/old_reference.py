"""The operations of the file format 1 in plain torch, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchswat.runtime.version1 import _ROWS, INPUT

Body = Callable[[Mapping[str, int], list[Tensor], list[Tensor]], Tensor]


def run(nodes: list[dict[str, Any]], tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return the output of nodes, as they stand in a file, for the images `x`, (N, C, H, W)."""
    results = {INPUT: x}
    for node in nodes:
        own = [tensors[f"{node['name']}.{part}"] for part in _ROWS[node["operation"]].tensors]
        inputs = [results[name] for name in node["inputs"]]
        result = BODIES[node["operation"]](node["settings"], inputs, own)
        results[node["name"]] = F.relu(result) if node["settings"].get("relu") else result
    return results[nodes[-1]["name"]]


def _conv2d(settings: Mapping[str, int], inputs: list[Tensor], tensors: list[Tensor]) -> Tensor:
    stride, padding = ((settings[f"{kind}_h"], settings[f"{kind}_w"]) for kind in ("stride", "padding"))
    result = F.conv2d(inputs[0], *tensors, stride=stride, padding=padding)
    return result if len(inputs) == 1 else result + inputs[1]


def _affine(settings: Mapping[str, int], inputs: list[Tensor], tensors: list[Tensor]) -> Tensor:
    scale, shift = (tensor[:, None, None] for tensor in tensors)
    return torch.addcmul(shift, inputs[0], scale)


def _max_pool(settings: Mapping[str, int], inputs: list[Tensor], tensors: list[Tensor]) -> Tensor:
    window = settings["kernel"], settings["stride"], settings["padding"]
    return F.max_pool2d(inputs[0], *window, ceil_mode=bool(settings["ceil"]))


def _average_pool(settings: Mapping[str, int], inputs: list[Tensor], tensors: list[Tensor]) -> Tensor:
    return F.avg_pool2d(inputs[0], settings["kernel"], settings["stride"], settings["padding"])


def _subsample(settings: Mapping[str, int], inputs: list[Tensor], tensors: list[Tensor]) -> Tensor:
    stride = settings["stride"]
    return F.pad(inputs[0][:, :, ::stride, ::stride], (0, 0, 0, 0, 0, settings["new_channels"]))


BODIES: dict[str, Body] = {
    "conv2d": _conv2d,
    "linear": lambda settings, inputs, tensors: F.linear(inputs[0], *tensors),
    "affine": _affine,
    "add": lambda settings, inputs, tensors: inputs[0] + inputs[1],
    "relu": lambda settings, inputs, tensors: F.relu(inputs[0]),
    "max_pool": _max_pool,
    "average_pool": _average_pool,
    "adaptive_average_pool": lambda settings, inputs, tensors: F.adaptive_avg_pool2d(
        inputs[0], settings["size"]
    ),
    "concatenate": lambda settings, inputs, tensors: torch.cat(inputs, 1),
    "subsample": _subsample,
    "flatten": lambda settings, inputs, tensors: inputs[0].flatten(1),
}
