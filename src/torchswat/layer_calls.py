"""What the layers of a model compute in one pass: a record for each call of a layer, of ours or anybody's.

A layer of a known class is counted from its sizes. In any other module the matrix products that its own
forward runs are counted as torch dispatches them: attention, recurrent cells, `F.linear` on a parameter of
its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.hooks import RemovableHandle

from torchswat.examples import call, tensors_in
from torchswat.layers import LayerSparsity, SparseLayer
from torchswat.progress import Progress

NORMS: tuple[type[nn.Module], ...] = (
    _BatchNorm,
    _InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_TABLES = (nn.Embedding, nn.EmbeddingBag)
KNOWN: tuple[type[nn.Module], ...] = (_ConvNd, nn.Linear, nn.Bilinear, nn.RNNBase, *_TABLES, *NORMS)
_SHOWN = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Classes whose subclasses are shown under their name."""


Place = tuple[int, int]  # a memory, and an offset in it


@dataclass
class LayerCall:
    """One call of one layer.

    Attributes
    ----------
    name, kind : str
        The layer's name in its model, and its class.
    module : Module
    macs : int
        Multiply-accumulates of the forward pass.
    weight : int
        Entries of the weights that are multiplied.
    input, output : int
        Entries of the operands that are no weights, and of the results.
    size : int
        Bytes of an entry.
    input_grad, weight_grad : bool
        Whether the backward pass computes the gradients of the input and of the weight.
    sparsity : float
        In force in this call; 0 for a dense layer.
    densities : dict of str to float
        What a sparse layer kept of its operands.
    """

    name: str
    kind: str
    module: nn.Module
    macs: int = 0
    weight: int = 0
    input: int = 0
    output: int = 0
    size: int = 4
    input_grad: bool = True
    weight_grad: bool = True
    sparsity: float = 0.0
    densities: dict[str, float] = field(default_factory=dict)


def record(model: nn.Module, example: Any, progress: Progress | None = None) -> list[LayerCall]:
    """Run `model` forward and backward on `example`; return its calls of layers as they ended.

    `progress` is called for every layer after its forward pass and again when its gradient arrives.

    Raises
    ------
    RuntimeError, ValueError, TypeError
        Whatever the model raises.
    """
    calls: list[LayerCall] = []
    running: list[_Running] = []
    handles = []
    if progress is not None:
        handles += _report(model, progress)
    for name, module in model.named_modules():
        begin, end = _hooks(name, running, calls)
        handles.append(module.register_forward_pre_hook(begin))
        handles.append(module.register_forward_hook(end, with_kwargs=True))
    weights = {_storage(p): p.requires_grad for p in model.parameters()}
    try:
        with torch.enable_grad(), _no_fast_path(), _Products(running, weights):
            output = call(model, example)
        results = [t for t in tensors_in(output) if t.requires_grad]
        if results:
            torch.autograd.backward(results, [torch.ones_like(t) for t in results])
    finally:
        for handle in handles:
            handle.remove()
    for one in calls:  # gradients are selected in the backward pass
        if isinstance(one.module, SparseLayer) and "gradient" in one.densities:
            one.densities["gradient"] = float(one.module.sparse.selectors["gradient"].density)
    return calls


def _report(model: nn.Module, progress: Progress) -> list[RemovableHandle]:
    """Register hooks that report each known layer's forward pass as one piece of work, its backward as two."""
    layers = [module for module in model.modules() if isinstance(module, KNOWN)]
    done, total = 0, 3 * len(layers)

    def advance(work: int) -> None:
        nonlocal done
        done = min(done + work, total)  # a layer may run twice
        progress(done, total)

    def end(module: nn.Module, arguments: tuple, output: Any) -> None:
        advance(1)
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda _: advance(2))

    return [layer.register_forward_hook(end) for layer in layers]


@dataclass
class _Running:
    """A module that is running, with the products of its own forward."""

    module: nn.Module
    call: LayerCall
    operands: dict[Place, int] = field(default_factory=dict)  # entries by where they lie
    weights: dict[Place, int] = field(default_factory=dict)


def _hooks(name: str, running: list[_Running], calls: list[LayerCall]) -> tuple[Callable, Callable]:
    def begin(module: nn.Module, *_: Any) -> None:
        kind = next((c.__name__ for c in _SHOWN if isinstance(module, c)), type(module).__name__)
        running.append(_Running(module, LayerCall(name, kind, module)))

    def end(module: nn.Module, arguments: tuple, keywords: dict, output: Any) -> None:
        while running and running[-1].module is not module:  # of forwards that raised
            running.pop()
        if not running:
            return
        done = running.pop()
        if isinstance(module, KNOWN):
            inputs, outputs = tensors_in((arguments, keywords)), tensors_in(output)
            if inputs and outputs:
                _count_known(done.call, module, inputs[0], outputs[0])
                calls.append(done.call)
        elif done.call.macs:
            done.call.input, done.call.weight = sum(done.operands.values()), sum(done.weights.values())
            calls.append(done.call)

    return begin, end


def _count_known(one: LayerCall, module: nn.Module, input: Tensor, output: Tensor) -> None:
    """Count a layer of a known class from its sizes."""
    one.input, one.output, one.size = input.numel(), output.numel(), input.element_size()
    trained = [p for p in module.parameters(recurse=False) if p.requires_grad]
    # the first layer's input needs no gradient; the count of the paper includes it, unless the layer is
    # frozen
    one.input_grad, one.weight_grad = input.requires_grad or bool(trained), bool(trained)
    if isinstance(module, (*NORMS, *_TABLES)):
        return
    if isinstance(module, nn.RNNBase):
        one.weight = sum(p.numel() for p in module.parameters() if p.dim() == 2)
        one.macs = one.weight * (input.numel() // max(1, input.shape[-1]))
        return
    weight = module.weight
    assert isinstance(weight, Tensor)
    places = input.numel() if isinstance(module, _ConvTransposeNd) else output.numel()
    one.weight, one.macs = weight.numel(), places * math.prod(weight.shape[1:])
    one.weight_grad = weight.requires_grad
    one.input_grad = input.requires_grad or weight.requires_grad
    if isinstance(module, SparseLayer):
        _note_sparsity(one, module.sparse)


def _note_sparsity(one: LayerCall, sparse: LayerSparsity) -> None:
    one.sparsity = sparse.sparsity_now(sparse.last_iteration())
    if one.sparsity:
        one.densities = {operand: float(s.density) for operand, s in sparse.selectors.items()}
        if sparse.algorithm.projected_output:
            one.densities["output"] = float(sparse.output_density)


class _Products(TorchDispatchMode):
    """Counts the matrix products of modules of no known class."""

    def __init__(self, running: list[_Running], weights: dict[int, bool]) -> None:
        super().__init__()
        self._running, self._weights = running, weights

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self._running and not isinstance(self._running[-1].module, KNOWN):
            macs = _macs(func, args, kwargs, result)
            if macs:
                self._count(self._running[-1], macs, tensors_in(args), result)
        return result

    def _count(self, module: _Running, macs: int, operands: list[Tensor], result: Any) -> None:
        one = module.call
        one.macs += macs
        one.output += tensors_in(result)[0].numel()
        trained = False
        for tensor in operands:
            memory = _storage(tensor)
            where = memory, int(tensor.storage_offset())
            if memory in self._weights:
                if tensor.dim() > 1:  # biases are added, not multiplied
                    module.weights[where] = max(module.weights.get(where, 0), tensor.numel())
                trained |= self._weights[memory]
            else:
                module.operands[where] = max(module.operands.get(where, 0), tensor.numel())
                one.size = tensor.element_size()
        one.weight_grad = one.input_grad = trained or any(self._weights.values())


def _storage(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr() or id(tensor)
    except (RuntimeError, NotImplementedError):  # a subclass without memory of its own
        return id(tensor)


def _macs(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    """Return the multiply-accumulates of one dispatched operation; 0 for what is no product."""
    if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
        query, key, value = args[:3]
        pairs = math.prod(query.shape[:-1]) * key.shape[-2]
        return pairs * (query.shape[-1] + value.shape[-1])
    count = flop_registry.get(getattr(func, "overloadpacket", None))
    return 0 if count is None else int(count(*args, **kwargs, out_val=result)) // 2


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """Let transformers of torch run layer by layer."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
