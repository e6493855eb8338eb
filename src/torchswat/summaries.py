"""`summary`: what every layer of a model is, what runs it, how sparse it is, and its expected speed."""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import nn

from torchswat.blocks import SINGLE
from torchswat.convert import SETTINGS, Sparsity, covered_layers, reasons
from torchswat.engine import loader
from torchswat.engine import state as state_words
from torchswat.engine.loader import native_for
from torchswat.errors import InvalidValue
from torchswat.expectation import Expected, total, warn_if_slower
from torchswat.fused import STATE
from torchswat.layers import SparseLayer, has_kernels
from torchswat.progress import Progress
from torchswat.switched import SWITCHED_CLASSES
from torchswat.tuning import expected_layers, sizes_met

SPARSE, SWITCHED, FUSED, DENSE = "sparse", "switched", "fused", "dense"


@dataclass(frozen=True)
class LayerSummary:
    """What one layer of a model is.

    Attributes
    ----------
    name : str
        Its name in the model.
    kind : str
        Its class.
    state : {"sparse", "switched", "fused", "dense"}
        ``switched`` are batch norms, ReLUs and pools that keep the engine's CHWN layout, ``fused`` are those
        that run as one with others (`torchswat.fuse_`).
    why : str
        Why a dense layer is dense; what a fused one is fused into; the blocks of a sparse one.
    kernels : str
        What runs a layer that is not dense: ``compiled (avx512)``, or torch and why.
    asked : float or None
        The sparsity of a sparse layer, of a schedule its last one where it has one.
    in_force : float or None
        The sparsity of the last iteration; None before the first.
    weights : float or None
        Density of the weights in the last iteration; None where nothing was selected yet, or they are dense.
    activations : float or None
        The same of the activations.
    nonzero : float or None
        The fraction of the layer's weights that are not zero, which shows whether it was pruned.
    expected : Expected or None
        Milliseconds of a training step, and which products run sparse; None without an example, and where the
        compiled kernels have no part.

    Examples
    --------
    >>> LayerSummary("fc", "Linear", "dense", why="skip: 'last'").why
    "skip: 'last'"
    """

    name: str
    kind: str
    state: str
    why: str = ""
    kernels: str = ""
    asked: float | None = None
    in_force: float | None = None
    weights: float | None = None
    activations: float | None = None
    nonzero: float | None = None
    expected: Expected | None = None


@dataclass(frozen=True)
class Summary:
    """What the layers of a model are; printed, it is a table.

    Attributes
    ----------
    layers : tuple of LayerSummary
        In the order of the model's definition.
    algorithm : str or None
        That `torchswat.sparsify_` was called with.
    iteration : int
        Iterations of training so far.
    expected : Expected or None
        Milliseconds of a training step, sparse and dense, of the layers that the compiled kernels run; None
        without an example.

    Examples
    --------
    >>> summary(nn.Linear(4, 2)).layers[0].why
    'sparsify_ was not called'
    """

    layers: tuple[LayerSummary, ...]
    algorithm: str | None
    iteration: int
    expected: Expected | None = None

    def count(self, state: str) -> int:
        """Return the number of layers of a state.

        Parameters
        ----------
        state : {"sparse", "switched", "fused", "dense"}

        Returns
        -------
        int

        Examples
        --------
        >>> summary(nn.Sequential(nn.Linear(4, 2), nn.ReLU())).count("dense")
        2
        """
        return Counter(layer.state for layer in self.layers)[state]

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain numbers and strings, for JSON.

        Returns
        -------
        dict
            ``layers``, ``algorithm``, ``iteration`` and ``expected``.

        Examples
        --------
        >>> summary(nn.Linear(4, 2)).to_dict()["iteration"]
        0
        """
        return asdict(self)

    def __str__(self) -> str:
        timed = self.expected is not None
        rows = [_HEAD if timed else _HEAD[:-2], *(_row(layer, timed) for layer in self.layers)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows]
        lines.insert(1, "-" * max(map(len, lines)))
        return "\n".join([*lines, lines[1], *self._totals()])

    def _totals(self) -> list[str]:
        counts = ", ".join(f"{self.count(state)} {state}" for state in (SPARSE, SWITCHED, FUSED, DENSE))
        lines = [f"algorithm {self.algorithm or 'none'}, iteration {self.iteration}; layers: {counts}"]
        if self.expected is not None:
            e, source = self.expected, "tuned" if self.expected.tuned else "by the cost model"
            lines.append(
                f"expected of a training step: sparse layers {e.sparse:.2f} ms, dense {e.dense:.2f} ms, "
                f"{e.speedup:.2f}x ({source})"
            )
        return lines


_HEAD = (
    "layer",
    "class",
    "is",
    "sparsity",
    "weights",
    "activations",
    "nonzero",
    "runs on, or why",
    "runs sparse",
    "ms, dense",
)


def _row(layer: LayerSummary, timed: bool) -> tuple[str, ...]:
    now = "" if layer.in_force in (None, layer.asked) else f" ({layer.in_force:.2f} now)"
    cells = (
        layer.name or "(the model)",
        layer.kind,
        layer.state,
        "" if layer.asked is None else f"{layer.asked:.2f}{now}",
        *(_percent(share) for share in (layer.weights, layer.activations, layer.nonzero)),
        "; ".join(filter(None, (layer.kernels, layer.why))),
    )
    if not timed:
        return cells
    e = layer.expected
    if e is None:
        return (*cells, "", "")
    nothing = "nothing: tuned dense" if e.tuned else "nothing: dense is expected to be faster"
    return (*cells, ", ".join(e.runs_sparse) or nothing, f"{e.sparse:.2f}, {e.dense:.2f}")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def summary(model: nn.Module, example: Any = None, *, progress: Progress | None = None) -> Summary:
    """Return what every layer of `model` is: sparse, switched, fused, or dense and why.

    Parameters
    ----------
    model : Module
        Any; it stays as it is.
    example : Tensor, tuple or mapping, optional
        The input of one training step; a tuple holds positional arguments, a mapping keyword arguments. With
        it a copy of the model runs once, and the summary says which products run sparse, and how long a step
        is expected to take: by what `torchswat.tune` measured, else by a cost model.
    progress : callable, optional
        Called after every sparse layer of that run with the number done and the number of all.

    Returns
    -------
    Summary

    Raises
    ------
    InvalidValue
        Where an example is given and the model cannot be copied or does not run on it.

    Warns
    -----
    UserWarning
        Once for a model that is expected to be slower than dense, with what helps.

    Examples
    --------
    >>> import torchswat
    >>> layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10), nn.Linear(10, 10)
    >>> model = nn.Sequential(*layers)
    >>> found = summary(torchswat.sparsify_(model, sparsity=0.9, skip=("last",)))
    >>> [(layer.name, layer.state) for layer in found.layers]
    [('0', 'sparse'), ('1', 'switched'), ('2', 'dense'), ('3', 'sparse'), ('4', 'dense')]
    >>> found.layers[-1].why
    "skip: 'last'"
    """
    by_layer = {} if example is None else _expected(model, example, progress)
    notes = _notes(model)
    fused = _fused_modules(model)
    layers = []
    for name, module in model.named_modules():
        if _is_layer(module):
            layers.append(
                _layer_summary(name, module, notes.get(name, ""), fused.get(id(module)), by_layer.get(name))
            )
    first = next((m for m in model.modules() if SETTINGS in vars(m)), None)
    settings: Sparsity | None = None if first is None else vars(first)[SETTINGS]
    row = None if settings is None else settings.algorithm
    iterations = [_iteration(m) for m in model.modules() if isinstance(m, SparseLayer)]
    warn_if_slower(model, by_layer, stacklevel=2)
    algorithm = row if row is None or isinstance(row, str) else row.name
    return Summary(tuple(layers), algorithm, max(iterations, default=0), total(by_layer.values()))


def _expected(model: nn.Module, example: Any, progress: Progress | None) -> dict[str, Expected]:
    try:
        return expected_layers(model, sizes_met(model, example, training=True, progress=progress))
    except (RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, InvalidValue):
            raise
        raise InvalidValue(f"{type(model).__name__} does not run on the example: {error}") from error


def _is_layer(module: nn.Module) -> bool:
    """Return whether a module is shown: what has weights of its own, or no modules in it."""
    return next(module.children(), None) is None or bool(module._parameters)


def _layer_summary(
    name: str, module: nn.Module, note: str, fused: str | None, expected: Expected | None
) -> LayerSummary:
    kind, nonzero = type(module).__name__, _nonzero(module)
    if isinstance(module, SparseLayer):
        return _sparse_summary(name, module, fused, expected)
    if fused is not None:
        return LayerSummary(name, kind, FUSED, fused, _kernels_of(module), nonzero=nonzero)
    if type(module) in SWITCHED_CLASSES.values():
        return LayerSummary(name, kind, SWITCHED, kernels=_kernels_of(module))
    return LayerSummary(name, kind, DENSE, _why_dense(module, note), nonzero=nonzero)


def _sparse_summary(
    name: str, layer: SparseLayer, fused: str | None, expected: Expected | None
) -> LayerSummary:
    sparse, asked = layer.sparse, layer.sparse.sparsity
    if callable(asked):
        last = getattr(asked, "last", None)
        asked = sparse.sparsity_now(last if isinstance(last, int) else max(0, _iteration(layer) - 1))
    ran = _iteration(layer) > 0
    density = {operand: s.density for operand, s in sparse.selectors.items()} if ran else {}
    in_force = state_words.get(layer.sparse_state, state_words.SPARSITY) if ran else None
    whys = [] if sparse.block == SINGLE else ["weights in blocks of {} x {}".format(*sparse.block)]
    whys += [] if fused is None else [f"part of a fused chain {fused}"]
    return LayerSummary(
        *(name, type(layer).__name__, SPARSE, "; ".join(whys), _kernels(layer), float(asked), in_force),
        *(density.get("weight"), density.get("activation"), _nonzero(layer), expected),
    )


def _iteration(layer: SparseLayer) -> int:
    return 0 if layer.sparse_state.is_meta else layer.sparse.iteration


def _nonzero(module: nn.Module) -> float | None:
    weight = module._parameters.get("weight")
    if weight is None or not weight.numel() or weight.dim() < 2 or weight.is_meta:
        return None
    if hasattr(weight.data, "full_tensor"):  # a shard: to count all would take all processes
        return None
    return float(weight.detach().count_nonzero()) / weight.numel()


# ---- why ---------------------------------------------------------------------------------------------------


def _kernels(layer: SparseLayer) -> str:
    """Return what runs the products of a sparse layer."""
    if not layer.sparse.algorithm.is_packable:
        return f"torch: {layer.sparse.algorithm.name!r} selects operands that the kernels do not"
    depthwise = isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels == layer.out_channels
    kernels = _kernels_of(layer)
    dilation = tuple(layer.dilation) if isinstance(layer, nn.Conv2d) else (1, 1)
    if isinstance(layer, nn.Conv2d) and dilation != (1, 1):
        known = has_kernels(layer.in_channels, layer.weight, dilation, layer.groups)  # type: ignore[arg-type]
        if not known:
            return f"torch on selected operands: dilation={dilation}"
        return f"{kernels}, weight gradient dense" if "compiled" in kernels else kernels
    return (
        f"{kernels}, depthwise"
        if depthwise and cast(int, layer.groups) > 1 and "compiled" in kernels
        else kernels
    )


def _kernels_of(module: nn.Module) -> str:
    tensor = next(
        (t for t in [*module.parameters(), *module.buffers()] if t.is_floating_point()), torch.empty(0)
    )
    if hasattr(tensor.data, "to_local"):  # FSDP2 gathers it for a pass, as a plain tensor
        tensor = cast(Any, tensor.data).to_local()
    info = loader.info()
    if native_for(tensor) is not None:
        return f"compiled ({info['isa']})"
    if info["engine"] != "native":
        return f"torch: the compiled engine is not used ({info['reason']})"
    if tensor.device.type != "cpu":
        return f"torch: on {tensor.device.type}"
    if tensor.dtype != torch.float32:
        return f"torch: {str(tensor.dtype).removeprefix('torch.')}"
    return f"torch: its weight is a {type(tensor.data).__name__}"


def _why_dense(module: nn.Module, note: str) -> str:
    if note:
        return note
    if hasattr(module, "parametrizations"):
        return "its weight is computed by a parametrization"
    parent = next((c.__name__ for c in (nn.Conv2d, nn.Linear) if isinstance(module, c)), None)
    if parent is not None:
        return f"a subclass of {parent}, which may compute something else"
    weights = sum(math.prod(p.shape) for p in module.parameters(recurse=False))
    return f"{type(module).__name__} is not covered" if weights else "has no weights"


def _notes(model: nn.Module) -> dict[str, str]:
    """Return why layers of the classes that could be sparse are dense, by name."""
    found = dict.fromkeys(covered_layers(model), "sparsify_ was not called")
    for prefix, module in model.named_modules():  # the settings nearest to a layer are its own
        settings: Sparsity | None = vars(module).get(SETTINGS)
        if settings is None:
            continue
        layers = covered_layers(module)
        whys = reasons(settings, layers)
        for name in layers:
            why = whys.get(name, "made dense, or added, after sparsify_")
            found[f"{prefix}.{name}".strip(".")] = why
    return found


def _fused_modules(model: nn.Module) -> dict[int, str]:
    """Return which modules run as one with others, by identity, and in what."""
    found = {}
    for name, container in model.named_modules():
        fusion = vars(container).get(STATE)
        if fusion is not None:
            for path, _ in fusion.members:
                found[id(container.get_submodule(path))] = f"in {name or 'the model'}"
    return found
