"""Who reads whose output: what of a model's flow is worth fusing, read off the model itself.

A model is traced symbolically (`torch.fx`); one that cannot be traced, because its flow depends on data, is
read where it is made of `torch.nn.Sequential`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx, nn

CONCATENATIONS = torch.cat, torch.concat, torch.concatenate
"""The names that torch has for one function."""


@dataclass
class Readers:
    """What is known of a model's flow.

    Attributes
    ----------
    rectified : set of Module
        Batch norms whose output, or whose output's sum with a residual, goes to a ReLU module and nowhere
        else.
    summed : set of Module
        Batch norms whose output goes to one addition of two tensors and nowhere else; no two to the same.
    behind : dict of Module to set of Module
        By batch norm, the modules that read its output, behind the sum and the ReLU where there are any.
    concatenated : set of Module
        Modules whose output is concatenated with others along the channels.
    """

    rectified: set[nn.Module] = field(default_factory=set)
    summed: set[nn.Module] = field(default_factory=set)
    behind: dict[nn.Module, set[nn.Module]] = field(default_factory=dict)
    concatenated: set[nn.Module] = field(default_factory=set)


def readers_of(model: nn.Module) -> Readers:
    """Trace `model` and return what its modules' outputs are for."""
    try:
        graph = _Tracer().trace(model)
    except Exception:  # whatever a user's forward may raise on symbolic values
        return Readers(_always_before_relu(_pairs_in_sequentials(model)))
    modules = dict(model.named_modules(remove_duplicate=False))

    def called(node: fx.Node | None) -> nn.Module | None:
        return modules.get(str(node.target)) if node is not None and node.op == "call_module" else None

    calls = [(node, module) for node in graph.nodes if isinstance(module := called(node), nn.BatchNorm2d)]
    once = {module for _, module in calls if sum(module is other for _, other in calls) == 1}
    summed: dict[fx.Node, nn.Module] = {}  # by the addition
    for node, module in calls:
        reader = _only_reader(node)
        if module in once and reader is not None and _adds(reader, node):
            summed.setdefault(reader, module)
    # of one that is used several times, the ReLUs may run in another order than it
    pairs = [
        (module, called(_only_reader(node)) if module in once else None)
        for node, module in calls
        if module not in summed.values()
    ]
    pairs += [(module, called(_only_reader(addition))) for addition, module in summed.items()]
    additions = {module: addition for addition, module in summed.items()}
    behind: dict[nn.Module, set[nn.Module]] = {}
    for node, module in calls:
        behind.setdefault(module, set()).update(_readers_behind(additions.get(module) or node, called))
    parts = set(filter(None, (called(part) for node in graph.nodes for part in _concatenated(node))))
    return Readers(_always_before_relu(pairs), set(summed.values()), behind, parts)


class _Tracer(fx.Tracer):
    """Records how modules follow each other, without looking into those that have no children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _adds(reader: fx.Node, node: fx.Node) -> bool:
    """Tell whether `reader` is ``node + tensor``, ``tensor + node`` or ``node += tensor``."""
    if reader.op != "call_function" or reader.target not in (operator.add, operator.iadd):
        return False
    both = len(reader.args) == 2 and all(isinstance(operand, fx.Node) for operand in reader.args)
    return both and reader.args[0] is not reader.args[1] and (
        reader.target is operator.add or reader.args[0] is node
    )  # fmt: skip


def _readers_behind(
    node: fx.Node, called: Callable[[fx.Node | None], nn.Module | None]
) -> Iterator[nn.Module]:
    """Yield the modules that read `node`, or the ReLU that alone reads it."""
    reader = _only_reader(node)
    behind = reader if reader is not None and type(called(reader)) is nn.ReLU else node
    yield from filter(None, map(called, behind.users))


def _concatenated(node: fx.Node) -> list[fx.Node]:
    """Return what `node` concatenates along the channels: nothing where it does something else."""
    if node.op != "call_function" or node.target not in CONCATENATIONS:
        return []
    parts, dimension, *_ = *node.args, *[None] * 2
    if node.kwargs.get("dim", node.kwargs.get("axis", dimension)) not in (1, -3):
        return []
    parts = node.kwargs.get("tensors", parts)
    return [part for part in parts if isinstance(part, fx.Node)] if isinstance(parts, (list, tuple)) else []


def _pairs_in_sequentials(model: nn.Module) -> Iterator[tuple[nn.Module | None, nn.Module | None]]:
    """Yield every child with what reads its output, where a plain `nn.Sequential` tells; None elsewhere."""
    for module in model.modules():
        children = [*module._modules.values(), None]
        if type(module).forward is not nn.Sequential.forward:
            yield from ((child, None) for child in children)
        else:
            yield from itertools.pairwise(children)


def _always_before_relu(pairs: Iterable[tuple[nn.Module | None, nn.Module | None]]) -> set[nn.Module]:
    """Return the batch norms all of whose pairs are with a ReLU (a subclass may compute something else)."""
    verdicts: dict[nn.Module, bool] = {}
    for module, reader in pairs:
        if isinstance(module, nn.BatchNorm2d):
            verdicts[module] = verdicts.get(module, True) and type(reader) is nn.ReLU
    return {module for module, only in verdicts.items() if only}
