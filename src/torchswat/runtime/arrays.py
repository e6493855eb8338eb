"""A network for inference on numpy arrays, without torch: what `torchswat_runtime` is made of."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from torchswat.engine.compiled import native
from torchswat.errors import InvalidValue
from torchswat.runtime.operations.rows import TYPES
from torchswat.runtime.package import Package
from torchswat.runtime.session import Sessions

Array = np.ndarray


class Network:
    """A pruned network that only infers, on numpy arrays.

    It may be called from several threads at once, with batches of any size, and images of any where the network
    lets them; each size needs a moment of preparation when it is met first.

    Attributes
    ----------
    package : Package
        The operations, and what is known of the network: ``package.about.classes`` and so on.
    threads : int
        Of one call.
    """

    def __init__(self, package: Package, threads: int) -> None:
        self.package: Package = package
        self.threads: int = threads
        self._sessions = Sessions(package.graph, package.tensors)

    def __call__(self, x: Array, *more: Array) -> Array | tuple[Array, ...]:
        """Return the outputs for normalised images.

        Parameters
        ----------
        x : ndarray of shape (N, C, H, W)
            float32; of networks that take something else, what ``package.graph.inputs`` says.
        *more : ndarray
            The other inputs of networks that take several.

        Returns
        -------
        ndarray of shape (N, classes)
            float32; of networks with several outputs, a tuple of arrays.

        Raises
        ------
        InvalidValue
            For another shape or type.
        """
        graph, inputs = self.package.graph, [np.asarray(each) for each in (x, *more)]
        graph.check([each.shape for each in inputs])
        for each, wanted in zip(inputs, graph.inputs, strict=True):
            if each.dtype != TYPES[wanted.dtype]:
                raise InvalidValue(
                    f"the input is {each.dtype}; this network takes {wanted.dtype}: x.astype({wanted.dtype!r})"
                )
        found = self._sessions.run(inputs, self.threads)
        return found[0] if len(found) == 1 else tuple(found)


def load(path: str | os.PathLike[str], threads: int | None = None) -> Network:
    """Read a network that `torchswat.save` wrote, for inference on numpy arrays.

    Nothing in the file is executed, every size and offset is checked, and no more memory is taken than the
    file accounts for.

    Parameters
    ----------
    path : str or path
        Of the file.
    threads : int, optional
        Of one call (default: as many as this process may use, one where the engine was built without OpenMP).

    Returns
    -------
    Network

    Raises
    ------
    MissingData
        There is no such file.
    InvalidData
        It is truncated, damaged, or no network of torchswat.
    InvalidValue
        For fewer than one thread.

    Examples
    --------
    >>> import tempfile, torchswat
    >>> path = f"{tempfile.mkdtemp()}/digits.safetensors"
    >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
    >>> network = load(path)
    >>> network(np.zeros((2, 1, 8, 8), np.float32)).shape
    (2, 10)
    """
    if threads is not None and threads < 1:
        raise InvalidValue(f"threads is {threads}; allowed is 1 or more")
    return Network(Package.read(Path(path)), _threads() if threads is None else threads)


def _threads() -> int:
    module = native()
    if module is None or not getattr(module, "openmp", True):
        return 1
    available = getattr(os, "sched_getaffinity", None)  # of Linux
    return len(available(0)) if available is not None else os.cpu_count() or 1
