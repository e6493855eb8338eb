"""A sparse layer's forward and backward pass by the compiled kernels, on the CPU.

Activations and gradients are float32, or bfloat16 in both directions; weights and their gradients are float32. In
bfloat16, weights are selected as they are and then rounded, sums are float32, and outputs are rounded.

A convolution works in the CHWN layout (`Arguments.chwn`) or, where none of its products runs sparse, in torch's
own. A fully connected layer is a 1x1 convolution on maps of one position, whose rows are turned for a sparse
product alone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchswat.engine import chwn, dense, layout, plan, saved
from torchswat.engine.arguments import (
    EXACT,
    FORWARD_SPARSE,
    FORWARD_WEIGHT,
    GRAD_INPUT_SPARSE,
    GRAD_INPUT_WEIGHT,
    GRAD_WEIGHT_ACTIVATION,
    GRAD_WEIGHT_SPARSE,
    SAMPLED,
    Arguments,
    Moment,
    kept_now,
    not_a_number,
)
from torchswat.engine.dense import Padding
from torchswat.engine.loader import kernel_for
from torchswat.engine.shape import shape_of
from torchswat.engine.state import (
    ACTIVATION,
    ACTIVATION_THRESHOLD,
    PRODUCTS,
    WEIGHT,
    WEIGHT_THRESHOLD,
    WEIGHT_TIES,
    WORDS,
    as_float,
)
from torchswat.engine.topk import SMALLEST

CHWN_SAVED, NOT_SAVED, NARROW = 8, 16, 32
"""Bits of the record beside those of the products: how the activation is saved, and whether it is bfloat16."""

Pair = tuple[int, int]


class Sizes(NamedTuple):
    """The sizes of a layer's products."""

    shape: Any  # native.ConvShape, of each group
    whole: Any  # native.ConvShape, of all channels: what the kernels of depthwise convolutions take
    groups: int
    input: tuple[int, int, int, int]
    weight: tuple[int, int, int, int]
    output: tuple[int, int, int, int]
    weights: int
    activations: int


@lru_cache(maxsize=4096)
def sizes_of(
    module: Any, x: tuple, weight: tuple, stride: Pair, padding: Padding, dilation: Pair, groups: int
) -> Sizes:
    """Return the sizes of a layer with an input and a weight of these shapes, four-dimensional or matrices."""
    n, c, h, w = (*x, 1, 1)[:4]
    k, _, r, s = (*weight, 1, 1)[:4]
    p = (h + padding[0] + padding[-2] - dilation[0] * (r - 1) - 1) // stride[0] + 1
    q = (w + padding[1] + padding[-1] - dilation[1] * (s - 1) - 1) // stride[1] + 1
    how = r, s, *stride, *padding[:2], p, q, *dilation
    shape = module.ConvShape(n, c // groups, h, w, k // groups, *how)
    whole = module.ConvShape(n, c, h, w, k, *how)
    weights = k * weight[1] * r * s
    return Sizes(
        shape, whole, groups, (n, c, h, w), (k, weight[1], r, s), (n, k, p, q), weights, n * c * h * w
    )


def is_depthwise(input_size: tuple[int, ...], weight: Tensor, a: Any) -> bool:
    """Return whether every channel has a kernel of its own, which the compiled kernels do in the CHWN layout."""
    return a.groups > 1 and a.groups == input_size[1] == len(weight) and a.dilation == (1, 1)


class Facts(NamedTuple):
    """What the backward pass needs to know of the forward pass beside tensors, as the record says it too."""

    products: int
    weight_threshold: float
    weight_ties: int
    activation_threshold: float

    @classmethod
    def of(cls, record: Tensor) -> Facts:
        """Read them from a record."""
        words = record.tolist()
        weight, activation = as_float(words[WEIGHT_THRESHOLD]), as_float(words[ACTIVATION_THRESHOLD])
        return cls(words[PRODUCTS], weight, words[WEIGHT_TIES], activation)


class Chosen(NamedTuple):
    """What is selected of one operand: what `mask` marks, or without one all of at least `threshold`."""

    threshold: float = SMALLEST
    ties: int = -1
    count: int = -1
    mask: Tensor | None = None


def tied(native: Any, tensor: Tensor, threshold: float, ties: int) -> Tensor:
    """Return the mask of what exceeds `threshold` and of the first `ties` equal to it, laid out like `tensor`.

    First is meant in the order of the shape, whatever the strides.
    """
    lanes = 1
    if not tensor.is_contiguous():
        if not layout.is_chwn(tensor):
            mask = tied(native, tensor.contiguous(), threshold, ties)
            return torch.empty_like(tensor, dtype=torch.bool).copy_(mask)
        lanes = tensor.shape[0]
    mask = torch.empty_like(tensor, dtype=torch.bool)
    length = tensor.numel() // lanes
    threads = torch.get_num_threads()
    native.magnitude_mask(tensor.data_ptr(), length, lanes, threshold, ties, mask.data_ptr(), threads)
    return mask


def masked(native: Any, tensor: Tensor, chosen: Chosen) -> Tensor:
    """Return a contiguous `tensor` with zeros where nothing is kept."""
    result = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    n, threads = tensor.numel(), torch.get_num_threads()
    if chosen.mask is None:
        native.keep_large(tensor.data_ptr(), n, chosen.threshold, result.data_ptr(), threads)
    else:
        native.keep_marked(tensor.data_ptr(), chosen.mask.data_ptr(), n, result.data_ptr(), threads)
    return result


class Pass:
    """One forward pass of a layer: its numbers, and its record."""

    __slots__ = ("a", "at", "kept", "native", "number", "record", "remembers", "sizes", "sparsity", "threads")

    def __init__(
        self,
        native: Any,
        sizes: Sizes,
        state: Tensor,
        schedule: Tensor | None,
        a: Arguments,
        moment: Moment,
        inplace: bool,
    ) -> None:
        self.native: Any = native
        self.sizes: Sizes = sizes
        self.a: Arguments = a
        self.remembers: bool = moment.remembers
        self.threads: int = torch.get_num_threads()
        own = inplace and moment.remembers
        self.record: Tensor = state if own else torch.empty(WORDS, dtype=torch.int64, device="cpu")
        self.at: int = self.record.data_ptr()
        self.number: int = native.begin_pass(state.data_ptr(), self.at, moment.advances, moment.last)
        self.sparsity: float
        self.kept: list[int]
        self.sparsity, *self.kept = kept_now(a, schedule, self.number, sizes.weights, sizes.activations)

    def select(self, tensor: Tensor, operand: int, mask: Tensor | None) -> Chosen:
        """Select from a tensor without gaps: what `mask` marks, or the k largest."""
        if mask is not None:
            return Chosen(mask=mask)
        a, number = self.a, self.number
        weight = operand == WEIGHT
        due = a.period == 1 or number < a.warmup or number % a.period == 0
        if tensor.dtype is torch.bfloat16:
            found = self.native.select_bf16(
                self.at + 8 * operand, tensor.data_ptr(), tensor.numel(), self.kept[1], self.sparsity,
                due, not self.remembers, self.threads,
            )  # fmt: skip
            if found.not_a_number:
                raise self.not_a_number("input", tensor)
            return Chosen(found.limit, -1, found.count)
        found = self.native.select_operand(
            self.at + 8 * operand, tensor.data_ptr(), tensor.numel(), self.kept[0 if weight else 1], self.sparsity,
            due, bool(a.search & EXACT), bool(a.search & SAMPLED), not self.remembers, self.threads,
        )  # fmt: skip
        if found.not_a_number:
            raise self.not_a_number("weight" if weight else "input", tensor)
        if found.ties < 0:
            return Chosen(found.limit, -1, found.count)
        return Chosen(
            found.limit, found.ties, found.count, tied(self.native, tensor, found.limit, found.ties)
        )

    def counted(self, tensor: Tensor, chosen: Chosen, what: str) -> Chosen:
        """Count what is kept where no search has, and look for NaN."""
        if chosen.count >= 0:
            return chosen
        if chosen.mask is not None:
            if tensor.isnan().any():
                raise self.not_a_number(what, tensor)
            return chosen._replace(count=int(chosen.mask.count_nonzero()))
        count = self.native.count_kept_bf16 if tensor.dtype is torch.bfloat16 else self.native.count_kept
        found = count(tensor.data_ptr(), tensor.numel(), chosen.threshold, self.threads)
        if found.not_a_number:
            raise self.not_a_number(what, tensor)
        equal = found.equal if found.value > 0 else 0  # zeros, where the smallest one is flushed to zero
        return chosen._replace(count=found.greater + equal)

    def not_a_number(self, what: str, tensor: Tensor) -> Exception:
        """Return the error for a NaN in an operand of the layer."""
        return not_a_number(f"the {what} of layer {self.a.name!r}", tensor.numel())

    def save(self, x: Tensor, compressed: bool, mask: Tensor | None) -> tuple[Tensor, Chosen, int]:
        """Select from the input; return it as it is saved, the selection, and how it is saved."""
        a = self.a
        chosen = self.select(x, ACTIVATION, mask)
        if a.recompute and chosen.mask is None:
            return x.new_empty(0, dtype=torch.uint8), self.counted(x, chosen, "input"), NOT_SAVED
        if compressed:
            buffer, count, nan = saved.compress(self.native, x, chosen.mask, chosen.threshold, a.room)
            if nan:
                raise self.not_a_number("input", x)
            return buffer, chosen._replace(count=count), CHWN_SAVED
        chosen = self.counted(x, chosen, "input")
        return saved.keep_flat(self.native, x, chosen.mask, chosen.threshold, a.room)[0], chosen, 0

    def end(self, weight: Chosen | None, activation: Chosen | None, products: int) -> Facts:
        """Finish the record."""
        w, x, sizes = weight or _NOTHING, activation or _NOTHING, self.sizes
        of_weight = w.threshold, w.ties, w.count / max(1, sizes.weights)
        of_activation = x.threshold, x.count, x.count / max(1, sizes.activations)
        self.native.end_pass(self.at, self.remembers, self.sparsity, *of_weight, *of_activation, products)
        return Facts(products, w.threshold, w.ties, x.threshold)


_NOTHING = Chosen()


def forward(
    native: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    weight_mask: Tensor | None,
    activation_mask: Tensor | None,
    schedule: Tensor | None,
    a: Arguments,
    moment: Moment,
    inplace: bool = False,
) -> tuple[Tensor, Tensor, Facts, Tensor]:
    """Return output, saved activation, facts and record; see `torchswat.engine.ops`.

    Where it is to be done `inplace`, the state of the layer becomes the record.
    """
    plain = weight_mask is None and activation_mask is None and schedule is None
    plain = plain and not a.products and not a.chwn and (a.room >= 0 or not a.save) and not a.recompute
    plain = plain and x.dtype is torch.float32
    if plain and x.is_contiguous() and weight.is_contiguous() and not is_depthwise(x.shape, weight, a):
        return _dense_forward(native, x, weight, bias, state, a, moment, inplace)
    weight = weight.contiguous()
    weight_mask = None if weight_mask is None else weight_mask.contiguous()
    sizes = sizes_of(native, x.shape, weight.shape, a.stride, a.padding, a.dilation, a.groups)
    this = Pass(native, sizes, state, schedule, a, moment, inplace)
    products = a.products
    if products < 0:
        shape = shape_of(
            x.shape, weight.shape, a.stride, a.padding, a.dilation, a.groups
        )  # bfloat16 is not traced
        products = plan.products_of(plan.choose(shape, this.sparsity))
        if x.dim() == 2:  # of a matrix the format that is saved is fixed when it is traced
            products &= ~GRAD_WEIGHT_SPARSE
    of_weight = of_activation = None
    if a.slots & (FORWARD_WEIGHT | GRAD_INPUT_WEIGHT):
        of_weight = this.select(weight, WEIGHT, weight_mask)
    if not a.slots & FORWARD_WEIGHT:
        products &= ~FORWARD_SPARSE
    if a.dilation != (1, 1):  # for which there is no kernel
        products &= ~GRAD_WEIGHT_SPARSE
    linear, depthwise = x.dim() == 2, is_depthwise(x.shape, weight, a)
    source, in_chwn = x, a.chwn
    if linear and products & (FORWARD_SPARSE | GRAD_WEIGHT_SPARSE):
        source = layout.copy_to_chwn(x.contiguous().view(*x.shape, 1, 1), native)
    elif in_chwn or depthwise:
        source = layout.as_chwn(x, native)
    kept = x.new_empty(0, dtype=torch.uint8)
    if a.save and a.slots & GRAD_WEIGHT_ACTIVATION:
        compressed = in_chwn or (linear and bool(products & GRAD_WEIGHT_SPARSE))
        operand, mask = source, activation_mask
        if not compressed:
            operand = saved.without_gaps(x)
        if mask is not None:
            mask = mask.view(*mask.shape, 1, 1) if mask.dim() < operand.dim() else mask
            mask = torch.empty_like(operand, dtype=torch.bool).copy_(mask)
        kept, of_activation, how = this.save(operand, compressed, mask)
        products |= how
    if products & FORWARD_SPARSE and of_weight is not None:
        y, count, nan = forward_sparse(native, sizes, source, weight, of_weight, bias, linear)
        if nan:
            raise this.not_a_number("weight", weight)
        of_weight = of_weight._replace(count=count)
    else:
        if of_weight is not None:
            of_weight = this.counted(weight, of_weight, "weight")
        used = weight
        if of_weight is not None and a.slots & FORWARD_WEIGHT:
            used = masked(native, weight, of_weight)
        y = forward_dense(native, sizes, x, source, used, bias, a)
    if x.dtype is torch.bfloat16:
        products |= NARROW
    return y, kept, this.end(of_weight, of_activation, products), this.record


def forward_sparse(
    native: Any,
    sizes: Sizes,
    source: Tensor,
    weight: Tensor,
    chosen: Chosen,
    bias: Tensor | None,
    linear: bool,
) -> tuple[Tensor, int, bool]:
    """Return the output by the weights that are `chosen`, their number, and whether one is NaN; `source` is CHWN."""
    y = layout.empty_chwn(sizes.output, source)
    bias = None if bias is None else bias.contiguous()
    multiply = native.sparse_forward_pairs if source.dtype is torch.bfloat16 else native.sparse_forward
    threads, count, nan = torch.get_num_threads(), 0, False
    for x, w, mask, b, to in _by_group(sizes, source, weight, chosen.mask, bias, y):
        packed = multiply(sizes.shape, x, w, mask, chosen.threshold, b, to, threads)
        count, nan = count + packed.count, nan or packed.not_a_number
    return _rows(native, y, sizes) if linear else y, count, nan


def _by_group(sizes: Sizes, *operands: Tensor | None) -> list[list[int]]:
    """Return for each group where its share of each operand begins; 0 of None.

    Weights, and activations in the CHWN layout, hold the channels of a group in one stretch of memory.
    """
    places = [0 if t is None else t.data_ptr() for t in operands]
    if sizes.groups == 1:  # of nearly every layer: microseconds
        return [places]
    steps = [0 if t is None else t.numel() * t.element_size() // sizes.groups for t in operands]
    return [
        [at + group * step for at, step in zip(places, steps, strict=True)] for group in range(sizes.groups)
    ]


def forward_dense(
    native: Any, sizes: Sizes, x: Tensor, source: Tensor, used: Tensor, bias: Tensor | None, a: Any
) -> Tensor:
    """Return the output by the weight `used`; `source` is `x` as the product wants it."""
    depthwise = is_depthwise(x.shape, used, a)
    if not depthwise:
        used, bias = used.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if x.dim() == 2:
        return torch.nn.functional.linear(x, used, bias)
    if depthwise:
        y = _depthwise(native, sizes, source, used.contiguous(), bias)
        order = layout.layout_of(x)
        return (
            y if a.chwn else layout.copy_from_chwn(y, layout.NCHW if order == layout.CHWN else order, native)
        )
    if a.chwn:
        return chwn.forward(source, used, bias, a.stride, a.padding, a.dilation, a.groups)
    return dense.convolution(x, used, bias, a.stride, a.padding, a.dilation, a.groups)


@lru_cache(maxsize=256)
def _search(native: Any, sparsity: float, period: int, warmup: int, search: int, moment: Moment) -> Any:
    exact, sampled = bool(search & EXACT), bool(search & SAMPLED)
    return native.Search(
        sparsity, period, warmup, exact, sampled, moment.advances, moment.last, moment.remembers
    )


def _dense_forward(
    native: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    a: Arguments,
    moment: Moment,
    inplace: bool,
) -> tuple[Tensor, Tensor, Facts, Tensor]:
    """Run a pass whose products are torch's, on contiguous operands: one call selects, masks and saves."""
    own = inplace and moment.remembers
    record = state if own else torch.empty(WORDS, dtype=torch.int64, device="cpu")
    used, kept, n, entries = weight, None, weight.numel(), x.numel()
    selects = a.slots & (FORWARD_WEIGHT | GRAD_INPUT_WEIGHT)
    if a.slots & FORWARD_WEIGHT:
        used = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    if a.save and a.slots & GRAD_WEIGHT_ACTIVATION:
        size = saved.flat_bytes(entries, a.room, 4)
        kept = torch.empty(size, dtype=torch.uint8, device="cpu")
    search = _search(native, a.sparsity, a.period, a.warmup, a.search, moment)
    found = native.dense_forward(
        state.data_ptr(), record.data_ptr(), search,
        weight.data_ptr() if selects else 0, n, a.kept_weights, 0 if used is weight else used.data_ptr(),
        x.data_ptr(), entries, a.kept_activations, 0 if kept is None else kept.data_ptr(), a.room,
        torch.get_num_threads(),
    )  # fmt: skip
    if found.not_a_number:
        what, tensor = ("weight", weight) if found.not_a_number == 1 else ("input", x)
        raise not_a_number(f"the {what} of layer {a.name!r}", tensor.numel())
    if kept is None:
        kept = x.new_empty(0, dtype=torch.uint8)
    else:
        saved.check_room(found.activation_count, a.room)
    if x.dim() == 2:
        y = torch.nn.functional.linear(x, used, bias)
    else:
        y = dense.convolution(x, used, bias, a.stride, a.padding, a.dilation, a.groups)
    return y, kept, Facts(0, found.weight_limit, found.weight_ties, found.activation_limit), record


def _depthwise(native: Any, sizes: Sizes, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = layout.empty_chwn(sizes.output, source)
    bias = None if bias is None else bias.contiguous()
    multiply = native.depthwise_forward
    if source.dtype is torch.bfloat16:
        multiply, weight = native.depthwise_forward_bf16, _rounded(weight)
    at = source.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr()
    multiply(sizes.whole, *at, torch.get_num_threads())
    return y


def _rounded(weight: Tensor) -> Tensor:
    """Return a weight rounded to bfloat16, as float32."""
    return weight.to(torch.bfloat16).to(weight.dtype)


def _rows(native: Any, maps: Tensor, sizes: Sizes) -> Tensor:
    """Return maps of one position, CHWN, as the rows of a matrix (N, K)."""
    n, k = maps.shape[:2]
    rows = torch.empty(n, k, dtype=maps.dtype, device=maps.device)  # no view: outputs may be changed in place
    at = maps.data_ptr(), rows.data_ptr()
    kernel_for(native, "chwn_to_nchw", maps)(*at, n, k, 1, 1, torch.get_num_threads())
    return rows


# ---- backward ----------------------------------------------------------------------------------------------


class Return(NamedTuple):
    """One backward pass of a layer: what it was given, and what its forward pass has written down."""

    native: Any
    gradient: Tensor
    """As it came."""
    maps: Tensor
    """CHWN where a product works so; else as it came."""
    weight: Tensor
    products: int
    sizes: Sizes
    input_size: tuple[int, ...]
    input_layout: int
    a: Any

    @property
    def narrow(self) -> bool:
        """Whether activations and gradients are bfloat16."""
        return self.maps.dtype is torch.bfloat16

    @property
    def linear(self) -> bool:
        """Whether the layer is fully connected."""
        return self.gradient.dim() == 2


def backward(
    native: Any,
    gradient: Tensor,
    x: Tensor | None,
    weight: Tensor,
    kept: Tensor,
    facts: Facts,
    weight_mask: Tensor | None,
    recompute: tuple[Tensor, Tensor, Tensor] | None,
    input_size: tuple[int, ...],
    input_layout: int,
    a: Any,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of input, weight and bias that are `wanted`."""
    products = facts.products
    rows = not products and weight_mask is None and gradient.dim() == 2
    if rows and weight.is_contiguous():
        return _dense_backward(native, gradient, x, weight, kept, facts, input_size, a, wanted)
    weight = weight.contiguous()
    weight_mask = None if weight_mask is None else weight_mask.contiguous()
    sizes = sizes_of(native, input_size, weight.shape, a.stride, a.padding, a.dilation, a.groups)
    maps, depthwise = gradient, is_depthwise(input_size, weight, a)
    if a.chwn or depthwise:
        maps = layout.as_chwn(gradient, native)
    elif gradient.dim() == 2 and products & (GRAD_INPUT_SPARSE | GRAD_WEIGHT_SPARSE):
        maps = layout.copy_to_chwn(gradient.contiguous().view(*gradient.shape, 1, 1), native)
    this = Return(native, gradient, maps, weight, products, sizes, input_size, input_layout, a)
    chosen = None
    if wanted[0] and a.slots & GRAD_INPUT_WEIGHT:
        ties, threshold = facts.weight_ties, facts.weight_threshold
        mask = tied(native, weight, threshold, ties) if ties >= 0 else weight_mask
        chosen = Chosen(threshold, mask=mask)
    if not (a.chwn or depthwise or this.linear):
        return _in_torch(this, x, kept, chosen, wanted)
    grad_input = grad_weight = grad_bias = None
    if wanted[1]:  # first: what it needs beside the gradient is freed before grad_input is allocated
        grad_weight = grad_weight_of(this, x, kept, facts.activation_threshold, recompute)
    if wanted[2]:
        grad_bias = gradient.sum(0, dtype=weight.dtype) if this.linear else _sums(native, maps)
    if wanted[0]:
        grad_input = grad_input_of(this, chosen)
    return grad_input, grad_weight, grad_bias


def _dense_backward(
    native: Any,
    gradient: Tensor,
    x: Tensor | None,
    weight: Tensor,
    kept: Tensor,
    facts: Facts,
    input_size: tuple[int, ...],
    a: Any,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run the backward pass of a fully connected layer by torch's products: one call makes their operands again."""
    used, restores = weight, wanted[1] and bool(a.slots & GRAD_WEIGHT_ACTIVATION)
    masks = wanted[0] and bool(a.slots & GRAD_INPUT_WEIGHT)
    if masks:
        used = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
    if restores:
        x = torch.empty(input_size, dtype=torch.float32, device="cpu")
    if masks or restores:
        native.dense_backward(
            weight.data_ptr(), weight.numel(), facts.weight_threshold, facts.weight_ties,
            used.data_ptr() if masks else 0, kept.data_ptr(), input_size[0] * input_size[1],
            x.data_ptr() if restores and x is not None else 0, torch.get_num_threads(),
        )  # fmt: skip
    return (
        torch.mm(gradient, used) if wanted[0] else None,
        torch.mm(gradient.t(), x) if wanted[1] and x is not None else None,
        gradient.sum(0) if wanted[2] else None,
    )


def _in_torch(
    this: Return, x: Tensor | None, kept: Tensor, chosen: Chosen | None, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return all gradients by one call of torch: that of the input reads the weight alone, and the other way round."""
    a, weight = this.a, this.weight
    like = layout.empty_in(this.input_layout, this.input_size, this.gradient)
    if wanted[1] and a.slots & GRAD_WEIGHT_ACTIVATION:
        x = saved.restore_flat(this.native, kept, like)
    used = weight if chosen is None else masked(this.native, weight, chosen)
    used = used.to(this.gradient.dtype)
    geometry = a.stride, a.padding, a.dilation, a.groups
    grad_input, grad_weight, grad_bias = dense.convolution_backward(
        this.gradient, like if x is None else x, used, *geometry, wanted
    )
    if wanted[0] and layout.layout_of(grad_input) != this.input_layout:
        grad_input = layout.empty_in(this.input_layout, this.input_size, this.gradient).copy_(grad_input)
    if wanted[1]:
        grad_weight = grad_weight.to(weight.dtype).contiguous()
    return grad_input, grad_weight, grad_bias.to(weight.dtype) if wanted[2] else None


def _sums(native: Any, maps: Tensor) -> Tensor:
    n, k, p, q = maps.shape
    sums = torch.empty(k, dtype=torch.float32, device="cpu")
    add_up = native.channel_sums_bf16 if maps.dtype is torch.bfloat16 else native.channel_sums
    add_up(maps.data_ptr(), k, n * p * q, sums.data_ptr(), torch.get_num_threads())
    return sums


def grad_input_of(this: Return, chosen: Chosen | None) -> Tensor:
    """Return the gradient of the input by the weights that are `chosen`."""
    native, weight, a = this.native, this.weight, this.a
    if chosen is not None and this.products & GRAD_INPUT_SPARSE:
        result = layout.empty_chwn(this.sizes.input, this.maps)
        multiply = native.sparse_grad_input_pairs if this.narrow else native.sparse_grad_input
        threads = torch.get_num_threads()
        for maps, w, mask, to in _by_group(this.sizes, this.maps, weight, chosen.mask, result):
            multiply(this.sizes.shape, maps, w, mask, chosen.threshold, to, threads)
        if this.linear:
            return _rows(native, result, this.sizes)
        return layout.copy_from_chwn(result, this.input_layout, native)
    used = weight if chosen is None else masked(native, weight, chosen)
    if this.linear:
        return torch.mm(this.gradient, used.to(this.gradient.dtype))
    if is_depthwise(this.input_size, weight, a):
        result = layout.empty_chwn(this.sizes.input, this.maps)
        multiply, used = native.depthwise_grad_input, used.contiguous()
        if this.narrow:
            multiply, used = native.depthwise_grad_input_bf16, _rounded(used)
        at = this.maps.data_ptr(), used.data_ptr(), result.data_ptr(), torch.get_num_threads()
        multiply(this.sizes.whole, *at)
    else:
        used = used.to(this.maps.dtype)
        result = chwn.grad_input(this.maps, used, this.input_size, a.stride, a.padding, a.dilation, a.groups)
    return layout.copy_from_chwn(result, this.input_layout, native)


def grad_weight_of(
    this: Return,
    x: Tensor | None,
    kept: Tensor,
    threshold: float,
    recompute: tuple[Tensor, Tensor, Tensor] | None,
) -> Tensor:
    """Return the gradient of the weight by the activation as it was saved."""
    native, weight, a, products = this.native, this.weight, this.a, this.products
    selected = bool(a.slots & GRAD_WEIGHT_ACTIVATION)
    if selected and products & NOT_SAVED:
        assert recompute is not None
        before, *factors = recompute
        kept = saved.compress(native, layout.as_chwn(before, native), None, threshold, -1, tuple(factors))[0]  # type: ignore[arg-type]
        products |= CHWN_SAVED
    if selected and products & GRAD_WEIGHT_SPARSE:
        result = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
        multiply = native.grad_weight_pairs if this.narrow else native.grad_weight
        threads = torch.get_num_threads()
        for group, (maps, to) in enumerate(_by_group(this.sizes, this.maps, result)):
            channel = group * weight.shape[1]
            at = saved.chwn_addresses(kept, this.sizes.input, this.narrow, channel)
            multiply(this.sizes.shape, *at, maps, to, threads)
        return result
    if selected and products & CHWN_SAVED:
        x = saved.expand(native, kept, this.sizes.input, this.maps)
    elif selected:
        like = layout.empty_in(this.input_layout, this.input_size, this.gradient)
        x = saved.restore_flat(native, kept, like)
    assert x is not None
    if this.linear:
        return torch.mm(this.gradient.t(), x).to(weight.dtype)
    if is_depthwise(this.input_size, weight, a):
        x, result = layout.as_chwn(x, native), torch.empty(weight.shape, dtype=torch.float32, device="cpu")
        at = x.data_ptr(), this.maps.data_ptr(), result.data_ptr(), torch.get_num_threads()
        multiply = native.depthwise_grad_weight_bf16 if this.narrow else native.depthwise_grad_weight
        multiply(this.sizes.whole, *at)
        return result
    like = weight.new_empty(weight.shape, dtype=x.dtype)
    x = layout.as_chwn(x, native)
    return chwn.grad_weight(this.maps, x, like, a.stride, a.padding, a.dilation, a.groups).to(weight.dtype)
