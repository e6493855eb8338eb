"""Single products on packed weights and compressed activations, for measuring and tuning; not differentiable.

Activations and gradients are in the CHWN layout here: a tensor (N, C, H, W) whose memory is [C][H][W][N].
Elementwise operations of torch keep such strides, a 1x1 convolution is a plain matrix product on them, and
every tap of a convolution is an aligned vector of samples.

Each body takes the compiled kernels where `torchswat.engine.loader` says so and plain torch otherwise.
Packed weights are opaque: only the engine that packed them can read them, for the shape that they were
packed for. Compressed activations have one form, described in ``native/activations.h``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchswat.engine.buffer import buffer
from torchswat.engine.loader import native_for
from torchswat.engine.products import Conv2dProducts
from torchswat.errors import InvalidValue

FORWARD, GRAD_INPUT = 0, 1
"""The two products with sparse weights; each walks through them in an order of its own."""

UNIT = 16  # positions in a word of the bits of compressed activations


def is_chwn(x: Tensor) -> bool:
    """Return whether `x`, (N, C, H, W), lies in memory as [C][H][W][N]."""
    return x.dim() == 4 and x.permute(1, 2, 3, 0).is_contiguous()


def empty_chwn(n: int, c: int, h: int, w: int, like: Tensor) -> Tensor:
    """Return an uninitialised CHWN tensor (N, C, H, W).

    It is no view: one that a custom function returned could not be changed in place.
    """
    return like.new_empty_strided((n, c, h, w), (1, h * w * n, w * n, n))


def as_chwn(x: Tensor) -> Tensor:
    """Return `x`, (N, C, H, W), in the CHWN layout: itself where it is that already."""
    return x if is_chwn(x) else to_chwn(x)


def output_size(
    input_size: list[int], weight_size: list[int], stride: list[int], padding: list[int]
) -> list[int]:
    """Return (N, K, P, Q) of a convolution's output."""
    height, width = (
        (input_size[2 + i] + 2 * padding[i] - weight_size[2 + i]) // stride[i] + 1 for i in (0, 1)
    )
    return [input_size[0], weight_size[0], height, width]


def _shape(native, input_size: list[int], weight_size: list[int], stride: list[int], padding: list[int]):
    n, c, h, w = input_size
    k, _, r, s = weight_size
    _, _, p, q = output_size(input_size, weight_size, stride, padding)
    return native.ConvShape(n, c, h, w, k, r, s, *stride, *padding, p, q)


# ---- layout ------------------------------------------------------------------------------------------------


def to_chwn(x: Tensor) -> Tensor:
    """Return a CHWN copy of `x`, (N, C, H, W).

    The gradient is converted to the layout of `x`.
    """
    result = empty_chwn(*x.shape, like=x)
    native = native_for(x)
    h, w = x.shape[2:]
    by_sample, by_channel, by_row, by_position = x.stride()
    places = result.data_ptr(), *x.shape, torch.get_num_threads()
    if native and (by_channel, by_row, by_position) == (h * w, w, 1):  # NCHW, or channels out of it
        native.nchw_to_chwn(x.data_ptr(), by_sample, *places)
    elif native and (by_sample, by_channel, by_row) == (h * w * by_position, 1, w * by_position):
        native.channels_last_to_chwn(x.data_ptr(), by_position, *places)
    else:
        result.copy_(x)
    return result


def to_nchw(x: Tensor) -> Tensor:
    """Return a contiguous copy of `x`, (N, C, H, W), which is CHWN."""
    result = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    native = native_for(x)
    if native and is_chwn(x):
        native.chwn_to_nchw(x.data_ptr(), result.data_ptr(), *x.shape, torch.get_num_threads())
    else:
        result.copy_(x)
    return result


def to_channels_last(x: Tensor) -> Tensor:
    """Return a channels-last copy of `x`, (N, C, H, W), which is CHWN."""
    result = empty_channels_last(x)
    native = native_for(x)
    if native and is_chwn(x):
        native.chwn_to_channels_last(x.data_ptr(), result.data_ptr(), *x.shape, torch.get_num_threads())
    else:
        result.copy_(x)
    return result


def empty_channels_last(x: Tensor) -> Tensor:
    """Return an uninitialised channels-last tensor shaped like `x`."""
    # One channel is the same memory in both formats, but with the strides of channels_last some strided
    # convolutions of torch 2.13 give wrong numbers (input 2x1x2x1, kernel 1x7, stride 1x2, two threads).
    memory_format = torch.channels_last if x.shape[1] > 1 else torch.contiguous_format
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=memory_format)


# ---- sparse weights ----------------------------------------------------------------------------------------


def pack_weight(
    weight: Tensor,
    mask: Tensor | None,
    limit: float,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    product: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gather the weights (K, C, R, S) that are kept, in the order in which `product` walks through them.

    Kept are those marked by `mask` or, without one, all whose magnitude is at least `limit`.
    """
    return packed_weights(weight, mask, limit, input_size, stride, padding, (product,))[0]


def packed_weights(
    weight: Tensor,
    mask: Tensor | None,
    limit: float,
    input_size: list[int],
    stride: list[int],
    padding: list[int],
    products: tuple[int, ...],
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Do what `pack_weight` does, for several products at once and without the time of the dispatcher."""
    native = native_for(weight)
    weight = weight.contiguous()
    if native is None:
        kept = weight.abs() >= limit if mask is None else mask
        positions = kept.flatten().nonzero().squeeze(1)
        none = positions.new_empty(0, dtype=torch.int16)
        return [(positions.to(torch.int32), weight.flatten()[positions], none) for _ in products]
    shape = _shape(native, input_size, list(weight.shape), stride, padding)
    mask = None if mask is None else mask.contiguous()
    packed = [_empty_packed(native, shape, product) for product in products]
    to = [native.PackedWeights()] * 2
    for product, lists in zip(products, packed, strict=True):
        to[product] = native.PackedWeights(*(t.data_ptr() for t in lists))
    native.pack_weights(
        shape,
        weight.data_ptr(),
        0 if mask is None else mask.data_ptr(),
        limit,
        *to,
        0,
        torch.get_num_threads(),
    )
    return packed


def _empty_packed(native, shape, product: int) -> tuple[Tensor, Tensor, Tensor]:
    buckets, capacity = _native_lengths(native, shape, product)
    starts = buffer(buckets, dtype=torch.int32)
    return starts, buffer(capacity), buffer(capacity, dtype=torch.int16)


def _lengths(starts: Tensor, offsets: Tensor) -> tuple[int, int]:
    return starts.numel(), offsets.numel()


def _native_lengths(native, shape, product: int) -> tuple[int, int]:
    """Return the lengths of the starts and of the lists of a weight packed by the compiled kernels."""
    return native.weight_starts(shape, product), native.weight_capacity(shape, product)


def _unpack(positions: Tensor, values: Tensor, offsets: Tensor, size: list[int]) -> Tensor:
    """Return the dense weight of a weight packed without the compiled kernels."""
    _check_packed(positions.numel() == values.numel() and offsets.numel() == 0)
    dense = values.new_zeros(size)
    dense.view(-1)[positions.long()] = values
    return dense


def _check_packed(fits: bool) -> None:
    if not fits:
        raise InvalidValue(
            "these operands were packed by another engine, or for another shape or product; pack them again "
            "for this one (a backward pass must run on the engine that its forward pass ran on)."
        )


def conv2d_packed(
    x: Tensor,
    starts: Tensor,
    values: Tensor,
    offsets: Tensor,
    bias: Tensor | None,
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Return the convolution, CHWN, of a CHWN `x` with packed weights."""
    native = native_for(x, values, bias)
    result = empty_chwn(*output_size(list(x.shape), weight_size, stride, padding), like=x)
    if native is None:
        weight = _unpack(starts, values, offsets, weight_size)
        return result.copy_(F.conv2d(x, weight, bias, stride, padding))
    x, bias = as_chwn(x), None if bias is None else bias.contiguous()
    shape = _shape(native, list(x.shape), weight_size, stride, padding)
    _check_packed(_lengths(starts, offsets) == _native_lengths(native, shape, FORWARD))
    threads = torch.get_num_threads()
    workspace = buffer(native.conv_workspace(shape, threads))
    native.conv_forward(
        shape,
        x.data_ptr(),
        *(t.data_ptr() for t in (starts, values, offsets)),
        0 if bias is None else bias.data_ptr(),
        result.data_ptr(),
        workspace.data_ptr(),
        threads,
    )
    return result


def conv2d_packed_grad_input(
    gradient: Tensor,
    starts: Tensor,
    values: Tensor,
    offsets: Tensor,
    input_size: list[int],
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Return the gradient of the input from a CHWN `gradient` and packed weights."""
    native = native_for(gradient, values)
    result = empty_chwn(*input_size, like=gradient)
    if native is None:
        weight = _unpack(starts, values, offsets, weight_size)
        products = Conv2dProducts((stride[0], stride[1]), (padding[0], padding[1]))
        return result.copy_(products.grad_input(gradient, (weight,), result))
    gradient = as_chwn(gradient)
    shape = _shape(native, input_size, weight_size, stride, padding)
    _check_packed(_lengths(starts, offsets) == _native_lengths(native, shape, GRAD_INPUT))
    threads = torch.get_num_threads()
    workspace = buffer(native.conv_workspace(shape, threads))
    packed = (t.data_ptr() for t in (starts, values, offsets))
    native.conv_grad_input(
        shape, gradient.data_ptr(), *packed, result.data_ptr(), workspace.data_ptr(), threads
    )
    return result


# ---- sparse activations ------------------------------------------------------------------------------------


def compress(x: Tensor, mask: Tensor | None, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the kept entries of a CHWN `x` (N, C, H, W): values, bits, and starts of channels.

    Kept are those marked by `mask` or, without one, all whose magnitude is at least `limit`, and every NaN.
    """
    return compressed(x, mask, limit)


def compressed(x: Tensor, mask: Tensor | None, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Do what `compress` does, without the time of the dispatcher."""
    native = native_for(x)
    if native is not None:
        return _compressed(native, as_chwn(x), None, mask, limit)
    n, c, h, w = x.shape
    flat = x.permute(1, 0, 2, 3).reshape(c, n, h * w)  # the order of the values
    kept = mask.permute(1, 0, 2, 3).reshape(c, n, h * w) if mask is not None else ~(flat.abs() < limit)
    powers = 2 ** torch.arange(UNIT, device=x.device)
    words = -(-h * w // UNIT)
    padded = F.pad(kept, (0, words * UNIT - h * w)).view(c, n, words, UNIT)
    bits = (padded * powers).sum(-1).to(torch.int32).to(torch.int16).transpose(1, 2).contiguous()
    starts = F.pad(kept.flatten(1).sum(1).cumsum(0), (1, 0))
    values = flat[kept]
    return values, bits, starts


def compressed_again(x: Tensor, scale: Tensor, shift: Tensor, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """Compress ``relu(x * scale + shift)``, each a number a channel, without ever storing it."""
    native = native_for(x)
    _check_packed(native is not None)
    return _compressed(native, as_chwn(x), (scale, shift), None, limit)


def _compressed(
    native,
    x: Tensor,
    factors: tuple[Tensor, Tensor] | None,
    mask: Tensor | None,
    limit: float,
) -> tuple[Tensor, Tensor, Tensor]:
    n, c, h, w = x.shape
    mask = None if mask is None else as_chwn(mask)
    counts, starts = buffer(c, n, dtype=torch.int32), buffer(c + 1, dtype=torch.int64)
    bits = buffer(c, -(-h * w // UNIT), n, dtype=torch.int16)
    scale, shift = (0, 0) if factors is None else (factor.data_ptr() for factor in factors)
    which = x.data_ptr(), scale, shift, 0 if mask is None else mask.data_ptr(), limit, c, h * w, n
    threads = torch.get_num_threads()
    found = native.compress_count(*which, counts.data_ptr(), starts.data_ptr(), threads)
    values = buffer(found.count)
    native.compress_fill(*which, *(t.data_ptr() for t in (counts, starts, values, bits)), threads)
    return values, bits, starts


def expand(values: Tensor, bits: Tensor, starts: Tensor, size: list[int]) -> Tensor:
    """Return the CHWN tensor of `size` (N, C, H, W) with zeros where nothing was kept."""
    n, c, h, w = size
    result = empty_chwn(n, c, h, w, like=values)
    native = native_for(values)
    if native is None:
        powers = 2 ** torch.arange(UNIT, device=bits.device)
        words = bits.transpose(1, 2).long() & 0xFFFF
        kept = (words.unsqueeze(-1) & powers != 0).flatten(2)[..., : h * w]
        flat = values.new_zeros(c, n, h * w)
        flat[kept] = values
        return result.copy_(flat.view(c, n, h, w).transpose(0, 1))
    native.expand(
        *(t.data_ptr() for t in (values, bits, starts)),
        c,
        h * w,
        n,
        result.data_ptr(),
        torch.get_num_threads(),
    )
    return result


def conv2d_compressed_grad_weight(
    values: Tensor,
    bits: Tensor,
    starts: Tensor,
    gradient: Tensor,
    input_size: list[int],
    weight_size: list[int],
    stride: list[int],
    padding: list[int],
) -> Tensor:
    """Return the dense gradient of the weight from compressed activations, all CHWN."""
    native = native_for(values, gradient)
    if native is None:
        x = expand(values, bits, starts, input_size)
        products = Conv2dProducts((stride[0], stride[1]), (padding[0], padding[1]))
        return products.grad_weight(gradient, (x,), values.new_empty(weight_size))
    gradient = as_chwn(gradient)
    shape = _shape(native, input_size, weight_size, stride, padding)
    result = buffer(*weight_size)
    native.grad_weight(
        shape,
        *(t.data_ptr() for t in (values, bits, starts, gradient, result)),
        torch.get_num_threads(),
    )
    return result
