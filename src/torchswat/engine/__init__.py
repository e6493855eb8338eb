"""The engine: the operations as torch sees them, in plain torch and compiled, and which of the two runs."""

from typing import Any

__all__ = ["info"]


def info() -> dict[str, Any]:
    """Return what runs here: engine, instruction set, threads, and the reason where it is the reference.

    Returns
    -------
    dict
        ``engine`` (``"native"`` or ``"reference"``), ``reason``, ``isa``, ``available`` instruction sets,
        ``openmp`` and ``threads``.

    Examples
    --------
    >>> info()["engine"] in ("native", "reference")
    True
    """
    from torchswat.engine import loader  # imports torch, which the command line does not want so early

    return loader.info()
