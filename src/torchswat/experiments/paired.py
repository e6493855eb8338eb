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


def t_test(differences: Sequence[float]) -> float:
    """Return how likely a mean at least as large is if the differences are normal around zero.

    Student's one-sided test of two to four pairs (Student 1908, The Probable Error of a Mean) in closed form:
    so few signs can be flipped in too few ways to say anything.

    Raises
    ------
    InvalidValue
        With another number of pairs.

    Examples
    --------
    >>> round(t_test([1.0, 2.0, 0.5]), 3)
    0.059
    """
    values, count = np.asarray(differences, dtype=float), len(differences)
    if not 2 <= count <= 4:
        raise InvalidValue(f"Student's test is for two to four pairs, not {count}.")
    error = float(np.std(values, ddof=1)) / np.sqrt(count)
    if error < 1e-12:
        return float(0.5 - 0.5 * np.sign(np.mean(values)))
    t = float(np.mean(values)) / error
    if count == 3:
        return float(0.5 - t / (2 * np.sqrt(2 + t * t)))
    x = t / np.sqrt(count - 1)
    return float(0.5 - (np.arctan(x) + (count == 4) * x / (1 + x * x)) / np.pi)
