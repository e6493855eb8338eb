"""What a training step of a model costs: multiply-accumulates and bytes, layer by layer.

Every count comes three times: dense, sparse by formula (the sparsity asked for) and sparse as measured
from the masks of a real pass. These are counts, not seconds; for seconds see the benchmarks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from torchswat.convert import sparse_layers
from torchswat.engine.batch_norm import NORM_INPUTS
from torchswat.errors import InvalidValue
from torchswat.layers import LayerSparsity, SparseLayer
from torchswat.projection import dimensions


@dataclass(frozen=True)
class Count:
    """One quantity: dense, sparse by formula, and sparse as measured."""

    dense: float = 0
    formula: float = 0
    measured: float = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.dense + other.dense, self.formula + other.formula, self.measured + other.measured)

    @property
    def saving(self) -> float:
        """How many times smaller than dense it is, as measured."""
        return self.dense / self.measured if self.measured else math.inf if self.dense else 1.0


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer in one training step on the example input.

    Attributes
    ----------
    name, kind : str
        Its name in the model and its class.
    forward, grad_input, grad_weight : Count
        Multiply-accumulates of the three products.
    prediction : Count
        Multiply-accumulates of DSG's projection; of its ternary matrix only the third that is not zero.
    weights : Count
        Bytes of weight values read by the backward pass.
    weight_positions : Count
        Bytes that say where those values stand (a bitmask or 32-bit offsets, whichever is smaller).
    activations, activation_positions : Count
        The same of the activations kept for the backward pass.
    selection : Count
        Entries that the selections of a step look at (dense is 0).
    """

    name: str
    kind: str
    forward: Count = Count()
    grad_input: Count = Count()
    grad_weight: Count = Count()
    prediction: Count = Count()
    weights: Count = Count()
    weight_positions: Count = Count()
    activations: Count = Count()
    activation_positions: Count = Count()
    selection: Count = Count()

    @property
    def macs(self) -> Count:
        """Multiply-accumulates of all three products and of the prediction."""
        return self.forward + self.grad_input + self.grad_weight + self.prediction


COUNTS = tuple(f.name for f in fields(LayerCost) if f.name not in ("name", "kind"))


@dataclass(frozen=True)
class Cost:
    """The cost of a model, layer by layer; ``str()`` of it is a table.

    Attributes
    ----------
    layers : tuple of LayerCost
        Conv2d, Linear and batch norm layers in the order in which they ran.
    batch : int
        Samples in the example input.
    """

    layers: tuple[LayerCost, ...]
    batch: int

    def total(self, count: str) -> Count:
        """Return the sum over layers of one of the counts of `LayerCost` (or ``macs``)."""
        return sum((getattr(layer, count) for layer in self.layers), Count())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and strings, for JSON."""
        totals = {count: asdict(self.total(count)) for count in ("macs", *COUNTS)}
        return {"batch": self.batch, "total": totals, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        columns = (
            ("MACs", 12),
            ("sparse", 12),
            ("measured", 12),
            ("weights read", 15),
            ("activations kept", 18),
        )
        head = f"{'layer':<28}" + "".join(f"{title:>{width}}" for title, width in columns)
        rows = [(layer.name, layer) for layer in self.layers]
        lines = [head, "-" * len(head)]
        for name, layer in rows:
            lines.append(_line(name, layer.macs, layer.weights, layer.activations))
        lines.append("-" * len(head))
        lines.append(_line("total", self.total("macs"), self.total("weights"), self.total("activations")))
        return "\n".join(lines)


def _line(name: str, macs: Count, weights: Count, activations: Count) -> str:
    amounts = "".join(f"{_short(x):>12}" for x in (macs.dense, macs.formula, macs.measured))
    stored = f"{_short(weights.measured) + 'B':>15}{_short(activations.measured) + 'B':>18}"
    return f"{name[-27:]:<28}{amounts}{stored}"


def _short(number: float) -> str:
    for unit in ("", "k", "M", "G", "T"):
        if number < 1000 or unit == "T":
            return f"{number:.0f}" if unit == "" else f"{number:.2f} {unit}"
        number /= 1000
    raise AssertionError


def cost(model: nn.Module, example_input: Tensor) -> Cost:
    """Count what one training step of `model` on `example_input` costs.

    A copy of the model runs one forward and backward pass, so the model itself, its counters and its batch
    statistics stay untouched. Elementwise layers, pooling and the optimizer are not counted.

    Parameters
    ----------
    model : Module
        Dense or sparse.
    example_input : Tensor
        A batch as the model takes it, such as (N, C, H, W).

    Returns
    -------
    Cost

    Raises
    ------
    InvalidValue
        Where the model does not run on the example.

    References
    ----------
    SWAT, section 3.3, Figures 7 and 8 (which count values only; positions stand in columns of their own).

    Examples
    --------
    >>> import torchswat
    >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    >>> count = cost(torchswat.sparsify_(model, sparsity=0.75), torch.randn(2, 8, 4, 4)).total("macs")
    >>> count.dense, count.dense / count.formula, count.saving
    (110592, 4.0, 4.0)
    """
    twin = copy.deepcopy(model).eval()  # batch norm in eval mode takes a batch of one
    for _, layer in sparse_layers(twin):
        layer.train()
    seen: list[tuple[str, nn.Module, Tensor, Tensor]] = []
    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, _BatchNorm)):
            module.register_forward_hook(_recorder(seen, name))
    devices = [example_input.device] if example_input.is_cuda else []
    with torch.enable_grad(), torch.random.fork_rng(devices=devices):
        try:
            output = twin(example_input.detach())
        except (RuntimeError, ValueError) as error:
            shape = tuple(example_input.shape)
            raise InvalidValue(
                f"{type(model).__name__} does not run on an input of shape {shape}: {error}"
            ) from error
        results = [x for x in tree_leaves(output) if isinstance(x, Tensor) and x.requires_grad]
        if results:
            torch.autograd.backward(results, [torch.ones_like(x) for x in results])
    layers = tuple(_layer_cost(*record) for record in seen)
    return Cost(layers, len(example_input))


def _recorder(seen: list, name: str) -> Callable[[nn.Module, tuple, Tensor], None]:
    def record(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        seen.append((name, module, inputs[0].detach(), output.detach()))

    return record


def _layer_cost(name: str, layer: nn.Module, input: Tensor, output: Tensor) -> LayerCost:
    kind = next(c.__name__ for c in (nn.Conv2d, nn.Linear, type(layer)) if isinstance(layer, c))
    size = input.element_size()
    if isinstance(layer, _BatchNorm):  # keeps its input (section 3.3), whole unless it is asked for less
        whole = input.numel() * size
        form = getattr(layer, "norm_input", "whole")
        kept_bytes = whole if form == "whole" else input.numel() * NORM_INPUTS[form]
        return LayerCost(name, kind, activations=Count(whole, kept_bytes, kept_bytes))
    weight = layer.weight
    assert isinstance(weight, Tensor)
    macs = output.numel() * weight[0].numel()
    sparse = layer.sparse if isinstance(layer, SparseLayer) else None
    asked, real = _densities(sparse)
    row = sparse.algorithm if sparse else None

    def product(*slots: str) -> Count:
        selected = [slot.rsplit("_", 1)[1] for slot in slots if row and getattr(row, slot)] + ["output"]
        shares = [math.prod(density.get(operand, 1.0) for operand in selected) for density in (asked, real)]
        return Count(macs, macs * shares[0], macs * shares[1])

    def stored(tensor: Tensor, slot: str) -> tuple[Count, Count]:
        operand = slot.rsplit("_", 1)[1]
        values = tensor.numel() * tensor.element_size()
        if not (row and getattr(row, slot)) or operand not in asked:
            return Count(values, values, values), Count()
        counts = Count(values, values * asked[operand], values * real[operand])
        return counts, Count(0, *(_position_bytes(tensor.numel(), d[operand]) for d in (asked, real)))

    weights, weight_positions = stored(weight, "grad_input_weight")
    activations, activation_positions = stored(input, "grad_weight_activation")
    sizes = {
        "weight": weight.numel(),
        "activation": input.numel(),
        "gradient": output.numel(),
        "output": output.numel(),
    }
    looked_at = sum(sizes[operand] for operand in asked)
    predicted = 0.0
    if "output" in asked:
        filters, entries = len(weight), weight[0].numel()
        predicted = dimensions(filters, entries) * (entries / 3 + filters) * output.numel() / filters
    return LayerCost(
        name,
        kind,
        prediction=Count(0, predicted, predicted),
        forward=product("forward_weight", "forward_activation"),
        grad_input=product("grad_input_gradient", "grad_input_weight"),
        grad_weight=product("grad_weight_gradient", "grad_weight_activation"),
        weights=weights,
        weight_positions=weight_positions,
        activations=activations,
        activation_positions=activation_positions,
        selection=Count(0, looked_at, looked_at),
    )


def _densities(sparse: LayerSparsity | None) -> tuple[dict[str, float], dict[str, float]]:
    """Return the density of each selected operand: as asked for, and as the last pass measured it."""
    sparsity = sparse.sparsity_now(sparse.last_iteration()) if sparse else 0.0
    if sparse is None or sparsity == 0:
        return {}, {}
    real = {operand: float(selector.density) for operand, selector in sparse.selectors.items()}
    if sparse.algorithm.projected_output:
        real["output"] = float(sparse.output_density)
    return dict.fromkeys(real, 1 - sparsity), real


def _position_bytes(entries: int, density: float) -> float:
    return min(entries / 8, 4 * entries * density)
