"""Convolutions, pools and resizing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchswat.runtime.aten.writer import TABLE, Function, Made, Size, Unsupported, Writer, name_of, on


def _list(values: Any, rank: int) -> tuple[int, ...]:
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    return tuple(values * rank if len(values) == 1 else values)


@on(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding"
)
def _conv(
    w: Writer,
    x: Made,
    weight: Made,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> str:
    rank = weight.rank - 2
    settings = {"strides": _list(stride, rank), "dilations": _list(dilation, rank), "group": groups}
    if padding == "same":  # of stride 1: what is odd lies behind
        around = [
            (size - 1) * step
            for size, step in zip(weight.value.shape[2:], settings["dilations"], strict=True)
        ]
        pads = *(each // 2 for each in around), *(each - each // 2 for each in around)
    else:
        pads = _list(0 if padding == "valid" else padding, rank) * 2
    return _batched(
        w, x, rank + 2, lambda name: w.add("Conv", name, weight.name, name_of(bias), pads=pads, **settings)
    )


@on("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _conv_transpose(
    w: Writer,
    x: Made,
    weight: Made,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> str:
    rank = weight.rank - 2
    settings = {
        "strides": _list(stride, rank),
        "dilations": _list(dilation, rank),
        "pads": _list(padding, rank) * 2,
        "output_padding": _list(output_padding, rank),
        "group": groups,
    }
    return _batched(
        w, x, rank + 2, lambda name: w.add("ConvTranspose", name, weight.name, name_of(bias), **settings)
    )


@on("convolution.default")
def _convolution(
    w: Writer,
    x: Made,
    weight: Made,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> str:
    if transposed:
        return _conv_transpose(w, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(w, x, weight, bias, stride, padding, dilation, groups)


def _batched(w: Writer, x: Made, rank: int, make: Callable[[str], str]) -> str:
    """Run what needs a batch on a tensor that may have none."""
    if x.rank == rank:
        return make(x.name)
    first = w.constant([0])
    return w.add("Squeeze", make(w.add("Unsqueeze", x.name, first)), first)


def _window(kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool, rank: int) -> dict[str, Any]:
    kernel = _list(kernel, rank)
    stride = kernel if stride is None or stride == [] else _list(stride, rank)
    return {
        "kernel_shape": kernel,
        "strides": stride,
        "dilations": _list(dilation, rank),
        "pads": _list(padding, rank) * 2,
        "ceil_mode": int(ceil),
    }


def _max_pool(rank: int, indices: bool) -> Function:
    def function(
        w: Writer,
        x: Made,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil: bool = False,
    ) -> Any:
        window = _window(kernel, stride, padding, dilation, ceil, rank)
        y = _batched(w, x, rank + 2, lambda name: w.add("MaxPool", name, **window))
        return (y,) if indices else y

    return function


def _average_pool(rank: int) -> Function:
    def function(
        w: Writer,
        x: Made,
        kernel: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil: bool = False,
        count_include_pad: bool = True,
        divisor: int | None = None,
    ) -> str:
        window = _window(kernel, stride, padding, 1, ceil, rank)
        settings = {**window, "count_include_pad": int(count_include_pad)}
        if divisor:
            raise Unsupported("a mean with a divisor of its own")
        return _batched(w, x, rank + 2, lambda name: w.add("AveragePool", name, **settings))

    return function


def _adaptive(rank: int, operation: str, indices: bool = False) -> Function:
    def function(w: Writer, x: Made, sizes: Any) -> Any:
        y = w.add(operation, x.name, sizes=_list(sizes, rank))
        return (y,) if indices else y

    return function


for _rank in (1, 2, 3):
    TABLE[f"max_pool{_rank}d.default"] = _max_pool(_rank, False)
    TABLE[f"max_pool{_rank}d_with_indices.default"] = _max_pool(_rank, True)
    TABLE[f"avg_pool{_rank}d.default"] = _average_pool(_rank)
    TABLE[f"adaptive_avg_pool{_rank}d.default"] = _adaptive(_rank, "AdaptiveAveragePool")
    TABLE[f"_adaptive_avg_pool{_rank}d.default"] = _adaptive(_rank, "AdaptiveAveragePool")
    TABLE[f"adaptive_max_pool{_rank}d.default"] = _adaptive(_rank, "AdaptiveMaxPool", True)


def _upsample(rank: int, mode: str, corners: bool, exact: bool = False) -> Function:
    def function(w: Writer, x: Made, sizes: Any, *arguments: Any) -> str:
        """Take the new sizes, whether corners are aligned (of lines and cubics), and scales."""
        aligned = bool(arguments[0]) if corners and arguments else False
        scales = arguments[corners] if len(arguments) > corners else None
        coordinates = "align_corners" if aligned else "half_pixel"
        settings: dict[str, Any] = {"mode": mode, "axes": tuple(range(2, rank + 2))}
        if mode == "nearest":
            coordinates = "half_pixel" if exact else "asymmetric"
            settings["nearest"] = "round_prefer_ceil" if exact else "floor"
        settings["coordinates"] = coordinates
        if sizes is not None:
            return w.add("Resize", x.name, "", w.sizes(sizes), **settings)
        if any(isinstance(scale, Size) for scale in scales or ()):
            raise Unsupported("a scale that depends on sizes")
        return w.add("Resize", x.name, w.constant(scales, "float32"), **settings)

    return function


for _rank in (1, 2, 3):
    TABLE[f"upsample_nearest{_rank}d.vec"] = _upsample(_rank, "nearest", False)
    TABLE[f"_upsample_nearest_exact{_rank}d.vec"] = _upsample(_rank, "nearest", False, True)
TABLE["upsample_linear1d.vec"] = _upsample(1, "linear", True)
TABLE["upsample_bilinear2d.vec"] = _upsample(2, "linear", True)
TABLE["upsample_trilinear3d.vec"] = _upsample(3, "linear", True)
TABLE["upsample_bicubic2d.vec"] = _upsample(2, "cubic", True)
