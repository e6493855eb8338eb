"""Shapes, parts and indices."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from torchswat.runtime.aten.sizes import SIZES
from torchswat.runtime.aten.writer import TABLE, Made, Number, Size, Unsupported, Writer, on


@on("view.default", "reshape.default", "_unsafe_view.default", "view_copy.default")
def _view(w: Writer, x: Made, sizes: Sequence[Number]) -> str:
    known = [s if isinstance(s, int) else None for s in w.call.shape]
    sizes = [
        k if s == -1 and k is not None and isinstance(s, int) else s
        for s, k in zip(sizes, known, strict=True)
    ]
    return w.add("Reshape", x.name, w.sizes(sizes), allowzero=int(-1 not in sizes))


@on("flatten.using_ints")
def _flatten(w: Writer, x: Made, start: int = 0, end: int = -1) -> str:
    start, end = start % max(1, x.rank), end % max(1, x.rank)
    if start == 1 and end == x.rank - 1:
        return w.add("Flatten", x.name)
    sizes = w.shape_of(x)
    return w.add("Reshape", x.name, w.sizes([*sizes[:start], -1, *sizes[end + 1 :]]))


@on("permute.default")
def _permute(w: Writer, x: Made, order: Sequence[int]) -> str:
    return w.add("Transpose", x.name, perm=tuple(axis % x.rank for axis in order))


@on("transpose.int", "t.default", "mT.default")
def _transpose(w: Writer, x: Made, a: int = -2, b: int = -1) -> str:
    if x.rank < 2:
        return w.add("Identity", x.name)
    order = list(range(x.rank))
    order[a], order[b] = order[b], order[a]
    return w.add("Transpose", x.name, perm=tuple(order))


@on("squeeze.dim", "squeeze.dims", "squeeze.default")
def _squeeze(w: Writer, x: Made, axes: Any = None) -> str:
    wanted = range(x.rank) if axes is None else [axes] if isinstance(axes, int) else axes
    ones = [axis % x.rank for axis in wanted if x.rank and x.value.shape[axis] == 1]
    return w.add("Squeeze", x.name, w.constant(ones)) if ones else w.add("Identity", x.name)


@on("unsqueeze.default")
def _unsqueeze(w: Writer, x: Made, axis: int) -> str:
    return w.add("Unsqueeze", x.name, w.constant([axis]))


@on("expand.default", "expand_copy.default", "broadcast_to.default")
def _expand(w: Writer, x: Made, sizes: Sequence[Number], *, implicit: bool = False) -> str:
    return w.add("Expand", x.name, w.sizes([1 if isinstance(s, int) and s == -1 else s for s in sizes]))


@on("repeat.default")
def _repeat(w: Writer, x: Made, times: Sequence[Number]) -> str:
    name, more = x.name, len(times) - x.rank
    name = w.add("Unsqueeze", name, w.constant(list(range(more)))) if more else name
    return w.add("Tile", name, w.sizes(times))


@on("repeat_interleave.self_int")
def _interleave(w: Writer, x: Made, times: int, axis: int | None = None, **named: Any) -> str:
    if axis is None:
        raise Unsupported("repeat_interleave without an axis")
    axis %= x.rank
    name = w.add("Unsqueeze", x.name, w.constant([axis + 1]))
    name = w.add("Tile", name, w.constant([times if at == axis + 1 else 1 for at in range(x.rank + 1)]))
    sizes = w.shape_of(x)
    return w.add("Reshape", name, w.sizes([*sizes[:axis], -1, *sizes[axis + 1 :]]))


@on("cat.default")
def _cat(w: Writer, inputs: Sequence[Made], axis: int = 0) -> str:
    kept = [x for x in inputs if not (x.rank == 1 and x.value.shape[0] == 0 and w.call.dim() > 1)]
    return w.add("Concat", *(w.operand(x, w.dtype) for x in kept), axis=axis)


@on("stack.default")
def _stack(w: Writer, inputs: Sequence[Made], axis: int = 0) -> str:
    at = w.constant([axis])
    return w.add("Concat", *(w.add("Unsqueeze", x.name, at) for x in inputs), axis=axis)


@on("split_with_sizes.default")
def _split(w: Writer, x: Made, sizes: Sequence[Number], axis: int = 0) -> list[str]:
    return w.many("Split", len(sizes), x.name, w.sizes(sizes), axis=axis)


@on("split.Tensor", "chunk.default")
def _chunk(w: Writer, x: Made, size: int, axis: int = 0) -> list[str]:
    sizes = [each.shape[axis] for each in w.call]
    if not all(isinstance(each, int) for each in sizes):
        raise Unsupported("parts whose sizes are free")
    return _split(w, x, sizes, axis)


@on("unbind.int")
def _unbind(w: Writer, x: Made, axis: int = 0) -> list[str]:
    return [_select(w, x, axis, at) for at in range(len(w.call))]


@on("select.int")
def _select(w: Writer, x: Made, axis: int, index: Number) -> str:
    place = index.name if isinstance(index, Size) else w.constant([index])
    return w.add("Squeeze", w.add("Gather", x.name, place, axis=axis), w.constant([axis]))


@on("slice.Tensor", "narrow.default")
def _slice(w: Writer, x: Made, axis: int = 0, start: Number = None, end: Number = None, step: int = 1) -> str:
    limits = w.sizes([0 if start is None else start]), w.sizes([2**62 if end is None else end])
    if limits == (w.constant([0]), w.constant([2**62])) and step == 1:
        return w.add("Identity", x.name)
    return w.add("Slice", x.name, *limits, w.constant([axis]), w.constant([step]))


def _narrow(w: Writer, x: Made, axis: int, start: Number, length: Number) -> str:
    return _slice(w, x, axis, start, SIZES[operator.add](w, start, length))


TABLE["narrow.default"] = _narrow


@on("flip.default")
def _flip(w: Writer, x: Made, axes: Sequence[int]) -> str:
    rows = [[-1] * len(axes), [-(2**62)] * len(axes), list(axes), [-1] * len(axes)]
    return w.add("Slice", x.name, *map(w.constant, rows))


@on("roll.default")
def _roll(w: Writer, x: Made, shifts: Sequence[Number], axes: Sequence[int] = ()) -> str:
    if not axes or any(isinstance(shift, Size) for shift in shifts):
        raise Unsupported("a roll of the flattened tensor, or by a free size")
    name = x.name
    for shift, axis in zip(shifts, axes, strict=True):
        at, size = w.constant([axis]), x.value.shape[axis]
        cut = w.constant([-shift % size if isinstance(size, int) else -shift])
        if shift == 0:
            continue
        parts = [
            w.add("Slice", name, cut, w.constant([2**62]), at),
            w.add("Slice", name, w.constant([0]), cut, at),
        ]
        name = w.add("Concat", *parts, axis=axis)
    return name


@on("index_select.default")
def _index_select(w: Writer, x: Made, axis: int, index: Made) -> str:
    return w.add("Gather", x.name, index.name, axis=axis)


@on("embedding.default")
def _embedding(w: Writer, weight: Made, index: Made, *more: Any, **named: Any) -> str:
    return w.add("Gather", weight.name, index.name, axis=0)


@on("gather.default")
def _gather(w: Writer, x: Made, axis: int, index: Made, **named: Any) -> str:
    return w.add("GatherElements", x.name, index.name, axis=axis)


@on("index.Tensor", "_unsafe_index.Tensor")
def _index(w: Writer, x: Made, indices: Sequence[Made | None]) -> str:
    places = [axis for axis, each in enumerate(indices) if each is not None]
    used = [each for each in indices if each is not None]
    if any(each.dtype == "bool" for each in used):
        raise Unsupported("the choice of entries by a mask, whose number depends on data")
    if len(used) == 1:
        return w.add("Gather", x.name, used[0].name, axis=places[0])
    if places != list(range(places[0], places[0] + len(places))):
        raise Unsupported("indices along axes that do not lie side by side")
    # The indexed axes first; GatherND reads whole rows of indices.
    first, rank = places[0], max(each.rank for each in used)
    order = [*places, *(axis for axis in range(x.rank) if axis not in places)]
    name = x.name if first == 0 else w.add("Transpose", x.name, perm=tuple(order))
    shape = w.call.shape[first : first + rank]
    sizes = [size if isinstance(size, int) else None for size in shape]
    if None in sizes:
        common = used[0].name
        for each in used[1:]:
            common = w.add("Add", common, each.name)
        target = w.add("Shape", common)
    else:
        target = w.constant(sizes)
    last = w.constant([-1])
    rows = [w.add("Unsqueeze", w.add("Expand", each.name, target), last) for each in used]
    y = w.add("GatherND", name, w.add("Concat", *rows, axis=-1))
    if first:
        moved = w.call.dim()
        back = [*range(rank, rank + first), *range(rank), *range(rank + first, moved)]
        y = w.add("Transpose", y, perm=tuple(back))
    return y


@on("scatter.src", "scatter.value", "scatter_add.default")
def _scatter(w: Writer, x: Made, axis: int, index: Made, source: Any) -> str:
    if not isinstance(source, Made):
        shape = w.add("Shape", index.name)
        return w.add(
            "ScatterElements",
            x.name,
            index.name,
            w.add("Fill", shape, w.constant([source], x.dtype)),
            axis=axis,
        )
    if any(a != b for a, b in zip(index.value.shape, source.value.shape, strict=True)):
        raise Unsupported("a scatter of fewer entries than there are")
    return w.add("ScatterElements", x.name, index.name, source.name, axis=axis)


TABLE["scatter_add.default"] = lambda w, x, axis, index, source: w.add(
    "ScatterElements", x.name, index.name, source.name, axis=axis, reduction="add"
)


@on("slice_scatter.default", "select_scatter.default")
def _slice_scatter(
    w: Writer, x: Made, source: Made, axis: int = 0, start: Number = None, end: Number = None, step: int = 1
) -> str:
    """What lies before, the new part, and what lies behind."""
    if step != 1:
        raise Unsupported("a slice in steps that is written to")
    size = w.size(x, axis)
    whole = (start is None or start == 0) and (
        end is None or end == size or (isinstance(end, int) and end >= 2**60)
    )
    if whole:
        return w.add("Identity", w.operand(source, x.dtype))
    at, names = w.constant([axis]), [w.operand(source, x.dtype)]
    if start is not None and start != 0:
        names.insert(0, w.add("Slice", x.name, w.constant([0]), w.sizes([start]), at))
    if end is not None and not (isinstance(end, int) and (end >= 2**60 or end == size)):
        names.append(w.add("Slice", x.name, w.sizes([end]), w.constant([2**62]), at))
    return w.add("Concat", *names, axis=axis) if len(names) > 1 else w.add("Identity", names[0])


def _select_scatter(w: Writer, x: Made, source: Made, axis: int, index: int) -> str:
    part = Made(w.add("Unsqueeze", source.name, w.constant([axis])), source.value)
    if index < 0:
        raise Unsupported("a part, counted from the end, that is written to")
    return _slice_scatter(w, x, part, axis, index, index + 1)


TABLE["select_scatter.default"] = _select_scatter


def _pads(w: Writer, x: Made, pads: Sequence[Number]) -> tuple[str, str]:
    """Return torch's padding, which begins with the last axis, as a row, and its axes."""
    pairs = [(pads[at], pads[at + 1]) for at in range(0, len(pads), 2)][::-1]
    axes = w.constant([x.rank - len(pairs) + at for at in range(len(pairs))])
    return w.sizes([*(low for low, _ in pairs), *(high for _, high in pairs)]), axes


@on("constant_pad_nd.default")
def _pad(w: Writer, x: Made, pads: Sequence[Number], value: float = 0) -> str:
    row, axes = _pads(w, x, pads)
    return w.add("Pad", x.name, row, w.constant(value, x.dtype), axes)


@on("pad.default")
def _pad_mode(
    w: Writer, x: Made, pads: Sequence[Number], mode: str = "constant", value: float | None = None
) -> str:
    if mode == "constant":
        return _pad(w, x, pads, value or 0)
    row, axes = _pads(w, x, pads)
    return w.add("Pad", x.name, row, "", axes, mode={"replicate": "edge", "circular": "wrap"}.get(mode, mode))


@on("pixel_shuffle.default")
def _shuffle(w: Writer, x: Made, block: int) -> str:
    return w.add("DepthToSpace", x.name, blocksize=block, mode="CRD")


@on("pixel_unshuffle.default")
def _unshuffle(w: Writer, x: Made, b: int) -> str:
    n, c, h, v = w.shape_of(x)
    half = [Size(w.add("Div", s.name, w.constant([b]))) if isinstance(s, Size) else s // b for s in (h, v)]
    y = w.add("Reshape", x.name, w.sizes([n, c, half[0], b, half[1], b]))
    y = w.add("Transpose", y, perm=(0, 1, 3, 5, 2, 4))
    return w.add("Reshape", y, w.sizes([n, c * b * b, *half]))


TABLE["tril.default"] = lambda w, x, k=0: w.add("Trilu", x.name, w.constant(k), upper=0)
TABLE["triu.default"] = lambda w, x, k=0: w.add("Trilu", x.name, w.constant(k), upper=1)
