"""A network for inference as data: operations in the order in which they run.

Nodes are named and meant as ONNX's are (`torchswat.runtime.operations`). They read results, inputs and
tensors by name; sizes are values like others, so batch and image sizes may be free. A graph that comes from
a file is checked number by number, before anything is made of it, and then by the shape rules of `infer`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torchswat.errors import InvalidData, InvalidValue
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.rows import LARGEST, MOST_DIMENSIONS, TYPES, Shape, count

MOST_NODES = 20_000
BATCH = "batch"
"""The name of a free size that counts images."""


@dataclass(frozen=True)
class Input:
    """An input of a network.

    Attributes
    ----------
    name : str
        Of the input.
    shape : tuple of int or str
        A name stands for a free size, the same wherever it stands.
    example : tuple of int
        Sizes that it was made for.
    dtype : str, default "float32"
        Its type.
    """

    name: str
    shape: tuple[int | str, ...]
    example: Shape
    dtype: str = "float32"

    @property
    def is_batch(self) -> bool:
        """Whether its first size is free and counts images."""
        return bool(self.shape) and self.shape[0] == BATCH


@dataclass(frozen=True)
class Node:
    """One operation.

    Attributes
    ----------
    operation : str
        One of `torchswat.runtime.operations.OPERATIONS`.
    inputs : tuple of str
        Names of results, inputs or tensors; empty for one that is left out.
    outputs : tuple of str
        Names of its results, the first of which is the node's own.
    settings : dict
        Numbers, lists of numbers, and words.
    """

    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the first result."""
        return self.outputs[0]


def node(operation: str, inputs: Sequence[str], output: str | Sequence[str], **settings: Any) -> Node:
    """Return a node with the settings that are given, and the default of the others.

    Examples
    --------
    >>> node("LeakyRelu", ["input"], "y").settings
    {'alpha': 0.01}
    """
    row = OPERATIONS[operation].settings
    assert not set(settings) - set(row), settings
    values = {name: settings.get(name, setting.default) for name, setting in row.items()}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return Node(operation, tuple(inputs), (output,) if isinstance(output, str) else tuple(output), values)


@dataclass(frozen=True)
class Graph:
    """A network: inputs, nodes, each behind those that it reads, and the names of the outputs.

    Attributes
    ----------
    inputs : tuple of Input
        What it reads.
    nodes : tuple of Node
        What it does.
    outputs : tuple of str
        What it answers.
    rows : bool
        Whether an image's answer depends on that image alone, so that batches may be cut.

    Examples
    --------
    >>> x = Input("input", ("batch", 1, 8, 8), (1, 1, 8, 8))
    >>> Graph((x,), (node("Flatten", ["input"], "flat"),), ("flat",)).input_shape
    (1, 8, 8)
    """

    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]
    rows: bool = True

    @property
    def input_shape(self) -> Shape:
        """The shape of one image (of the first input) that the network was made for."""
        return self.inputs[0].example[1:]

    @property
    def examples(self) -> dict[str, Shape]:
        """The shape of every input that the network was made for."""
        return {value.name: value.example for value in self.inputs}

    def readers(self) -> Counter[str]:
        """Return how often each name is read; the outputs are read once more."""
        names = [name for each in self.nodes for name in each.inputs if name]
        return Counter([*names, *self.outputs])

    def check(self, shapes: Sequence[Shape]) -> dict[str, Shape]:
        """Return the shapes of inputs by name.

        Raises
        ------
        InvalidValue
            They are not those that the network takes.
        """
        if len(shapes) != len(self.inputs):
            names = ", ".join(value.name for value in self.inputs)
            raise InvalidValue(f"{len(shapes)} inputs are given; this network takes {names}")
        sizes: dict[str, int] = {}
        for value, shape in zip(self.inputs, shapes, strict=True):
            fits = len(shape) == len(value.shape) and all(
                mine == (sizes.setdefault(size, mine) if isinstance(size, str) else size)
                for mine, size in zip(shape, value.shape, strict=True)
            )
            if not fits:
                raise InvalidValue(
                    f"the input has the shape {tuple(shape)}; this network takes {shape_text(value.shape)}"
                )
            if count(shape) > LARGEST:
                raise InvalidValue(
                    f"an input of shape {tuple(shape)} is too large: {LARGEST} entries are allowed"
                )
        return {value.name: tuple(shape) for value, shape in zip(self.inputs, shapes, strict=True)}

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a file."""
        return {
            "inputs": [
                {"name": v.name, "dtype": v.dtype, "shape": list(v.shape), "example": list(v.example)}
                for v in self.inputs
            ],
            "nodes": [
                {
                    "operation": each.operation,
                    "inputs": list(each.inputs),
                    "outputs": list(each.outputs),
                    "settings": {
                        key: list(value) if isinstance(value, tuple) else value
                        for key, value in each.settings.items()
                    },
                }
                for each in self.nodes
            ],
            "outputs": list(self.outputs),
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, values: Any, tensors: Sequence[str] = ()) -> Graph:
        """Check plain values and make a graph of them that reads no other `tensors`.

        Raises
        ------
        InvalidData
            They are not what `to_json` returns.
        """
        fields = {"inputs", "nodes", "outputs", "rows"}
        if not isinstance(values, dict) or set(values) != fields:
            raise InvalidData(f"a network is {', '.join(sorted(fields))}, not {values!r:.80}")
        inputs, nodes, rows = values["inputs"], values["nodes"], values["rows"]
        if not isinstance(inputs, list) or not 0 < len(inputs) <= 100:
            raise InvalidData("a network needs a list of 1 to 100 inputs")
        if not isinstance(nodes, list) or not 0 < len(nodes) <= MOST_NODES:
            raise InvalidData(f"a network needs a list of 1 to {MOST_NODES} nodes")
        if type(rows) is not bool:
            raise InvalidData(f"rows is {rows!r:.40}; allowed is true or false")
        graph = cls(
            tuple(map(_input, inputs)), tuple(map(_node, nodes)), _names(values["outputs"], "outputs"), rows
        )
        graph.check_names(tensors)
        return graph

    def check_names(self, tensors: Sequence[str]) -> None:
        """Refuse a graph in which a name is read before it is there, is taken twice, or is never read.

        Raises
        ------
        InvalidData
            The message names the node.
        """
        there = {value.name for value in self.inputs}
        if len(there) != len(self.inputs) or there & set(tensors):
            raise InvalidData("the name of an input is taken")
        there |= set(tensors)
        for each in self.nodes:
            what = f"node {each.name!r:.60} ({each.operation})"
            missing = [name for name in each.inputs if name and name not in there]
            if missing:
                raise InvalidData(f"{what}: there is no {missing[0]!r:.60} before it")
            if len(set(each.outputs)) != len(each.outputs) or there & set(each.outputs):
                raise InvalidData(f"{what}: the name is taken")
            there.update(each.outputs)
        missing = [name for name in self.outputs if name not in there]
        if missing or not self.outputs:
            raise InvalidData(f"the outputs {', '.join(missing) or '(none)'} are made by no node")
        read = self.readers()
        unused = [name for name in tensors if not read[name]]
        if unused:
            raise InvalidData(f"no node uses the tensor {unused[0]!r:.60}")


def shape_text(shape: Sequence[int | str]) -> str:
    """Return a shape for people: N for the batch, other free sizes by name.

    Examples
    --------
    >>> shape_text(("batch", 3, "height"))
    '(N, 3, height)'
    """
    return f"({', '.join('N' if size == BATCH else str(size) for size in shape)})"


def _names(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(each, str) for each in values):
        raise InvalidData(f"{what} must be a list of names, not {values!r:.60}")
    return tuple(values)


def _input(values: Any) -> Input:
    if not isinstance(values, dict) or set(values) != {"name", "dtype", "shape", "example"}:
        raise InvalidData(f"an input is a name, dtype, shape and example, not {values!r:.80}")
    name, dtype, shape, example = (values[key] for key in ("name", "dtype", "shape", "example"))
    if not isinstance(name, str) or not name:
        raise InvalidData(f"the name of an input must be text, not {name!r:.60}")
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise InvalidData(f"input {name!r:.60}: the dtype {dtype!r:.40} is none of {', '.join(TYPES)}")
    lists = isinstance(shape, list) and isinstance(example, list)
    if not lists or not len(shape) == len(example) <= MOST_DIMENSIONS:
        raise InvalidData(f"input {name!r:.60}: shape and example must be lists of sizes")
    for size, given in zip(shape, example, strict=True):
        fits = (isinstance(size, str) and size) or size == given
        if type(size) not in (int, str) or type(given) is not int or not 0 < given <= LARGEST or not fits:
            raise InvalidData(
                f"input {name!r:.60}: {size!r:.40} is no size, or its example {given!r:.40} is none"
            )
    if count(example) > LARGEST:
        raise InvalidData(f"input {name!r:.60}: {example} would have too many entries")
    return Input(name, tuple(shape), tuple(example), dtype)


def _node(values: Any) -> Node:
    if not isinstance(values, dict) or set(values) != {"operation", "inputs", "outputs", "settings"}:
        raise InvalidData(f"a node is an operation, inputs, outputs and settings, not {values!r:.80}")
    operation, settings = values["operation"], values["settings"]
    outputs = _names(values["outputs"], "the outputs of a node")
    if not outputs or not all(outputs):
        raise InvalidData(f"the name of a node must be text, not {values['outputs']!r:.60}")
    name = outputs[0]
    inputs = _names(values["inputs"], f"node {name!r:.60}: the inputs")
    if not isinstance(operation, str) or operation not in OPERATIONS:
        raise InvalidData(f"node {name!r:.60}: unknown operation {operation!r:.60}")
    row = OPERATIONS[operation]
    given = [at for at, each in enumerate(inputs) if not each]
    least, most = row.inputs
    if not least <= len(inputs) <= most or any(at not in row.optional for at in given):
        raise InvalidData(f"node {name!r:.60}: {operation} cannot have {len(inputs) - len(given)} inputs so")
    if len(outputs) > row.outputs:
        raise InvalidData(f"node {name!r:.60}: {operation} has no {len(outputs)} outputs")
    if not isinstance(settings, dict) or set(settings) != set(row.settings):
        raise InvalidData(
            f"node {name!r:.60}: {operation} takes the settings {', '.join(row.settings) or 'none'}"
        )
    for key, value in settings.items():
        if not row.settings[key].allows(value):
            raise InvalidData(f"node {name!r:.60}: {key} is {value!r:.40}; allowed is {row.settings[key]}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    return Node(operation, inputs, outputs, values)
