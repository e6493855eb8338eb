"""What the compiled kernels do of 8-bit numbers: between float32 and fours, and convolutions of fours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from torchswat.runtime import lists, steps
from torchswat.runtime.arena import ALIGNMENT
from torchswat.runtime.fours import weight_fours
from torchswat.runtime.fuse_quantized import BYTE
from torchswat.runtime.graph import Node
from torchswat.runtime.memory import address, empty
from torchswat.runtime.operations.rows import Shape, count
from torchswat.runtime.operations.windows import with_gaps
from torchswat.runtime.steps import MOST_OFFSETS, Kernel, Maker, Order, Slots, Step, _call, _of_maps, _source

if TYPE_CHECKING:
    from torchswat.runtime.session import Session


def _order(session: Session, node: Node) -> Order:
    """Return how the axes of a result lie in memory: fours as their shape says, maps of float32 as all maps do."""
    made = session.values[node.name]
    return tuple(range(len(made.shape))) if made.dtype == BYTE else _of_maps(session, node)


def _quantize_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    return bool(count(session.values[node.inputs[0]].shape))


def _quantize(session: Session, node: Node) -> Maker:
    shape = session.values[node.inputs[0]].shape
    source = _source(session, node.inputs[0], shape)
    sizes = shape[1], count(shape) // shape[1]
    target = address(session.fixed[node.name])
    after = *sizes, node.settings["scale"], node.settings["zero"], target, session.threads
    return lambda: _call(source, (), session.native.quantize_fours, after)


def _dequantize_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    return bool(count(session.values[node.name].shape))


def _dequantize(session: Session, node: Node) -> Maker:
    shape = session.values[node.name].shape
    sizes = shape[1], count(shape) // shape[1]
    fetch, target = _fours(session, node.inputs[0]), address(session.fixed[node.name])
    after = *sizes, node.settings["scale"], node.settings["zero"], target, session.threads
    kernel = session.native.dequantize_fours
    return lambda: lambda slots: kernel(fetch(slots), *after)


def _fours(session: Session, name: str) -> Any:
    """Return what finds the address of fours: those of a kernel lie fixed, others may lie anywhere."""
    held = session.fixed.get(name)
    if held is not None:
        place = address(held)
        return lambda slots: place
    staged = empty(count(session.values[name].shape), np.uint8)

    def fetch(slots: Slots) -> int:
        x = slots[name]
        if x.flags.c_contiguous and address(x) % ALIGNMENT == 0:
            return address(x)
        staged[:] = x.reshape(-1)
        return address(staged)

    return fetch


def _sizes(session: Session, node: Node) -> tuple[Shape, Shape, Shape]:
    """Return the shapes of input (its channels counted in fours), weight and result of a convolution."""
    fours, height, width, n, _ = session.values[node.inputs[0]].shape
    weight, made = session.values[node.inputs[1]].shape, session.values[node.name].shape
    space = made[2:] if node.settings["is_float"] else made[1:3]
    return (n, fours, height, width), weight, (n, len(session.network.weights[node.inputs[1]]), *space)


def _shape(session: Session, node: Node) -> Any:
    """Return a convolution as the kernels' own type; a dilated one has zeros between its taps."""
    source, (k, _, r, s), (*_, p, q) = _sizes(session, node)
    settings = node.settings
    down, right = settings["dilations"]
    reach = (r - 1) * down + 1, (s - 1) * right + 1
    return session.native.ConvShape(
        *source, k, *reach, *settings["strides"], *settings["pads"][:2], p, q, 1, 1, settings["outside"]
    )


def _conv_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    source, (*_, r, s), result = _sizes(session, node)
    down, right = node.settings["dilations"]
    reach_h, reach_w = (r - 1) * down + 1, (s - 1) * right + 1
    if not count(source) or not count(result) or max(count(source), count(result)) >= 2**29:
        return False
    if max(reach_h, reach_w) > steps.WIDEST_KERNEL:
        return False
    if source[0] >= steps.ROWS_BELOW:
        return True
    shape = _shape(session, node)
    tiling = np.empty(3 + reach_h * reach_w, np.int32)
    session.native.rows_tiling(shape, address(tiling))
    return int(tiling[0]) * int(tiling[2]) + int(tiling[3:].max()) < MOST_OFFSETS


def _conv(session: Session, node: Node) -> Maker:
    native, threads = session.native, session.threads
    shape, by_rows = _shape(session, node), _sizes(session, node)[0][0] < steps.ROWS_BELOW
    (n, *geometry), _, result = _sizes(session, node)
    weight, start, factor, shift = (session.network.weights[name] for name in node.inputs[1:5])
    settings = node.settings

    def make() -> lists.Lists:
        gaps = tuple(settings["dilations"])
        fours = weight_fours(weight if gaps == (1, 1) else with_gaps(weight, gaps, [(0, 0)] * 2))
        if by_rows:
            return lists.for_rows(native, shape, fours)
        return lists.fours_for_samples(native, shape, fours, threads)

    key = node.name, native.isa(), n if by_rows else 0, *geometry, result[2:]
    packed = session.network.lists_of(key, make)
    session.held.append(packed)
    session.lend((native.rows_workspace if by_rows else native.conv_workspace)(shape, threads))
    is_float, relu = bool(settings["is_float"]), bool(settings["relu"])
    ends = *map(address, (start, factor, shift)), settings["residual_factor"], settings["zero"], is_float
    end, target = native.QuantizedEnd(*ends), address(session.fixed[node.name])
    kernel = native.rows_fours if by_rows else native.conv_fours
    x = _fours(session, node.inputs[0])
    residual = _fours(session, node.inputs[5]) if node.inputs[5:] else lambda slots: 0

    def maker() -> Step:
        middle = *packed.addresses(), end
        after = relu, target, address(session.workspace), threads

        def step(slots: Slots) -> None:
            kernel(shape, x(slots), *middle, residual(slots), *after)

        return step

    return maker


def _pool_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    settings = node.settings
    one = [len({*settings[name]}) == 1 for name in ("kernel_shape", "strides", "pads")]
    return (
        len(session.values[node.inputs[0]].shape) == 5
        and bool(count(session.values[node.name].shape))
        and all(one)
        and set(settings["dilations"]) == {1}
        and settings["auto_pad"] == "none"
    )


def _pool(session: Session, node: Node) -> Maker:
    groups_of, height, width, n, _ = session.values[node.inputs[0]].shape
    settings, (_, rows, columns, *_) = node.settings, session.values[node.name].shape
    window = (settings[name][0] for name in ("kernel_shape", "strides", "pads"))
    after = (
        groups_of,
        height,
        width,
        n,
        *window,
        rows,
        columns,
        address(session.fixed[node.name]),
        session.threads,
    )
    fetch, kernel = _fours(session, node.inputs[0]), session.native.max_pool_fours
    return lambda: lambda slots: kernel(fetch(slots), *after)


STEPS: dict[str, Kernel] = {
    **steps.STEPS,
    "QuantizeFours": Kernel(_quantize_suits, _quantize, _order),
    "DequantizeFours": Kernel(_dequantize_suits, _dequantize, _order),
    "MaxPoolFours": Kernel(_pool_suits, _pool, _order),
    "QuantizedConv": Kernel(_conv_suits, _conv, _order),
}
"""All kernels of a session."""
