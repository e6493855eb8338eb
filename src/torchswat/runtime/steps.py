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
from torchswat.runtime.activations import NAMES, Activation, activation_of, following
from torchswat.runtime.arena import ALIGNMENT
from torchswat.runtime.graph import Node
from torchswat.runtime.memory import address, chwn, empty, is_chwn, laid, lies_in, order_of
from torchswat.runtime.operations.rows import FLOAT, Shape, axes_of, count
from torchswat.runtime.operations.windows import Pads, padded, pads_of, transposed_sizes, turned, with_gaps

if TYPE_CHECKING:
    from torchswat.runtime.session import Session

Array = np.ndarray
Slots = dict[str, Array]
Step = Callable[[Slots], object]
Maker = Callable[[], Step]
"""Makes a step once the workspace is there."""
Order = tuple[int, ...]
"""Axes as they lie in memory, the outermost first."""

ROWS_BELOW = 16  # images: with fewer, lanes are positions of a row and not samples
WIDEST_KERNEL = 64
MOST_TAPS = WIDEST_KERNEL**2
MOST_OFFSETS = 2**16  # of a list's weights, which are stored in 16 bits
DENSE_FROM = 0.5  # density of a weight from which numpy multiplies many rows with it


def _of_maps(session: Session, node: Node) -> Order:
    rank = len(session.values[node.name].shape)
    return (*range(1, rank), 0)


def _of_rows(session: Session, node: Node) -> Order:
    """All axes but the last lie together where images do."""
    rank = len(session.values[node.name].shape)
    return (rank - 1, *range(rank - 1))


def _of_heads(session: Session, node: Node) -> Order:
    return 1, 3, 0, 2


def _as_before(session: Session, node: Node) -> Order:
    """As the first input of its shape that lies in the memory of a kernel's result, else row by row."""
    shape = session.values[node.name].shape
    for name in node.inputs:
        if name in session.lies and session.values[name].shape == shape:
            return order_of(session.lies[name])
    return tuple(range(len(shape)))


@dataclass(frozen=True)
class Kernel:
    """When a kernel suits a node, what makes its step, and how the result lies in memory."""

    suits: Callable[[Session, Node, Mapping[str, str]], bool]
    make: Callable[[Session, Node], Maker]
    order: Callable[[Session, Node], Order] = _of_maps


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


def _dense(session: Session, name: str, order: Order) -> _Source:
    """Return where an input lies in `order`, without gaps."""
    held, shape = session.fixed.get(name), session.values[name].shape
    if held is not None and lies_in(held, order):
        place = address(held)
        return _Source(place, lambda slots: place)
    staged = laid(empty(count(shape)), shape, order)
    place = address(staged)

    def fetch(slots: Slots) -> int:
        x = slots[name]
        if lies_in(x, order):
            return address(x)
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


def _by_rows(images: int, group: int) -> bool:
    return images < ROWS_BELOW or group > 1


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
        # Zeros at the edges cost lists for rows nothing: only where they begin is said.
        free = _by_rows(x[0], settings["group"]) and max(kernel) > 1 and min(map(min, pads)) >= 0
        if any(low != high for low, high in pads) and not free:
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
    if _is_depthwise(session, node):
        return True
    conv = _conv_of(session, node)
    whole = _by_rows(session.values[node.inputs[0]].shape[0], conv.group)
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


def _is_depthwise(session: Session, node: Node) -> bool:
    x, settings = session.values[node.inputs[0]].shape, node.settings
    weight = session.network.weights[node.inputs[1]]
    if settings["transposed"] or node.inputs[3:] or settings["group"] != x[1] or weight.shape[1] != 1:
        return False
    pads = pads_of(settings, x[2:], weight.shape[2:])
    return min(map(min, pads)) >= 0 and count(weight.shape[2:]) <= MOST_TAPS and count(x) < 2**31


def _depthwise(session: Session, node: Node) -> Maker:
    x, settings, native = session.values[node.inputs[0]].shape, node.settings, session.native
    weight, bias = (session.network.weights[name] for name in node.inputs[1:3])
    pads = [low for low, _ in pads_of(settings, x[2:], weight.shape[2:])]
    shape = native.ConvShape(
        *_maps(x),
        len(weight),
        *_maps(weight.shape)[2:],
        *_two(settings["strides"]),
        *(0, 0, *pads)[-2:],
        *_maps(session.values[node.name].shape)[2:],
        *_two(settings["dilations"]),
    )
    after = _after(session, following(node.settings)), address(session.fixed[node.name]), session.threads
    source = _source(session, node.inputs[0], x)
    before = address(weight), address(bias)
    return lambda: _call(source, (shape,), native.depthwise_rows, (*before, *after))


def _is_spread(session: Session, node: Node) -> bool:
    """Return whether a transposed convolution makes a block of its own of every position."""
    settings, kernel = node.settings, session.network.weights[node.inputs[1]].shape[2:]
    plain = (
        not any(settings["pads"]) and not any(settings["output_padding"]) and settings["auto_pad"] == "none"
    )
    alone = settings["group"] == 1 and set(settings["dilations"]) == {1} and not node.inputs[3:]
    return bool(settings["transposed"]) and plain and alone and tuple(settings["strides"]) == kernel


def _spread(session: Session, node: Node) -> Maker:
    """A 1x1 convolution, whose filters are those of all taps, and a copy of its results to where they belong."""
    weight, bias = (session.network.weights[name] for name in node.inputs[1:3])
    x, (r, s) = _maps(session.values[node.inputs[0]].shape), _maps(weight.shape)[2:]
    every = np.ascontiguousarray(weight.reshape(_maps(weight.shape)).transpose(2, 3, 1, 0)).reshape(
        -1, x[1], 1, 1
    )
    one = 1, 1
    made = x[0], len(every), *x[2:]
    conv = _Conv(x, made, one, one, one, (0, 0), 1, every, None)
    parts, biases = empty(count(made)), np.tile(bias, r * s)
    session.staged += [parts, biases]
    convolve = _convolve(
        session, node, conv, _source(session, node.inputs[0], x), None, (address(biases), address(parts))
    )
    spread = partial(
        session.native.spread,
        *(
            address(parts),
            weight.shape[1],
            *x[2:],
            x[0],
            r,
            s,
            address(session.fixed[node.name]),
            session.threads,
        ),
    )

    def maker() -> Step:
        first = convolve()

        def step(slots: Slots) -> None:
            first(slots)
            spread()

        return step

    return maker


def _after(session: Session, activation: Activation) -> Any:
    """Return an activation as the kernels' own type."""
    return session.native.Activation(activation.number, activation.low, activation.high)


def _conv(session: Session, node: Node) -> Maker:
    if _is_depthwise(session, node):
        return _depthwise(session, node)
    if _is_spread(session, node):
        return _spread(session, node)
    conv = _conv_of(session, node)
    source = _source(session, node.inputs[0], conv.source, conv.prepare)
    result = session.values[node.name].shape
    residual = _source(session, node.inputs[3], result) if node.inputs[3:] else None
    return _convolve(session, node, conv, source, residual)


def _linear_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    weight = session.network.weights.get(node.inputs[1])
    if weight is None or not _all_float(session, node) or len(session.values[node.name].shape) < 2:
        return False
    if node.inputs[3:] and session.values[node.inputs[3]].shape != session.values[node.name].shape:
        return False
    shape = session.values[node.inputs[0]].shape
    # Of few rows a dense product is bound by its bytes, and numpy's threads would compete with the kernels' for cores.
    many = count(shape[:-1]) >= ROWS_BELOW
    dense = many and np.count_nonzero(weight) > DENSE_FROM * weight.size
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
    residual = _source(session, node.inputs[3], (rows, len(weight))) if node.inputs[3:] else None
    return _convolve(session, node, conv, _source(session, node.inputs[0], (rows, shape[-1])), residual)


def _convolve(
    session: Session,
    node: Node,
    conv: _Conv,
    source: _Source,
    residual: _Source | None,
    places: tuple[int, int] | None = None,
) -> Maker:
    """Take the kernel that suits the number of images, and lists of the kept weights in its order.

    `places` are addresses of the bias and the result, where they are not those of the node.
    """
    native, threads, n = session.native, session.threads, conv.source[0]
    shape = conv.shape(native)
    by_rows = _by_rows(n, conv.group)
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
    own = address(session.network.weights[node.inputs[2]]), address(session.fixed[node.name])
    bias, target = places or own
    after = _after(session, following(node.settings))

    def maker() -> Step:
        middle, end = (*packed.addresses(), bias), (after, target, address(session.workspace), threads)
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
    if _is_whole(session, node):
        return True
    window = _window(session, node)
    if window is None or node.operation == "MaxPool":
        return window is not None
    (kernel, stride, padding), settings = window, node.settings
    x, y = (session.values[name].shape[2:] for name in (node.inputs[0], node.name))
    inside = all((made - 1) * stride + kernel <= size + 2 * padding for size, made in zip(x, y, strict=True))
    return inside and (not padding or bool(settings["count_include_pad"]))


def _is_whole(session: Session, node: Node) -> bool:
    """Return whether it is the average of the map: its one window reaches everywhere, or further."""
    x, settings = session.values[node.inputs[0]].shape[2:], node.settings
    if node.operation != "AveragePool" or session.values[node.name].shape[2:] != (1, 1):
        return False
    pads = pads_of(settings, x, settings["kernel_shape"])
    reaches = all(wide >= size for wide, size in zip(settings["kernel_shape"], x, strict=True))
    return reaches and not any(map(any, pads)) and set(settings["dilations"]) == {1}


def _pool(session: Session, node: Node) -> Maker:
    if _is_whole(session, node):
        return _mean(session, node)
    x, y = (session.values[name].shape for name in (node.inputs[0], node.name))
    window = _window(session, node)
    assert window is not None
    source, kernel = _source(session, node.inputs[0], x), session.native.pool_rows
    before = *x[1:], x[0], *window, *y[2:], node.operation == "AveragePool"
    target = address(session.fixed[node.name])
    return lambda: _call(source, (), kernel, (*before, target, session.threads))


def _mean_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    x = session.values[node.inputs[0]]
    rank = len(x.shape)
    if rank not in (3, 4) or not count(x.shape) or x.dtype != FLOAT:
        return False
    if node.operation == "AdaptiveAveragePool":
        return tuple(node.settings["sizes"]) == (1,) * (rank - 2)
    axes = session.values[node.inputs[1]].known if len(node.inputs) > 1 else None
    return axes is not None and set(axes_of(axes.reshape(-1).tolist(), rank)) == {*range(2, rank)}


def _mean(session: Session, node: Node) -> Maker:
    x = session.values[node.inputs[0]].shape
    source, target = _source(session, node.inputs[0], x), address(session.fixed[node.name])
    after = x[1], count(x[2:]), x[0], target, session.threads
    return lambda: _call(source, (), session.native.mean_along, after)


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


_INTO: dict[str, Callable[..., object]] = {
    "Add": lambda out, a, b: np.add(a, b, out=out),
    "Sub": lambda out, a, b: np.subtract(a, b, out=out),
    "Mul": lambda out, a, b: np.multiply(a, b, out=out),
    "Div": lambda out, a, b: np.divide(a, b, out=out),
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


_ACTIVATIONS = ("Relu", *(name for name in NAMES if name not in ("none", "GeluTanh")))
_OPERATIONS = {"Add": 0, "Mul": 1, "Sub": 2, "Div": 3}
"""By their number in the kernels."""


def _combine(session: Session, node: Node) -> Maker:
    """Take the kernel where one input is whole and the other is, or has one entry along neighbouring axes."""
    target = session.fixed[node.name]
    shape, order = target.shape, order_of(target)
    pairs = [node.inputs] if node.operation in ("Sub", "Div") else [node.inputs, node.inputs[::-1]]
    for whole, other in pairs:
        sizes = _broadcast_sizes(shape, session.values[other].shape, order)
        if session.values[whole].shape == shape and sizes is not None:
            first, second = _dense(session, whole, order), _part(session, other, len(shape), order)
            kernel = partial(session.native.combine, _OPERATIONS[node.operation])
            return partial(_pair, kernel, first, second, (*sizes, address(target), session.threads))
    return _into(session, node)


def _pair(kernel: Callable[..., object], first: _Source, second: _Source, after: tuple[Any, ...]) -> Step:
    """Return the step that calls `kernel` with what lies at two places."""
    if first.known is not None and second.known is not None:
        call = partial(kernel, first.known, second.known, *after)
        return lambda slots: call()
    one, two = first.fetch, second.fetch
    return lambda slots: kernel(one(slots), two(slots), *after)


def _broadcast_sizes(shape: Shape, other: Shape, order: Order) -> tuple[int, int, int] | None:
    """Return (outer, middle, inner) where `other` has one entry along the middle axes alone, as they lie in memory."""
    other = (1,) * (len(shape) - len(other)) + other
    sizes, part = [1, 1, 1], 0
    for axis in order:
        if shape[axis] == 1:
            continue
        is_one = other[axis] == 1
        if (is_one and part == 0) or (not is_one and part == 1):
            part += 1
        elif is_one and part == 2:
            return None
        sizes[part] *= shape[axis]
    outer, middle, inner = sizes
    return (1, 1, outer * inner) if middle == 1 else (outer, middle, inner)


def _part(session: Session, name: str, rank: int, order: Order) -> _Source:
    """Return where an input lies that has one entry along some axes: without gaps, in the order of the others."""
    shape = session.values[name].shape
    full = (1,) * (rank - len(shape)) + shape
    held = session.fixed.get(name)
    if (
        held is not None
        and lies_in(held.reshape(full), order)
        and np.may_share_memory(held, held.reshape(full))
    ):
        place = address(held)
        return _Source(place, lambda slots: place)
    staged = laid(empty(count(shape)), full, order)
    place = address(staged)
    if held is None and name in session.slots:  # a constant
        np.copyto(staged, session.slots[name].reshape(full))
        session.staged.append(staged)
        return _Source(place, lambda slots: place)

    def fetch(slots: Slots) -> int:
        np.copyto(staged, slots[name].reshape(full))
        return place

    return _Source(None, fetch)


def _activation_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    found = activation_of(node, lambda name: session.values[name].known)
    shape = session.values[node.name].shape
    return found is not None and session.values[node.inputs[0]].dtype == FLOAT and count(shape) > 0


def _activation(session: Session, node: Node) -> Maker:
    found = activation_of(node, lambda name: session.values[name].known)
    assert found is not None
    target = session.fixed[node.name]
    source = _dense(session, node.inputs[0], order_of(target))
    after = target.size, _after(session, found), address(target), session.threads
    return lambda: _call(source, (), session.native.activate, after)


# ---- norms, softmax, attention -----------------------------------------------------------------------------


def _sizes_along(session: Session, node: Node, axes: range, order: Order) -> tuple[int, int, int] | None:
    """Return (outer, length, inner) of axes that lie side by side in memory, in order."""
    shape = session.values[node.inputs[0]].shape
    order = tuple(axis for axis in order if shape[axis] != 1)
    places = [order.index(axis) for axis in axes if shape[axis] != 1]
    if not places:
        return count(shape), 1, 1
    if places != [*range(places[0], places[0] + len(places))]:
        return None
    in_memory = [shape[axis] for axis in order]
    first, last = places[0], places[-1] + 1
    return count(in_memory[:first]), count(in_memory[first:last]), count(in_memory[last:])


def _axes(session: Session, node: Node) -> range:
    rank = len(session.values[node.inputs[0]].shape)
    first = node.settings["axis"] % rank
    return range(first, first + 1 if node.operation == "Softmax" else rank)


def _norm_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    x = session.values[node.inputs[0]].shape
    axes = _axes(session, node)
    constant = all(
        name in session.network.weights and session.values[name].shape == x[axes.start :]
        for name in node.inputs[1:]
        if name
    )
    if not (constant and _all_float(session, Node(node.operation, node.inputs[:1], node.outputs, {}))):
        return False
    return _sizes_along(session, node, axes, _as_before(session, node)) is not None


def _norm(session: Session, node: Node) -> Maker:
    target = session.fixed[node.name]
    order = order_of(target)
    sizes = _sizes_along(session, node, _axes(session, node), order)
    assert sizes is not None
    names = (*node.inputs[1:], "", "")[:2]
    factors = [address(session.network.weights[name]) if name else 0 for name in names]
    after = *sizes, *factors, node.settings["epsilon"], address(target), session.threads
    source = _dense(session, node.inputs[0], order)
    return lambda: _call(source, (), session.native.layer_norm, after)


def _softmax_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    return _all_float(session, node)


def _softmax(session: Session, node: Node) -> Maker:
    target = session.fixed[node.name]
    order = order_of(target)
    sizes = _sizes_along(session, node, _axes(session, node), order)
    assert sizes is not None
    source = _dense(session, node.inputs[0], order)
    after = *sizes, address(target), session.threads
    return lambda: _call(source, (), session.native.softmax, after)


def _attention_suits(session: Session, node: Node, owner: Mapping[str, str]) -> bool:
    shapes = [session.values[name].shape for name in node.inputs[:3]]
    lead = {shape[:2] for shape in shapes}
    if node.settings["is_causal"] or any(len(shape) != 4 for shape in shapes) or len(lead) != 1:
        return False
    if not _all_float(session, Node(node.operation, node.inputs[:3], node.outputs, {})):
        return False
    return not node.inputs[3:] or _lets_all_through(session, node.inputs[3])


def _lets_all_through(session: Session, mask: str) -> bool:
    """Return whether a mask is known to be true everywhere, perhaps as one number that is spread."""
    known = session.values[mask].known
    for node in session.network.fused.nodes if known is None else ():
        if node.operation == "Expand" and mask in node.outputs:
            known = session.values[node.inputs[0]].known
    return known is not None and known.dtype == bool and bool(known.all())


def _attention(session: Session, node: Node) -> Maker:
    native, target = session.native, session.fixed[node.name]
    images, heads, queries, size = session.values[node.inputs[0]].shape
    keys, value_size = session.values[node.inputs[2]].shape[2:]
    both = [_tokens(session, name) for name in node.inputs[:3]]
    strides = np.array([*(_steps(lies) for _, lies in both), _steps(target)], np.int64)
    fetches = [source.fetch for source, _ in both]
    scale = node.settings["scale"] or size**-0.5
    after = images, heads, queries, keys, size, value_size, scale, session.threads
    whole = address(target), address(strides), *after

    def step(slots: Slots, strides: Array = strides) -> None:
        native.attention(*(fetch(slots) for fetch in fetches), *whole)

    return lambda: step


def _steps(array: Array) -> list[int]:
    """Return the distances, in floats, between images, heads and features."""
    return [array.strides[axis] // 4 for axis in (0, 1, 3)]


def _tokens(session: Session, name: str) -> tuple[_Source, Array]:
    """Return where queries, keys or values lie with tokens side by side, and an array that lies so."""
    held = session.fixed.get(name)
    if held is not None and (held.strides[2] == 4 or held.shape[2] == 1):
        place = address(held)
        return _Source(place, lambda slots: place), held
    staged = laid(empty(count(session.values[name].shape)), session.values[name].shape, (0, 1, 3, 2))

    def fetch(slots: Slots) -> int:
        np.copyto(staged, slots[name])
        return address(staged)

    return _Source(None, fetch), staged


STEPS: dict[str, Kernel] = {
    "FusedConv": Kernel(_conv_suits, _conv),
    "FusedLinear": Kernel(_linear_suits, _linear, _of_rows),
    "FusedAffine": Kernel(_affine_suits, _affine),
    "MaxPool": Kernel(_pool_suits, _pool),
    "AveragePool": Kernel(_pool_suits, _pool),
    "AdaptiveAveragePool": Kernel(_mean_suits, _mean),
    "ReduceMean": Kernel(_mean_suits, _mean),
    "Concat": Kernel(_joins, _concatenate),
    **{name: Kernel(_into_suits, _combine, _as_before) for name in _OPERATIONS},
    **{name: Kernel(_activation_suits, _activation, _as_before) for name in _ACTIVATIONS},
    "LayerNormalization": Kernel(_norm_suits, _norm, _as_before),
    "Softmax": Kernel(_softmax_suits, _softmax, _as_before),
    "Attention": Kernel(_attention_suits, _attention, _of_heads),
}
"""What runs on kernels, or in numpy into the memory of a kernel's result."""
