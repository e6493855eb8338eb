"""From a trained torch module to a `Graph`: read by `torch.export`, then compared with the module itself."""

from __future__ import annotations

import copy
import logging
import operator
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from torchswat.convert import (
    check_weight_is_own,
    desparsify_,
    has_weights_to_prune,
    prune_,
    sparse_layers,
)
from torchswat.errors import InvalidData, InvalidValue
from torchswat.runtime.aten import DTYPES, SIZES, TABLE, Made, Unsupported, Writer
from torchswat.runtime.graph import BATCH, Graph, Input
from torchswat.runtime.operations.rows import Shape
from torchswat.runtime.session import Sessions
from torchswat.runtime.simplify import simplify

Tensors = dict[str, np.ndarray]
CLOSE = 1e-3  # of the largest output: what rounding and the order of additions explain


def pruned(model: nn.Module) -> nn.Module:
    """Return a copy of `model` for inference: plain torch modules in evaluation mode, on the CPU in float32.

    Layers whose forward pass leaves weights out are pruned. Where only the backward pass does (SAW), all
    weights stay: without them the network would be another.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            check_weight_is_own(name, layer)
    model = copy.deepcopy(model)
    for _, layer in sparse_layers(model):
        if layer.sparse.algorithm.forward_weight and has_weights_to_prune(layer):
            prune_(layer)
    return desparsify_(model).eval().cpu().float()


def trace(model: nn.Module, example: Tensor | Sequence[Tensor]) -> tuple[Graph, Tensors]:
    """Return the graph of `model` and its tensors.

    It is taken as `pruned` makes it; `model` itself is left alone.

    Parameters
    ----------
    model : Module
        What to read.
    example : Tensor or sequence of Tensor
        Its arguments. The first size of each counts images and is free; of images, height and width are where
        the module computes the same with other sizes as the graph does.

    Raises
    ------
    InvalidValue
        For an operation that no graph has, or a flow that depends on data.
    """
    model = pruned(model)
    inputs = [example] if isinstance(example, Tensor) else list(example)
    if not inputs or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
        raise InvalidValue(f"the example is {type(example).__name__}; allowed are tensors with a batch")
    inputs = [_two_images(x.detach().cpu()) for x in inputs]
    trials = (
        [(True, True), (True, False), (False, False)]
        if _are_images(inputs)
        else [(True, False), (False, False)]
    )
    problem: Exception | None = None
    for batch, space in trials:
        try:
            graph, tensors = _read(model, inputs, batch, space)
            graph = _compared(model, graph, tensors, inputs, space)
            return graph, tensors
        except (_Differs, InvalidValue) as error:  # with fixed sizes it may fit
            problem = problem or error
        except Exception as error:  # whatever a user's forward may raise on symbolic sizes
            problem = error
    name = type(model).__name__
    if isinstance(problem, InvalidValue):
        raise problem
    if isinstance(problem, _Differs):
        raise InvalidValue(f"what was read of {name} computes something else: {problem}") from problem
    raise InvalidValue(
        f"the flow of {name} cannot be read: {str(problem)[:2000]} It may not depend on data; torch.export says more."
    ) from problem


class _Differs(Exception):
    """The outputs of the graph and of the module differ."""


def _two_images(x: Tensor) -> Tensor:
    """Return an example with two images or more: of one alone, torch takes the number for fixed."""
    return torch.cat([x, x]) if len(x) == 1 else x


def _are_images(inputs: Sequence[Tensor]) -> bool:
    return all(x.dim() in (3, 4) and x.dtype == torch.float32 for x in inputs)


@torch.no_grad()
def _read(model: nn.Module, inputs: list[Tensor], batch: bool, space: bool) -> tuple[Graph, Tensors]:
    free: dict[int, Any] = {0: Dim.AUTO} if batch else {}
    shapes = [{**free, **(dict.fromkeys(range(2, x.dim()), Dim.AUTO) if space else {})} for x in inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter warns of torch's own calls
        level = logging.getLogger("torch").level
        logging.getLogger("torch").setLevel(logging.ERROR)
        try:
            kept = _Forward(model)
            program = torch.export.export(kept, tuple(inputs), dynamic_shapes=(tuple(shapes),), strict=False)
            table = torch.export.default_decompositions()
            for target in list(table):
                if _target(target) in TABLE:
                    table.pop(target)
            program = program.run_decompositions(table)
        finally:
            logging.getLogger("torch").setLevel(level)
    graph, tensors = _Reader(program, inputs).read()
    return simplify(graph, tensors)


class _Forward(nn.Module):
    """A module whose outputs are a flat tuple of tensors."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat_outputs(self.model(*inputs)))


def flat_outputs(result: Any) -> list[Tensor]:
    """Return the tensors of a result, whatever holds them."""
    if isinstance(
        result, dict
    ):  # Hugging Face's outputs are dicts, and few of them are registered with pytree
        result = list(result.values())
    leaves, _ = pytree.tree_flatten(result)
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _target(target: Any) -> str:
    """Return the name of a call's target, without its namespace."""
    name = str(target)
    return name.partition(".")[2] if name.startswith("aten.") else name


class _Reader:
    """Turns the calls of an exported program, one after the other, into nodes."""

    def __init__(self, program: ExportedProgram, inputs: list[Tensor]) -> None:
        self.program, self.examples, self.writer = program, inputs, Writer()
        self.made: dict[fx.Node, Any] = {}

    def read(self) -> tuple[Graph, Tensors]:
        """Return the graph and its tensors."""
        calls = list(self.program.graph.nodes)
        signature = self.program.graph_signature
        state = {**self.program.state_dict, **self.program.constants}
        sources = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        sources |= signature.inputs_to_lifted_tensor_constants
        users = [call for call in calls if call.op == "placeholder" and call.name not in sources]
        inputs = self._inputs(users)
        needed = self._needed(calls)
        for call in calls:
            if call not in needed:
                continue
            if call.op == "placeholder" and call.name in sources:
                self.made[call] = self._tensor(sources[call.name], state[sources[call.name]], call)
            elif call.op == "call_function":
                self.made[call] = self._convert(call)
            elif call.op == "get_attr":
                raise InvalidValue(f"{call.target} is a part of the flow, which may not depend on data")
        (output,) = (call for call in calls if call.op == "output")
        outputs = [self._output(each) for each in output.args[0]]
        if not outputs:
            raise InvalidValue("the network returns no tensor")
        return Graph(tuple(inputs), tuple(self.writer.nodes), tuple(outputs)), self.writer.tensors

    def _needed(self, calls: list[fx.Node]) -> set[fx.Node]:
        """Return what outputs depend on: checks of sizes are left out."""
        needed: set[fx.Node] = set()
        for call in reversed(calls):
            if call.op == "output" or call in needed:
                needed.update([call, *call.all_input_nodes])
        return needed

    def _inputs(self, users: list[fx.Node]) -> list[Input]:
        names: dict[str, str] = {}
        found: list[Input] = []
        several = len(users) > 1
        for number, (call, example) in enumerate(zip(users, self.examples, strict=True)):
            value = call.meta["val"]
            shape: list[int | str] = []
            for axis, size in enumerate(value.shape):
                wanted = BATCH if axis == 0 else {2: "height", 3: "width"}.get(axis, f"size{axis}")
                if not isinstance(size, int):
                    name = names.setdefault(
                        str(size), wanted if wanted not in names.values() else f"{wanted}{number}"
                    )
                    shape.append(name)
                else:
                    shape.append(size)
            name = self.writer.name(f"input{number}" if several else "input")
            self.made[call] = Made(name, value)
            dtype = "float32" if value.dtype.is_floating_point else str(value.dtype).removeprefix("torch.")
            if dtype not in ("float32", "int64", "bool"):
                raise InvalidValue(f"the input {name} is {value.dtype}; float32, int64 and bool are possible")
            found.append(Input(name, tuple(shape), tuple(example.shape), dtype))
        return found

    def _tensor(self, name: str, tensor: Tensor, call: fx.Node) -> Made:
        name = self.writer.name(name.removeprefix("model."))
        array = tensor.detach().cpu()
        array = array.to(getattr(torch, DTYPES[array.dtype])).contiguous().numpy().copy()
        self.writer.tensors[name] = array
        return Made(name, call.meta["val"])

    def _convert(self, call: fx.Node) -> Any:
        target = call.target
        if target is operator.getitem:
            return self.made[call.args[0]][call.args[1]]  # type: ignore[index]
        self.writer.prefix, self.writer.call = self._name(call), call.meta.get("val")
        arguments, named = pytree.tree_map_only(
            fx.Node, lambda each: self.made[each], (call.args, dict(call.kwargs))
        )
        function = SIZES.get(target) or TABLE.get(_target(target))
        try:
            if function is None:
                raise Unsupported(_target(target))
            value = function(self.writer, *arguments, **named)
        except Unsupported as error:
            raise InvalidValue(self._refusal(call, error)) from None
        if isinstance(value, str):
            return Made(value, call.meta["val"])
        if isinstance(value, (tuple, list)):
            return [Made(name, known) for name, known in zip(value, call.meta["val"], strict=False)]
        return value

    def _refusal(self, call: fx.Node, error: Exception) -> str:
        line = (call.meta.get("stack_trace") or "").strip().splitlines()[-1:]
        code = f" (`{line[0].strip()}`)" if line else ""
        return (
            f"the operation {error} at {_place(call) or 'the top of the network'!r}{code} cannot be saved. Write it "
            "with other operations of torch, or let it follow the network: return what it takes."
        )

    def _name(self, call: fx.Node) -> str:
        place = _place(call)
        return place if place else call.name

    def _output(self, value: Any) -> str:
        made = self.made.get(value) if isinstance(value, fx.Node) else None
        if not isinstance(made, Made):
            raise InvalidValue(f"an output of the network is {value!r:.60}; tensors are possible")
        return made.name


def _place(call: fx.Node) -> str:
    """Return the path of the module in which a call stands."""
    stack = call.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return path.removeprefix("model").removeprefix(".")


# ---- the comparison ----------------------------------------------------------------------------------------


@torch.no_grad()
def _compared(model: nn.Module, graph: Graph, tensors: Tensors, inputs: list[Tensor], space: bool) -> Graph:
    """Return the graph after it is compared with the module, marked where its rows are independent."""
    graph = replace(graph, rows=False)
    sessions = Sessions(graph, tensors)
    if all(
        str(size) == str(given)
        for each in graph.inputs
        for size, given in zip(each.shape, each.example, strict=True)
    ):
        _compare(model, sessions, _drawn(inputs, graph, {}))
        return graph
    batched = all(each.is_batch for each in graph.inputs)
    rows = False
    if batched:
        drawn = _drawn(inputs, graph, {BATCH: 3})
        found = _compare(model, sessions, drawn)
        alone = _compare(model, sessions, [x[1:2] for x in drawn])
        rows = all(
            a.shape[:1] == (3,)
            and b.shape[:1] == (1,)
            and a.shape[1:] == b.shape[1:]
            and _gap(a[1:2], b) < 1e-4
            for a, b in zip(found, alone, strict=True)
        )
    else:
        _compare(model, sessions, _drawn(inputs, graph, {}))
    if space and any(isinstance(size, str) and size != BATCH for each in graph.inputs for size in each.shape):
        _compare_sizes(model, sessions, graph, inputs)
    return replace(graph, rows=rows)


def _compare_sizes(model: nn.Module, sessions: Sessions, graph: Graph, inputs: list[Tensor]) -> None:
    """Compare at other heights and widths, without those at which the module itself fails."""
    agreed = 0
    sizes = {
        size: given
        for each in graph.inputs
        for size, given in zip(each.shape, each.example, strict=True)
        if isinstance(size, str) and size != BATCH
    }
    for more in (32, 7, -5):
        wanted = {size: max(1, given + more) for size, given in sizes.items()}
        drawn = _drawn(inputs, graph, wanted)
        try:
            expected = flat_outputs(model(*drawn))
        except Exception:
            continue
        _compare(model, sessions, drawn, expected)
        agreed += 1
    if not agreed:
        raise _Differs("no other size could be tried")


def _drawn(inputs: list[Tensor], graph: Graph, sizes: dict[str, int]) -> list[Tensor]:
    """Return random inputs like the examples, of these free sizes."""
    drawn: list[Tensor] = []
    generator = torch.Generator().manual_seed(1)
    for x, each in zip(inputs, graph.inputs, strict=True):
        shape: Shape = tuple(
            sizes.get(size, given) if isinstance(size, str) else given
            for size, given in zip(each.shape, x.shape, strict=True)
        )
        if x.dtype.is_floating_point:
            drawn.append(torch.randn(shape, generator=generator))
        else:  # indices have a range of their own: entries of the example, again
            places = torch.arange(max(1, int(np.prod(shape)))) % max(1, x.numel())
            drawn.append(x.flatten()[places][: int(np.prod(shape))].view(shape))
    return drawn


def _compare(
    model: nn.Module, sessions: Sessions, inputs: list[Tensor], expected: list[Tensor] | None = None
) -> list[Tensor]:
    expected = flat_outputs(model(*(x.clone() for x in inputs))) if expected is None else expected
    try:
        found = [
            torch.from_numpy(each)
            for each in sessions.run([x.numpy() for x in inputs], torch.get_num_threads())
        ]
    except (InvalidData, InvalidValue) as error:
        raise _Differs(str(error)) from error
    for mine, theirs in zip(found, expected, strict=True):
        if mine.shape != theirs.shape:
            raise _Differs(f"an output of shape {tuple(mine.shape)} instead of {tuple(theirs.shape)}")
        gap = _gap(mine, theirs)
        if not gap < CLOSE:
            raise _Differs(f"relative error {gap:.1e}; its flow may depend on data")
    return found


def _gap(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a part of the largest output."""
    if not expected.numel():
        return 0.0
    found, expected = found.double(), expected.double()
    return float((found - expected).abs().max()) / max(1e-6, float(expected.abs().max()))
