"""Whether one thing is larger than another, judged on pairs that share all but that thing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from torchswat.errors import InvalidValue

_ALL_SIGNS = 14  # up to so many pairs every pattern of signs is tried; beyond, as many are drawn


def sign_flip_test(differences: Sequence[float]) -> float:
    """Return how likely a mean at least as large is if each difference might as well have the other sign.

    The exact one-sided permutation test of paired data (Fisher 1935, The Design of Experiments): it assumes
    no distribution. With n pairs the least value it can give is ``2 ** -n``.

    Parameters
    ----------
    differences : sequence of float
        One a pair, at least one; what is expected to be positive.

    Raises
    ------
    InvalidValue
        Without any pair.

    Examples
    --------
    >>> sign_flip_test([1.0, 2.0, 0.5])
    0.125
    """
    values = np.asarray(differences, dtype=float)
    if values.size == 0:
        raise InvalidValue("a paired test was asked for without any pair.")
    if len(values) <= _ALL_SIGNS:
        signs = np.array(list(product((1.0, -1.0), repeat=len(values))))
    else:
        drawn = np.random.default_rng(0).choice((1.0, -1.0), size=(1 << _ALL_SIGNS, len(values)))
        signs = np.vstack([np.ones(len(values)), drawn])
    means = signs @ values
    return float(np.mean(means >= means[0] - 1e-12 * np.abs(values).sum()))
