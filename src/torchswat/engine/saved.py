"""An activation as it is saved for backward: the kept values and one bit an entry, in one buffer of bytes.

Two formats. The CHWN one is what the compiled weight gradient reads where it lies (``native/activations.h``):

    starts  int64 (C + 1)  |  bits  uint16 (C, ceil(H W / 16), N)  |  values float32

Of bfloat16, a value is the pair of two neighbouring samples, kept where one of them is, and N counts pairs.

The flat one keeps the order of the tensor's memory and takes any dtype and device:

    bits  (ceil(n / 64) words of 64)  |  values

The size of a buffer depends on the shape and on the room for values alone, so a compiler knows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from torchswat.engine import layout
from torchswat.engine.topk import SMALLEST, memory_order
from torchswat.errors import InvalidValue

UNIT = 16  # positions in a word of bits of the CHWN format
WORD = 64  # entries in a word of bits of the flat one


def _chwn_parts(size: Sequence[int]) -> tuple[int, int]:
    """Return the bytes of starts and of bits, each a multiple of eight."""
    n, c, h, w = size
    return 8 * (c + 1), (2 * c * ((h * w + UNIT - 1) // UNIT) * n + 7) // 8 * 8


def _paired(size: Sequence[int], narrow: bool) -> tuple[int, ...]:
    """Return the size as the CHWN format counts: of bfloat16, two samples make one value."""
    n, c, h, w = size
    return n // 2 if narrow else n, c, h, w


def chwn_bytes(size: Sequence[int], room: int) -> int:
    """Return the bytes of the CHWN format with room for that many values."""
    return sum(_chwn_parts(size)) + 4 * room


def flat_bytes(entries: int, room: int, itemsize: int) -> int:
    """Return the bytes of the flat format with room for that many values."""
    return 8 * ((entries + WORD - 1) // WORD) + itemsize * room


def _buffer(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=device)


def check_room(count: int, room: int) -> None:
    """Raise `InvalidValue` where more values are kept than there is room for."""
    if count > room:
        raise InvalidValue(f"{count} values of the activation are kept, and there is room for {room}.")


# ---- CHWN: compiled kernels, float32 or pairs of bfloat16 on the CPU -----------------------------------------


def compress(
    native: Any,
    x: Tensor,
    mask: Tensor | None,
    threshold: float,
    room: int,
    factors: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, int, bool]:
    """Return a CHWN `x` in the CHWN format, how many entries are kept, and whether one of them is a NaN.

    With `factors`, a scale and a shift a channel, it is ``relu(x * scale + shift)`` that is compressed. Without
    `room` (negative) the buffer is as large as it must be.
    """
    n, c, h, w = x.shape
    narrow = x.dtype is torch.bfloat16
    threads = torch.get_num_threads()
    scale, shift = (0, 0) if factors is None else (factor.data_ptr() for factor in factors)
    if narrow:
        x = x if mask is None else torch.where(mask, x, 0)
        which = x.data_ptr(), scale, shift, threshold, c, h * w, n
        count, fill = native.compress_count_pairs, native.compress_fill_pairs
    else:
        which = x.data_ptr(), scale, shift, 0 if mask is None else mask.data_ptr(), threshold, c, h * w, n
        count, fill = native.compress_count, native.compress_fill
    counts = torch.empty(c * n, dtype=torch.int32, device="cpu")
    starts, bits = _chwn_parts(_paired(x.shape, narrow))
    if room < 0:
        first = torch.empty(c + 1, dtype=torch.int64, device="cpu")
        found = count(*which, counts.data_ptr(), first.data_ptr(), threads)
        values = int(first[-1]) if narrow else found.count
        saved = _buffer(starts + bits + 4 * values, x.device)
        saved[:starts].view(torch.int64).copy_(first)
        at = saved.data_ptr()
    else:
        saved = _buffer(starts + bits + 4 * room, x.device)
        at = saved.data_ptr()
        found = count(*which, counts.data_ptr(), at, threads)
        check_room(found.count, room)
    fill(*which, counts.data_ptr(), at, at + starts + bits, at + starts, threads)
    return saved, found.count, found.not_a_number


def chwn_addresses(
    saved: Tensor, size: Sequence[int], narrow: bool = False, channel: int = 0
) -> tuple[int, int, int]:
    """Return where values, bits and starts of the CHWN format of an activation of `size` lie.

    Bits and starts are those from `channel` on; starts count from the first value of all.
    """
    n, c, h, w = _paired(size, narrow)
    starts, bits = _chwn_parts((n, c, h, w))
    at, words = saved.data_ptr(), (h * w + UNIT - 1) // UNIT
    return at + starts + bits, at + starts + 2 * channel * words * n, at + 8 * channel


def expand(native: Any, saved: Tensor, size: Sequence[int], like: Tensor) -> Tensor:
    """Return the CHWN tensor of `size` (N, C, H, W) again, with zeros where nothing was kept."""
    n, c, h, w = size
    narrow = like.dtype is torch.bfloat16
    result = layout.empty_chwn(size, like)
    addresses = chwn_addresses(saved, size, narrow)
    samples = n // 2 if narrow else n
    native.expand(*addresses, c, h * w, samples, result.data_ptr(), torch.get_num_threads())
    return result


# ---- flat: any dtype and device ----------------------------------------------------------------------------


def without_gaps(x: Tensor) -> Tensor:
    """Return `x`, or a contiguous copy of one in none of the three layouts, whose order could not be told again."""
    if x.is_contiguous() or (x.dim() == 4 and layout.layout_of(x) != layout.NCHW):
        return x
    return x.contiguous()


def _flat(x: Tensor) -> Tensor:
    """Return a tensor in one of the three layouts flat, in the order of its memory."""
    flat = memory_order(x)
    assert flat is not None
    return flat


def keep_flat(native: Any, x: Tensor, mask: Tensor | None, threshold: float, room: int) -> tuple[Tensor, int]:
    """Return `x` in the flat format and how many entries are kept (never a zero).

    Kept are those marked by `mask`, or without one all of at least `threshold`. The compiled kernels do it where
    `native` is given; either way writes the same bytes.
    """
    x = without_gaps(x)
    flat, n = _flat(x), x.numel()
    if mask is not None and mask.stride() != x.stride():
        mask = torch.empty_like(x, dtype=torch.bool).copy_(mask)
    marks = None if mask is None else _flat(mask)
    head = 8 * ((n + WORD - 1) // WORD)
    if native is None:
        kept = (flat.abs() >= threshold if marks is None else marks) & (flat != 0)
        values = flat[kept]
        if room >= 0:
            check_room(values.numel(), room)
        saved = _buffer(head + x.element_size() * max(room, values.numel()), x.device)
        packed = pack_bits(kept)
        saved[: packed.numel()] = packed
        saved[packed.numel() : head] = 0
        saved[head : head + x.element_size() * values.numel()] = values.view(torch.uint8)
        return saved, values.numel()
    threads = torch.get_num_threads()
    which = flat.data_ptr(), 0 if marks is None else marks.data_ptr(), max(threshold, SMALLEST), n
    narrow = x.dtype is torch.bfloat16
    if room >= 0 and not narrow:
        saved = _buffer(head + 4 * room, x.device)
        at = saved.data_ptr()
        count = native.keep_flat(*which, at, at + head, room, threads)
        check_room(count, room)
        return saved, count
    bits, starts = _buffer(head, x.device), _buffer(8 * (native.kept_parts(n) + 1), x.device)
    mark, gather = native.mark_kept, native.gather_kept
    if narrow:
        mark, gather = native.mark_kept_bf16, native.gather_kept_bf16
    count = mark(*which, bits.data_ptr(), starts.data_ptr(), threads)
    saved = _buffer(head + x.element_size() * count, x.device)
    saved[:head] = bits
    at = saved.data_ptr()
    gather(flat.data_ptr(), at, starts.data_ptr(), n, at + head, threads)
    return saved, count


def restore_flat(native: Any, saved: Tensor, like: Tensor) -> Tensor:
    """Return the dense tensor again, written to `like`, which has shape, dtype and strides of the one kept."""
    n = like.numel()
    flat = memory_order(like)
    result = like if flat is not None else torch.empty(like.shape, dtype=like.dtype, device=like.device)
    flat = result.view(-1) if flat is None else flat
    head = 8 * ((n + WORD - 1) // WORD)
    if native is None:
        kept = unpack_bits(saved[:head], n)
        count = int(kept.count_nonzero())
        values = saved[head : head + like.element_size() * count]
        flat.zero_()[kept] = values.view(like.dtype)
    else:
        at = saved.data_ptr()
        scatter = native.scatter_kept_bf16 if like.dtype is torch.bfloat16 else native.scatter_kept
        scatter(at + head, at, n, flat.data_ptr(), torch.get_num_threads())
    return result


def pack_bits(marks: Tensor) -> Tensor:
    """Return the booleans (n,) as bytes (ceil(n / 8),), the first the lowest bit of the first.

    Examples
    --------
    >>> pack_bits(torch.tensor([True, False, True, False, False, False, False, False, True])).tolist()
    [5, 1]
    """
    padded = torch.nn.functional.pad(marks, (0, -marks.numel() % 8)).view(-1, 8).to(torch.uint8)
    packed = padded[:, 0].clone()
    for place in range(1, 8):
        packed |= padded[:, place] << place
    return packed


def unpack_bits(bits: Tensor, n: int) -> Tensor:
    """Return the first `n` of the packed `bits` as booleans (n,).

    Examples
    --------
    >>> unpack_bits(torch.tensor([5, 1], dtype=torch.uint8), 9).nonzero().flatten().tolist()
    [0, 2, 8]
    """
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return ((bits.unsqueeze(1) >> places) & 1).bool().view(-1)[:n]


# ---- bytes from elsewhere -------------------------------------------------------------------------


def aligned(saved: Tensor) -> Tensor:
    """Return a buffer, or a copy of one that starts between words, as a slice of a larger one may."""
    return saved.clone() if not saved.is_meta and saved.data_ptr() % 8 else saved


def is_whole(saved: Tensor, size: Sequence[int], compressed: bool, itemsize: int, native: Any) -> bool:
    """Return whether a buffer holds as many values as its bits say, so that reading it stays inside."""
    entries = 1
    for side in size:
        entries *= side
    if not compressed:
        head = flat_bytes(entries, 0, itemsize)
        return saved.numel() >= head and saved.numel() - head >= itemsize * _marked(saved[:head], entries)
    if native is None or len(size) not in (2, 4):
        return False
    n, c, h, w = (*size, 1, 1)[:4]
    head, bits = _chwn_parts((n, c, h, w))
    room = (saved.numel() - head - bits) // 4
    if room < 0:
        return False
    at = saved.data_ptr()
    return native.is_whole(at + head, at, c, h * w, n, room, torch.get_num_threads())


def _marked(bits: Tensor, entries: int) -> int:
    """Return how many of the first `entries` bits are set; bits behind them count as too many."""
    padded = bits.new_zeros(-(-bits.numel() // 8) * 8)
    padded[: bits.numel()] = bits
    kept = unpack_bits(padded, 8 * padded.numel())
    return int(kept.count_nonzero()) if not kept[entries:].any() else 8 * padded.numel() + 1
