"""Every operation of the engine as torch sees it: schemas, checks of arguments, fake kernels, gradients.

``torchswat::sparse_forward`` is a sparse layer's forward pass: what the layer knows comes in as tensors and numbers
and goes out as tensors, so a graph of it can be compiled and exported. Its bodies are `compiled_layer` (float32 on
the CPU) and `reference_layer` (everything else). In eager mode `torchswat.engine.function` calls the same bodies.

The output of `sparse_forward` is ``(y, saved, record)``: the activation as it is saved for backward
(`torchswat.engine.saved`), and the layer's next state with what describes the pass (`torchswat.engine.state`).
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchswat.engine import compiled_layer, dense, layout, reference_layer, saved
from torchswat.engine.arguments import GRAD_WEIGHT_ACTIVATION, GRAD_WEIGHT_SPARSE, Arguments, moment_of
from torchswat.engine.loader import native, native_for
from torchswat.engine.state import PRODUCTS, WORDS
from torchswat.errors import InvalidValue

library: torch.library.Library = torch.library.Library("torchswat", "FRAGMENT")

library.define(
    "sparse_forward(Tensor x, Tensor weight, Tensor? bias, Tensor state, Tensor? weight_mask, "
    "Tensor? activation_mask, Tensor? schedule, float sparsity, SymInt kept_weights, SymInt kept_activations, "
    "SymInt room, int[2] stride, int[] padding, int[2] dilation, int groups, int slots, int search, int period, "
    "int warmup, int products, bool chwn, int training, bool save, bool recompute, str name) "
    "-> (Tensor, Tensor, Tensor)"
)
library.define(
    "sparse_backward(Tensor gradient, Tensor? x, Tensor weight, Tensor saved, Tensor record, Tensor? weight_mask, "
    "SymInt[] input_size, int input_layout, int[2] stride, int[] padding, int[2] dilation, int groups, int slots, "
    "bool chwn, bool[3] wanted) -> (Tensor, Tensor, Tensor)"
)


class Geometry(NamedTuple):
    """What the backward pass needs to know of `Arguments`."""

    stride: tuple[int, int]
    padding: tuple[int, ...]
    dilation: tuple[int, int]
    groups: int
    slots: int
    chwn: bool


# ---- forward -----------------------------------------------------------------------------------------------


def run_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    weight_mask: Tensor | None,
    activation_mask: Tensor | None,
    schedule: Tensor | None,
    a: Arguments,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the forward pass on plain tensors, by the compiled kernels where they apply."""
    operands = x, weight, bias, state, weight_mask, activation_mask, schedule, a
    native = native_for(x, weight, bias) if x.numel() and weight.numel() else None
    if native is None:
        return reference_layer.forward(*operands, moment_of(a.training))
    y, kept, _, record = compiled_layer.forward(native, *operands, moment_of(a.training))
    return y, kept, record


def _forward(x, weight, bias, state, weight_mask, activation_mask, schedule, *arguments):
    sparsity, kept_weights, kept_activations, room, stride, padding, dilation, *rest = arguments
    pairs = tuple(stride), tuple(padding), tuple(dilation)
    a = Arguments(sparsity, kept_weights, kept_activations, room, *pairs, *rest)  # type: ignore[arg-type]
    _check_given(x=x, weight=weight, state=state)
    _check_operands(x, weight, bias, a)
    state = _words(state, "state")
    _check_mask(weight_mask, weight, "weight_mask")
    _check_mask(activation_mask, x, "activation_mask")
    for name, kept, entries in (("weights", a.kept_weights, weight), ("activations", a.kept_activations, x)):
        if entries.numel() and not 1 <= kept <= entries.numel():
            raise InvalidValue(
                f"kept_{name} is {kept}; allowed is 1 to {entries.numel()}, the number of entries."
            )
    if not 0 <= a.sparsity < 1 or a.period < 1 or a.warmup < 0 or a.products not in range(-1, 8):
        raise InvalidValue(
            f"sparsity {a.sparsity}, period {a.period}, warmup {a.warmup}, products {a.products}; allowed are "
            "[0, 1), at least 1, at least 0, and -1 to 7."
        )
    if a.room >= 0 and schedule is None and a.search & 1 and a.room < min(a.kept_activations, x.numel()):
        raise InvalidValue(f"there is room for {a.room} values of {a.kept_activations} that are kept.")
    if a.products and x.dim() == 4 and not a.chwn:
        raise InvalidValue(f"products is {a.products} without the CHWN layout; allowed is 0 there.")
    if schedule is not None and (
        schedule.dim() != 1 or not schedule.numel() or not schedule.is_floating_point()
    ):
        raise InvalidValue(
            f"schedule has shape {tuple(schedule.shape)}; allowed is a float for each iteration."
        )
    return run_forward(x, weight, bias, state, weight_mask, activation_mask, schedule, a)


def _check(holds: bool, name: str, value: Tensor, allowed: str) -> None:
    if not holds:
        raise InvalidValue(
            f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; allowed is {allowed}."
        )


def _words(words: Tensor, name: str) -> Tensor:
    """Return state or record as its sixteen words lie in memory of the CPU, from a word on."""
    fits = words.shape == (WORDS,) and words.dtype == torch.int64 and not words.is_meta
    _check(fits, name, words, f"int64 of shape ({WORDS},)")
    return saved.aligned(words.to("cpu").contiguous())


def _check_given(**tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():  # the dispatcher lets an undefined tensor through as None
        if tensor is None:
            raise InvalidValue(f"{name} is None; allowed is a tensor.")


def _check_mask(mask: Tensor | None, of: Tensor, name: str) -> None:
    if mask is not None:
        fits = mask.shape == of.shape and mask.dtype == torch.bool and mask.device == of.device
        _check(fits, name, mask, f"bool of shape {tuple(of.shape)} on {of.device}")


def _check_geometry(x: Tensor, weight: Tensor, a: Any) -> None:
    """Raise `InvalidValue` unless sizes of the output can be computed; all that a fake kernel needs."""
    _check(
        x.dim() in (2, 4) and weight.dim() == x.dim(), "x", x, "(N, C, H, W) or (N, C), with a weight as deep"
    )
    if len(a.padding) not in (2, 4):
        raise InvalidValue(
            f"padding is {a.padding}; allowed is (height, width) or (top, left, bottom, right)."
        )
    if min(a.stride) < 1 or min(a.padding) < 0 or min(a.dilation) < 1 or a.groups < 1:
        raise InvalidValue(
            f"stride {a.stride}, padding {a.padding}, dilation {a.dilation}, groups {a.groups}; allowed are at least "
            "1, 0, 1 and 1."
        )


def _check_operands(x: Tensor, weight: Tensor, bias: Tensor | None, a: Any) -> None:
    """Raise `InvalidValue` unless these are the operands of a convolution or of a fully connected layer."""
    same = (
        {t.dtype for t in (x, weight, bias) if t is not None},
        {t.device for t in (x, weight) if t is not None},
    )
    _check(
        len(same[0]) == 1 and x.is_floating_point(),
        "x",
        x,
        f"a float dtype, that of the weight ({weight.dtype})",
    )
    _check(len(same[1]) == 1, "x", x, f"a tensor on {weight.device}")
    _check_geometry(x, weight, a)
    _check(x.shape[1] == weight.shape[1] * a.groups, "x", x, f"{weight.shape[1] * a.groups} channels")
    _check(weight.shape[0] % a.groups == 0, "weight", weight, f"a multiple of {a.groups} filters")
    if bias is not None:
        _check(bias.shape == weight.shape[:1], "bias", bias, f"({weight.shape[0]},)")
    if x.dim() == 2:
        plain = a.stride == (1, 1) and a.padding == (0, 0) and a.dilation == (1, 1) and a.groups == 1
        if not plain:
            raise InvalidValue("a matrix has no stride, padding, dilation or groups.")
        return
    for i in (0, 1):
        reach = a.dilation[i] * (weight.shape[2 + i] - 1) + 1
        _check(
            weight.shape[2 + i] > 0 and x.shape[2 + i] + a.padding[i] + a.padding[i - 2] >= reach,
            "x",
            x,
            "maps of the kernel's size",
        )


def _output_size(x: Tensor, weight: Tensor, a: Any) -> list[int]:
    sides = [
        (x.shape[2 + i] + a.padding[i] + a.padding[i - 2] - a.dilation[i] * (weight.shape[2 + i] - 1) - 1)
        // a.stride[i]
        + 1
        for i in (0, 1)
    ]
    return [x.shape[0], weight.shape[0], *sides]


def not_traceable(layer: str, by: str) -> InvalidValue:
    """Return the error for a sparse layer in what can hold plain layers only."""
    return InvalidValue(
        f"layer {layer!r} is sparse and was reached by {by}. Give it the plain network: "
        "torchswat.desparsify_(torchswat.prune_(model)). torch.export and torch.compile take the sparse "
        "one, and "
        "torchswat.save writes it into a small file."
    )


def _fake_forward(x, weight, bias, state, weight_mask, activation_mask, schedule, *arguments):
    sparsity, kept_weights, kept_activations, room, stride, padding, dilation, *rest = arguments
    pairs = tuple(stride), tuple(padding), tuple(dilation)
    a = Arguments(sparsity, kept_weights, kept_activations, room, *pairs, *rest)
    if "torch.onnx" in sys.modules and torch.onnx.is_in_onnx_export():
        raise not_traceable(a.name, "torch.onnx.export")
    _check_given(x=x, weight=weight, state=state)
    _check_geometry(x, weight, a)
    if x.dim() == 2:
        y = x.new_empty(x.shape[0], weight.shape[0])
    elif a.chwn:
        y = layout.empty_chwn(_output_size(x, weight, a), x)
    else:
        y = dense.convolution(x, weight, bias, a.stride, a.padding, a.dilation, a.groups)
    size = 0
    if a.save and a.slots & GRAD_WEIGHT_ACTIVATION and not a.recompute:
        values = a.kept_activations if isinstance(a.room, int) and a.room < 0 else a.room
        by_kernels = x.dtype is torch.float32 and x.device.type == "cpu" and native() is not None
        matrix = x.dim() == 2 and a.products > 0 and a.products & GRAD_WEIGHT_SPARSE and by_kernels
        if a.chwn or matrix:
            size = saved.chwn_bytes((*x.shape, 1, 1)[:4], values)
        else:
            size = saved.flat_bytes(x.numel(), values, x.element_size())
    return y, x.new_empty(size, dtype=torch.uint8), torch.empty_like(state)


# ---- backward ----------------------------------------------------------------------------------------------


def run_backward(
    gradient: Tensor,
    x: Tensor | None,
    weight: Tensor,
    kept: Tensor,
    record: Tensor,
    weight_mask: Tensor | None,
    recompute: tuple[Tensor, Tensor, Tensor] | None,
    input_size: tuple[int, ...],
    input_layout: int,
    a: Geometry,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Run the backward pass on plain tensors, by the engine that its forward pass ran on."""
    native = native_for(gradient, weight) if gradient.numel() and weight.numel() else None
    kept = saved.aligned(kept)
    operands = gradient, x, weight, kept, record, weight_mask
    where = input_size, input_layout, a, wanted
    if native is None:
        if int(record[PRODUCTS]):
            raise InvalidValue(
                "this backward pass needs the compiled engine, on which its forward pass ran; run both on one."
            )
        return reference_layer.backward(*operands, *where)
    facts = compiled_layer.Facts.of(record)
    return compiled_layer.backward(native, gradient, x, weight, kept, facts, weight_mask, recompute, *where)


def _backward(
    gradient, x, weight, kept, record, weight_mask, input_size, input_layout, stride, padding, dilation, groups,
    slots, chwn, wanted,
):  # fmt: skip
    a = Geometry(tuple(stride), tuple(padding), tuple(dilation), groups, slots, chwn)  # type: ignore[arg-type]
    _check_given(gradient=gradient, weight=weight, saved=kept, record=record)
    record, kept = _words(record, "record"), saved.aligned(kept)
    _check_backward(gradient, x, weight, kept, record, weight_mask, input_size, input_layout, a, wanted)
    grads = run_backward(
        gradient,
        x,
        weight,
        kept,
        record,
        weight_mask,
        None,
        tuple(input_size),
        input_layout,
        a,
        tuple(wanted),
    )
    return tuple(gradient.new_empty(0) if grad is None else grad for grad in grads)


def _check_backward(
    gradient, x, weight, kept, record, weight_mask, input_size, input_layout, a: Geometry, wanted
) -> None:  # fmt: skip
    """Raise `InvalidValue` unless these fit each other, and the saved bytes hold what their bits say."""
    size = tuple(input_size)
    if (
        len(size) not in (2, 4)
        or min(size) < 0
        or input_layout not in (layout.NCHW, layout.CHANNELS_LAST, layout.CHWN)
    ):
        raise InvalidValue(
            f"input_size is {size} in layout {input_layout}; allowed are two or four sizes, and 0 to 2."
        )
    like = weight.new_empty(size) if 0 in size else weight.new_empty(1).expand(size)
    _check_operands(like, weight, None, a)
    fits = gradient.dtype == weight.dtype and gradient.device == weight.device
    expected = (size[0], weight.shape[0]) if len(size) == 2 else tuple(_output_size(like, weight, a))
    _check(
        fits and tuple(gradient.shape) == expected,
        "gradient",
        gradient,
        f"{weight.dtype} of shape {expected}",
    )
    _check_mask(weight_mask, weight, "weight_mask")
    if x is not None:
        same = x.dtype == weight.dtype and x.device == weight.device
        _check(tuple(x.shape) == size and same, "x", x, f"{weight.dtype} of shape {size} on {weight.device}")
    here = (
        kept.device == weight.device
        and kept.dim() == 1
        and kept.dtype == torch.uint8
        and kept.is_contiguous()
    )
    _check(here, "saved", kept, f"bytes in one row on {weight.device}")
    _check_record(int(record[PRODUCTS]), kept, x, size, weight, a, wanted[1], native_for(gradient, weight))


def _check_record(
    products: int, kept: Tensor, x: Tensor | None, size: tuple[int, ...], weight: Tensor, a: Geometry,
    wants_weight: bool, native: Any,
) -> None:  # fmt: skip
    """Raise `InvalidValue` unless what the record says of the pass fits its arguments and its saved bytes."""
    known = compiled_layer.CHWN_SAVED | compiled_layer.NOT_SAVED | 7
    compressed = bool(products & compiled_layer.CHWN_SAVED)
    if products & ~known or (products & 7 and len(size) == 4 and not a.chwn):
        raise InvalidValue(f"the record says products {products}, which no such pass leaves; it is damaged.")
    if not wants_weight:
        return
    if not a.slots & GRAD_WEIGHT_ACTIVATION:
        if x is None:
            raise InvalidValue(
                "x is None, but the gradient of the weight needs it: no activation is selected."
            )
        return
    if products & compiled_layer.NOT_SAVED:
        raise InvalidValue("the activation was not saved but is recomputed; this operation cannot do that.")
    if products & GRAD_WEIGHT_SPARSE and not compressed:
        raise InvalidValue(
            "the record says a sparse product on an activation that is not compressed; it is damaged."
        )
    if 0 not in size and not saved.is_whole(kept, size, compressed, weight.element_size(), native):
        raise InvalidValue(
            "the saved activation is damaged, or of another layer; nothing was computed from it."
        )


def _fake_backward(
    gradient, x, weight, kept, record, weight_mask, input_size, input_layout, stride, padding, dilation, groups,
    slots, chwn, wanted,
):  # fmt: skip
    _check_given(gradient=gradient, weight=weight)
    none = gradient.new_empty(0)
    return (
        layout.empty_in(input_layout, input_size, gradient) if wanted[0] else none,
        torch.empty_like(weight, memory_format=torch.contiguous_format)
        if wanted[1]
        else gradient.new_empty(0),
        gradient.new_empty(weight.shape[0]) if wanted[2] else gradient.new_empty(0),
    )


library.impl("sparse_forward", _forward, "CompositeExplicitAutograd")
library.impl("sparse_backward", _backward, "CompositeExplicitAutograd")
torch.library.register_fake("torchswat::sparse_forward", _fake_forward, lib=library)
torch.library.register_fake("torchswat::sparse_backward", _fake_backward, lib=library)


# ---- gradients in a graph that is traced --------------------------------------------------------------------


def _save_for_backward(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias, _, weight_mask, _, _, *arguments = inputs
    ctx.geometry = (*arguments[4:9], arguments[13])
    ctx.input_size, ctx.input_layout = x.shape, layout.layout_of(x) if x.dim() == 4 else layout.NCHW
    dense = None if arguments[8] & GRAD_WEIGHT_ACTIVATION else x
    ctx.save_for_backward(dense, weight, output[1], output[2], weight_mask)
    ctx.has_bias = bias is not None


def _gradients(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    wanted = [ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.has_bias and ctx.needs_input_grad[2]]
    x, weight, kept, record, weight_mask = ctx.saved_tensors
    grads = torch.ops.torchswat.sparse_backward(
        gradient,
        x,
        weight,
        kept,
        record,
        weight_mask,
        ctx.input_size,
        ctx.input_layout,
        *ctx.geometry,
        wanted,
    )
    given = [grad if want else None for grad, want in zip(grads, wanted, strict=True)]
    return *given, *[None] * 22


torch.library.register_autograd(
    "torchswat::sparse_forward", _gradients, setup_context=_save_for_backward, lib=library
)


# ---- layout -------------------------------------------------------------------------------------------------

library.define("to_chwn(Tensor x) -> Tensor")
library.define("to_layout(Tensor x, int layout) -> Tensor")


def _to_chwn(x: Tensor) -> Tensor:
    _check_given(x=x)
    _check(x.dim() == 4, "x", x, "(N, C, H, W)")
    return layout.copy_to_chwn(x)


def _to_layout(x: Tensor, to: int) -> Tensor:
    _check_given(x=x)
    _check(x.dim() == 4, "x", x, "(N, C, H, W)")
    if to not in (layout.NCHW, layout.CHANNELS_LAST, layout.CHWN):
        raise InvalidValue(f"layout is {to}; allowed are 0 (NCHW), 1 (channels last) and 2 (CHWN).")
    result = layout.empty_in(to, x.shape, x)
    return layout.copy_from_chwn(x, to) if to != layout.CHWN and layout.is_chwn(x) else result.copy_(x)


library.impl("to_chwn", _to_chwn, "CompositeExplicitAutograd")
library.impl("to_layout", _to_layout, "CompositeExplicitAutograd")
torch.library.register_fake("torchswat::to_chwn", lambda x: layout.empty_chwn(x.shape, x), lib=library)
torch.library.register_fake(
    "torchswat::to_layout", lambda x, to: layout.empty_in(to, x.shape, x), lib=library
)


def _remember_layout(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.layout = layout.layout_of(inputs[0])


def _restore_layout(ctx: Any, gradient: Tensor) -> Tensor:
    if ctx.layout == layout.CHWN or not layout.is_chwn(gradient):
        return gradient
    return torch.ops.torchswat.to_layout(gradient, ctx.layout)


torch.library.register_autograd(
    "torchswat::to_chwn", _restore_layout, setup_context=_remember_layout, lib=library
)


def is_chwn(x: Tensor) -> bool:
    """Return whether `x`, (N, C, H, W), lies in memory as [C][H][W][N]."""
    return layout.is_chwn(x)


def empty_chwn(n: int, c: int, h: int, w: int, like: Tensor) -> Tensor:
    """Return an uninitialised CHWN tensor (N, C, H, W)."""
    return layout.empty_chwn((n, c, h, w), like)


def as_chwn(x: Tensor) -> Tensor:
    """Return `x`, (N, C, H, W), in the CHWN layout: itself where it is that already. Differentiable."""
    return x if layout.is_chwn(x) else torch.ops.torchswat.to_chwn(x)


def to_chwn(x: Tensor) -> Tensor:
    """Return a CHWN copy of `x`, (N, C, H, W). Differentiable: the gradient has the layout of `x`."""
    return torch.ops.torchswat.to_chwn(x)
