"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from torchswat.runtime.aten.writer import Made, Writer, name_of, on


@on("_native_batch_norm_legit_no_training.default")
def _batch_norm(
    w: Writer, x: Made, weight: Any, bias: Any, mean: Made, variance: Made, momentum: float, eps: float
) -> tuple:
    channels = mean.value.shape[0]
    scale = weight.name if weight is not None else w.constant(np.ones(channels), "float32")
    shift = bias.name if bias is not None else w.constant(np.zeros(channels), "float32")
    return (w.add("BatchNormalization", x.name, scale, shift, mean.name, variance.name, epsilon=eps),)


@on("layer_norm.default")
def _layer_norm(
    w: Writer,
    x: Made,
    shape: Sequence[int],
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> str:
    return w.add("LayerNormalization", x.name, name_of(weight), name_of(bias), axis=-len(shape), epsilon=eps)


@on("native_layer_norm.default")
def _native_layer_norm(w: Writer, x: Made, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> tuple:
    return (_layer_norm(w, x, shape, weight, bias, eps),)


@on("rms_norm.default")
def _rms_norm(w: Writer, x: Made, shape: Sequence[int], weight: Any = None, eps: float | None = None) -> str:
    eps = float(np.finfo(np.float32).eps) if eps is None else eps
    return w.add("RMSNormalization", x.name, name_of(weight), axis=-len(shape), epsilon=eps)


@on("group_norm.default")
def _group_norm(
    w: Writer,
    x: Made,
    groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn: bool = False,
) -> str:
    names = _scale_and_shift(w, x, weight, bias)
    return w.add("GroupNormalization", x.name, *names, num_groups=groups, epsilon=eps)


def _scale_and_shift(w: Writer, x: Made, weight: Any, bias: Any) -> tuple[str, str]:
    channels = x.value.shape[1]
    return (
        weight.name if weight is not None else w.constant(np.ones(channels), "float32"),
        bias.name if bias is not None else w.constant(np.zeros(channels), "float32"),
    )


@on("instance_norm.default")
def _instance_norm(
    w: Writer,
    x: Made,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn: bool,
) -> str:
    names = _scale_and_shift(w, x, weight, bias)
    if not use_input_stats:
        return w.add("BatchNormalization", x.name, *names, mean.name, variance.name, epsilon=eps)
    return w.add("InstanceNormalization", x.name, *names, epsilon=eps)
