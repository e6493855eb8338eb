"""Let glibc keep the memory of large tensors between steps instead of giving it back to the kernel.

By default glibc maps every block above some megabytes freshly and unmaps it when it is freed, so each
activation of each step is page-faulted anew. For a network whose tensors have the same sizes in every step
that is wasted, and it can take a third of the time of a dense step.
"""

from __future__ import annotations

import ctypes
import os
import platform

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_NEVER = -1
_TOP_PAD = 256 * 2**20  # bytes asked of the kernel beyond what is needed, each time the heap must grow


def tune_allocator() -> bool:
    """Tune the C library's allocator for training: freed memory is kept and used again.

    The command line calls it for itself. In a program of your own call it first thing, before torch is
    imported: torch looks only once at the environment variable THP_MEM_ALLOC_ENABLE (set here unless you
    set it), which asks the kernel for huge pages. The price is that the process does not return memory
    until it ends.

    Returns
    -------
    bool
        True where it took effect: on Linux with glibc. Elsewhere nothing is done.

    References
    ----------
    ``mallopt(3)`` of the Linux manual pages: M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD.

    Examples
    --------
    >>> from torchswat.engine.allocator import tune_allocator
    >>> tune_allocator() in (True, False)
    True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _NEVER, _M_TOP_PAD: _TOP_PAD}
    accepted = [mallopt(parameter, value) == 1 for parameter, value in settings.items()]
    return all(accepted)
