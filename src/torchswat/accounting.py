"""What a training step of a model costs: multiply-accumulates and bytes, layer by layer.

Every count comes three times: dense, sparse by formula (the sparsity asked for) and sparse as measured
from the masks of a real pass. These are counts, not seconds; for seconds see the benchmarks.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import Tensor, nn

from torchswat.convert import sparse_layers
from torchswat.engine.batch_norm import NORM_INPUTS
from torchswat.errors import InvalidValue
from torchswat.examples import copied, random_states_restored, tensors_in
from torchswat.layer_calls import NORMS, LayerCall, record
from torchswat.layers import SparseLayer
from torchswat.progress import Progress
from torchswat.projection import dimensions


@dataclass(frozen=True)
class Count:
    """One quantity: dense, sparse by formula, and sparse as measured.

    Attributes
    ----------
    dense : float, default 0
        Of the dense step.
    formula : float, default 0
        By the sparsity asked for.
    measured : float, default 0
        From the masks of the pass.

    Examples
    --------
    >>> Count(dense=10, formula=2, measured=2.5).saving
    4.0
    """

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
    name : str
        Its name in the model.
    kind : str
        Its class.
    forward : Count
        Multiply-accumulates of the forward product.
    grad_input : Count
        Multiply-accumulates of the product that gives the gradient of the input.
    grad_weight : Count
        Multiply-accumulates of the product that gives the gradient of the weight.
    prediction : Count
        Multiply-accumulates of DSG's projection; of its ternary matrix only the third that is not zero.
    weights : Count
        Bytes of weight values read by the backward pass.
    weight_positions : Count
        Bytes of the positions of those values (a bitmask or 32-bit offsets, whichever is smaller).
    activations : Count
        Bytes of activation values saved for backward.
    activation_positions : Count
        Bytes of the positions of those values.
    selection : Count
        Entries that the selections of a step read (dense is 0).

    Examples
    --------
    >>> layer = LayerCost("conv", "Conv2d", forward=Count(100, 20, 20), grad_input=Count(100, 20, 20))
    >>> layer.macs.saving
    5.0
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
        One for each call, in the order in which they ran: layers with weights, normalisations (which multiply
        nothing and save their input), and modules whose own forward multiplies matrices.
    batch : int
        The first size of the first tensor in the example input.

    Examples
    --------
    >>> import torch
    >>> len(cost(nn.Linear(4, 2), torch.randn(8, 4)).layers)
    1
    """

    layers: tuple[LayerCost, ...]
    batch: int

    def total(self, count: str) -> Count:
        """Return the sum over all layers of one count.

        Parameters
        ----------
        count : str
            A name among the counts of `LayerCost`, or ``macs``.

        Returns
        -------
        Count

        Examples
        --------
        >>> import torch
        >>> cost(nn.Linear(4, 2), torch.randn(8, 4)).total("macs").dense
        192
        """
        return sum((getattr(layer, count) for layer in self.layers), Count())

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and strings, for JSON.

        Returns
        -------
        dict
            ``batch``, ``total`` and ``layers``.

        Examples
        --------
        >>> import torch
        >>> sorted(cost(nn.Linear(4, 2), torch.randn(8, 4)).to_dict())
        ['batch', 'layers', 'total']
        """
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


def cost(model: nn.Module, example_input: Any, *, progress: Progress | None = None) -> Cost:
    """Count what one training step of `model` on `example_input` costs.

    A copy of the model runs one forward and backward pass, so the model itself, its counters and its batch
    statistics stay untouched. Every product of matrices counts, of layers that are sparse, of others (Conv1d,
    ConvTranspose2d, attention, recurrent cells) and of a module's own forward; a layer that runs twice counts
    twice. A frozen weight has no weight gradient. Elementwise layers, pooling and the optimizer are not
    counted.

    Parameters
    ----------
    model : Module
        Dense or sparse.
    example_input : Tensor, tuple or mapping
        A batch as the model takes it, such as a float tensor of shape (N, C, H, W); a tuple holds positional
        arguments, a mapping keyword arguments.
    progress : callable, optional
        Called with the work done and the work of all, first after every layer's forward pass, then after its
        backward pass.

    Returns
    -------
    Cost

    Raises
    ------
    InvalidValue
        Where the model does not run on the example, or cannot be copied.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1, section 3.3, Figures 7 and 8 (which count values only;
    positions stand in columns of their own).

    Examples
    --------
    >>> import torch, torchswat
    >>> model = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1))
    >>> count = cost(torchswat.sparsify_(model, sparsity=0.75), torch.randn(2, 8, 4, 4)).total("macs")
    >>> count.dense, count.dense / count.formula, count.saving
    (110592, 4.0, 4.0)
    """
    twin = copied(model, "counting").eval()  # batch norm in eval mode takes a batch of one
    for _, layer in sparse_layers(twin):
        layer.train()
    with random_states_restored():
        try:
            calls = record(twin, _detached(example_input), progress)
        except (RuntimeError, ValueError, TypeError) as error:
            raise InvalidValue(
                f"{type(model).__name__} does not run on an input of shape {_shapes(example_input)}: {error}"
            ) from error
    return Cost(tuple(_layer_cost(one) for one in calls), len(tensors_in(example_input)[0]))


def _detached(example: Any) -> Any:
    if isinstance(example, Tensor):
        return example.detach()
    if isinstance(example, Mapping):
        return {name: _detached(value) for name, value in example.items()}
    return tuple(map(_detached, example)) if isinstance(example, tuple) else example


def _shapes(example: Any) -> str:
    return ", ".join(str(tuple(tensor.shape)) for tensor in tensors_in(example))


def _layer_cost(one: LayerCall) -> LayerCost:
    size, layer = one.size, one.module
    if isinstance(layer, NORMS):  # keeps its input (section 3.3), whole unless it is asked for less
        whole = one.input * size
        form = getattr(layer, "norm_input", "whole")
        kept_bytes = whole if form == "whole" else one.input * NORM_INPUTS[form]
        saved = Count(whole, kept_bytes, kept_bytes) if one.input_grad else Count()
        return LayerCost(one.name, one.kind, activations=saved)
    row = layer.sparse.algorithm if isinstance(layer, SparseLayer) else None
    real = one.densities
    asked = dict.fromkeys(real, 1 - one.sparsity)

    def product(runs: bool, *slots: str) -> Count:
        selected = [slot.rsplit("_", 1)[1] for slot in slots if row and getattr(row, slot)] + ["output"]
        shares = [math.prod(density.get(operand, 1.0) for operand in selected) for density in (asked, real)]
        return Count(one.macs, one.macs * shares[0], one.macs * shares[1]) if runs else Count()

    def stored(entries: int, slot: str, reads: bool) -> tuple[Count, Count]:
        operand, values = slot.rsplit("_", 1)[1], entries * size
        if not reads:
            return Count(), Count()
        if not (row and getattr(row, slot)) or operand not in asked:
            return Count(values, values, values), Count()
        counts = Count(values, values * asked[operand], values * real[operand])
        return counts, Count(0, *(_position_bytes(entries, d[operand]) for d in (asked, real)))

    weights, weight_positions = stored(one.weight, "grad_input_weight", one.input_grad)
    activations, activation_positions = stored(one.input, "grad_weight_activation", one.weight_grad)
    sizes = {"weight": one.weight, "activation": one.input, "gradient": one.output, "output": one.output}
    looked_at = sum(sizes[operand] for operand in asked)
    predicted = 0.0
    if "output" in asked:
        filters = len(layer.weight)  # type: ignore[arg-type]
        entries = one.weight // filters
        predicted = dimensions(filters, entries) * (entries / 3 + filters) * one.output / filters
    return LayerCost(
        one.name,
        one.kind,
        prediction=Count(0, predicted, predicted),
        forward=product(True, "forward_weight", "forward_activation"),
        grad_input=product(one.input_grad, "grad_input_gradient", "grad_input_weight"),
        grad_weight=product(one.weight_grad, "grad_weight_gradient", "grad_weight_activation"),
        weights=weights,
        weight_positions=weight_positions,
        activations=activations,
        activation_positions=activation_positions,
        selection=Count(0, looked_at, looked_at),
    )


def _position_bytes(entries: int, density: float) -> float:
    return min(entries / 8, 4 * entries * density)
