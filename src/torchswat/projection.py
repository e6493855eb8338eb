"""DSG's prediction of the largest outputs by a sparse random projection (Liu et al. 2019, section 2).

Every output of a layer is an inner product of a filter with a patch of the input. A random ternary matrix
(Achlioptas 2003) projects both into few dimensions, where inner products are about the same, and the
largest estimates say which outputs are worth computing.
"""

from __future__ import annotations

import functools
import math
import zlib

import torch
from torch import Tensor

from torchswat.engine.products import Products
from torchswat.errors import NotFinite
from torchswat.selection import kept_count, kth_largest

EPSILON = 0.5  # relative error of the estimated inner products; the middle one of the publication's Table 1


def dimensions(filters: int, entries: int, epsilon: float = EPSILON) -> int:
    """Return into how many dimensions to project `filters` filters of `entries` weights each.

    The Johnson-Lindenstrauss bound ``4 ln(filters) / (epsilon^2 / 2 - epsilon^3 / 3)``, at most `entries`.

    Examples
    --------
    >>> dimensions(128, 1152)  # the publication's Table 1 has 232 for this layer
    233
    """
    bound = 4 * math.log(max(filters, 2)) / (epsilon**2 / 2 - epsilon**3 / 3)
    return min(entries, math.ceil(bound))


@functools.lru_cache(maxsize=64)  # a layer has the same one in every iteration
def ternary(rows: int, columns: int, seed: int) -> Tensor:
    """Return a (rows, columns) matrix of ``sqrt(3 / rows)`` times -1, 0 or 1 with chances 1/6, 2/3, 1/6."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randint(6, (rows, columns), generator=generator)
    return ((draw == 0).float() - (draw == 1).float()) * math.sqrt(3 / rows)


@torch.no_grad()
def predicted_mask(
    products: Products, activation: Tensor, weight: Tensor, sparsity: float, name: str
) -> Tensor:
    """Return the mask (bool, in the shape of the output) of the outputs predicted to be largest.

    The threshold is the k-th largest estimate of the first sample and is shared by the whole batch, as in
    the publication (section 2.2). Largest means largest value, not magnitude, since a ReLU follows. The
    projection is the same in every iteration and every run: it is seeded by the layer's name.
    """
    filters, entries = len(weight), weight[0].numel()
    seed = zlib.crc32(name.encode())
    matrix = ternary(dimensions(filters, entries), entries, seed).to(weight)  # (D, entries)
    projected_weight = weight.flatten(1) @ matrix.T  # (K, D)
    groups = getattr(products, "groups", 1)
    projected_patches = products.forward(  # (N, groups * D, P, Q), or (N, D) of a linear layer
        activation, matrix.view(-1, *weight.shape[1:]).repeat(groups, *[1] * (weight.dim() - 1)), None
    )
    by_group = projected_patches.unflatten(1, (groups, -1)).unsqueeze(-1).flatten(3)  # (N, groups, D, P * Q)
    estimate = (projected_weight.view(groups, -1, len(matrix)) @ by_group).flatten(1, 2)  # (N, K, P * Q)
    estimate = estimate.view(len(activation), filters, *projected_patches.shape[2:])
    if len(estimate) == 0 or estimate.is_meta:  # nothing to predict, or sizes alone
        return torch.ones_like(estimate, dtype=torch.bool)
    if estimate.amax().isnan():
        raise NotFinite(f"the predicted output of layer {name!r} has NaN: its input or its weight has.")
    offset = estimate[0].amin()  # with the smallest at zero, magnitudes order like values
    k = kept_count(estimate[0].numel(), sparsity)
    threshold = kth_largest(estimate[0] - offset, k, name=f"the predicted output of layer {name!r}")
    return estimate - offset >= threshold.flatten()
