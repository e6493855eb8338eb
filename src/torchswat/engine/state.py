"""What a sparse layer remembers from pass to pass, as a tensor of sixteen 64-bit words.

The first words are state: a pass reads them and returns the next ones. The others describe the pass itself for
its backward pass, so the whole record is what a layer's operation returns and saves. Words are integers; those
that hold a float hold the bits of a float64, so no cast of a model to another dtype touches them.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

WORDS = 16
ITERATION, SPARSITY = 0, 1
WEIGHT, ACTIVATION = 2, 5
"""Where the threshold that was searched last stands; behind it the sparsity it was searched for, and the density."""
WEIGHT_THRESHOLD, WEIGHT_TIES, ACTIVATION_THRESHOLD, ACTIVATION_COUNT, PRODUCTS = 8, 9, 10, 11, 12
"""What this pass kept: all of at least the threshold, and how many of the weights equal to it (-1: all)."""
GRADIENT_DENSITY, OUTPUT_DENSITY, SEED = 13, 14, 15

OPERANDS = {"weight": WEIGHT, "activation": ACTIVATION}
_DENSITY = {
    "weight": WEIGHT + 2,
    "activation": ACTIVATION + 2,
    "gradient": GRADIENT_DENSITY,
    "output": OUTPUT_DENSITY,
}


def new_state(seed: int = 0) -> Tensor:
    """Return the state of a layer that has not run yet; `seed` is what random masks are drawn from.

    Examples
    --------
    >>> state = new_state()
    >>> state.shape, state.dtype, density(state, "weight")
    (torch.Size([16]), torch.int64, 1.0)
    """
    state = torch.zeros(WORDS, dtype=torch.int64, device="cpu")
    for at in OPERANDS.values():
        state[at : at + 3].view(torch.float64).copy_(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))
    for at in (GRADIENT_DENSITY, OUTPUT_DENSITY):
        put(state, at, 1.0)
    state[SEED] = _signed(seed)
    return state


def _signed(word: int) -> int:
    """Return the 64-bit word as torch's int64 holds it."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >> 63 else word


def put(state: Tensor, at: int, value: float) -> None:
    """Write a float into a word."""
    state[at : at + 1].view(torch.float64).fill_(value)


def get(state: Tensor, at: int) -> float:
    """Return the float in a word."""
    return float(state[at : at + 1].view(torch.float64))


def as_float(word: int) -> float:
    """Return the float whose bits a word is."""
    return struct.unpack("d", struct.pack("q", word))[0]


def density(state: Tensor, operand: str) -> float:
    """Return the share of `operand` that the last pass of training kept."""
    return get(state, _DENSITY[operand])


def put_density(state: Tensor, operand: str, share: float) -> None:
    """Write down the share of `operand` that was kept."""
    put(state, _DENSITY[operand], share)


def threshold(state: Tensor, operand: str) -> float | None:
    """Return the last threshold of ``weight`` or ``activation``, or None where none was searched."""
    value = get(state, OPERANDS[operand])
    return value if value >= 0 else None


def forget_thresholds(state: Tensor) -> None:
    """Let the next pass search anew."""
    for at in OPERANDS.values():
        put(state, at, -1.0)
