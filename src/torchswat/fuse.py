"""Fusion on request: `fuse_` finds chains of batch norm, sum and ReLU, `unfuse_` undoes it.

Each container is traced by itself: the graph of its own forward (`torchswat.containers`) shows the consumers of each
output. A chain is fused where that graph proves that no other code can hold what is inside.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import operator
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.nn import functional as F

from torchswat.concatenation import concatenate
from torchswat.containers import NotTraceable, Trace, trace_container
from torchswat.effects import is_fresh, may_change, unchanged_until
from torchswat.fused import (
    STATE,
    FusedModule,
    Fusion,
    fused_class,
    norm_chain,
    pass_on,
    recomputable_chain,
)
from torchswat.layers import SparseConv2d, SparseLayer
from torchswat.switched import ChwnBatchNorm2d, ChwnReLU

Model = TypeVar("Model", bound=nn.Module)
_NORMS = (nn.BatchNorm2d, ChwnBatchNorm2d)
_RELUS = (nn.ReLU, ChwnReLU)
_CONCATENATIONS = (torch.cat, torch.concat, torch.concatenate)


@dataclass(frozen=True)
class Fused:
    """One thing that was fused.

    Attributes
    ----------
    container : str
        Name of the module whose forward it is in.
    kind : str
        What runs as one: ``batch norm + add + ReLU``, ``concatenation``.
    modules : tuple of str
        Names of the modules, in the order of the forward.
    recomputed : tuple of str
        Names of the convolutions that recompute their input for backward and save nothing of it.

    Examples
    --------
    >>> print(Fused("", "batch norm + ReLU", ("1", "2")))
    1 -> 2: batch norm + ReLU
    """

    container: str
    kind: str
    modules: tuple[str, ...]
    recomputed: tuple[str, ...] = ()

    def __str__(self) -> str:
        again = f"; recomputed in {', '.join(self.recomputed)}" if self.recomputed else ""
        return f"{' -> '.join(self.modules) or self.container}: {self.kind}{again}"


@dataclass
class FusionReport:
    """What `fuse_` fused and what not.

    Attributes
    ----------
    fused : list of Fused
        What runs as one operation from now on.
    skipped : dict of str to str
        By name of a batch norm, or of a container with one, why it was left as it is.

    Examples
    --------
    >>> print(fuse_(nn.Sequential(nn.Linear(4, 2))))
    nothing to fuse
    """

    fused: list[Fused] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"fused      {entry}" for entry in self.fused]
        lines += [f"not fused  {name or 'the model'}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines) or "nothing to fuse"


def fuse_(model: nn.Module) -> FusionReport:
    """Fuse what lies between the sparse layers of `model`, in place.

    Batch norm, the sum with a residual and ReLU run as one operation that saves one bit an entry beside the
    batch norm's input, or nothing; a sparse convolution behind it recomputes its input for the backward pass;
    concatenations stay in the CHWN layout. Call it after `sparsify_`. In a dense model it fuses batch norms,
    which saves memory.

    Keys of the state_dict, parameters and hooks stay as they are. The forward of each container runs once on
    symbolic values, on a copy. A fused container checks in every pass that what was proven still holds (no
    hooks on the modules in a chain, the same classes, the same plain attributes); otherwise its own forward
    runs.

    Parameters
    ----------
    model : Module
        Whose containers are fused. A container whose forward cannot be traced is left as it is.

    Returns
    -------
    FusionReport
        What was fused, and what not and why; to be printed or read.

    References
    ----------
    Recomputing the output of batch norm and ReLU for backward: Rota Bulo et al. 2018, *In-Place Activated
    BatchNorm for Memory-Optimized Training of DNNs*, arXiv:1712.02616, section 3. Beyond the paper of SWAT.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
    >>> print(fuse_(model))
    fused      1 -> 2: batch norm + ReLU
    >>> [type(layer).__name__ for layer in unfuse_(model)]
    ['Conv2d', 'BatchNorm2d', 'ReLU', 'Conv2d']
    """
    unfuse_(model)
    report = FusionReport()
    sparse = any(isinstance(module, SparseLayer) for module in model.modules())
    found: dict[nn.Module, _Rewriting] = {}
    for name, container in reversed(list(model.named_modules())):  # children before what they are in
        if not _is_worth_a_trace(container):
            continue
        try:
            rewriting = _Rewriting(name, container, trace_container(container), sparse, found)
            rewriting.rewrite()
            rewriting.compile()
        except NotTraceable as error:
            report.skipped[name] = str(error)
        else:
            found[container] = rewriting
    used: dict[nn.Module, _Rewriting] = {}
    for container, rewriting in reversed(found.items()):
        report.skipped.update(rewriting.skipped)
        if rewriting.fused or any(container in other.passes_to for other in used.values()):
            used[container] = rewriting
            report.fused += rewriting.fused
    for container in used:
        container.__class__ = fused_class(type(container))  # type: ignore[assignment]
    for container, rewriting in used.items():  # when all classes are what they will be
        vars(container)[STATE] = rewriting.fusion()
    return report


def unfuse_(model: Model) -> Model:
    """Undo `fuse_`, in place.

    Parameters
    ----------
    model : Module
        Any model.

    Returns
    -------
    Module
        `model` itself.

    Examples
    --------
    >>> model = nn.Sequential(nn.BatchNorm2d(2), nn.ReLU())
    >>> report = fuse_(model)
    >>> type(model).__name__, type(unfuse_(model)).__name__
    ('FusedSequential', 'Sequential')
    """
    for module in model.modules():
        if isinstance(module, FusedModule):
            vars(module).pop(STATE, None)
            module.__class__ = module.original  # type: ignore[assignment]
    return model


def _is_worth_a_trace(container: nn.Module) -> bool:
    """Return whether `container` has children of which a chain can be made."""
    below = [module for child in container.children() for module in child.modules()]
    return any(type(module) in _NORMS for module in below) and not isinstance(
        container, (nn.ModuleList, nn.ModuleDict)
    )


class _Rewriting:
    """The graph of one container, and how it is rewritten."""

    def __init__(
        self,
        name: str,
        container: nn.Module,
        trace: Trace,
        sparse: bool,
        below: dict[nn.Module, _Rewriting],
    ) -> None:
        self.name, self.container, self.trace, self.sparse, self.below = name, container, trace, sparse, below
        self.graph = trace.graph
        self.modules = dict(container.named_modules(remove_duplicate=False))
        self.fused: list[Fused] = []
        self.skipped: dict[str, str] = {}
        self.members: set[str] = set()
        self.passes_to: set[nn.Module] = set()
        self.receives = False

    def rewrite(self) -> None:
        """Replace chains and concatenations."""
        calls = [node for node in self.graph.nodes if type(self.called(node)) in _NORMS]
        for node in reversed(calls):  # the last one before a sum takes it
            reason = self._fuse_from(node, calls)
            if reason:
                self.skipped[self.full(node)] = reason
        self.fused.reverse()
        if self.sparse:
            self._receive()
            self._concatenate()

    def called(self, node: fx.Node) -> nn.Module | None:
        """Return the module that `node` calls, if any."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def full(self, node: fx.Node) -> str:
        """Return the name of a called module in the model."""
        return f"{self.name}.{node.target}" if self.name else str(node.target)

    # ---- chains --------------------------------------------------------------------------------------------

    def _fuse_from(self, norm: fx.Node, calls: list[fx.Node]) -> str:
        """Fuse what begins at `norm`, or return why not."""
        module = self.called(norm)
        if sum(self.called(other) is module for other in calls) > 1:
            return "it is called more than once"
        if len(norm.args) != 1 or norm.kwargs or not isinstance(norm.args[0], fx.Node):
            return "it is called with keywords"
        x, chain = norm.args[0], [norm]
        residual, sums = None, ""
        reader = _only_reader(norm)
        if reader is None:
            return "its output has several readers, or none"
        found = _sum_with(reader, norm)
        if found is not None:
            residual, sums = found
            chain.append(reader)
            reader = _only_reader(reader)
        relu = reader if reader is not None and self._rectifies(reader, chain[-1]) else None
        if relu is not None:
            chain.append(relu)
        if len(chain) == 1:
            return "neither a sum nor a ReLU reads it"
        if not self._nothing_changes(chain, x):
            return "its input may be changed in place before the chain ends"
        self._replace(chain, x, residual, sums, relu)
        return ""

    def _rectifies(self, reader: fx.Node, node: fx.Node) -> bool:
        """Return whether `reader` is a ReLU of `node`."""
        if not reader.args or reader.args[0] is not node:
            return False
        if reader.op == "call_module":
            return type(self.called(reader)) in _RELUS and len(reader.args) == 1
        if reader.op == "call_method":
            return reader.target in ("relu", "relu_") and len(reader.args) == 1
        return reader.op == "call_function" and reader.target in (F.relu, torch.relu, torch.relu_, F.relu_)

    def _nothing_changes(self, chain: list[fx.Node], x: fx.Node) -> bool:
        """Return whether operands are the same at the end of `chain` as where they were read."""
        between = _between(chain[0], chain[-1])
        after_sum = _between(chain[-2], chain[-1]) if len(chain) == 3 else []
        quiet = not any(may_change(node, self.called(node)) for node in after_sum if node not in chain)
        alone = _only_reader(x) is chain[0] and is_fresh(x, self.called(x))
        return quiet and (alone or not any(may_change(n, self.called(n)) for n in between if n not in chain))

    def _replace(
        self, chain: list[fx.Node], x: fx.Node, residual: fx.Node | None, sums: str, relu: fx.Node | None
    ) -> None:
        last, graph = chain[-1], self.graph
        readers = [n for n in last.users if type(self.called(n)) is SparseConv2d and n.args == (last,)]
        again: list[fx.Node] = []
        if relu is not None and not sums:
            again = self._takers(last)
        with graph.inserting_before(last):
            norm = graph.get_attr(str(chain[0].target))
            consumers = tuple(graph.get_attr(str(reader.target)) for reader in readers)
            rectify: Any = False
            if relu is not None:
                rectify = graph.get_attr(str(relu.target)) if relu.op == "call_module" else True
            operands = norm, x, residual, sums, rectify, consumers
            if again:
                both = graph.call_function(recomputable_chain, operands)
                result = graph.call_function(operator.getitem, (both, 0))
                info = graph.call_function(operator.getitem, (both, 1))
            else:
                result, info = graph.call_function(norm_chain, operands), None
        last.replace_all_uses_with(result)
        self._pass_on(again, info)
        modules = [node for node in chain if node.op == "call_module"]
        self.members.update(str(node.target) for node in modules)
        words = ["batch norm", *["add"] * bool(sums), *["ReLU"] * (relu is not None)]
        names = tuple(map(self.full, modules))
        self.fused.append(Fused(self.name, " + ".join(words), names, tuple(map(self.full, again))))
        for node in reversed(chain):
            graph.erase_node(node)

    # ---- recomputation -------------------------------------------------------------------------------------

    def _takers(self, node: fx.Node) -> list[fx.Node]:
        """Return the calls that can recompute the value of `node`, reached before anybody may change it."""
        values, takers = [node], []
        for value in values:
            for reader in value.users:
                module = self.called(reader)
                if reader.args != (value,) or reader.kwargs or module is None:
                    continue
                if type(module) is nn.Identity:
                    values.append(reader)
                elif type(module) is SparseConv2d or (module in self.below and self.below[module].receives):
                    takers.append(reader)
        return unchanged_until(node, takers, self.called)

    def _pass_on(self, takers: list[fx.Node], info: fx.Node | None) -> None:
        """Give `info` to the calls in `takers`."""
        for call in takers:
            module, value = self.called(call), call.args[0]
            assert module is not None and isinstance(value, fx.Node)
            with self.graph.inserting_before(call):
                layer = self.graph.get_attr(str(call.target))
                replacement = self.graph.call_function(pass_on, (layer, value, info))
            call.replace_all_uses_with(replacement)
            self.graph.erase_node(call)
            self.members.add(str(call.target))
            if value.op == "call_module":
                self.members.add(str(value.target))
            if module in self.below:
                self.passes_to.add(module)

    def _receive(self) -> None:
        """Let the only tensor of the forward come with what it can be recomputed from."""
        (tensor, *more) = (node for node in self.graph.nodes if node.op == "placeholder")
        takers = [] if more else self._takers(tensor)
        if takers:
            with self.graph.inserting_after(tensor):
                info = self.graph.placeholder("torchswat_recompute", default_value=None)
            self._pass_on(takers, info)
            self.receives = True

    # ---- concatenations ------------------------------------------------------------------------------------

    def _concatenate(self) -> None:
        for node in list(self.graph.nodes):
            if node.op != "call_function" or node.target not in _CONCATENATIONS:
                continue
            tensors, dim = _concatenated(node)
            if tensors and dim in (1, -3):
                with self.graph.inserting_before(node):
                    replacement = self.graph.call_function(concatenate, (tensors, dim))
                node.replace_all_uses_with(replacement)
                self.graph.erase_node(node)
                self.fused.append(Fused(self.name, "concatenation in CHWN", ()))

    # ---- the result ----------------------------------------------------------------------------------------

    def compile(self) -> None:
        """Write the graph as Python."""
        code = self.graph.python_code("self")
        used = {name: value for name, value in code.globals.items() if name in code.src}
        self.homes = {name: value.__name__ for name, value in used.items() if isinstance(value, ModuleType)}
        scope = {name: value for name, value in used.items() if name not in self.homes}
        try:
            pickle.dumps(scope)
        except Exception:
            raise NotTraceable("its forward uses functions that no file can name") from None
        self.source, self.scope = code.src, scope

    def fusion(self) -> Fusion:
        """Return what the container is to run, once all classes are switched."""
        own, *inner = (
            (path, tuple((name, type(m)) for name, m in self.container.get_submodule(path)._modules.items()))
            for path in self.trace.inside
        )
        return Fusion(
            *(self.source, self.scope, self.homes, self.trace.arguments, own[1], tuple(inner), self.receives),
            members=tuple((name, type(self.modules[name])) for name in self.members),
            reads=self.trace.reads,
        )


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _between(first: fx.Node, last: fx.Node) -> Iterator[fx.Node]:
    node = first.next
    while node is not last:
        yield node
        node = node.next


def _sum_with(reader: fx.Node, node: fx.Node) -> tuple[fx.Node, str] | None:
    """Return the other operand of a sum of two tensors, and how the sum is written."""
    if reader.kwargs.get("alpha", 1) != 1 or set(reader.kwargs) - {"alpha"} or len(reader.args) != 2:
        return None
    one, other = reader.args
    if one is other or not isinstance(one, fx.Node) or not isinstance(other, fx.Node):
        return None
    if reader.op == "call_function" and reader.target in (operator.add, torch.add):
        return (other, "left") if one is node else (one, "right")
    if reader.op == "call_method" and reader.target == "add":
        return (other, "left") if one is node else (one, "right")
    in_place = (reader.op == "call_function" and reader.target is operator.iadd) or (
        reader.op == "call_method" and reader.target == "add_"
    )
    return (other, "in place") if in_place and one is node else None


def _concatenated(node: fx.Node) -> tuple[list[fx.Node], Any]:
    """Return the operands and the dimension of a concatenation; no operands where it is called otherwise."""
    arguments = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
    dim = arguments.pop("dim", arguments.pop("axis", 0))
    tensors: Any = arguments.pop("tensors", None)
    plain = isinstance(tensors, (list, tuple)) and all(isinstance(t, fx.Node) for t in tensors)
    return (list(tensors), dim) if plain and not arguments else ([], dim)
