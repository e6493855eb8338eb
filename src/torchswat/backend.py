"""``torch.compile(model, backend="torchswat")``: batch norm, the sum with a residual and ReLU as one operation.

A thin backend: on the graph that Dynamo captured, whose guards say when it is valid, a training batch norm of the
engine takes the addition and the ReLU behind it into its pass; AOTAutograd then splits forward and backward, and
torch's eager kernels and the engine's run the rest. Inductor compiles the same models, but lays activations out anew.

>>> import torch, torchswat
>>> model = torchswat.sparsify_(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()))
>>> compiled = torch.compile(model, backend="torchswat")  # or torchswat.backend.torchswat itself
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

_ADDITIONS = operator.add, operator.iadd, torch.add
_RELUS = torch.relu, torch.nn.functional.relu, torch.relu_
_RESIDUAL, _RELU = 1, 8
"""Positions of arguments of ``torchswat::batch_norm``."""


def torchswat(graph_module: fx.GraphModule, example_inputs: list[Tensor]) -> Callable[..., Any]:
    """Compile a graph of Dynamo.

    Parameters
    ----------
    graph_module : GraphModule
        What Dynamo captured.
    example_inputs : list of Tensor
        Its inputs.

    Returns
    -------
    callable
        The compiled graph.
    """
    from torch._dynamo.backends.common import aot_autograd  # a second to import, and seldom needed
    from torch._dynamo.backends.debugging import boxed_nop
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    fuse_graph_(graph_module)
    compiled = aot_autograd(
        fw_compiler=boxed_nop,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )
    return compiled(graph_module, example_inputs)


def fuse_graph_(graph_module: fx.GraphModule) -> int:
    """Take additions and ReLUs into the batch norms before them, in place; return how many were taken."""
    operation = torch.ops.torchswat.batch_norm
    taken = 0
    for norm in list(graph_module.graph.nodes):
        if norm.op == "call_function" and norm.target in (operation, operation.default):
            taken += _take_addition(norm)
            taken += _take_relu(norm)
    if taken:
        graph_module.graph.lint()
        graph_module.recompile()
    return taken


def _output(norm: fx.Node) -> fx.Node | None:
    return next((user for user in norm.users if user.target is operator.getitem and user.args[1] == 0), None)


def _only_reader(node: fx.Node | None) -> fx.Node | None:
    return next(iter(node.users)) if node is not None and len(node.users) == 1 else None


def _take_relu(norm: fx.Node) -> int:
    output = _output(norm)
    relu = _only_reader(output)
    if relu is None or output is None:
        return 0
    by_method = relu.op == "call_method" and relu.target in ("relu", "relu_")
    if not by_method and not (relu.op == "call_function" and relu.target in _RELUS):
        return 0
    norm.update_arg(_RELU, True)
    relu.replace_all_uses_with(output)
    norm.graph.erase_node(relu)
    return 1


def _take_addition(norm: fx.Node) -> int:
    output = _output(norm)
    addition = _only_reader(output)
    if addition is None or output is None or addition.kwargs or len(addition.args) != 2:
        return 0
    by_method = addition.op == "call_method" and addition.target in ("add", "add_")
    if not by_method and not (addition.op == "call_function" and addition.target in _ADDITIONS):
        return 0
    in_place = addition.target in (operator.iadd, "add_")
    if in_place and addition.args[0] is not output:
        return 0
    residual = addition.args[1] if addition.args[0] is output else addition.args[0]
    if not isinstance(residual, fx.Node) or residual is output or not _alike(residual, output):
        return 0
    moved = _with_dependents(norm, output, before=addition)
    if moved is None:
        return 0
    for node in moved:  # to where the residual is there; what updates the statistics goes with it
        addition.prepend(node)
    norm.update_arg(_RESIDUAL, residual)
    addition.replace_all_uses_with(output)
    norm.graph.erase_node(addition)
    return 1


def _alike(a: fx.Node, b: fx.Node) -> bool:
    one, other = a.meta.get("example_value"), b.meta.get("example_value")
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return False
    return one.shape == other.shape and one.dtype == other.dtype and one.device == other.device


def _with_dependents(norm: fx.Node, output: fx.Node, before: fx.Node) -> list[fx.Node] | None:
    """Return `norm` and all between it and `before` that depends on it; None where it may not be moved there."""
    moved, node = [norm], norm.next
    while node is not before:
        if node.op == "root" or node.op == "output":
            return None
        if any(operand in moved for operand in node.all_input_nodes):
            moved.append(node)
        elif norm.args[0] in node.all_input_nodes and _may_write(node):
            return None
        node = node.next
    return moved if output in moved else None


def _may_write(node: fx.Node) -> bool:
    name = str(getattr(node.target, "__name__", node.target))
    return name.endswith("_") or name.startswith("i") or bool(node.kwargs.get("inplace"))
