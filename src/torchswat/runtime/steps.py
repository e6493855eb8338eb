"""Which compiled kernel computes an operation of a graph: its conditions, and the call with all arguments.

Kernels read and write the CHWN layout. An input in another layout is converted first, with the zeros
that a convolution needs around or between its entries where the kernel does not add them itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from torchswat.runtime import lists
from torchswat.runtime.arena import ALIGNMENT
from torchswat.runtime.graph import Node
from torchswat.runtime.memory import address, chwn, empty, is_chwn
from torchswat.runtime.operations.rows import FLOAT, Shape, axes_of, count
from torchswat.runtime.operations.windows import Pads, padded, pads_of, transposed_sizes, turned, with_gaps

if TYPE_CHECKING:
    from torchswat.runtime.session import Session

Array = np.ndarray
Slots = dict[str, Array]
Step = Callable[[Slots], object]
Maker = Callable[[], Step]
"""Makes a step once the workspace is there."""

ROWS_BELOW = 16  # images: with fewer, lanes are positions of a row and not samples
WIDEST_KERNEL = 64
MOST_OFFSETS = 2**16  # of a list's weights, which are stored in 16 bits
DENSE_FROM = 0.5  # density of a product's weight from which numpy multiplies it


@dataclass(frozen=True)
class Kernel:
    """When a kernel suits a node, and what makes its step."""

    suits: Callable[[Session, Node, Mapping[str, str]], bool]
    make: Callable[[Session, Node], Maker]
    has_rows: bool = False
    """Whether the result is of rows: all axes but the last lie together where images do."""


def _maps(shape: Shape) -> Shape:
    """Return a shape as (N, C, H, W)."""
    return (*shape[:2], *(1,) * (4 - len(shape)), *shape[2:])


def _all_float(session: Session, node: Node) -> bool:
    names = (*node.inputs, node.name)
    return all(session.values[name].dtype == FLOAT and count(session.values[name].shape) for name in names)


# ---- inputs ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where an input of a kernel lies: at an address that is known, or at what `fetch` returns."""

    known: int | None
    fetch: Callable[[Slots], int]


def _source(
    session: Session, name: str, shape: Shape, prepare: Callable[[Array], Array] | None = None
) -> _Source:
    """Return where an input lies as (N, C, ...) in the CHWN layout."""
    held = session.fixed.get(name)
    if held is not None and prepare is None:
        view = held.reshape(shape)
        if np.may_share_memory(view, held) and is_chwn(view):
            place = address(view)
            return _Source(place, lambda slots: place)
    staged = chwn(empty(count(shape)), shape)
    n, c, *space = shape
    move, place, size = session.native.nchw_to_chwn, address(staged), count(shape[1:])

    def fetch(slots: Slots) -> int:
        x = slots[name]
        if prepare is not None:
            np.copyto(staged, prepare(x))
            return place
        x = x.reshape(shape)
        if x.dtype == FLOAT:
            if is_chwn(x) and address(x) % ALIGNMENT == 0 and np.may_share_memory(x, slots[name]):
                return address(x)
            if x.flags.c_contiguous:
                move(address(x), size, place, n, c, 1, count(space), session.threads)
                return place
        np.copyto(staged, x)
        return place

    return _Source(None, fetch)


def _call(
    source: _Source, before: tuple[Any, ...], kernel: Callable[..., object], after: tuple[Any, ...]
) -> Step:
    """Return the step that calls `kernel` with what lies at `source` between other arguments."""
    if source.known is not None:
        whole = partial(kernel, *before, source.known, *after)
        return lambda slots: whole()
    fetch = source.fetch
    return lambda slots: kernel(*before, fetch(slots), *after)


# ---- convolutions and products -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Conv:
    """A convolution as the kernels see it: two axes, the same padding on both sides, no gaps in the input."""

    source: Shape
    result: Shape
    kernel: tuple[int, int]
    strides: tuple[int, int]
    steps: tuple[int, int]
    padding: tuple[int, int]
    group: int
    weight: Array
    prepare: Callable[[Array], Array] | None

    @property
    def reach(self) -> tuple[int, int]:
        """The kernel with its gaps."""
        (r, s), (by_row, by_column) = self.kernel, self.steps
        return (r - 1) * by_row + 1, (s - 1) * by_column + 1

    def shape(self, native: Any) -> Any:
        """Return it as the kernels' own type."""
        k, (p, q) = self.result[1], self.result[2:]
        return native.ConvShape(*self.source, k, *self.reach, *self.strides, *self.padding, p, q)


def _two(values: Any) -> tuple[int, int]:
    first, *rest = values
    return (first, rest[0]) if rest else (1, first)


def _conv_of(session: Session, node: Node) -> _Conv:
    settings, x = node.settings, session.values[node.inputs[0]].shape
    weight, result = session.network.weights[node.inputs[1]], session.values[node.name].shape
    kernel, ones = weight.shape[2:], (1,) * (len(x) - 2)
    prepare: Callable[[Array], Array] | None = None
    if settings["transposed"]:
        _, pads = transposed_sizes(settings, x[2:], kernel)
        gaps, strides = settings["strides"], ones
        sizes = [(size - 1) * gap + 1 for size, gap in zip(x[2:], gaps, strict=True)]
        weight = turned(weight, settings["group"])
        prepare = partial(with_gaps, strides=gaps, pads=pads)
    else:
        pads, strides, sizes = pads_of(settings, x[2:], kernel), settings["strides"], x[2:]
        if any(low != high for low, high in pads):
            prepare = partial(padded, pads=pads)
    padding = (0,) * len(sizes)
    if prepare is not None:
        sizes = [size + low + high for size, (low, high) in zip(sizes, pads, strict=True)]
        inner = prepare
        full = (*x[:2], *sizes)
        prepare = lambda array: inner(array).reshape(_maps(full))  # noqa: E731
    else:
        padding = tuple(low for low, _ in pads)
    return _Conv(
        _maps((*x[:2], *sizes)),
        _maps(result),
        _two(kernel),
        _two(strides),
        _two(settings["dilations"]),
        _two(padding) if padding[1:] else (0, padding[0]),
        settings["group"],
        weight.reshape(_maps(weight.shape)),
        prepare,
    )


def _conv_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    values, weights = session.values, session.network.weights
    if len(values[node.name].shape) not in (3, 4) or node.inputs[1] not in weights:
        return False
    if not _all_float(session, node):
        return False
    if node.inputs[3:] and values[node.inputs[3]].shape != values[node.name].shape:
        return False
    conv = _conv_of(session, node)
    whole = session.values[node.inputs[0]].shape[0] < ROWS_BELOW or conv.group > 1
    return (
        max(conv.reach) <= WIDEST_KERNEL
        and count(conv.source) < 2**31
        and (not whole or _fits(session, conv))
    )


def _fits(session: Session, conv: _Conv) -> bool:
    """Return whether the offsets of lists for rows fit their 16 bits."""
    tiling = np.empty(3 + count(conv.reach), np.int32)
    session.native.rows_tiling(conv.shape(session.native), address(tiling))
    return int(tiling[0]) * int(tiling[2]) + int(tiling[3:].max()) < MOST_OFFSETS


def _conv(session: Session, node: Node) -> Maker:
    conv = _conv_of(session, node)
    source = _source(session, node.inputs[0], conv.source, conv.prepare)
    result = session.values[node.name].shape
    residual = _source(session, node.inputs[3], result) if node.inputs[3:] else None
    return _convolve(session, node, conv, source, residual)


def _linear_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    weight = session.network.weights.get(node.inputs[1])
    if weight is None or not _all_float(session, node) or len(session.values[node.name].shape) < 2:
        return False
    shape = session.values[node.inputs[0]].shape
    dense = np.count_nonzero(weight) > DENSE_FROM * weight.size
    return not dense and count(shape) < 2**31


def _linear(session: Session, node: Node) -> Maker:
    """A convolution of images of one pixel, as many as there are rows."""
    shape = session.values[node.inputs[0]].shape
    weight = session.network.weights[node.inputs[1]]
    rows = count(shape[:-1])
    one = 1, 1
    conv = _Conv(
        (rows, shape[-1], 1, 1),
        (rows, len(weight), 1, 1),
        one,
        one,
        one,
        (0, 0),
        1,
        weight.reshape(*weight.shape, 1, 1),
        None,
    )
    return _convolve(session, node, conv, _source(session, node.inputs[0], (rows, shape[-1])), None)


def _convolve(session: Session, node: Node, conv: _Conv, source: _Source, residual: _Source | None) -> Maker:
    """Take the kernel that suits the number of images, and lists of the kept weights in its order."""
    native, threads, n = session.native, session.threads, conv.source[0]
    shape = conv.shape(native)
    by_rows = n < ROWS_BELOW or conv.group > 1
    kernel = native.conv_rows if by_rows else native.conv_forward_fused
    geometry = conv.source[1:], conv.strides, conv.padding, conv.result[2:]
    key = node.name, native.isa(), n if by_rows else 0, *geometry
    if by_rows:
        make = partial(lists.for_rows, native, shape, conv.weight, conv.group, conv.steps)
    else:
        make = partial(lists.for_samples, native, shape, conv.weight, conv.steps, threads)
    packed = session.network.lists_of(key, make)
    session.held.append(packed)
    session.lend((native.rows_workspace if by_rows else native.conv_workspace)(shape, threads))
    bias, relu = address(session.network.weights[node.inputs[2]]), bool(node.settings["relu"])
    target = address(session.fixed[node.name])

    def maker() -> Step:
        middle, end = (*packed.addresses(), bias), (relu, target, address(session.workspace), threads)
        if residual is None or residual.known is not None:
            added = 0 if residual is None else residual.known
            return _call(source, (shape,), kernel, (*middle, added, *end))
        first, second = source.fetch, residual.fetch

        def step(slots: Slots) -> None:
            kernel(shape, first(slots), *middle, second(slots), *end)

        return step

    return maker


# ---- others ------------------------------------------------------------------------------------------------


def _is_map(session: Session, node: Node, rank: int = 4) -> bool:
    return _all_float(session, node) and len(session.values[node.inputs[0]].shape) == rank


def _affine_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    return _all_float(session, node) and len(session.values[node.inputs[0]].shape) >= 2


def _affine(session: Session, node: Node) -> Maker:
    shape = session.values[node.inputs[0]].shape
    source = _source(session, node.inputs[0], shape)
    scale, shift = (session.network.weights[name] for name in node.inputs[1:])
    lengths, relu = (shape[1], count(shape) // shape[1]), bool(node.settings["relu"])
    target, kernel = address(session.fixed[node.name]), session.native.affine_forward
    after = (*lengths, address(scale), address(shift), 0, relu, target, 0, session.threads)
    return lambda: _call(source, (), kernel, after)


def _window(session: Session, node: Node) -> tuple[int, int, int] | None:
    """Return kernel, stride and padding where they are the same along both axes."""
    settings = node.settings
    pads: Pads = pads_of(settings, session.values[node.inputs[0]].shape[2:], settings["kernel_shape"])
    found = {*zip(settings["kernel_shape"], settings["strides"], pads, strict=True)}
    if len(found) != 1 or set(settings["dilations"]) != {1}:
        return None
    ((kernel, stride, (low, high)),) = found
    return (kernel, stride, low) if low == high and 2 * low <= kernel else None


def _pool_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    if not _is_map(session, node):
        return False
    window = _window(session, node)
    if window is None or node.operation == "MaxPool":
        return window is not None
    (kernel, stride, padding), settings = window, node.settings
    x, y = (session.values[name].shape[2:] for name in (node.inputs[0], node.name))
    inside = all((made - 1) * stride + kernel <= size + 2 * padding for size, made in zip(x, y, strict=True))
    return inside and (not padding or bool(settings["count_include_pad"]))


def _pool(session: Session, node: Node) -> Maker:
    x, y = (session.values[name].shape for name in (node.inputs[0], node.name))
    window = _window(session, node)
    assert window is not None
    source, kernel = _source(session, node.inputs[0], x), session.native.pool_rows
    before = *x[1:], x[0], *window, *y[2:], node.operation == "AveragePool"
    target = address(session.fixed[node.name])
    return lambda: _call(source, (), kernel, (*before, target, session.threads))


def _mean_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    if len(session.values[node.inputs[0]].shape) != 4 or not count(session.values[node.inputs[0]].shape):
        return False
    if session.values[node.inputs[0]].dtype != FLOAT:
        return False
    if node.operation == "AdaptiveAveragePool":
        return tuple(node.settings["sizes"]) == (1, 1)
    axes = session.values[node.inputs[1]].known if len(node.inputs) > 1 else None
    return axes is not None and set(axes_of(axes.reshape(-1).tolist(), 4)) == {2, 3}


def _mean(session: Session, node: Node) -> Maker:
    x = session.values[node.inputs[0]].shape
    source, kernel = _source(session, node.inputs[0], x), session.native.average_forward
    sizes = *x[1:], x[0], *x[2:]  # the window is the map
    target = address(session.fixed[node.name])
    return lambda: _call(source, (), kernel, (*sizes, target, session.threads))


def _joins(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    suits = _is_map(session, node) and node.settings["axis"] in (1, -3)
    return suits and any(name in owner for name in node.inputs)


def _concatenate(session: Session, node: Node) -> Maker:
    sizes = [session.values[name].shape[1] for name in node.inputs]
    ends = np.cumsum(sizes)
    target = session.fixed[node.name]
    parts = [target[:, end - size : end] for end, size in zip(ends, sizes, strict=True)]

    def step(slots: Slots) -> None:
        for part, name in zip(parts, node.inputs, strict=True):
            np.copyto(part, slots[name])

    return lambda: step


def _sigmoid(out: Array, x: Array) -> None:
    np.negative(x, out=out)
    np.exp(out, out=out)
    out += 1
    np.reciprocal(out, out=out)


def _swish(out: Array, x: Array) -> None:
    _sigmoid(out, x)
    out *= x


def _hard_swish(out: Array, x: Array) -> None:
    np.add(x, 3, out=out)
    np.clip(out, 0, 6, out=out)
    out *= x
    out *= np.float32(1 / 6)


_INTO: dict[str, Callable[..., object]] = {
    "Add": lambda out, a, b: np.add(a, b, out=out),
    "Sub": lambda out, a, b: np.subtract(a, b, out=out),
    "Mul": lambda out, a, b: np.multiply(a, b, out=out),
    "Div": lambda out, a, b: np.divide(a, b, out=out),
    "Relu": lambda out, x: np.maximum(x, 0, out=out),
    "Tanh": lambda out, x: np.tanh(x, out=out),
    "Sigmoid": _sigmoid,
    "Swish": _swish,
    "HardSwish": _hard_swish,
}
"""Operations entry by entry in numpy, into memory that is there."""


def _into_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    shape = session.values[node.name].shape
    whole = [name for name in node.inputs if name in owner and session.values[name].shape == shape]
    return len(shape) >= 3 and _all_float(session, node) and bool(whole)


def _into(session: Session, node: Node) -> Maker:
    function, target, names = _INTO[node.operation], session.fixed[node.name], node.inputs

    def step(slots: Slots) -> None:
        function(target, *(slots[name] for name in names))

    return lambda: step


STEPS: dict[str, Kernel] = {
    "FusedConv": Kernel(_conv_suits, _conv),
    "FusedLinear": Kernel(_linear_suits, _linear, has_rows=True),
    "FusedAffine": Kernel(_affine_suits, _affine),
    "MaxPool": Kernel(_pool_suits, _pool),
    "AveragePool": Kernel(_pool_suits, _pool),
    "AdaptiveAveragePool": Kernel(_mean_suits, _mean),
    "ReduceMean": Kernel(_mean_suits, _mean),
    "Concat": Kernel(_joins, _concatenate),
    **{name: Kernel(_into_suits, _into) for name in _INTO},
}
"""What runs on kernels, or in numpy into the memory of a kernel's result."""
