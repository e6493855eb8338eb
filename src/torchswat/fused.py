"""A container whose forward runs a rewritten graph, and the operations of such graphs.

The class of a fused container is made of its own class, so it stays an instance of that; its parameters,
hooks and keys stay as they were. Each pass first checks what the graph was proven from; where anything
differs, the
container's own forward runs.
"""

from __future__ import annotations

import copyreg
import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from torchswat.batch_norm import fuses, recomputable
from torchswat.containers import ABSENT
from torchswat.engine import ops
from torchswat.engine.batch_norm import RecomputeInfo, runs_eagerly
from torchswat.layers import SparseConv2d

STATE = "_torchswat_fusion"


@dataclass(frozen=True)
class Fusion:
    """What a fused container runs, and when.

    Attributes
    ----------
    source : str
        Python code of a function ``forward`` of the container and its tensors.
    scope : dict of str to object
        The global names of the code, but for
    modules : dict of str to str
        those of Python modules, by name in the code.
    arguments : tuple of str
        Names of the tensors.
    children : tuple of (str, class)
        Names and classes of the container's children.
    inner : tuple of (str, tuple)
        The same of modules that the forward looks into, by path.
    receives : bool
        The function takes a `RecomputeInfo` of its only tensor as one more argument.
    members : tuple of (str, class)
        Modules whose work is done by others' kernels: without hooks alone.
    reads : tuple of (str, str, object)
        Path, name and value of the plain attributes that the forward looked at.
    """

    source: str
    scope: dict[str, Any]
    modules: dict[str, str]
    arguments: tuple[str, ...]
    children: tuple[tuple[str, type], ...]
    inner: tuple[tuple[str, tuple[tuple[str, type], ...]], ...]
    receives: bool
    members: tuple[tuple[str, type], ...]
    reads: tuple[tuple[str, str, Any], ...]

    @functools.cached_property
    def run(self) -> Callable[..., Any]:
        """The function."""
        scope: dict[str, Any] = dict(self.scope) | {
            name: import_module(home) for name, home in self.modules.items()
        }
        exec(self.source, scope)
        return scope["forward"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Fusion:
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "run"}

    def holds(self, container: nn.Module, tensors: tuple[Any, ...]) -> bool:
        """Return whether all that the graph was proven from is so in this pass."""
        if not runs_eagerly(*tensors) or any(t is None for t in tensors) or _has_any_global_hook():
            return False
        if torch._C._len_torch_function_stack() and not _only_devices():
            return False
        modules = container._modules
        if len(modules) != len(self.children):
            return False
        for (name, kind), own in zip(self.children, modules, strict=True):
            if name != own or type(modules[own]) is not kind:
                return False
        for path, kind in self.members:
            module = modules[path] if path in modules else container.get_submodule(path)
            if type(module) is not kind or is_observed(module):
                return False
        return not (self.inner or self.reads) or self._looks_the_same(container)

    def _looks_the_same(self, container: nn.Module) -> bool:
        try:
            for path, children in self.inner:
                found = container.get_submodule(path)._modules
                if tuple((name, type(m)) for name, m in found.items()) != children:
                    return False
            for path, name, value in self.reads:
                now = vars(container.get_submodule(path)).get(name, ABSENT)
                if type(now) is not type(value) or now != value:
                    return False
        except AttributeError:
            return False
        return True


def is_observed(module: Any) -> bool:
    """Return whether `module` has hooks, or its forward was replaced: then it has to be called."""
    state = module.__dict__
    return bool(
        state["_forward_hooks"]
        or state["_forward_pre_hooks"]
        or state["_backward_hooks"]
        or state["_backward_pre_hooks"]
        or "forward" in state
    )


def _only_devices() -> bool:
    modes = torch.overrides._get_current_function_mode_stack()
    return all(type(mode).__name__ == "DeviceContext" for mode in modes)


class FusedModule(nn.Module):
    """What all fused containers have in common; made by `torchswat.fuse_`."""

    original: type[nn.Module]

    def forward_recomputing(self, input: Tensor, recompute: RecomputeInfo) -> Any:
        """Return what ``self(input)`` does, for an `input` that layers inside can recompute."""
        fusion: Fusion | None = self.__dict__.get(STATE)
        if fusion is None or not fusion.receives or is_observed(self) or not fusion.holds(self, (input,)):
            return self(input)
        return fusion.run(self, input, recompute)


@functools.cache
def _metaclass(kind: type) -> Any:
    """Return a metaclass whose classes travel in files by what they were made of."""
    made = type(f"Fused{kind.__name__}", (kind,), {})
    copyreg.pickle(made, lambda fused: (fused_class, (fused.original,)))  # type: ignore[arg-type]
    return made


@functools.cache
def fused_class(original: type[nn.Module]) -> type[nn.Module]:
    """Return the class of fused containers of class `original`."""

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        fusion: Fusion | None = self.__dict__.get(STATE)
        if fusion is None or torch.compiler.is_compiling():
            return original.forward(self, *arguments, **keywords)
        tensors = arguments
        if keywords:
            names = fusion.arguments[len(arguments) :]
            if keywords.keys() != set(names):
                return original.forward(self, *arguments, **keywords)
            tensors = (*arguments, *(keywords[name] for name in names))
        if len(tensors) != len(fusion.arguments) or not fusion.holds(self, tensors):
            return original.forward(self, *arguments, **keywords)
        return fusion.run(self, *tensors)

    attributes = {"forward": forward, "original": original, "__doc__": original.__doc__}
    attributes |= {"__module__": original.__module__}
    return _metaclass(type(original))(f"Fused{original.__name__}", (FusedModule, original), attributes)


# ---- operations --------------------------------------------------------------------------------------------


def norm_chain(
    norm: nn.BatchNorm2d,
    x: Tensor,
    residual: Tensor | None,
    sums: str,
    relu: Callable[[Tensor], Tensor] | bool,
    consumers: tuple[SparseConv2d, ...],
) -> Tensor:
    """Return ``relu(norm(x) + residual)``, in one pass where the kernels or torch's batch norm do that.

    Parameters
    ----------
    norm : BatchNorm2d
    x : Tensor of shape (N, C, H, W)
    residual : Tensor of shape (N, C, H, W), or None
    sums : {"", "left", "right", "in place"}
        How the sum is written: none, ``y + residual``, ``residual + y``, ``y += residual``.
    relu : callable or bool
        Whether there is a ReLU, or the module that is called where it has to run by itself.
    consumers : tuple of SparseConv2d
        What reads the result: where one of them converts to CHWN, `x` is converted instead.
    """
    return recomputable_chain(norm, x, residual, sums, relu, consumers)[0]


def recomputable_chain(
    norm: nn.BatchNorm2d,
    x: Tensor,
    residual: Tensor | None,
    sums: str,
    relu: Callable[[Tensor], Tensor] | bool,
    consumers: tuple[SparseConv2d, ...],
) -> tuple[Tensor, RecomputeInfo | None]:
    """Return what `norm_chain` does, and what it can be recomputed from."""
    if fuses(norm, x) and (not sums or _fits(residual, x)):
        if consumers and not ops.is_chwn(x) and any(layer.takes_chwn(x) for layer in consumers):
            x = ops.as_chwn(x)
        norm_input = norm.__dict__.get("norm_input", "whole")
        return recomputable(norm, x, residual if sums else None, bool(relu), norm_input)
    y = norm(x)
    if sums == "left":
        y = y + residual
    elif sums == "right":
        y = residual + y
    elif sums:
        y += residual
    if callable(relu):
        return relu(y), None
    return torch.relu(y) if relu else y, None


def _fits(residual: Any, x: Tensor) -> bool:
    if not isinstance(residual, Tensor) or not runs_eagerly(residual):
        return False
    return (residual.shape, residual.dtype, residual.device) == (x.shape, x.dtype, x.device)


def pass_on(layer: SparseConv2d | FusedModule, x: Tensor, recompute: RecomputeInfo | None) -> Any:
    """Return ``layer(x)``, where the layer saves nothing of an `x` that it can recompute."""
    return layer(x) if recompute is None else layer.forward_recomputing(x, recompute)
