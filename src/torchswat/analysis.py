"""How far sparsification turns a vector: the sparsification angle of the paper's section 4 and appendix B.

Setting entries of ``v`` to zero leaves ``m * v``, whose angle with ``v`` is ``arccos(|m * v| / |v|)`` for any
mask (equation 6). Among all masks of k entries Top-K keeps the largest norm, so it turns least (Lemma B.1).
For a standard normal vector of many dimensions the angle is a function of the sparsity alone, in closed form.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from torchswat.errors import InvalidValue, NotFinite
from torchswat.selection import check_sparsity, select

_NORMAL = NormalDist()


def angle(tensor: Tensor, sparsity: float = 0.8, scope: str = "nchw", method: str = "histogram") -> Tensor:
    """Return the sparsification angle: by how much Top-K turns a tensor, seen as one vector.

    Parameters
    ----------
    tensor : Tensor
        Floating point, any shape, strides and device; a weight, an activation, a gradient.
    sparsity : float, default 0.8
        Fraction set to zero, in [0, 1).
    scope : {"nchw", "chw", "hw"}, default "nchw"
        Over what the Top-K is counted, as in `torchswat.select`.
    method : str, default "histogram"
        How the k-th largest magnitude is found, as in `torchswat.select`.

    Returns
    -------
    Tensor
        0-dimensional, float64, in degrees, from 0 to 90. A tensor of zeros is not turned: 0.

    Raises
    ------
    InvalidValue, UnknownName
        As `torchswat.select` does.
    NotFinite
        For a NaN or an infinity, with which a direction is undefined.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1, section 4.1 and appendix B, definition 3 and equation 6.

    Examples
    --------
    >>> round(float(angle(torch.tensor([3.0, 4.0]), sparsity=0.5)), 2)
    36.87
    """
    mask = select(tensor, sparsity, scope, method)
    if not torch.isfinite(tensor).all():
        raise NotFinite(
            f"a tensor of shape {tuple(tensor.shape)} has an infinity; its direction is undefined."
        )
    return masked_angle(tensor.detach().flatten(), mask.flatten())


def masked_angle(vectors: Tensor, mask: Tensor) -> Tensor:
    """Return the angle between vectors and what a mask leaves of them, along the last dimension.

    Parameters
    ----------
    vectors : Tensor
        Floating point, (..., d).
    mask : Tensor
        bool, broadcast against `vectors`; True is kept.

    Returns
    -------
    Tensor
        float64, (...), in degrees; 0 for a vector of zeros.

    Examples
    --------
    >>> masked_angle(torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([False, True])).round().tolist()
    [37.0, 90.0]
    """
    vectors = vectors.double()
    scale = vectors.abs().amax(dim=-1, keepdim=True) if vectors.numel() else vectors.sum(-1, keepdim=True)
    squares = (vectors / scale.clamp_min(torch.finfo(torch.float64).tiny)).square()
    kept, dropped = (squares * mask).sum(-1), (squares * ~mask).sum(-1)
    # not arccos(|m v| / |v|), which cannot tell small angles apart
    return torch.rad2deg(torch.atan2(dropped.sqrt(), kept.sqrt()))


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Return the angle between vectors along the last dimension, in degrees from 0 to 180, as float64.

    Examples
    --------
    >>> float(angle_between(torch.tensor([1.0, 0.0]), torch.tensor([0.0, -2.0])))
    90.0
    """
    first, second = first.double(), second.double()
    cosine = (first * second).sum(-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    return torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))


def expected_angle(sparsity: float) -> float:
    """Return the sparsification angle of a standard normal vector as its dimension grows, in degrees.

    With ``t`` the threshold that a fraction ``S`` of magnitudes stays below, the fraction of the squared norm
    that is kept is ``E[x^2; |x| >= t] = (1 - S) + 2 t phi(t)``, and the angle is the arc cosine of its root.

    Raises
    ------
    InvalidValue
        For a sparsity outside [0, 1).

    Examples
    --------
    >>> [round(expected_angle(s), 1) for s in (0.5, 0.8, 0.9)]
    [15.5, 36.3, 48.5]
    """
    sparsity = check_sparsity(sparsity)
    threshold = _NORMAL.inv_cdf((1 + sparsity) / 2)
    kept = (1 - sparsity) + 2 * threshold * _NORMAL.pdf(threshold)
    return math.degrees(math.acos(math.sqrt(min(1.0, kept))))


def needed_density(degrees: float) -> float:
    """Return the share to keep so that `expected_angle` is `degrees`: its inverse, by bisection.

    Raises
    ------
    InvalidValue
        For an angle that is not between 0 and 90.

    Examples
    --------
    >>> [round(100 * needed_density(degrees), 1) for degrees in (20, 30, 40)]
    [41.7, 27.1, 16.5]
    """
    if not 0 < degrees < 90:
        raise InvalidValue(f"an angle of {degrees!r} degrees; allowed is one between 0 and 90.")
    dense, sparse = 0.0, math.nextafter(1.0, 0.0)
    for _ in range(60):
        middle = (dense + sparse) / 2
        if expected_angle(middle) < degrees:
            dense = middle
        else:
            sparse = middle
    return 1 - dense
