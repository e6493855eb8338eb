"""What the nodes of a graph may do to their operands: change them in place, or return a view of them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn

from torchswat.layers import SPARSE_CLASSES
from torchswat.switched import SWITCHED_CLASSES

_FRESH_MODULES = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.GroupNorm,
    nn.MaxPool2d,
    nn.AvgPool2d,
    *SPARSE_CLASSES.values(),
    *(switched for dense, switched in SWITCHED_CLASSES.items() if dense is not nn.ReLU),
)
"""Exactly these return tensors that nobody else holds, and leave their operands as they are."""

_HARMLESS_MODULES = (nn.Identity, nn.Flatten, nn.AdaptiveAvgPool2d, nn.Sigmoid, nn.Tanh, nn.GELU, nn.Softmax)
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.Dropout, SWITCHED_CLASSES[nn.ReLU])
_FRESH = (operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, torch.cat, torch.add)
_SIZES = ("shape", "ndim", "dtype", "device", "requires_grad")


def is_fresh(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether `node` makes a tensor that shares no memory with another."""
    if node.op == "call_module":
        return type(module) in _FRESH_MODULES
    return node.op == "call_function" and node.target in _FRESH and "out" not in node.kwargs


def may_change(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether `node` may change a tensor in place; whatever is not known may."""
    if node.op in ("placeholder", "get_attr", "output"):
        return False
    if node.op == "call_module":
        kind = type(module)
        quiet = kind in _RECTIFIERS and not getattr(module, "inplace", False)
        return not quiet and kind not in _FRESH_MODULES and kind not in _HARMLESS_MODULES
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") or not hasattr(Tensor, name) or "out" in node.kwargs
    return _function_may_change(node)


def _function_may_change(node: fx.Node) -> bool:
    function = node.target
    if function is getattr:
        return node.args[1] not in _SIZES
    home, name = getattr(function, "__module__", None) or "", getattr(function, "__name__", "_")
    if home == "torchswat.fused":
        return False
    if home in ("_operator", "operator"):
        return (
            name.startswith("i") and name not in ("invert", "index", "is_", "is_not")
        ) or name == "setitem"
    known = home.startswith("torch") or getattr(torch, name, None) is function
    if not known or home.startswith("torchswat") or name.endswith("_") or "out" in node.kwargs:
        return True
    try:
        given = inspect.signature(function).bind(*node.args, **node.kwargs).arguments  # type: ignore[arg-type]
    except (TypeError, ValueError):  # written in C: those say it by their name
        return False
    return bool(given.get("inplace", False))


def unchanged_until(
    node: fx.Node, readers: list[fx.Node], called: Callable[[fx.Node], nn.Module | None]
) -> list[fx.Node]:
    """Return those of `readers` that are reached before anybody may have changed the value of `node`."""
    views, found, now = {node}, [], node.next
    while len(found) < len(readers) and now.op != "root":
        if views.intersection(now.all_input_nodes):
            if now in readers:
                found.append(now)
            elif may_change(now, called(now)):
                break
            elif not is_fresh(now, called(now)):
                views.add(now)
        now = now.next
    return found
