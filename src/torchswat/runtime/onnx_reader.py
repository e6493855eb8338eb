"""ONNX files as a `Graph`: operator sets from 7 on, dense and sparse initializers, quantized networks in float32.

Every node is rewritten with the operations of a graph while shapes are followed for inputs of an example size,
so a node that does not fit is refused by its name. The `onnx` package reads the file; nothing in it is run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from torchswat.errors import InvalidData, InvalidValue, MissingData, MissingDependency
from torchswat.runtime.graph import BATCH, Graph, Input, Node, node
from torchswat.runtime.infer import constant, results
from torchswat.runtime.onnx_operators import OPERATORS, Refused
from torchswat.runtime.operations import OPERATIONS
from torchswat.runtime.operations.rows import TYPES, Shape, Value
from torchswat.runtime.package import About, Package
from torchswat.runtime.session import Sessions
from torchswat.runtime.simplify import simplify

INSTALL = 'pip install "torchswat[export]"'
SIZES = 224, 64, 256, 512, 128, 32, 16, 8, 4, 1
"""What is tried for a free size of which nothing is known."""


def read_onnx(path: Path, shapes: Mapping[str, Sequence[int]] | None = None, **about: Any) -> Package:
    """Return what an ONNX file computes, ready to be written or run.

    Parameters
    ----------
    path : Path
        Of the file; weights that lie in files beside it are read, too.
    shapes : mapping of str to sequence of int, optional
        Sizes of inputs by name, for what the file leaves open and no usual size fits.
    **about
        Names of classes, ``mean``, ``std`` and so on, as `About` takes them.

    Returns
    -------
    Package
        Its ``graph`` and ``tensors``; zeros among the weights are kept as such.

    Raises
    ------
    MissingData, MissingDependency
        There is no such file; the package onnx is not installed.
    InvalidData
        The file is no ONNX file, or its nodes do not fit each other.
    InvalidValue
        An operator cannot be run: the message says which, where it stands, and what to do.

    Examples
    --------
    >>> import onnx, tempfile
    >>> from onnx import TensorProto, helper
    >>> x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy")
    >>> graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "small", [x], [y])
    >>> path = Path(tempfile.mkdtemp()) / "small.onnx"
    >>> onnx.save(helper.make_model(graph), path)
    >>> [node.operation for node in read_onnx(path).graph.nodes]
    ['Relu']
    """
    model = _load(path)
    reader = _Reader(model, dict(shapes or {}))
    problem: Exception | None = None
    for size in SIZES if reader.is_open else (1,):
        try:
            graph, tensors = reader.read(size)
            break
        except InvalidData as error:
            problem = problem or error
    else:
        raise InvalidData(f"{path}: {problem}") from None
    graph, tensors = _with_free_batch(*simplify(graph, tensors))
    provenance = {"source": path.name, "producer": model.producer_name, **about.pop("provenance", {})}
    return Package(graph, tensors, About(provenance=provenance, **about))


def _load(path: Path) -> Any:
    try:
        import onnx
        from onnx import inliner
    except ImportError as error:
        raise MissingDependency(
            f"reading ONNX files needs {error.name}, which is not installed: {INSTALL}"
        ) from error
    if not path.is_file():
        raise MissingData(f"there is no file {path}")
    try:
        model = onnx.load(str(path))
    except Exception as error:  # of protobuf, of onnx's own checks, of files beside it
        raise InvalidData(f"{path} is no ONNX file: {str(error)[:200]}") from None
    return inliner.inline_local_functions(model) if model.functions else model


class _Reader:
    def __init__(self, model: Any, shapes: dict[str, Sequence[int]]) -> None:
        from onnx import numpy_helper

        self.model, self.given, self.to_array = model, shapes, numpy_helper.to_array
        self.opsets = {each.domain or "ai.onnx": each.version for each in model.opset_import}
        self.opset = self.opsets.get("ai.onnx", 1)
        names = {each.name for each in model.graph.initializer}
        names |= {each.values.name for each in model.graph.sparse_initializer}
        self.sources = [each for each in model.graph.input if each.name not in names]
        odd = sorted(set(shapes) - {each.name for each in self.sources})
        if odd:
            raise InvalidValue(
                f"there is no input {odd[0]!r}; there is {', '.join(i.name for i in self.sources)}"
            )

    @property
    def is_open(self) -> bool:
        """Whether sizes beside the batch are neither in the file nor given."""
        return any(
            isinstance(size, str) and axis
            for each in self.sources
            if each.name not in self.given
            for axis, size in enumerate(self._shape(each))
        )

    def _shape(self, source: Any) -> list[int | str]:
        if source.name in self.given:
            fixed = self._declared(source)
            return [
                size if isinstance(size, str) else given
                for size, given in zip(
                    fixed or self.given[source.name], self.given[source.name], strict=False
                )
            ]
        declared = self._declared(source)
        if declared is None:
            raise InvalidValue(f"the file does not say how many axes {source.name!r} has: give its shape")
        return declared

    def _declared(self, source: Any) -> list[int | str] | None:
        kind = source.type.tensor_type
        if not kind.HasField("shape"):
            return None
        return [
            each.dim_value
            if each.HasField("dim_value") and each.dim_value > 0
            else each.dim_param or f"{source.name}_{axis}"
            for axis, each in enumerate(kind.shape.dim)
        ]

    def read(self, size: int) -> tuple[Graph, dict[str, np.ndarray]]:
        """Return the graph and its tensors, followed for free sizes of `size`."""
        self.nodes: list[Node] = []
        self.tensors: dict[str, np.ndarray] = {}
        self.values: dict[str, Value] = {}
        self.renamed: dict[str, str] = {}
        self.numbers: dict[tuple, str] = {}
        self.taken: set[str] = set()
        self.lost: dict[str, str] = {}  # results that nothing makes, such as the mask of a dropout
        self.place = ""
        inputs = self._inputs(size)
        self._take_graph(self.model.graph)
        outputs = tuple(self._now(each.name) for each in self.model.graph.output)
        graph = Graph(tuple(inputs), tuple(self.nodes), outputs, rows=False)
        used = graph.readers()
        tensors = {name: tensor for name, tensor in self.tensors.items() if used[name]}
        graph.check_names(list(tensors))
        return graph, tensors

    def _inputs(self, size: int) -> list[Input]:
        from onnx import helper

        found: list[Input] = []
        symbols: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for source in self.sources:
            shape, example = [], []
            given = self.given.get(source.name)
            for axis, each in enumerate(self._shape(source)):
                if isinstance(each, str):
                    free = axis == 0 and BATCH not in symbols.values()
                    name = symbols.setdefault(each, BATCH if free else each if each != BATCH else f"{each}_")
                    sizes.setdefault(name, int(given[axis]) if given else 1 if name == BATCH else size)
                    shape.append(name)
                    example.append(sizes[name])
                else:
                    shape.append(each)
                    example.append(each)
            dtype = self._type(helper.tensor_dtype_to_np_dtype(source.type.tensor_type.elem_type))
            found.append(Input(source.name, tuple(shape), tuple(example), dtype.name))
            self.values[source.name] = Value(tuple(example), dtype)
            self.taken.add(source.name)
        return found

    @staticmethod
    def _type(dtype: np.dtype) -> np.dtype:
        """Return the type in which entries are computed."""
        if dtype.name in TYPES:
            return dtype
        if dtype.kind in "iu" or dtype.name in ("int4", "uint4"):
            return TYPES["int64"]
        if dtype.kind == "f" or dtype.name == "bfloat16":
            return TYPES["float32"]
        raise InvalidValue(f"tensors of {dtype} cannot be run; numbers and bools can")

    def _take_graph(self, graph: Any) -> None:
        for each in graph.initializer:
            self.tensor(each.name, self.to_array(each))
        for each in graph.sparse_initializer:
            self.tensor(each.values.name, self._dense(each))
        for number, each in enumerate(graph.node):
            self._take(each, number)

    def _dense(self, sparse: Any) -> np.ndarray:
        values, indices = self.to_array(sparse.values), self.to_array(sparse.indices)
        shape = tuple(sparse.dims)
        if int(np.prod(shape, dtype=object)) > 2**28:
            raise InvalidData(f"the sparse initializer {sparse.values.name!r} is too large: {shape}")
        dense = np.zeros(shape, values.dtype)
        places = tuple(indices.T) if indices.ndim == 2 else np.unravel_index(indices, shape)
        dense[places] = values
        return dense

    def _take(self, proto: Any, number: int) -> None:
        domain = proto.domain or "ai.onnx"
        self.place = proto.name or f"{proto.op_type}_{number}"
        attributes = {each.name: self._attribute(each) for each in proto.attribute}
        inputs = [self._now(name) for name in proto.input]
        if set(inputs) & set(self.lost) - {""}:
            self.place = next(self.lost[name] for name in inputs if name in self.lost)
            raise InvalidValue(self._refusal("whose other results are read", _OTHER))
        outputs = list(proto.output)
        condition = self.known(inputs[0]) if proto.op_type == "If" else None
        if condition is not None:
            self._take_branch(attributes["then_branch" if condition.any() else "else_branch"], outputs)
            return
        name = proto.op_type if domain == "ai.onnx" else f"{domain}.{proto.op_type}"
        function = OPERATORS.get(name)
        if function is None:
            raise InvalidValue(self._refusal(name, _WAYS.get(proto.op_type, _OTHER)))
        try:
            made = function(self, inputs, attributes, outputs)
        except Refused as error:
            raise InvalidValue(self._refusal(f"{name} {error}", _OTHER)) from None
        except (ValueError, IndexError, KeyError, TypeError) as error:
            if isinstance(error, (InvalidData, InvalidValue)):
                raise
            raise InvalidData(f"node {self.place!r:.80} ({name}): {error}") from None
        self._called(outputs, [made] if isinstance(made, str) else list(made))

    def _now(self, name: str) -> str:
        """Return the name under which a result of the file stands in the graph."""
        return self.renamed.get(name, name)

    def _called(self, outputs: list[str], made: list[str]) -> None:
        """Rename results to the names that the file has for them."""
        self.lost |= dict.fromkeys(outputs[len(made) :], self.place)
        for wanted, name in zip(outputs, made, strict=False):
            self.renamed[wanted] = name

    def _take_branch(self, graph: Any, outputs: list[str]) -> None:
        place = self.place
        self._take_graph(graph)
        self.place = place
        self._called(outputs, [self._now(each.name) for each in graph.output])

    def _attribute(self, attribute: Any) -> Any:
        from onnx import AttributeProto, helper

        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            return attribute.g
        value = helper.get_attribute_value(attribute)
        if attribute.type == AttributeProto.TENSOR:
            return self.to_array(value)
        if attribute.type == AttributeProto.SPARSE_TENSOR:
            return self._dense(value)
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value

    def _refusal(self, what: str, way: str) -> str:
        return f"the operator {what} at {self.place!r:.80} cannot be run: {way}"

    # ---- what the functions of operators use

    def tensor(self, name: str, array: np.ndarray) -> str:
        """Enter a constant."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        self.tensors[name] = array.astype(self._type(array.dtype), copy=False)
        self.values[name] = constant(self.tensors[name])
        self.taken.add(name)
        return name

    def constant(self, values: Any, dtype: str = "int64") -> str:
        """Return the name of a constant."""
        array = np.asarray(values, dtype)
        key = dtype, array.shape, array.tobytes()
        if key not in self.numbers:
            self.numbers[key] = self.tensor(f"constant.{len(self.numbers)}", array)
        return self.numbers[key]

    def add(self, operation: str, *inputs: str, **settings: Any) -> str:
        """Append an operation of one result, and return its name."""
        return self.many(operation, 1, *inputs, **settings)[0]

    def many(self, operation: str, outputs: int, *inputs: str, **settings: Any) -> list[str]:
        """Append an operation of several results, and return their names."""
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        names = []
        for _ in range(outputs):
            name, number = self.place, 1
            while name in self.taken:
                name, number = f"{self.place}.{number}", number + 1
            self.taken.add(name)
            names.append(name)
        made = node(operation, inputs, names, **settings)
        for key, value in made.settings.items():
            if not OPERATIONS[operation].settings[key].allows(value):
                raise ValueError(f"{key} is {value!r:.40}; allowed is {OPERATIONS[operation].settings[key]}")
        missing = [name for name in inputs if name and name not in self.values]
        if missing:
            raise ValueError(f"there is no {missing[0]!r:.60} before it")
        found = results(made, [self.values[name] if name else None for name in inputs], OPERATIONS[operation])
        self.values |= zip(names, found, strict=False)
        self.nodes.append(made)
        return names

    def known(self, name: str) -> np.ndarray | None:
        """Return the entries of a value that no image decides."""
        if name in self.tensors:
            return self.tensors[name]
        return self.values[name].known if name in self.values else None

    def rank(self, name: str) -> int:
        """Return the number of axes."""
        return len(self.shape(name))

    def shape(self, name: str) -> Shape:
        """Return the shape for the example."""
        if name not in self.values:
            raise ValueError(f"there is no {name!r:.60} before it")
        return self.values[name].shape

    def dtype(self, name: str) -> str:
        """Return the type, by name."""
        return self.values[name].dtype.name


_OTHER = "write the model with other operators, or cut the file before it (onnx.utils.extract_model)"
_FLOW = "the flow may not depend on data; export the model again with fixed sizes, or cut the file before it"
_CUT = (
    "how many results there are depends on data; cut the file before it (onnx.utils.extract_model) and let your "
    "program do the rest"
)
_WAYS = {
    **dict.fromkeys(("If", "Loop", "Scan", "SequenceMap"), _FLOW),
    **dict.fromkeys(("NonMaxSuppression", "NonZero", "Unique", "Compress"), _CUT),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "Bernoulli", "Multinomial"), "it draws at random"),
}


def _with_free_batch(graph: Graph, tensors: dict[str, np.ndarray]) -> tuple[Graph, dict[str, np.ndarray]]:
    """Return the graph with a free batch size where it computes each image by itself, whatever the file says."""
    free = replace(
        graph,
        inputs=tuple(replace(each, shape=(BATCH, *each.shape[1:])) for each in graph.inputs if each.shape),
    )
    if len(free.inputs) != len(graph.inputs) or len({each.example[0] for each in graph.inputs}) != 1:
        return graph, tensors
    draw = np.random.default_rng(0)
    three = [_drawn(draw, (3, *each.example[1:]), each.dtype) for each in free.inputs]
    try:
        sessions = Sessions(free, tensors)
        free.check([x.shape for x in three])
        together, alone = sessions.run(three, 1), sessions.run([x[1:2] for x in three], 1)
    except (InvalidData, InvalidValue):
        return graph, tensors
    rows = all(
        a.shape[:1] == (3,)
        and b.shape == (1, *a.shape[1:])
        and np.allclose(a[1:2], b, rtol=1e-3, atol=1e-4 * (1e-6 + np.abs(b).max(initial=0)))
        for a, b in zip(together, alone, strict=True)
    )
    return (replace(free, rows=True), tensors) if rows else (graph, tensors)


def _drawn(draw: np.random.Generator, shape: Shape, dtype: str) -> np.ndarray:
    if dtype == "float32":
        return draw.standard_normal(shape).astype(np.float32)
    return draw.integers(0, 2, shape).astype(dtype)
