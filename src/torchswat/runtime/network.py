"""A network for inference as a torch module: `load` makes one of a file."""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchswat.engine import loader
from torchswat.errors import InvalidValue
from torchswat.runtime.operations.rows import TYPES
from torchswat.runtime.package import About, Package
from torchswat.runtime.session import Sessions


class Network(nn.Module):
    """A pruned network that only infers, on the compiled engine where that was built.

    It may be called from several Python threads at once, with batches of any size, and images of any where
    the network lets them; each size needs a moment of preparation when it is met first. Threads of one call are
    as many as `torch.set_num_threads` says.

    Attributes
    ----------
    package : Package
        The operations, and what is known of the network: ``package.about.classes`` and so on.

    Examples
    --------
    >>> import tempfile, torchswat
    >>> path = f"{tempfile.mkdtemp()}/digits.safetensors"
    >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
    >>> torchswat.load(path).package.graph.input_shape
    (1, 8, 8)
    """

    def __init__(self, package: Package) -> None:
        super().__init__()
        self.package = package
        self._sessions = Sessions(package.graph, package.tensors)

    @torch.no_grad()
    def forward(self, x: Tensor, *more: Any) -> Any:
        """Return the scores of normalised images.

        Parameters
        ----------
        x : Tensor of shape (N, C, H, W)
            float32, on the CPU; of networks that take something else, what ``package.graph.inputs`` says.
        *more : Tensor
            The other inputs of networks that take several.

        Returns
        -------
        Tensor of shape (N, classes)
            float32; of networks with several outputs, a tuple of tensors.

        Raises
        ------
        InvalidValue
            For another shape, dtype or device.

        Examples
        --------
        >>> import tempfile, torchswat
        >>> path = f"{tempfile.mkdtemp()}/digits.safetensors"
        >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
        >>> torchswat.load(path)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
        """
        graph, inputs = self.package.graph, (x, *more)
        graph.check([tuple(x.shape) for x in inputs])
        for each, wanted in zip(inputs, graph.inputs, strict=True):
            if str(each.dtype) != f"torch.{wanted.dtype}" or each.device.type != "cpu":
                raise InvalidValue(
                    f"the input is {each.dtype} on {each.device}; this network takes {wanted.dtype} on the CPU"
                )
        loader.native()  # warns where threads are without use
        arrays = [each.detach().numpy() for each in inputs]
        found = [torch.from_numpy(array) for array in self._sessions.run(arrays, torch.get_num_threads())]
        return found[0] if len(found) == 1 else tuple(found)

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class from the pixels of images.

        Parameters
        ----------
        images : Tensor of shape (N, C, H, W)
            uint8, not normalised.

        Returns
        -------
        Tensor of shape (N, classes)
            float32; each row sums to 1.

        Examples
        --------
        >>> import tempfile, torchswat
        >>> path = f"{tempfile.mkdtemp()}/digits.safetensors"
        >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
        >>> network = torchswat.load(path)
        >>> network.probabilities(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape
        torch.Size([2, 10])
        """
        return self(normalised(images, self.package.about)).softmax(1)

    def extra_repr(self) -> str:
        tensors = [tensor for tensor in self.package.tensors.values() if tensor.dtype == TYPES["float32"]]
        kept, all_of_them = sum(int((t != 0).sum()) for t in tensors), sum(t.size for t in tensors)
        return f"{len(self.package.graph.nodes)} operations, {kept:,} of {all_of_them:,} weights"


def normalised(images: Tensor, about: About) -> Tensor:
    """Return what a network takes, float32, for the pixels of images, uint8 (N, C, H, W)."""
    x = images.to(torch.float32, copy=True).div_(255)
    if about.mean:
        mean, std = (torch.tensor(values)[:, None, None] for values in (about.mean, about.std))
        x = x.sub_(mean).div_(std)
    return x


def load(path: str | os.PathLike[str]) -> Network:
    """Read a network that `save` wrote, for inference.

    Nothing in the file is executed, every size and offset is checked, and no more memory is taken than the
    file accounts for.

    Parameters
    ----------
    path : str or path
        Of the file.

    Returns
    -------
    Network
        A torch module without parameters to train, in evaluation mode.

    Raises
    ------
    MissingData
        There is no such file.
    InvalidData
        It is truncated, damaged, or no network of torchswat.

    Examples
    --------
    >>> import tempfile, torchswat
    >>> path = f"{tempfile.mkdtemp()}/digits.safetensors"
    >>> torchswat.save(torchswat.models.create("resnet-digits"), path, input_shape=(1, 8, 8))
    >>> network = torchswat.load(path)
    >>> "Conv" in {node.operation for node in network.package.graph.nodes}
    True
    """
    return Network(Package.read(Path(path))).eval()
