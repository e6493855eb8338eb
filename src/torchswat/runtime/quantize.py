"""From a network in float32 to one whose convolutions multiply numbers of 8 bits.

Weights become int8 with a scale for each filter, and the inputs of convolutions uint8 with a scale and a zero
point for each tensor, which are chosen by what the tensor holds for some images. The result is an ordinary graph
with `QuantizeLinear` and `DequantizeLinear`, as ONNX has them; a session makes products of bytes of it
(`torchswat.runtime.fuse_quantized`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from torchswat.errors import InvalidValue
from torchswat.runtime.graph import Graph, Node, node
from torchswat.runtime.infer import constant, infer
from torchswat.runtime.operations.rows import FLOAT
from torchswat.runtime.package import Package
from torchswat.runtime.session import Sessions

Array = np.ndarray

MOST_SAMPLES = 2**18  # entries of a tensor by which its range is chosen
RANGES = np.linspace(1.0, 0.4, 25)  # shares of the widest range that are tried
STEPS = 255


def quantize(
    file: str | os.PathLike[str], output: str | os.PathLike[str], images: Array | Iterable[Array]
) -> None:
    """Write a network of a file with 8-bit convolutions into another file, which `load` reads as any other.

    Convolutions of one group with constant weights multiply int8 weights, with a scale for each filter, and
    uint8 activations, with a scale and a zero point for each tensor; everything else stays in float32. Each range
    is the one with the least squared error over `images`. Zeros among the weights stay zeros and cost nothing.

    Parameters
    ----------
    file : str or path
        What `save` or ``torchswat import`` wrote.
    output : str or path
        The file to write.
    images : ndarray of shape (N, C, H, W), or iterable of them
        float32, normalised as the network takes them: some hundred images like those that it will meet. No labels
        are needed.

    Raises
    ------
    MissingData, InvalidData
        There is no such file, or it is damaged.
    InvalidValue
        The images do not fit, or no convolution of the network can be quantized.
    CheckpointError
        The file cannot be written.

    References
    ----------
    B. Jacob et al., Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference,
    CVPR 2018.

    Examples
    --------
    >>> import tempfile, torch, torchswat
    >>> folder = Path(tempfile.mkdtemp())
    >>> torchswat.save(torchswat.models.create("resnet-digits"), folder / "float", input_shape=(1, 8, 8))
    >>> images = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
    >>> quantize(folder / "float", folder / "int8", images)
    >>> torchswat.load(folder / "int8")(torch.from_numpy(images)).shape
    torch.Size([64, 10])
    """
    from torchswat.runtime.saving import write

    batches = [images] if isinstance(images, np.ndarray) else images
    write(quantized(Package.read(Path(file)), batches), Path(output))


def quantized(package: Package, batches: Iterable[Array], threads: int = 1) -> Package:
    """Return a package with 8-bit convolutions; `quantize` says more."""
    graph, tensors = package.graph, package.tensors
    if len(graph.inputs) != 1:
        raise InvalidValue(f"the network takes {len(graph.inputs)} inputs; only one can be quantized")
    convolutions = _convolutions(graph, tensors)
    if not convolutions:
        raise InvalidValue(
            "there is no convolution to quantize: wanted are those of one group, with constant weights in float32 "
            "and the same padding on both sides"
        )
    ranges, images = _ranges(graph, tensors, _quantized_names(graph, convolutions), batches, threads)
    changed = _Writer(graph, tensors, convolutions, ranges).run()
    noted = {"quantized": {"convolutions": len(convolutions), "images": images}}
    about = replace(package.about, provenance={**package.about.provenance, **noted})
    return Package(*changed, about)


def _convolutions(graph: Graph, tensors: dict[str, Array]) -> dict[str, Node]:
    """Return the convolutions that can be quantized, by name."""
    values = infer(graph, {name: constant(tensor) for name, tensor in tensors.items()}, graph.examples)
    found: dict[str, Node] = {}
    for each in graph.nodes:
        if each.operation != "Conv" or each.settings["group"] != 1 or each.settings["auto_pad"] != "none":
            continue
        pads = each.settings["pads"]
        constants = all(name in tensors for name in each.inputs[1:])
        if (
            len(values[each.name].shape) == 4
            and constants
            and pads[:2] == pads[2:]
            and each.inputs[0] not in tensors
        ):
            found[each.name] = each
    return found


def _quantized_names(graph: Graph, convolutions: dict[str, Node]) -> list[str]:
    """Return the tensors that become bytes: inputs of convolutions, and what is added to a convolution's result."""
    names = dict.fromkeys(each.inputs[0] for each in convolutions.values())
    read = graph.readers()
    made = {name for each in graph.nodes for name in each.outputs} | {x.name for x in graph.inputs}
    for each in graph.nodes:
        if each.operation != "Add":
            continue
        alone = [
            name for name in each.inputs if name in convolutions and read[name] == 1 and name not in names
        ]
        others = [name for name in each.inputs if name not in alone[:1]]
        if alone and len(others) == 1 and others[0] in made:
            names[others[0]] = None
    # A pool takes bytes, too, where both of its sides stand for the same numbers.
    for each in reversed(graph.nodes):
        if each.operation == "MaxPool" and each.name in names and each.inputs[0] in made:
            names[each.inputs[0]] = None
    return list(names)


# ---- ranges ------------------------------------------------------------------------------------------------


def _ranges(
    graph: Graph, tensors: dict[str, Array], names: list[str], batches: Iterable[Array], threads: int
) -> tuple[dict[str, tuple[np.float32, int]], int]:
    """Return a scale and a zero point for each name, and the number of images that they are chosen by."""
    inner = [name for name in names if name != graph.inputs[0].name]
    sessions = Sessions(replace(graph, outputs=(*graph.outputs, *inner)), tensors)
    samples: dict[str, list[Array]] = {name: [] for name in names}
    images, rng = 0, np.random.default_rng(0)
    for batch in batches:
        batch = np.asarray(batch)
        graph.check([batch.shape])
        if batch.dtype != FLOAT or not np.isfinite(batch).all():
            raise InvalidValue(f"images must be finite float32 numbers; these are {batch.dtype}")
        found = sessions.run([batch], threads)[len(graph.outputs) :]
        for name, values in zip(inner, found, strict=True):
            samples[name].append(_some(values, rng))
        if graph.inputs[0].name in samples:
            samples[graph.inputs[0].name].append(_some(batch, rng))
        images += len(batch)
    if not images:
        raise InvalidValue("there is no image to choose the ranges by; wanted are some hundred")
    steps = {name: _steps(np.concatenate(values), name) for name, values in samples.items()}
    for each in graph.nodes:
        if each.operation == "MaxPool" and each.name in steps and each.inputs[0] in steps:
            steps[each.name] = steps[each.inputs[0]]
    return steps, images


def _some(values: Array, rng: np.random.Generator) -> Array:
    """Return so many entries that a choice can rest on them, the largest and the smallest among them."""
    flat = values.reshape(-1)
    if flat.size <= MOST_SAMPLES:
        return flat.copy()
    return np.concatenate([flat[rng.integers(0, flat.size, MOST_SAMPLES)], [flat.min(), flat.max()]])


def _steps(values: Array, name: str) -> tuple[np.float32, int]:
    """Return the scale and the zero point by which bytes stand for `values` with the least squared error."""
    if not np.isfinite(values).all():
        raise InvalidValue(f"{name!r:.60} is not finite for these images, so it has no range")
    if values.size > 4 * MOST_SAMPLES:
        ends = [values.min(), values.max()]
        values = np.concatenate([np.random.default_rng(0).choice(values, 4 * MOST_SAMPLES), ends])
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    if high - low < 1e-30:
        return np.float32(1), 0
    best, least = (np.float32(1), 0), np.inf
    for share in RANGES:
        scale = np.float32((high - low) * share / STEPS)
        zero = round(-low * share / float(scale))
        back = np.clip(np.rint(values / scale) + zero, 0, STEPS) - zero
        error = float(np.square(back * scale - values, dtype=np.float64).sum())
        if error < least:
            best, least = (scale, zero), error
    return best


# ---- the graph ---------------------------------------------------------------------------------------------


class _Writer:
    def __init__(
        self,
        graph: Graph,
        tensors: dict[str, Array],
        convolutions: dict[str, Node],
        ranges: dict[str, tuple[np.float32, int]],
    ) -> None:
        self.graph, self.tensors, self.convolutions, self.ranges = graph, dict(tensors), convolutions, ranges
        self.names = {
            *tensors,
            *(x.name for x in graph.inputs),
            *(o for each in graph.nodes for o in each.outputs),
        }
        self.nodes: list[Node] = []
        self.instead: dict[str, str] = {}  # what is read for a name
        self.weights: dict[str, str] = {}

    def run(self) -> tuple[Graph, dict[str, Array]]:
        self._to_bytes(self.graph.inputs[0].name)
        for each in self.graph.nodes:
            inputs = [self._read(name, each) for name in each.inputs]
            if each.name in self.convolutions:
                inputs[1] = self._weight(inputs[1])
            self.nodes.append(replace(each, inputs=tuple(inputs)))
            for name in each.outputs:
                self._to_bytes(name)
        graph = replace(self.graph, nodes=tuple(self.nodes))
        read = graph.readers()
        return graph, {name: tensor for name, tensor in self.tensors.items() if read[name]}

    def _read(self, name: str, node: Node) -> str:
        """Return what a node reads for a name; the input of the network is there in float32 for others anyway."""
        if name == self.graph.inputs[0].name and node.name not in self.convolutions:
            return name
        return self.instead.get(name, name)

    def _new(self, name: str) -> str:
        while name in self.names:
            name += "'"
        self.names.add(name)
        return name

    def _keep(self, name: str, tensor: Array) -> str:
        name = self._new(name)
        self.tensors[name] = tensor
        return name

    def _to_bytes(self, name: str) -> None:
        if name not in self.ranges:
            return
        scale, zero = self.ranges[name]
        steps = (
            self._keep(f"{name}.scale", np.array(scale, np.float32)),
            self._keep(f"{name}.zero", np.array(zero, np.uint8)),
        )
        made, back = self._new(f"{name}.uint8"), self._new(f"{name}.float")
        self.nodes.append(node("QuantizeLinear", [name, *steps], made, to="uint8"))
        self.nodes.append(node("DequantizeLinear", [made, *steps], back))
        self.instead[name] = back

    def _weight(self, name: str) -> str:
        if name not in self.weights:
            weight = self.tensors[name]
            largest = np.abs(weight).max(axis=(1, 2, 3))
            scale = np.where(largest > 1e-30, largest / np.float32(127), np.float32(1)).astype(np.float32)
            whole = np.clip(np.rint(weight / scale.reshape(-1, 1, 1, 1)), -127, 127).astype(np.int8)
            sources = [self._keep(f"{name}.int8", whole), self._keep(f"{name}.scale", scale)]
            self.weights[name] = self._new(f"{name}.float")
            self.nodes.append(node("DequantizeLinear", sources, self.weights[name], axis=0))
        return self.weights[name]
