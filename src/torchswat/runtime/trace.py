"""From a trained torch module to a `Graph`: read off by `torch.fx`, batch norm folded, ReLU and sums fused.

Only modules and functions whose meaning is known take part; anything else is refused by name. What was read
is then run beside the module on a random image, so a flow that depends on data is found out.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from torchswat.convert import (
    check_weight_is_own,
    desparsify_,
    has_weights_to_prune,
    prune_,
    sparse_layers,
)
from torchswat.errors import InvalidValue
from torchswat.models.resnet import PaddingShortcut
from torchswat.runtime.graph import INPUT, Graph, Node, Shape
from torchswat.runtime.plain import run

Tensors = dict[str, np.ndarray]


def pruned(model: nn.Module) -> nn.Module:
    """Return a copy of `model` as it answers: plain torch modules in evaluation mode, on the CPU in float32.

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


@torch.no_grad()
def trace(model: nn.Module, input_shape: Shape) -> tuple[Graph, Tensors]:
    """Return the graph of `model` for images of `input_shape`, (C, H, W), and its float32 tensors.

    It is taken as `pruned` makes it; `model` itself is left alone.

    Raises
    ------
    InvalidValue
        For a layer or a function that the runtime does not know, or a flow that depends on data.
    """
    model = pruned(model)
    try:
        traced = _Tracer().trace(model)
    except Exception as error:  # whatever a user's forward may raise on symbolic values
        raise InvalidValue(
            f"the flow of {type(model).__name__} cannot be read: {error}. It may not depend on data."
        ) from error
    builder = _Builder(model, traced)
    graph = Graph(input_shape, builder.build())
    shapes = graph.shapes({name: tensor.shape for name, tensor in builder.tensors.items()})
    example = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0))
    expected, found = model(example), run(graph, _as_torch(builder.tensors), example)
    worst = float((expected - found).abs().max()) / max(1e-6, float(expected.abs().max()))
    if expected.shape[1:] != shapes[graph.nodes[-1].name] or not worst < 1e-3:
        raise InvalidValue(
            f"what was read of {type(model).__name__} computes something else (relative error {worst:.1e}): "
            "its flow may depend on data."
        )
    return graph, builder.tensors


def _as_torch(tensors: Tensors) -> dict[str, Tensor]:
    return {name: torch.from_numpy(tensor) for name, tensor in tensors.items()}


class _Tracer(fx.Tracer):
    """Records how modules follow each other, without looking into those that have no children."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


class _Builder:
    """Turns the traced calls, one after the other, into nodes that are fused as far as they can be."""

    def __init__(self, model: nn.Module, traced: fx.Graph) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.traced = traced
        self.nodes: dict[str, Node] = {}
        self.tensors: Tensors = {}
        self.made_by: dict[fx.Node, str] = {}  # which node has the value of a traced call

    def build(self) -> tuple[Node, ...]:
        """Return the nodes."""
        for call in self.traced.nodes:
            if call.op == "placeholder":
                if self.made_by:
                    raise InvalidValue("a network with several inputs cannot be exported")
                self.made_by[call] = INPUT
            elif call.op == "output":
                (output,) = call.all_input_nodes if len(call.all_input_nodes) == 1 else (None,)
                if output is None or self.made_by[output] != list(self.nodes)[-1]:
                    raise InvalidValue("a network must have one output, made by its last operation")
            elif call.op in ("call_module", "call_function", "call_method"):
                self.made_by[call] = self._convert(call)
            else:
                raise InvalidValue(f"{call.op} {call.target}: a bare parameter cannot be exported")
        return tuple(self.nodes.values())

    def _convert(self, call: fx.Node) -> str:
        module = self.modules.get(str(call.target)) if call.op == "call_module" else None
        if module is not None:
            if type(module) not in _MODULES:
                raise InvalidValue(
                    f"layer {call.target!r} is a {type(module).__name__}, which this format does not "
                    f"know. It knows {', '.join(sorted(kind.__name__ for kind in _MODULES))}."
                )
            return _MODULES[type(module)](self, call, module)
        function = _FUNCTIONS.get(call.target)
        if function is None:
            name = getattr(call.target, "__name__", call.target)
            raise InvalidValue(
                f"the function {name!r} cannot be exported to this format; use modules instead"
            )
        return function(self, call)

    # ---- what the rows of the tables below use

    def name_of(self, call: fx.Node) -> str:
        """Return a name for the result of a call: its module's where that is called once."""
        wanted = str(call.target) if call.op == "call_module" else call.name
        return wanted if wanted not in self.nodes else call.name

    def inputs(self, call: fx.Node) -> tuple[str, ...]:
        """Return the names of what a call reads."""
        return tuple(self.made_by[each] for each in call.all_input_nodes)

    def add(
        self, call: fx.Node, operation: str, settings: dict[str, int] | None = None, **tensors: Tensor
    ) -> str:
        """Append a node for a call."""
        name = self.name_of(call)
        self.nodes[name] = Node(name, operation, self.inputs(call), settings or {})
        for part, tensor in tensors.items():
            self.tensors[f"{name}.{part}"] = tensor.detach().float().contiguous().numpy().copy()
        return name

    def only_reader(self, call: fx.Node, among: tuple[str, ...]) -> Node | None:
        """Return the node that made the first input of `call`, if `among` these and read by nothing else."""
        return self._only_read_by(call.all_input_nodes[0], among)

    def _only_read_by(self, made: fx.Node, among: tuple[str, ...]) -> Node | None:
        name = self.made_by[made]
        values = [call for call, maker in self.made_by.items() if maker == name]
        readers = {reader for call in values for reader in call.users if reader not in values}
        node = self.nodes.get(name)
        return node if node is not None and node.operation in among and len(readers) == 1 else None

    def relu(self, call: fx.Node, inplace: bool) -> str:
        """Take the ReLU into the node before, where nothing else reads that one's result."""
        node = self.only_reader(call, ("conv2d", "linear", "affine", "add"))
        if node is not None and not node.settings["relu"]:
            self.nodes[node.name] = Node(node.name, node.operation, node.inputs, {**node.settings, "relu": 1})
            return node.name
        if inplace and len(call.all_input_nodes[0].users) > 1:
            raise InvalidValue(
                f"the in-place ReLU {call.name!r} changes what others read; make it not in place"
            )
        return self.add(call, "relu")

    def sum(self, call: fx.Node) -> str:
        """Take the sum into one of the convolutions before, which then runs where the sum would have."""
        if len(call.all_input_nodes) != 2:
            raise InvalidValue(f"{call.name!r}: two tensors can be added, not a tensor and a number")
        for made, other in (call.all_input_nodes, call.all_input_nodes[::-1]):
            node = self._only_read_by(made, ("conv2d",))
            if node is not None and len(node.inputs) == 1 and not node.settings["relu"]:
                del self.nodes[node.name]
                inputs = *node.inputs, self.made_by[other]
                self.nodes[node.name] = Node(node.name, node.operation, inputs, node.settings)
                return node.name
        return self.add(call, "add", {"relu": 0})


# ---- modules -----------------------------------------------------------------------------------------------


def _same(builder: _Builder, call: fx.Node, module: nn.Module) -> str:
    return builder.made_by[call.all_input_nodes[0]]


def _conv2d(builder: _Builder, call: fx.Node, module: Any) -> str:
    if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
        raise InvalidValue(f"layer {call.target!r}: groups, dilation and padding modes cannot be exported")
    if isinstance(module.padding, str):
        raise InvalidValue(f"layer {call.target!r}: padding={module.padding!r} must be given in numbers")
    settings = {
        "stride_h": module.stride[0],
        "stride_w": module.stride[1],
        "padding_h": module.padding[0],
        "padding_w": module.padding[1],
        "relu": 0,
    }
    bias = torch.zeros(module.out_channels) if module.bias is None else module.bias
    return builder.add(call, "conv2d", settings, weight=module.weight, bias=bias)


def _batch_norm(builder: _Builder, call: fx.Node, module: Any) -> str:
    """Fold it into the convolution before it, in float64; elsewhere it is a scale and a shift."""
    if module.running_mean is None:
        raise InvalidValue(f"layer {call.target!r} tracks no running statistics, which inference needs")
    scale = (module.running_var.double() + module.eps).rsqrt()
    shift = -module.running_mean.double() * scale
    if module.affine:
        scale, shift = scale * module.weight.double(), shift * module.weight.double() + module.bias.double()
    node = builder.only_reader(call, ("conv2d",))
    if node is None or len(node.inputs) > 1 or node.settings["relu"]:
        return builder.add(call, "affine", {"relu": 0}, scale=scale, shift=shift)
    tensors, factor = builder.tensors, scale.numpy()
    weight, bias = tensors[f"{node.name}.weight"], tensors[f"{node.name}.bias"]
    tensors[f"{node.name}.weight"] = (weight * factor[:, None, None, None]).astype(np.float32)
    tensors[f"{node.name}.bias"] = (bias * factor + shift.numpy()).astype(np.float32)
    return node.name


def _relu(builder: _Builder, call: fx.Node, module: Any) -> str:
    return builder.relu(call, module.inplace)


def _linear(builder: _Builder, call: fx.Node, module: Any) -> str:
    bias = torch.zeros(module.out_features) if module.bias is None else module.bias
    return builder.add(call, "linear", {"relu": 0}, weight=module.weight, bias=bias)


def _one_number(name: str, value: Any) -> int:
    first, *others = value if isinstance(value, (tuple, list)) else (value,)
    if any(other != first for other in others) or not isinstance(first, int):
        raise InvalidValue(f"layer {name!r}: {value} is not the same number in height and width")
    return first


def _window(call: fx.Node, module: Any) -> dict[str, int]:
    name = str(call.target)
    return {part: _one_number(name, getattr(module, f"{part}{size}")) for part, size in _WINDOW.items()}


_WINDOW = {"kernel": "_size", "stride": "", "padding": ""}


def _max_pool(builder: _Builder, call: fx.Node, module: Any) -> str:
    if _one_number(str(call.target), module.dilation) != 1:
        raise InvalidValue(f"layer {call.target!r}: a pooling with dilation cannot be exported")
    return builder.add(call, "max_pool", {**_window(call, module), "ceil": int(module.ceil_mode)})


def _average_pool(builder: _Builder, call: fx.Node, module: Any) -> str:
    if module.ceil_mode or (_one_number(str(call.target), module.padding) and not module.count_include_pad):
        raise InvalidValue(f"layer {call.target!r}: this form of averaging cannot be exported")
    if module.divisor_override is not None:
        raise InvalidValue(f"layer {call.target!r}: a divisor of its own cannot be exported")
    return builder.add(call, "average_pool", _window(call, module))


def _adaptive(builder: _Builder, call: fx.Node, module: Any) -> str:
    return builder.add(
        call, "adaptive_average_pool", {"size": _one_number(str(call.target), module.output_size)}
    )


def _padding_shortcut(builder: _Builder, call: fx.Node, module: Any) -> str:
    return builder.add(call, "subsample", {"stride": module.stride, "new_channels": module.new_channels})


def _flatten_module(builder: _Builder, call: fx.Node, module: Any) -> str:
    if (module.start_dim, module.end_dim) != (1, -1):
        raise InvalidValue(f"layer {call.target!r}: only the flattening of all but the batch can be exported")
    return builder.add(call, "flatten")


_MODULES: dict[type[nn.Module], Callable[[_Builder, fx.Node, Any], str]] = {
    nn.Conv2d: _conv2d,
    nn.BatchNorm2d: _batch_norm,
    nn.Linear: _linear,
    nn.ReLU: _relu,
    nn.MaxPool2d: _max_pool,
    nn.AvgPool2d: _average_pool,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _flatten_module,
    nn.Identity: _same,
    nn.Dropout: _same,
    nn.Dropout2d: _same,
    PaddingShortcut: _padding_shortcut,
}

# ---- functions and methods ---------------------------------------------------------------------------------


def _argument(call: fx.Node, place: int, name: str, default: Any) -> Any:
    return call.args[place] if len(call.args) > place else call.kwargs.get(name, default)


def _function_relu(builder: _Builder, call: fx.Node) -> str:
    return builder.relu(call, inplace=call.target is F.relu and bool(_argument(call, 1, "inplace", False)))


def _flatten(builder: _Builder, call: fx.Node) -> str:
    if (_argument(call, 1, "start_dim", 0), _argument(call, 2, "end_dim", -1)) != (1, -1):
        raise InvalidValue(f"{call.name!r}: only the flattening of all but the batch can be exported")
    return builder.add(call, "flatten")


def _concatenate(builder: _Builder, call: fx.Node) -> str:
    if _argument(call, 1, "dim", 0) != 1:
        raise InvalidValue(f"{call.name!r}: only channels can be put together (dim=1)")
    name = builder.name_of(call)
    sources: Any = _argument(call, 0, "tensors", ())
    builder.nodes[name] = Node(name, "concatenate", tuple(builder.made_by[each] for each in sources))
    return name


_FUNCTIONS: dict[Any, Callable[[_Builder, fx.Node], str]] = {
    operator.add: _Builder.sum,
    operator.iadd: _Builder.sum,
    torch.add: _Builder.sum,
    torch.relu: _function_relu,
    F.relu: _function_relu,
    "relu": _function_relu,
    torch.flatten: _flatten,
    "flatten": _flatten,
    torch.cat: _concatenate,
    torch.concat: _concatenate,
}
