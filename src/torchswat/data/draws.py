"""Random numbers that are a pure function of who asks: no generator, no state, nothing to save.

Every number is a hash of (seed, purpose, epoch, sample, position). So an image is cropped in the same way
whatever the batch size, the order, the number of processes or the batch a run was resumed at, and a
checkpoint needs no random state of the data. The hash is the finaliser of SplitMix64 (Steele, Lea and
Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014), chained once for each key.
"""

from __future__ import annotations

import numpy as np

GAMMA = np.uint64(0x9E3779B97F4A7C15)
FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
SECOND_FACTOR = np.uint64(0x94D049BB133111EB)
SHIFTS = tuple(np.uint64(bits) for bits in (30, 27, 31))

LARGEST = 1 - 2.0**-53  # the largest number that `uniform` draws

# What a number is drawn for; each purpose has its own stream.
ORDER, AUGMENTATION, SUBSET, SYNTHETIC = range(4)


def _mix(bits: np.ndarray) -> np.ndarray:
    """Scramble uint64 words; a bijection in which each bit of the input moves every bit of the output."""
    bits = bits + GAMMA
    bits = (bits ^ (bits >> SHIFTS[0])) * FIRST_FACTOR
    bits = (bits ^ (bits >> SHIFTS[1])) * SECOND_FACTOR
    return bits ^ (bits >> SHIFTS[2])


def hashes(seed: int, purpose: int, epoch: int, samples: np.ndarray) -> np.ndarray:
    """Hash each sample number to 64 bits.

    Parameters
    ----------
    seed, purpose, epoch : int
        The keys shared by all samples; any integer, taken modulo 2**64.
    samples : ndarray of int64, shape (N,)
        The samples' own keys, e.g. their numbers in the split.

    Returns
    -------
    ndarray of uint64, shape (N,)
    """
    key = np.zeros(1, np.uint64)
    for part in (seed, purpose, epoch):
        key = _mix(key ^ np.uint64(part % 2**64))
    return _mix(key ^ samples.astype(np.uint64))


def uniform(seed: int, purpose: int, epoch: int, samples: np.ndarray, count: int) -> np.ndarray:
    """Draw `count` uniform numbers of [0, 1) for each sample.

    Returns
    -------
    ndarray of float64, shape (N, count)

    Examples
    --------
    >>> import numpy as np
    >>> both = uniform(0, AUGMENTATION, 3, np.array([7, 8]), 2)
    >>> alone = uniform(0, AUGMENTATION, 3, np.array([8]), 2)
    >>> bool((both[1] == alone[0]).all())
    True
    """
    positions = np.arange(count, dtype=np.uint64) * GAMMA
    bits = _mix(hashes(seed, purpose, epoch, samples)[:, None] + positions)  # (N, count)
    return (bits >> np.uint64(11)) * 2.0**-53  # the upper 53 bits fill a float64's significand


def permutation(seed: int, purpose: int, epoch: int, count: int) -> np.ndarray:
    """Shuffle the numbers 0 to `count` - 1.

    Returns
    -------
    ndarray of int64, shape (count,)
    """
    return np.argsort(hashes(seed, purpose, epoch, np.arange(count)), kind="stable")
