"""The forward of one container as a graph: its children are calls, and nobody's forward runs but its own.

The forward runs once on symbolic values (`torch.fx`), on a copy of the container whose children are copies as
well, without hooks, and whose tensors are shared. Whatever a graph cannot hold refuses the trace: attributes
set, random numbers drawn, something printed, values of tensors looked at.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import operator
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

ABSENT = "<absent>"
"""Stands for an attribute that a module does not have of its own."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)
_INTERNAL = {"__dict__", "__class__", "_modules", "_parameters", "_buffers"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotTraceable(Exception):
    """A forward is no graph; the message says why."""


@dataclass
class Trace:
    """What a container's forward does.

    Attributes
    ----------
    graph : fx.Graph
        Targets of modules are names in the container.
    arguments : tuple of str
        Names of the arguments without defaults (the first one at least); the graph is that of tensors for
        these, and of no others given.
    reads : tuple of (str, str, object)
        Plain attributes and functions that the forward looked at: path of the module, name, value (`ABSENT`
        where the class has it and the module does not hide it).
    inside : tuple of str
        Paths of the modules that are looked into and not called: first the container, whose path is empty.
    """

    graph: fx.Graph
    arguments: tuple[str, ...]
    reads: tuple[tuple[str, str, Any], ...]
    inside: tuple[str, ...]


def trace_container(container: nn.Module) -> Trace:
    """Return what the forward of `container` does.

    Raises
    ------
    NotTraceable
        Where that is no graph.
    """
    forward = type(container).forward
    if "forward" in vars(container):
        raise NotTraceable("its forward is replaced")
    names = _arguments(forward)
    recorder = _Recorder()
    twin = recorder.twin_of(container, "")
    result: list[Any] = []

    def run(*arguments: Any) -> Any:
        recorder.reads.clear()
        result.append(forward(twin, *arguments[1:]))
        recorder.close()
        return result[-1]

    type(twin).forward = _with_arguments(run, names)  # type: ignore[method-assign]
    said = io.StringIO()
    quiet = contextlib.redirect_stdout(said)
    with _random_state_watched(), quiet, _no_saved_tensor_hooks(), torch.enable_grad():
        try:
            graph = _Tracer().trace(twin)
        except NotTraceable:
            raise
        except Exception as error:  # whatever a user's forward may raise on symbolic values
            words = str(error).strip().splitlines() or [type(error).__name__]
            raise NotTraceable(f"its forward cannot be traced ({words[0][:200]})") from None
    if said.getvalue():
        raise NotTraceable("its forward prints")
    _check_result(result[-1])
    _check_attributes(graph, container)
    called = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    return Trace(graph, names, recorder.plain_reads(), recorder.inside(called))


# ---- the copy ----------------------------------------------------------------------------------------------


class _Recorder:
    """Makes the copies, and records what is read of them."""

    def __init__(self) -> None:
        self.reads: dict[tuple[str, str], Any] = {}
        self.twins: dict[int, tuple[str, nn.Module, nn.Module]] = {}  # by the original
        self.paths: dict[int, str] = {}  # by the copy
        self.before: list[tuple[nn.Module, dict[str, Any]]] = []
        self.found: dict[tuple[str, str], Any] = {}

    def twin_of(self, module: nn.Module, path: str) -> nn.Module:
        if id(module) in self.twins:
            return self.twins[id(module)][2]
        twin = object.__new__(_twin_class(type(module)))
        attributes = dict(vars(module))
        for name in ("_parameters", "_buffers"):
            attributes[name] = dict(attributes[name])
        for name in _HOOKS:
            attributes[name] = type(attributes[name])()
        self.twins[id(module)] = path, module, twin
        self.paths[id(twin)] = path
        object.__setattr__(twin, "__dict__", attributes)
        attributes["_modules"] = {
            name: child if child is None else self.twin_of(child, f"{path}.{name}" if path else name)
            for name, child in module._modules.items()
        }
        attributes["_torchswat_reads"] = self
        self.before.append((twin, _snapshot(attributes)))
        return twin

    def read(self, twin: nn.Module, name: str) -> None:
        self.reads[self.paths[id(twin)], name] = True

    def close(self) -> None:
        """Take what was read, and refuse where something was changed."""
        reads, self.reads = dict(self.reads), {}
        for twin, before in self.before:
            now = _snapshot(vars(twin))
            if now.keys() != before.keys() or any(not _same(now[k], before[k]) for k in now):
                changed = [k for k in now if k not in before or not _same(now[k], before[k])]
                raise NotTraceable(f"its forward sets attributes ({', '.join(changed) or 'one is deleted'})")
        self.found = reads

    def plain_reads(self) -> tuple[tuple[str, str, Any], ...]:
        """Return the attributes that were read and can be compared; refuse others that may say anything."""
        plain = []
        originals = {path: module for path, module, _ in self.twins.values()}
        for path, name in self.found:
            module = originals[path]
            own = vars(module)
            if name not in own:
                if hasattr(type(module), name):
                    plain.append((path, name, ABSENT))
                continue
            if callable(own[name]):
                plain.append((path, name, own[name]))
                continue
            if isinstance(own[name], Tensor):
                continue
            if not _is_plain(own[name]):
                raise NotTraceable(f"its forward reads {name!r}, which is {type(own[name]).__name__}")
            plain.append((path, name, copy.deepcopy(own[name])))
        return tuple(plain)

    def inside(self, called: list[str]) -> tuple[str, ...]:
        """Return the paths of all modules but those that are called, or below."""
        paths = sorted(path for path, _, _ in self.twins.values())
        below = (path for path in paths if path and not any(f"{path}.".startswith(f"{c}.") for c in called))
        return "", *below


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple, set, frozenset)):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(_is_plain(key) and _is_plain(item) for key, item in value.items())
    return isinstance(value, _PLAIN)


def _snapshot(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return the attributes with copies of what can be changed in place."""
    return {
        name: copy.copy(value) if isinstance(value, (list, dict, set)) else value
        for name, value in attributes.items()
    }


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(one[key] is other[key] for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
    return one is other or (isinstance(one, set) and one == other)


@functools.lru_cache(maxsize=256)
def _twin_methods() -> dict[str, Any]:
    def read(self: nn.Module, name: str) -> Any:
        if not name.startswith("__") and name not in _INTERNAL and not hasattr(nn.Module, name):
            recorder = object.__getattribute__(self, "__dict__").get("_torchswat_reads")
            if recorder is not None:
                recorder.read(self, name)
        return object.__getattribute__(self, name)

    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        raise NotTraceable("it calls the forward of a child directly")

    return {"__getattribute__": read, "forward": forward}


def _twin_class(kind: type[nn.Module]) -> type[nn.Module]:
    return type(kind.__name__, (kind,), dict(_twin_methods()))


# ---- the trace ---------------------------------------------------------------------------------------------


class _Value(fx.Proxy):
    """A symbolic tensor: in-place operators stay in place, and it is a tensor where a forward asks."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        """Answer ``isinstance(x, Tensor)`` of a user's forward; torch itself goes on seeing a Proxy."""
        caller = sys._getframe(1)
        if caller.f_code.co_filename.startswith(_TORCH) and caller.f_code.co_name != "is_tensor":
            return _Value
        if self.node.op != "placeholder":
            raise NotTraceable("its forward asks for the type of a value")
        return Tensor

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise NotTraceable("its forward changes the class of a value")


_TORCH = str(Path(torch.__file__).parent)


def _in_place(function: Callable) -> Callable:
    def method(self: _Value, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", function, (self, other), {})

    return method


for _name in (
    "iadd",
    "isub",
    "imul",
    "itruediv",
    "ipow",
    "iand",
    "ior",
    "ixor",
    "imatmul",
    "ifloordiv",
    "imod",
):
    setattr(_Value, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Records calls of children, whatever they are."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def create_node(self, *arguments: Any, **keywords: Any) -> fx.Node:
        """Refuse what runs under a context of its own, which a graph does not hold."""
        if not hasattr(self, "modes"):
            self.modes = _modes()
        if self.modes != _modes():
            raise NotTraceable("its forward changes the grad mode or autocast")
        return super().create_node(*arguments, **keywords)


def _modes() -> tuple[object, ...]:
    autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")]
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *autocast


@contextlib.contextmanager
def _no_saved_tensor_hooks() -> Iterator[None]:
    """Refuse gradient checkpointing and the like inside the forward."""

    def refuse(self: Any) -> None:
        raise NotTraceable("its forward sets hooks on saved tensors, as gradient checkpointing does")

    hooks = torch.autograd.graph.saved_tensors_hooks
    enter = hooks.__enter__
    hooks.__enter__ = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        hooks.__enter__ = enter  # type: ignore[method-assign]


def _arguments(forward: Callable) -> tuple[str, ...]:
    """Return the names of the arguments that a call has to give; the first one is always among them."""
    kinds = inspect.Parameter
    given = list(inspect.signature(forward).parameters.values())[1:]
    if any(p.kind is kinds.KEYWORD_ONLY and p.default is kinds.empty for p in given):
        raise NotTraceable("its forward has a keyword argument without default")
    positional = [p for p in given if p.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is kinds.empty]
    names = required or [p.name for p in positional[:1]]
    if not names:
        raise NotTraceable("its forward takes no tensor by name")
    return tuple(names)


def _with_arguments(run: Callable, names: tuple[str, ...]) -> Any:
    """Return a function of ``self`` and arguments of these names that calls `run`."""
    listed = ", ".join(("self_", *names))
    scope: dict[str, Any] = {"run": run}
    exec(f"def forward({listed}): return run({listed})", scope)
    return scope["forward"]


@contextlib.contextmanager
def _random_state_watched() -> Iterator[None]:
    """Restore the random state, and refuse what drew from it."""
    before, of_python = torch.get_rng_state(), random.getstate()
    of_numpy = None
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        of_numpy = numpy.random.get_state()
    try:
        yield
        drawn = not torch.equal(before, torch.get_rng_state()) or of_python != random.getstate()
        if numpy is not None and of_numpy is not None:
            drawn |= repr(of_numpy) != repr(numpy.random.get_state())
        if drawn:
            raise NotTraceable("its forward draws random numbers")
    finally:
        torch.set_rng_state(before)
        random.setstate(of_python)
        if numpy is not None and of_numpy is not None:
            numpy.random.set_state(of_numpy)


def _check_result(result: Any) -> None:
    """Refuse results of which a graph would return something else."""
    if type(result) in (tuple, list):
        for item in result:
            _check_result(item)
    elif type(result) is dict:
        for item in result.values():
            _check_result(item)
    elif type(result) is not _Value and not isinstance(result, _PLAIN):
        raise NotTraceable(f"its forward returns {type(result).__name__}")


def _check_attributes(graph: fx.Graph, container: nn.Module) -> None:
    """Refuse tensors that were made while tracing."""
    for node in graph.nodes:
        if node.op == "get_attr":
            value: Any = container
            for name in str(node.target).split("."):
                value = getattr(value, name, None)
            if value is None:
                raise NotTraceable("its forward makes tensors that depend on no input")
