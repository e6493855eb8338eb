"""Operations that move entries without computing: reshapes, slices, joins, gathers, padding."""

from __future__ import annotations

import itertools

import numpy as np

from torchswat.runtime.operations.rows import (
    AXIS,
    LARGEST,
    MANY,
    WHOLE,
    Operation,
    Settings,
    Shape,
    Value,
    axes_of,
    axis_of,
    broadcast_shape,
    choice,
    count,
    flag,
    known,
    whole,
    wholes,
)

Array = np.ndarray


# ---- shapes ------------------------------------------------------------------------------------------------


def _reshaped(settings: Settings, shape: Shape, wanted: list[int]) -> Shape:
    sizes = list(map(int, wanted))
    if not settings["allowzero"]:
        if any(size == 0 and at >= len(shape) for at, size in enumerate(sizes)):
            raise ValueError(f"{sizes} keeps a size that {shape} does not have")
        sizes = [shape[at] if size == 0 else size for at, size in enumerate(sizes)]
    if sizes.count(-1) > 1 or any(size < -1 for size in sizes):
        raise ValueError(f"{sizes} is no shape")
    if -1 in sizes:
        others = count([size for size in sizes if size != -1])
        sizes[sizes.index(-1)] = count(shape) // others if others else 0
    if count(sizes) != count(shape):
        raise ValueError(f"{count(shape)} entries of {shape} do not fill {wanted}")
    return tuple(sizes)


def _reshape_rule(settings: Settings, x: Value, shape: Value) -> Value:
    return Value(_reshaped(settings, x.shape, known(shape, "sizes")), x.dtype)


def _flat(settings: Settings, shape: Shape) -> Shape:
    axis = axis_of(settings["axis"], len(shape), 1)
    return count(shape[:axis]), count(shape[axis:])


def _transposed(settings: Settings, rank: int) -> tuple[int, ...]:
    order = settings["perm"] or tuple(reversed(range(rank)))
    if sorted(order) != list(range(rank)):
        raise ValueError(f"{tuple(order)} is no order of {rank} axes")
    return tuple(order)


def _transpose_rule(settings: Settings, x: Value) -> Value:
    return Value(tuple(x.shape[axis] for axis in _transposed(settings, len(x.shape))), x.dtype)


def _squeezed(shape: Shape, axes: list[int] | None) -> Shape:
    if axes is None:
        return tuple(size for size in shape if size != 1)
    found = axes_of(axes, len(shape))
    if any(shape[axis] != 1 for axis in found):
        raise ValueError(f"an axis of {found} has another size than 1 in {shape}")
    return tuple(size for axis, size in enumerate(shape) if axis not in found)


def _squeeze_rule(settings: Settings, x: Value, axes: Value | None = None) -> Value:
    return Value(_squeezed(x.shape, None if axes is None else known(axes, "axes")), x.dtype)


def _unsqueezed(shape: Shape, axes: list[int]) -> Shape:
    found, rest = axes_of(axes, len(shape) + len(axes)), iter(shape)
    return tuple(1 if axis in found else next(rest) for axis in range(len(shape) + len(axes)))


def _unsqueeze_rule(settings: Settings, x: Value, axes: Value) -> Value:
    return Value(_unsqueezed(x.shape, known(axes, "axes")), x.dtype)


def _entries(array: Array | None) -> list[int] | None:
    return None if array is None else array.reshape(-1).tolist()


def _expand_rule(settings: Settings, x: Value, shape: Value) -> Value:
    return Value(broadcast_shape(x.shape, _sizes(known(shape, "sizes"))), x.dtype)


def _sizes(sizes: list[int]) -> Shape:
    if any(not 0 <= size <= LARGEST for size in sizes):
        raise ValueError(f"{sizes} is no shape")
    return tuple(map(int, sizes))


def _expand(settings: Settings, x: Array, shape: Array) -> Array:
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(shape.tolist())))


def _tile_rule(settings: Settings, x: Value, repeats: Value) -> Value:
    times = known(repeats, "repeats")
    if len(times) != len(x.shape) or any(not 0 <= each <= LARGEST for each in times):
        raise ValueError(f"the repeats {times} do not fit {x.shape}")
    return Value(tuple(size * int(each) for size, each in zip(x.shape, times, strict=True)), x.dtype)


def _shape_span(settings: Settings, rank: int) -> slice:
    start, end, _ = slice(settings["start"], settings["end"]).indices(rank)
    return slice(start, max(start, end))


def _shape_rule(settings: Settings, x: Value) -> Value:
    sizes = x.shape[_shape_span(settings, len(x.shape))]
    return Value((len(sizes),), WHOLE, np.array(sizes, np.int64))


def _shape(settings: Settings, x: Array) -> Array:
    return np.array(x.shape[_shape_span(settings, x.ndim)], np.int64)


# ---- parts -------------------------------------------------------------------------------------------------


def _slices(shape: Shape, *lists: list[int] | None) -> tuple[slice, ...]:
    starts, ends, axes, steps = (*lists, *(None,) * (4 - len(lists)))
    assert starts is not None and ends is not None
    axes = list(range(len(starts))) if axes is None else list(axes)
    steps = [1] * len(starts) if steps is None else steps
    if not len(starts) == len(ends) == len(axes) == len(steps):
        raise ValueError(f"starts {starts}, ends {ends}, axes {axes} and steps {steps} differ in number")
    found = [slice(None)] * len(shape)
    for axis, start, end, step in zip(axes_of(axes, len(shape)), starts, ends, steps, strict=True):
        if step == 0:
            raise ValueError("a step is 0")
        size = shape[axis]
        if step > 0:
            low, high, _ = slice(start, end, step).indices(size)
            found[axis] = slice(low, max(low, high), step)
        else:  # an end of -1 - size or less means: with the first entry
            first = min(max(start + size if start < 0 else start, 0), size - 1)
            last = max(end + size if end < 0 else end, -1)
            found[axis] = slice(first, None if last < 0 else last, step) if size else slice(0, 0)
    return tuple(found)


def _slice_rule(settings: Settings, x: Value, *lists: Value | None) -> Value:
    if any(each is None for each in lists[:2]):
        raise ValueError("starts and ends are missing")
    values = [None if each is None else known(each, "places of a slice") for each in lists]
    spans = _slices(x.shape, *values)
    shape = [len(range(*span.indices(size))) for span, size in zip(spans, x.shape, strict=True)]
    return Value(tuple(shape), x.dtype)


def _parts(settings: Settings, shape: Shape, given: list[int] | None) -> list[int]:
    size = shape[axis_of(settings["axis"], len(shape))]
    if given is not None:
        sizes = given
    else:
        parts = settings["num_outputs"]
        each = -(-size // parts)
        sizes = [each] * (size // each if each else 0)
        sizes += [size - sum(sizes)] * (len(sizes) < parts)
        if len(sizes) != parts:
            raise ValueError(f"{size} entries cannot be cut into {parts} parts")
    if sum(sizes) != size or any(part < 0 for part in sizes) or len(sizes) > MANY:
        raise ValueError(f"the parts {sizes} do not add up to {size}")
    return sizes


def _split_rule(settings: Settings, x: Value, sizes: Value | None = None) -> list[Value]:
    axis = axis_of(settings["axis"], len(x.shape))
    parts = _parts(settings, x.shape, None if sizes is None else known(sizes, "sizes of the parts"))
    return [Value((*x.shape[:axis], part, *x.shape[axis + 1 :]), x.dtype) for part in parts]


def _split(settings: Settings, x: Array, sizes: Array | None = None) -> tuple[Array, ...]:
    ends = list(itertools.accumulate(_parts(settings, x.shape, _entries(sizes))))
    return tuple(np.split(x, ends[:-1], settings["axis"]))


def _concat_rule(settings: Settings, *inputs: Value) -> Value:
    first = inputs[0]
    axis = axis_of(settings["axis"], len(first.shape))
    for value in inputs:
        other = value.shape[:axis] + value.shape[axis + 1 :]
        if other != first.shape[:axis] + first.shape[axis + 1 :] or value.dtype != first.dtype:
            raise ValueError(f"{value.dtype} {value.shape} cannot be joined to {first.dtype} {first.shape}")
    size = sum(value.shape[axis] for value in inputs)
    return Value((*first.shape[:axis], size, *first.shape[axis + 1 :]), first.dtype)


# ---- by index ----------------------------------------------------------------------------------------------


def _whole(indices: Value) -> None:
    if indices.dtype.kind not in "iu":
        raise ValueError(f"the indices are {indices.dtype}; whole numbers are expected")


def _within(indices: Array, size: int) -> Array:
    if indices.size and not -size <= int(indices.min()) <= int(indices.max()) < size:
        raise ValueError(f"an index is {int(np.abs(indices).max())}, of {size} entries")
    return indices


def _gather_rule(settings: Settings, x: Value, indices: Value) -> Value:
    _whole(indices)
    axis = axis_of(settings["axis"], len(x.shape))
    return Value((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]), x.dtype)


def _gather(settings: Settings, x: Array, indices: Array) -> Array:
    return np.take(x, _within(indices, x.shape[settings["axis"]]), settings["axis"])


def _elements_rule(settings: Settings, x: Value, indices: Value) -> Value:
    _whole(indices)
    axis = axis_of(settings["axis"], len(x.shape))
    if len(indices.shape) != len(x.shape) or any(
        at != axis and mine > theirs
        for at, (mine, theirs) in enumerate(zip(indices.shape, x.shape, strict=True))
    ):
        raise ValueError(f"indices of shape {indices.shape} do not fit {x.shape}")
    return Value(indices.shape, x.dtype)


def _elements(settings: Settings, x: Array, indices: Array) -> Array:
    axis = settings["axis"] % x.ndim
    part = x[tuple(slice(None) if at == axis else slice(size) for at, size in enumerate(indices.shape))]
    return np.take_along_axis(part, _within(indices, x.shape[axis]).astype(np.int64), axis)


def _nd_rule(settings: Settings, x: Value, indices: Value) -> Value:
    _whole(indices)
    batch = settings["batch_dims"]
    if not indices.shape or batch >= min(len(indices.shape), len(x.shape)):
        raise ValueError(f"{batch} batch axes do not fit {x.shape} and indices {indices.shape}")
    depth = indices.shape[-1]
    if x.shape[:batch] != indices.shape[:batch] or not 0 < depth <= len(x.shape) - batch:
        raise ValueError(f"indices of shape {indices.shape} do not fit {x.shape}")
    return Value((*indices.shape[:-1], *x.shape[batch + depth :]), x.dtype)


def _nd(settings: Settings, x: Array, indices: Array) -> Array:
    batch, depth = settings["batch_dims"], indices.shape[-1]
    own = [
        np.arange(x.shape[axis]).reshape([-1 if at == axis else 1 for at in range(indices.ndim - 1)])
        for axis in range(batch)
    ]
    theirs = [_within(indices[..., at], x.shape[batch + at]) for at in range(depth)]
    return x[(*own, *theirs)]


def _scatter_rule(settings: Settings, x: Value, indices: Value, updates: Value) -> Value:
    _whole(indices)
    axis = axis_of(settings["axis"], len(x.shape))
    fits = len(indices.shape) == len(x.shape) and all(
        at == axis or mine <= theirs
        for at, (mine, theirs) in enumerate(zip(indices.shape, x.shape, strict=True))
    )
    if not fits or updates.shape != indices.shape or updates.dtype != x.dtype:
        raise ValueError(f"indices {indices.shape} and updates {updates.shape} do not fit {x.shape}")
    return Value(x.shape, x.dtype)


_COMBINE = {"none": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter(settings: Settings, x: Array, indices: Array, updates: Array) -> Array:
    y, axis = x.copy(), settings["axis"] % x.ndim
    places = list(np.indices(indices.shape, sparse=True))
    places[axis] = _within(indices, x.shape[axis])
    return _put(settings, y, tuple(places), updates)


def _put(settings: Settings, y: Array, places: tuple[Array, ...], updates: Array) -> Array:
    combine = _COMBINE[settings["reduction"]]
    if combine is None:
        y[places] = updates
    else:
        combine.at(y, places, updates)
    return y


def _scatter_nd_rule(settings: Settings, x: Value, indices: Value, updates: Value) -> Value:
    found = _nd_rule({"batch_dims": 0}, x, indices)
    if updates.shape != found.shape or updates.dtype != x.dtype:
        raise ValueError(f"updates {updates.dtype} {updates.shape} do not fit {found.shape}")
    return Value(x.shape, x.dtype)


def _scatter_nd(settings: Settings, x: Array, indices: Array, updates: Array) -> Array:
    places = tuple(_within(indices[..., at], x.shape[at]) for at in range(indices.shape[-1]))
    return _put(settings, x.copy(), places, updates)


def _one_hot_rule(settings: Settings, indices: Value, depth: Value, values: Value) -> Value:
    size = int(known(depth, "depth")[0])
    if not 0 < size <= LARGEST or values.shape != (2,) or indices.dtype.kind not in "iu":
        raise ValueError(f"a depth of {size} and values of shape {values.shape} are not allowed")
    axis = axis_of(settings["axis"], len(indices.shape), 1)
    return Value((*indices.shape[:axis], size, *indices.shape[axis:]), values.dtype)


def _one_hot(settings: Settings, indices: Array, depth: Array, values: Array) -> Array:
    size = int(depth.reshape(-1)[0])
    axis = settings["axis"] % (indices.ndim + 1)
    at = np.expand_dims(np.where(indices < 0, indices + size, indices), axis)
    lane = np.arange(size).reshape([-1 if each == axis else 1 for each in range(indices.ndim + 1)])
    return np.where(at == lane, values[1], values[0])


# ---- made anew ---------------------------------------------------------------------------------------------


def _filled_rule(settings: Settings, shape: Value, value: Value) -> Value:
    if count(value.shape) != 1:
        raise ValueError(f"one value is expected, not {value.shape}")
    return Value(_sizes(known(shape, "sizes")), value.dtype)


def _range_length(start: float, limit: float, delta: float) -> int:
    if not delta:
        raise ValueError("a step is 0")
    length = max(0, int(np.ceil((limit - start) / delta)))
    if length > LARGEST:
        raise ValueError(f"a range of {length} entries is too long")
    return length


def _range_rule(settings: Settings, start: Value, limit: Value, delta: Value) -> Value:
    ends = [known(each, "ends of a range")[0] for each in (start, limit, delta)]
    return Value((_range_length(*ends),), start.dtype)


def _range(settings: Settings, start: Array, limit: Array, delta: Array) -> Array:
    first, last, step = (each.reshape(-1)[0] for each in (start, limit, delta))
    length = _range_length(float(first), float(last), float(step))
    return (first + np.arange(length) * step).astype(start.dtype)


def _trilu_rule(settings: Settings, x: Value, k: Value | None = None) -> Value:
    if len(x.shape) < 2:
        raise ValueError(f"{x.shape} is no matrix")
    return Value(x.shape, x.dtype)


def _trilu(settings: Settings, x: Array, k: Array | None = None) -> Array:
    diagonal = 0 if k is None else int(np.clip(k.reshape(-1)[0], -(2**30), 2**30))
    return np.triu(x, diagonal) if settings["upper"] else np.tril(x, diagonal)


# ---- padding and blocks ------------------------------------------------------------------------------------


def _pads(rank: int, pads: list[int], axes: list[int] | None) -> list[tuple[int, int]]:
    found = range(rank) if axes is None else axes_of(axes, rank)
    if len(pads) != 2 * len(found) or any(abs(each) > 2**24 for each in pads):
        raise ValueError(f"the padding {pads} does not fit {rank} axes")
    both = [(0, 0)] * rank
    for at, axis in enumerate(found):
        both[axis] = int(pads[at]), int(pads[at + len(found)])
    return both


def _pad_rule(
    settings: Settings, x: Value, pads: Value, value: Value | None = None, axes: Value | None = None
) -> Value:
    both = _pads(len(x.shape), known(pads, "pads"), None if axes is None else known(axes, "axes"))
    shape = tuple(size + low + high for size, (low, high) in zip(x.shape, both, strict=True))
    if any(size < 0 for size in shape):
        raise ValueError(f"the padding {both} leaves nothing of {x.shape}")
    if settings["mode"] != "constant":
        for size, ends in zip(x.shape, both, strict=True):
            most = {"reflect": size - 1, "edge": 2**24 if size else 0, "wrap": size}[settings["mode"]]
            if max(ends) > most:
                raise ValueError(
                    f"a padding of {max(ends)} by {settings['mode']} does not fit {size} entries"
                )
    if value is not None and (count(value.shape) != 1 or value.dtype != x.dtype):
        raise ValueError("one value of the type of the input is expected")
    return Value(shape, x.dtype)


def _pad(
    settings: Settings, x: Array, pads: Array, value: Array | None = None, axes: Array | None = None
) -> Array:
    both = _pads(x.ndim, pads.tolist(), _entries(axes))
    x = x[
        tuple(
            slice(max(0, -low), size - max(0, -high)) for size, (low, high) in zip(x.shape, both, strict=True)
        )
    ]
    both = [(max(0, low), max(0, high)) for low, high in both]
    if settings["mode"] == "constant":
        fill = 0 if value is None else value.reshape(-1)[0]
        return np.pad(x, both, constant_values=fill)
    return np.pad(x, both, mode=settings["mode"])


def _depth_rule(settings: Settings, x: Value) -> Value:
    block = settings["blocksize"]
    if len(x.shape) != 4 or x.shape[1] % block**2:
        raise ValueError(f"{x.shape} has no channels for blocks of {block} x {block}")
    n, c, h, w = x.shape
    return Value((n, c // block**2, h * block, w * block), x.dtype)


def _depth_to_space(settings: Settings, x: Array) -> Array:
    (n, c, h, w), b = x.shape, settings["blocksize"]
    if settings["mode"] == "DCR":
        y = x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(n, c // b**2, b, b, h, w).transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // b**2, h * b, w * b)


def _space_rule(settings: Settings, x: Value) -> Value:
    b = settings["blocksize"]
    if len(x.shape) != 4 or x.shape[2] % b or x.shape[3] % b:
        raise ValueError(f"{x.shape} cannot be cut into blocks of {b} x {b}")
    n, c, h, w = x.shape
    return Value((n, c * b * b, h // b, w // b), x.dtype)


def _space_to_depth(settings: Settings, x: Array) -> Array:
    (n, c, h, w), b = x.shape, settings["blocksize"]
    y = x.reshape(n, c, h // b, b, w // b, b).transpose(0, 3, 5, 1, 2, 4)
    return y.reshape(n, c * b * b, h // b, w // b)


_BLOCK = whole(1, 1, 2**10)

OPERATIONS = {
    "Reshape": Operation(
        _reshape_rule,
        lambda settings, x, shape: x.reshape(_reshaped(settings, x.shape, shape.tolist())),
        (2, 2),
        {"allowzero": flag()},
        is_view=True,
    ),
    "Flatten": Operation(
        lambda settings, x: Value(_flat(settings, x.shape), x.dtype),
        lambda settings, x: x.reshape(_flat(settings, x.shape)),
        settings={"axis": whole(1, -12, 12)},
        is_view=True,
    ),
    "Transpose": Operation(
        _transpose_rule,
        lambda settings, x: x.transpose(_transposed(settings, x.ndim)),
        settings={"perm": wholes((), 0, 11)},
        is_view=True,
    ),
    "Squeeze": Operation(
        _squeeze_rule,
        lambda settings, x, axes=None: x.reshape(_squeezed(x.shape, _entries(axes))),
        (1, 2),
        is_view=True,
    ),
    "Unsqueeze": Operation(
        _unsqueeze_rule,
        lambda settings, x, axes: x.reshape(_unsqueezed(x.shape, axes.reshape(-1).tolist())),
        (2, 2),
        is_view=True,
    ),
    "Expand": Operation(_expand_rule, _expand, (2, 2), is_view=True),
    "Tile": Operation(_tile_rule, lambda settings, x, repeats: np.tile(x, repeats.tolist()), (2, 2)),
    "Shape": Operation(_shape_rule, _shape, settings={"start": whole(0, -12, 12), "end": whole(12, -12, 12)}),
    "Size": Operation(
        lambda settings, x: Value((), WHOLE, np.array(count(x.shape), np.int64)),
        lambda settings, x: np.array(x.size, np.int64),
    ),
    "Slice": Operation(
        _slice_rule,
        lambda settings, x, *lists: x[_slices(x.shape, *map(_entries, lists))],
        (3, 5),
        optional=(3,),
        is_view=True,
    ),
    "Split": Operation(
        _split_rule,
        _split,
        (1, 2),
        {"axis": whole(0, -12, 11), "num_outputs": whole(1, 1, MANY)},
        outputs=MANY,
        is_view=True,
    ),
    "Concat": Operation(
        _concat_rule,
        lambda settings, *arrays: np.concatenate(arrays, settings["axis"]),
        (1, MANY),
        {"axis": whole(1, -12, 11)},
    ),
    "Gather": Operation(_gather_rule, _gather, (2, 2), {"axis": whole(0, -12, 11)}),
    "GatherElements": Operation(_elements_rule, _elements, (2, 2), {"axis": whole(0, -12, 11)}),
    "GatherND": Operation(_nd_rule, _nd, (2, 2), {"batch_dims": whole(0, 0, 11)}),
    "ScatterElements": Operation(
        _scatter_rule, _scatter, (3, 3), {"axis": whole(0, -12, 11), "reduction": choice(*_COMBINE)}
    ),
    "ScatterND": Operation(_scatter_nd_rule, _scatter_nd, (3, 3), {"reduction": choice(*_COMBINE)}),
    "OneHot": Operation(_one_hot_rule, _one_hot, (3, 3), {"axis": AXIS}),
    "Fill": Operation(
        _filled_rule,
        lambda settings, shape, value: np.full(shape.tolist(), value.reshape(-1)[0], value.dtype),
        (2, 2),
    ),
    "Range": Operation(_range_rule, _range, (3, 3)),
    "Trilu": Operation(_trilu_rule, _trilu, (1, 2), {"upper": flag(1)}),
    "Pad": Operation(
        _pad_rule,
        _pad,
        (2, 4),
        {"mode": choice("constant", "reflect", "edge", "wrap")},
        optional=(2,),
        is_view=True,
    ),
    "DepthToSpace": Operation(
        _depth_rule, _depth_to_space, settings={"blocksize": _BLOCK, "mode": choice("DCR", "CRD")}
    ),
    "SpaceToDepth": Operation(_space_rule, _space_to_depth, settings={"blocksize": _BLOCK}),
}
