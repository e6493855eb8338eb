"""Weights selected in blocks: neighbouring filters x input channels are kept or left out together. Beyond the paper.

An engine that multiplies two weights in one instruction (bfloat16; int8 takes four) can leave out a pair where both are
zero. Of the pairs of an unstructured selection at sparsity S that is about ``S^2``; of pairs that are selected
together it is ``S``.

References: block-sparse weights are those of Gray, Radford and Kingma 2017, *GPU Kernels for Block-Sparse Weights*, and
Narang, Undersander and Diamos 2017, *Block-Sparse Recurrent Neural Networks*, arXiv:1711.02782.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchswat.engine import state as state_words
from torchswat.engine.arguments import kept_count, not_a_number
from torchswat.engine.block_masks import SIDES, Blocks, block_sums, mask_of_blocks, select_blocks
from torchswat.engine.loader import has_memory, native_for
from torchswat.engine.state import WEIGHT
from torchswat.errors import InvalidValue
from torchswat.selection import Selector, keep_largest

SINGLE = (1, 1)
"""Blocks of one weight: unstructured selection."""


def check_block(block: object) -> tuple[int, int]:
    """Return `block` as a pair (filters, channels) or raise `InvalidValue`.

    Examples
    --------
    >>> check_block([2, 2])
    (2, 2)
    """
    pair: tuple[Any, ...] = ()
    if isinstance(block, Sequence) and not isinstance(block, str):
        pair = tuple(block)
    if len(pair) != 2 or not all(type(side) is int and side in SIDES for side in pair):
        raise InvalidValue(
            f"block is {block!r}; allowed is a pair (filters, input channels) of 1, 2, 4 or 8, such as (2, 2). "
            "(1, 1) selects weights one by one."
        )
    return pair


@dataclass
class BlockSelector(Selector):
    """The selection of a layer's weights in blocks over the iterations of a training.

    Kept are the ``kept_count(blocks, sparsity)`` blocks with the largest sums of magnitudes, among equals those of
    the lowest index in the order (group, filters, channels, kernel position). The sums are float32, or float64 of a
    float64 weight, and their k-th largest is found exactly, whatever the method. It is the threshold in `state`:
    between two searches all blocks of at least that sum are kept.

    Parameters
    ----------
    exact, period, warmup, state
        As in `Selector`; without `exact` all blocks that tie with the k-th are kept.
    block : tuple of int
        Filters and input channels of a block.
    groups : int, default 1
        Of the convolution. Blocks do not cross them.
    """

    operand: str = "weight"
    block: tuple[int, int] = SINGLE
    groups: int = 1

    @property
    def in_operation(self) -> bool:
        """Whether the layer's operation selects by itself: never, it takes a mask."""
        return False

    def __call__(
        self, tensor: Tensor, sparsity: float, iteration: int, name: str = "tensor", remember: bool = True
    ) -> Tensor:
        """Return the mask of a weight (bool, same shape and strides); see `Selector`."""
        if tensor.numel() == 0 or tensor.is_meta:
            return torch.ones_like(tensor, dtype=torch.bool)
        blocks = Blocks(*self.block, self.groups)
        k = kept_count(blocks.count(tensor.shape), sparsity)
        due = self.period == 1 or iteration < self.warmup or iteration % self.period == 0
        native = native_for(tensor) if has_memory(self.state) else None
        if native is None:
            return self._in_torch(tensor, blocks, k, sparsity, due, name, remember)
        memory = self.state.data_ptr() + WEIGHT * self.state.element_size()
        how = k, sparsity, due, self.exact, not remember
        mask, found = select_blocks(native, tensor, blocks, memory, *how)
        if found.not_a_number:
            raise not_a_number(name, tensor.numel())
        return mask

    def _in_torch(
        self,
        tensor: Tensor,
        blocks: Blocks,
        k: int,
        sparsity: float,
        due: bool,
        name: str,
        remember: bool,
    ) -> Tensor:
        """Do the same in plain torch: any dtype and device."""
        sums = block_sums(tensor, blocks)
        if sums.isnan().any():
            raise not_a_number(name, tensor.numel())
        last = state_words.threshold(self.state, "weight")
        if due or last is None:
            threshold, kept = keep_largest(sums, k, scope="nchw", method="histogram", exact=self.exact)
            mask = mask_of_blocks(kept.mask_of(sums), tensor, blocks)
            if remember:
                state_words.put(self.state, WEIGHT, float(threshold))
                state_words.put(self.state, WEIGHT + 1, sparsity)
        else:
            mask = mask_of_blocks(sums >= last, tensor, blocks)
        if remember:
            state_words.put_density(self.state, "weight", int(mask.count_nonzero()) / tensor.numel())
        return mask

    def forget(self) -> None:
        """Let the next selection search."""
        state_words.put(self.state, WEIGHT, -1.0)
