"""One call on any model: `sparsify_`, `prune_`, `desparsify_`, all in place.

Layers keep their identity: only their class is switched, so parameters, hooks, optimizers and state_dict
keys stay what they were, in both directions.
"""

# pyright: strict, reportPrivateUsage=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false, reportUnknownVariableType=false
# pyright: reportUnknownLambdaType=false

from __future__ import annotations

import fnmatch
import itertools
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils.hooks import RemovableHandle

from torchswat import switched
from torchswat.algorithms import Algorithm, algorithm
from torchswat.batch_norm import check_norm_input
from torchswat.blocks import SINGLE, BlockSelector, check_block
from torchswat.engine.state import ITERATION, new_state
from torchswat.errors import InvalidValue, UnknownName
from torchswat.fuse import unfuse_
from torchswat.layers import SPARSE_CLASSES, LayerSparsity, Schedule, SparseLayer
from torchswat.masked import zeroed
from torchswat.selection import METHODS, SCOPES, Selector, check_sparsity

Model = TypeVar("Model", bound=nn.Module)
_DENSE_CLASSES = {sparse: dense for dense, sparse in SPARSE_CLASSES.items()}

SETTINGS = "torchswat_settings"
"""The attribute of a model that holds the settings it was made sparse with, until `desparsify_`."""


@dataclass(frozen=True)
class Sparsity:
    """The settings of a sparse training, checked when they are made.

    Parameters
    ----------
    algorithm : str or Algorithm, default "swat"
        A name from `torchswat.algorithms.ALGORITHMS`, or a row of one's own.
    sparsity : float, mapping or callable, default 0.8
        The fraction of entries set to zero, in [0, 1): one number; or a mapping from layer name patterns
        (as in `fnmatch`, the first that fits counts, layers that none fits stay dense) to numbers or
        schedules; or a schedule, a callable from iteration to number such as `torchswat.schedules.Cubic`.
    scope : {"nchw", "chw", "hw"}, default "nchw"
        Over what the Top-K is counted.
    method : str, default "histogram"
        How the k-th largest is found: one of `torchswat.selection.METHODS`.
    exact : bool, default True
        Keep exactly ``k`` at every search; otherwise everything at or above the threshold.
    period : int, default 1
        Iterations for which a threshold is kept before it is searched again.
    warmup : int, default 0
        Iterations at the start that search every time.
    skip : tuple of str, default ()
        Layers to leave dense: name patterns, and the words ``first`` and ``last`` for the first
        convolution and the last layer in the order of the model's definition.
    norm_input : {"whole", "bfloat16", "int8"}, default "whole"
        How the BatchNorm2d layers save their input for backward: as it is, or narrower, at the price of a
        rounding that gradients see (`torchswat.BatchNormReLU2d` has the figures). Beyond the paper.
    block : pair of int, default (1, 1)
        Filters and input channels (of a Linear output and input features), 1, 2, 4 or 8 each, whose weights at
        the same kernel position are kept or left out together: of all blocks the
        ``n - floor(sparsity * n)`` with the largest sums of magnitudes, ties to the lowest index. The last
        blocks of a layer, or of a group of a convolution, are smaller where its size does not divide.
        Activations are selected one by one, and `method` is of them alone. Beyond the paper.

    Raises
    ------
    InvalidValue, UnknownName
        For anything outside the above; a narrow `norm_input` under an algorithm that selects gradients,
        outputs or the forward pass's activations, whose batch norms stay torch's own; a `block` with another
        scope than ``nchw``, or under an algorithm whose weights are dense or drawn at random.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1; scopes: section 2.2, Figure 3; `period`: section 3.2,
    Figure 6b; `method`: section 3.2, "Efficient Top-K Implementation". Weights in blocks: Gray et al. 2017,
    *GPU Kernels for Block-Sparse Weights*; Narang et al. 2017, *Block-Sparse Recurrent Neural Networks*,
    arXiv:1711.02782.

    Examples
    --------
    >>> Sparsity(sparsity={"layer1.*": 0.5, "*": 0.9}, skip=("first",)).scope
    'nchw'
    """

    algorithm: str | Algorithm = "swat"
    sparsity: float | Mapping[str, float | Schedule] | Schedule = 0.8
    scope: str = "nchw"
    method: str = "histogram"
    exact: bool = True
    period: int = 1
    warmup: int = 0
    skip: tuple[str, ...] = ()
    norm_input: str = "whole"
    block: tuple[int, int] = SINGLE

    def __post_init__(self) -> None:
        row = algorithm(self.algorithm)
        object.__setattr__(self, "block", check_block(self.block))
        check_norm_input(self.norm_input)
        if self.norm_input != "whole" and not row.is_packable:
            raise InvalidValue(
                f"norm_input is {self.norm_input!r}, but {row.name!r} leaves batch norms as they "
                "are; allowed is 'whole' there."
            )
        if self.scope not in SCOPES:
            raise UnknownName.of("scope", self.scope, SCOPES)
        if self.method not in METHODS:
            raise UnknownName.of("method", self.method, METHODS)
        self._check_block_fits(row)
        for name, least in (("period", 1), ("warmup", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidValue(
                    f"{name} is {value!r}; allowed is a whole number of iterations, at least {least}."
                )
        named = isinstance(self.skip, Sequence) and not isinstance(self.skip, str)
        if not named or not all(isinstance(pattern, str) for pattern in self.skip):
            raise InvalidValue(
                f"skip is {self.skip!r}; allowed is a tuple of name patterns, such as ('first', 'head.*')."
            )
        object.__setattr__(self, "skip", tuple(self.skip))
        for pattern, value in self.by_pattern().items():
            if not callable(value):
                check_sparsity(value, "sparsity" if pattern == "*" else f"the sparsity of {pattern!r}")

    def _check_block_fits(self, row: Algorithm) -> None:
        if self.block == SINGLE or row.is_dense:
            return
        if self.scope != "nchw":
            raise InvalidValue(
                f"block is {self.block} with scope {self.scope!r}; allowed is scope 'nchw', for blocks are counted "
                "over the whole weight. Leave out scope, or block."
            )
        how = row.selection_of("weight")
        if how != "top-k":
            what = "leaves weights dense" if how is None else "draws weights at random"
            raise InvalidValue(
                f"block is {self.block}, but the algorithm {row.name!r} {what}; allowed is (1, 1) there. "
                "Leave block out."
            )

    def by_pattern(self) -> Mapping[str, float | Schedule]:
        """Return the sparsities by name pattern.

        Returns
        -------
        mapping of str to float or schedule

        Examples
        --------
        >>> Sparsity(sparsity=0.5).by_pattern()
        {'*': 0.5}
        """
        return self.sparsity if isinstance(self.sparsity, Mapping) else {"*": self.sparsity}

    def of_layer(self, name: str) -> float | Schedule | None:
        """Return the sparsity of a layer.

        Parameters
        ----------
        name : str
            The layer's name in its model.

        Returns
        -------
        float, schedule or None
            None where no pattern fits the name.

        Examples
        --------
        >>> Sparsity(sparsity={"layer1.*": 0.5}).of_layer("layer1.0.conv1")
        0.5
        """
        return next(
            (s for pattern, s in self.by_pattern().items() if fnmatch.fnmatchcase(name, pattern)), None
        )

    def selector(self, random: bool, operand: str = "activation", groups: int = 1) -> Selector:
        """Return a fresh selector with these settings.

        Parameters
        ----------
        random : bool
            Whether it draws its masks instead of keeping the largest entries.
        operand : {"weight", "activation", "gradient"}, default "activation"
            What it selects from; weights alone are selected in blocks.
        groups : int, default 1
            Of the convolution whose weight it is.

        Returns
        -------
        Selector

        Examples
        --------
        >>> Sparsity(period=10).selector(random=False).period
        10
        """
        common = self.scope, self.method, self.exact, self.period, self.warmup, random
        if operand == "weight" and self.block != SINGLE:
            return BlockSelector(*common, block=self.block, groups=groups)
        return Selector(*common, operand=operand)


def sparsify_(
    model: Model,
    algorithm: str | Algorithm | Sparsity = "swat",
    sparsity: float | Mapping[str, float | Schedule] | Schedule = 0.8,
    scope: str = "nchw",
    period: int = 1,
    skip: tuple[str, ...] = (),
    *,
    method: str = "histogram",
    exact: bool = True,
    warmup: int = 0,
    norm_input: str = "whole",
    block: tuple[int, int] = SINGLE,
    save_state: bool = False,
) -> Model:
    """Make the Conv2d and Linear layers of `model` train sparsely, in place.

    Parameters, their names and the optimizer's hold on them stay as they are; only the classes of the
    layers change. Calling it again changes the settings and starts the counting of iterations anew.

    Parameters
    ----------
    model : Module
        Any model. All layers of exactly the classes `torch.nn.Conv2d` and `torch.nn.Linear` take part (a
        subclass may compute something else, so it stays dense) unless `skip` names them.
    algorithm : str, Algorithm or Sparsity, default "swat"
        A name, a row of one's own, or all the settings in one object (then the rest must be left out).
    sparsity : float, mapping or callable, default 0.8
        The fraction of entries set to zero, in [0, 1): one number, a mapping from layer name patterns to
        numbers or schedules, or a schedule such as `torchswat.schedules.Cubic`.
    scope : {"nchw", "chw", "hw"}, default "nchw"
        Over what the Top-K is counted: the whole tensor, each filter or sample, each kernel or channel map.
    period : int, default 1
        Iterations for which a threshold is kept before it is searched again.
    skip : tuple of str, default ()
        Layers to leave dense: name patterns, and the words ``first`` and ``last`` for the first convolution
        and the last layer.
    method : str, default "histogram"
        How the k-th largest magnitude is found: one of `torchswat.selection.METHODS`.
    exact : bool, default True
        Keep exactly ``k`` entries at every search; otherwise all that tie with the threshold as well.
    warmup : int, default 0
        Iterations at the start that search every time.
    norm_input : {"whole", "bfloat16", "int8"}, default "whole"
        How BatchNorm2d layers save their input for backward; see `Sparsity`.
    block : pair of int, default (1, 1)
        Filters and input channels whose weights are kept or left out together, by the sum of their magnitudes:
        1, 2, 4 or 8 each, with scope ``nchw``; see `Sparsity`.
    save_state : bool, default False
        Whether what layers remember (iterations, thresholds) is in the state_dict, as one int64 tensor
        ``<layer>.sparse_state`` of shape (16,) each, and so in the checkpoints of any library. Without it the
        keys are those of the plain model, and `torchswat.sparse_state` returns the same.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    InvalidValue, UnknownName
        For settings outside what `Sparsity` allows, a pattern that fits no layer, a lazy layer that has
        not seen its first input, or a model without any Conv2d or Linear.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1, section 2.2 and Algorithm 1. Weight gradients are
    straight-through estimates: Bengio et al. 2013, arXiv:1308.3432.

    Examples
    --------
    >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> model = sparsify_(model, algorithm="swat", sparsity=0.8, skip=("first",))
    >>> [name for name, layer in sparse_layers(model)]
    ['3']
    >>> model(torch.randn(2, 3, 8, 8)).sum().backward()
    >>> round(float(model[3].sparse.selectors["weight"].density), 3)
    0.2
    """
    if isinstance(algorithm, Sparsity):
        settings = algorithm
        if (sparsity, scope, period, skip, method, exact, warmup, norm_input, block) != (
            0.8,
            "nchw",
            1,
            (),
            "histogram",
            True,
            0,
            "whole",
            SINGLE,
        ):
            raise InvalidValue(
                "all the settings are in one Sparsity object; the other arguments must be left out."
            )
    else:
        settings = Sparsity(
            algorithm, sparsity, scope, method, exact, period, warmup, skip, norm_input, block
        )
    chosen = _chosen_layers(model, settings)
    desparsify_(model)
    vars(model)[SETTINGS] = settings  # for `torchswat.summary`
    row = _row(settings)
    if row.is_dense:
        return model
    seed = torch.initial_seed()
    tables: dict[Schedule, Tensor | None] = {}
    normed = _before_norms(model)
    for name, layer in chosen.items():
        layer_sparsity = settings.of_layer(name)
        assert layer_sparsity is not None
        selectors = {
            operand: settings.selector(
                row.selection_of(operand) == "random", operand, getattr(layer, "groups", 1)
            )
            for operand in ("weight", "activation", "gradient")
            if row.selects(operand)
        }
        _make_sparse(
            layer, LayerSparsity(row, layer_sparsity, selectors, new_state(seed), name), save_state, tables
        )
        layer.sparse.before_norm = layer in normed  # type: ignore[union-attr]
    for module in model.modules():
        for kind, (switch, off) in _FAST_PATHS.items():
            if isinstance(module, kind):
                module._torchswat_fast_path = getattr(module, switch)
                setattr(module, switch, off)
    if row.is_packable:
        switched.switch_(model, settings.norm_input)
    if row.projected_output:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module._torchswat_hook = module.register_forward_hook(_mask_again)  # type: ignore[assignment]
    return model


def _before_norms(model: nn.Module) -> set[nn.Module]:
    """Return the modules that a BatchNorm2d follows in the order of definition."""
    modules = [module for module in model.modules() if not list(module.children())]
    return {a for a, b in itertools.pairwise(modules) if isinstance(b, nn.BatchNorm2d)}


def _make_sparse(
    layer: nn.Module, sparse: LayerSparsity, save_state: bool, tables: dict[Schedule, Tensor | None]
) -> None:
    """Switch the class of a layer and give it what a sparse one has beside."""
    layer.__class__ = SPARSE_CLASSES[type(layer)]
    layer.sparse = sparse  # type: ignore[assignment]
    device = cast(Tensor, layer.weight).device
    layer.register_buffer("sparse_state", sparse.state.to(device), persistent=save_state)
    sparse.use_state(cast(Tensor, layer.sparse_state))
    schedule = sparse.sparsity
    if callable(schedule):
        if schedule not in tables:
            last = getattr(schedule, "last", None)
            ends = isinstance(last, int) and 0 <= last < _LONGEST_SCHEDULE
            values = [sparse.sparsity_now(i) for i in range(last + 1)] if ends else []  # type: ignore[operator]
            tables[schedule] = torch.tensor(values, dtype=torch.float64, device="cpu") if ends else None
        layer.sparse_schedule = tables[schedule]  # type: ignore[assignment]


_LONGEST_SCHEDULE = 2**22


def _row(settings: Sparsity) -> Algorithm:
    return algorithm(settings.algorithm)


def _chosen_layers(model: nn.Module, settings: Sparsity) -> dict[str, nn.Module]:
    """Return the layers that take part, by name, after checking that every pattern fits one."""
    lazy = [name for name, m in model.named_modules() if isinstance(m, LazyModuleMixin)]
    if lazy:
        raise InvalidValue(
            f"layer {lazy[0]!r} is lazy and has no weight yet; run the model once on an example first."
        )
    layers = covered_layers(model)
    wrapped = [
        n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and _is_wrapped(m)
    ]
    if wrapped:
        raise InvalidValue(
            f"layer {wrapped[0]!r} was wrapped by torch.distributed.fsdp.fully_shard itself, so its class cannot be "
            "switched. Call sparsify_ on the model before fully_shard."
        )
    if not layers:
        raise InvalidValue(f"{type(model).__name__} has no Conv2d or Linear layer to make sparse.")
    left_dense = [
        n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and n not in layers
    ]
    if left_dense:
        warnings.warn(
            f"{len(left_dense)} layers are of subclasses of Conv2d or Linear and stay dense: "
            + ", ".join(left_dense[:5]),
            stacklevel=3,
        )
    names = list(layers)
    unfit = [pattern for pattern in settings.skip if not _fitting(layers, pattern)]
    unfit += [pattern for pattern in settings.by_pattern() if not fnmatch.filter(names, pattern)]
    if unfit:
        raise InvalidValue(
            f"the pattern {unfit[0]!r} fits no layer; the layers are "
            f"{', '.join(names[:8])}{', ...' * (len(names) > 8)}."
        )
    dense = reasons(settings, layers)
    return {name: layer for name, layer in layers.items() if name not in dense}


def covered_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of the classes that `sparsify_` covers, by name."""
    classes = {**SPARSE_CLASSES, **_DENSE_CLASSES}
    return {name: m for name, m in model.named_modules() if type(m) in classes}


def _is_wrapped(layer: nn.Module) -> bool:
    """Return whether ``fully_shard`` gave the layer a class of its own."""
    return "FSDPModule" in (base.__name__ for base in type(layer).__mro__)


def _fitting(layers: Mapping[str, nn.Module], pattern: str) -> list[str]:
    """Return the names that a pattern of `skip` fits."""
    names = list(layers)
    convolutions = [name for name in names if isinstance(layers[name], nn.Conv2d)]
    words = {"first": convolutions[:1] or names[:1], "last": names[-1:]}
    return words.get(pattern) or fnmatch.filter(names, pattern)


def reasons(settings: Sparsity, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return why layers stay dense under `settings`, by name; `layers` are all that could take part."""
    row = _row(settings)
    if row.is_dense:
        return dict.fromkeys(layers, f"the algorithm is {row.name!r}")
    found = {}
    for pattern in (*settings.skip, *row.skip):
        whose = "skip" if pattern in settings.skip else f"the algorithm {row.name!r} skips it"
        for name in _fitting(layers, pattern):
            found.setdefault(name, f"{whose}: {pattern!r}")
    for name in layers:
        if name not in found and settings.of_layer(name) is None:
            found[name] = "no pattern of the sparsities fits its name"
    return found


def _mask_again(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """Apply DSG's mask a second time, behind the batch norm that follows its layer."""
    mask = getattr(inputs[0], "torchswat_mask", None)
    return zeroed(output, mask)


def desparsify_(model: Model) -> Model:
    """Make all layers of `model` plain torch modules again, in place; weights stay as they are.

    What `torchswat.fuse_` fused is undone as well. Call `prune_` first to keep the sparse network that was
    trained.

    Parameters
    ----------
    model : Module
        Any model.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    InvalidValue
        Where the weight of a sparse layer is computed from others, as by `torch.nn.utils.parametrize`, or
        ``fully_shard`` was called on the layer itself.

    Examples
    --------
    >>> model = sparsify_(nn.Sequential(nn.Linear(4, 2)))
    >>> desparsify_(model)
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    for name, layer in sparse_layers(model):
        if _is_wrapped(layer):
            raise InvalidValue(
                f"layer {name!r} was wrapped by torch.distributed.fsdp.fully_shard itself, so its class "
                "cannot be switched. "
                "Gather the whole state_dict "
                "(torch.distributed.checkpoint.state_dict.get_model_state_dict), whose keys "
                "are the plain model's, and load it into a plain model; prune_ works before."
            )
        if type(layer) not in _DENSE_CLASSES:
            check_weight_is_own(name, layer)
    for _, layer in sparse_layers(model):
        layer.__class__ = _DENSE_CLASSES[type(layer)]  # type: ignore[assignment]
        del layer.sparse, layer.sparse_state
        vars(layer).pop("sparse_schedule", None)
    unfuse_(model)
    switched.restore_(model)
    for module in model.modules():
        vars(module).pop(SETTINGS, None)
        hook = module.__dict__.pop("_torchswat_hook", None)
        if hook is not None:
            hook.remove()
        for kind, (switch, _) in _FAST_PATHS.items():
            if isinstance(module, kind) and "_torchswat_fast_path" in vars(module):
                setattr(module, switch, vars(module).pop("_torchswat_fast_path"))
    return model


_FAST_PATHS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.TransformerEncoderLayer: ("activation_relu_or_gelu", 0),
    nn.TransformerEncoder: ("use_nested_tensor", False),
}
"""What makes torch go around the layers in these modules, and read their dense weights by itself."""


def check_weight_is_own(name: str, layer: nn.Module) -> None:
    """Raise `InvalidValue` where the weight of a layer is computed from others in each pass."""
    own = layer._parameters
    if own.get("weight") is not None and type(layer) in _DENSE_CLASSES:
        return
    if hasattr(layer, "parametrizations"):
        by, undo = "a parametrization", "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
    elif "weight_g" in own:
        by, undo = "weight_norm", "torch.nn.utils.remove_weight_norm(layer)"
    elif "weight_orig" in own and "weight_mask" in layer._buffers:
        by, undo = "torch.nn.utils.prune", "torch.nn.utils.prune.remove(layer, 'weight')"
    elif "weight_orig" in own:
        by, undo = "spectral_norm", "torch.nn.utils.remove_spectral_norm(layer)"
    elif own.get("weight") is not None:
        return
    else:
        by, undo = "something", "what undoes that"
    raise InvalidValue(
        f"the weight of layer {name!r} is computed from others by {by} in each pass; call {undo} first."
    )


@torch.no_grad()
def prune_(model: Model, sparsity: float | Mapping[str, float] | None = None) -> Model:
    """Set the weights of `model` to exact zeros that its sparse layers do not select, in place.

    The paper's claim is that a network trained at sparsity S can be pruned to S at no loss (section 1). What is
    selected is what an evaluation would select now. Algorithms that leave weights dense have nothing to prune.

    Parameters
    ----------
    model : Module
        With sparse layers.
    sparsity : float or mapping, optional
        The sparsity to prune to, or one by name pattern, in [0, 1); by default that of the last iteration of
        training, which may be zero at the beginning of a schedule.

    Returns
    -------
    Module
        `model` itself.

    Raises
    ------
    InvalidValue
        Where the weight of a sparse layer is no parameter but computed from others.

    Warns
    -----
    UserWarning
        Where no weight was set to zero, and where a weight that was is used by another module, too (tied
        weights).

    Notes
    -----
    Weights that FSDP2 shards (``DTensor``) are gathered layer by layer: call it on all processes.

    References
    ----------
    SWAT: Raihan and Aamodt 2020, arXiv:2001.01969v1, section 1.

    Examples
    --------
    >>> model = prune_(sparsify_(nn.Sequential(nn.Linear(10, 10)), sparsity=0.8))
    >>> int((model[0].weight != 0).sum())
    20
    """
    layers = list(sparse_layers(model))
    for name, layer in layers:
        check_weight_is_own(name, layer)
    selecting, pruned = 0, {}
    wanted = Sparsity(sparsity=sparsity) if sparsity is not None else None
    for name, layer in layers:
        sparse = layer.sparse
        share = sparse.sparsity_now(sparse.last_iteration()) if wanted is None else wanted.of_layer(name)
        selecting += "weight" in sparse.selectors
        if "weight" not in sparse.selectors or not share:
            continue
        _prune_layer(layer, float(cast(float, share)))
        pruned[name] = layer
    _warn_of_tied(model, pruned)
    if not pruned:
        why = "it has no sparse layers"
        if selecting:
            why = (
                "its sparsity is 0 at the iteration where it stands (a schedule that has not begun, or a state that "
                "was not loaded)"
            )
        elif layers:
            why = f"its algorithm, {layers[0][1].sparse.algorithm.name!r}, leaves weights dense"
        warnings.warn(
            f"prune_ set nothing to zero: {why}. Call sparsify_ before training, load the sparse state, or name the "
            "sparsity: prune_(model, sparsity=0.8).",
            stacklevel=3,
        )
    return model


def _prune_layer(layer: SparseLayer, sparsity: float) -> None:
    weight = cast(Any, layer.weight)
    if not hasattr(weight.data, "full_tensor"):
        weight.masked_fill_(~layer.selected_weights(sparsity), 0)
        return
    from torch.distributed.tensor import distribute_tensor  # a second to import, and seldom needed

    whole = weight.detach().full_tensor()
    whole.masked_fill_(~layer.selected_weights(sparsity, whole), 0)
    weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None))


def _warn_of_tied(model: nn.Module, pruned: Mapping[str, nn.Module]) -> None:
    """Warn of weights that were pruned and are used under another name, too."""
    names: dict[int, list[str]] = {}
    layers = {id(layer) for layer in pruned.values()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    prefixed = {id(layer.weight): f"{name}.weight".lstrip(".") for name, layer in pruned.items()}
    for identity, name in prefixed.items():
        twins = [other for other in names.get(identity, ()) if other != name]
        others = [other for other in twins if id(model.get_submodule(other.rpartition(".")[0])) not in layers]
        if others:
            warnings.warn(
                f"prune_ set entries of {name!r} to zero, which is the same tensor as "
                f"{', '.join(map(repr, others))}: "
                "that changed, too. Name the layer in skip= of sparsify_ to leave both, or untie them "
                "before.",
                stacklevel=4,
            )


def has_weights_to_prune(model: nn.Module) -> bool:
    """Return whether `prune_` has weights to set to zero: whether a layer selects from its own, above sparsity 0."""
    return any(
        "weight" in layer.sparse.selectors and layer.sparse.sparsity_now(layer.sparse.last_iteration()) > 0
        for _, layer in sparse_layers(model)
    )


def sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    """Yield the sparse layers of `model` with their names.

    Parameters
    ----------
    model : Module
        Any model.

    Yields
    ------
    str
        The layer's name in the model.
    SparseLayer
        The layer. Its attribute ``sparse`` has its settings, its ``iteration`` and its ``selectors``
        (``density``, ``threshold``).

    Examples
    --------
    >>> model = sparsify_(nn.Sequential(nn.Linear(4, 2), nn.ReLU()), sparsity=0.5)
    >>> [(name, layer.sparse.sparsity) for name, layer in sparse_layers(model)]
    [('0', 0.5)]
    """
    for name, module in model.named_modules():
        if isinstance(module, SparseLayer):
            yield name, module


def sparse_state(model: nn.Module) -> dict[str, Tensor]:
    """Return what all sparse layers remember (iterations, sparsity, thresholds, densities), for a checkpoint.

    Parameters
    ----------
    model : Module
        With sparse layers; an empty dictionary is returned for one without.

    Returns
    -------
    dict of str to Tensor
        ``<layer>.state``, int64 of shape (16,), and ``<layer>.<operand>`` for thresholds by row (scopes ``chw`` and
        ``hw``), in the dtype of the operand and of shape (N, 1, 1, 1) or (N, C, 1, 1). Copies on the CPU.

    Examples
    --------
    >>> model = sparsify_(nn.Sequential(nn.Linear(4, 2)))
    >>> list(sparse_state(model))
    ['0.state']
    """
    state = {}
    for name, layer in sparse_layers(model):
        state[f"{name}.state"] = layer.sparse_state.detach().to("cpu", copy=True)
        for operand, selector in layer.sparse.selectors.items():
            if selector.rows is not None:
                state[f"{name}.{operand}"] = selector.rows.detach().to("cpu", copy=True)
    return state


def load_sparse_state_(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `sparse_state` returned into a model made sparse with the same settings.

    Load the state_dict first: a layer that gets other weights forgets its thresholds.

    Parameters
    ----------
    model : Module
        With sparse layers.
    state : mapping of str to Tensor
        As `sparse_state` returned it: int64 tensors of shape (16,), and thresholds by row.

    Raises
    ------
    InvalidValue
        Where the state is of other layers, or of another shape or dtype.

    Examples
    --------
    >>> model, other = (sparsify_(nn.Sequential(nn.Linear(4, 2))) for _ in range(2))
    >>> model(torch.randn(3, 4)).sum().backward()
    >>> load_sparse_state_(other, sparse_state(model))
    >>> other[0].sparse.iteration
    1
    """
    layers = dict(sparse_layers(model))
    theirs = {key.removesuffix(".state") for key in state if key.endswith(".state")}
    if theirs != set(layers):
        odd = sorted(theirs ^ set(layers))
        raise InvalidValue(
            f"the sparse state is of other layers than the model's: {', '.join(odd[:5])} on one side only. "
            "Call sparsify_ with the settings the state was saved under."
        )
    for name, layer in layers.items():
        words = state[f"{name}.state"]
        if words.shape != layer.sparse_state.shape or words.dtype != layer.sparse_state.dtype:
            raise InvalidValue(
                f"the state of layer {name!r} has shape {tuple(words.shape)} and dtype {words.dtype}; allowed is "
                f"{tuple(layer.sparse_state.shape)} and {layer.sparse_state.dtype}, as sparse_state returns it."
            )
        layer.sparse_state.copy_(words)
        for operand, selector in layer.sparse.selectors.items():
            rows = state.get(f"{name}.{operand}")
            selector.rows = None if rows is None else rows.clone()


def count_steps_(model: nn.Module, optimizer: torch.optim.Optimizer) -> RemovableHandle:
    """Count iterations of `model`'s sparse layers by the optimizer's steps instead of by passes.

    A schedule of sparsity, and the period of thresholds, then follow the steps, however many passes one takes:
    gradient accumulation, SAM, passes that adapt batch statistics. A step that a GradScaler skips does not count.

    Parameters
    ----------
    model : Module
        With sparse layers.
    optimizer : Optimizer
        Whose ``step`` counts; a post-step hook is registered on it, or on the one it wraps (Accelerate's).

    Returns
    -------
    RemovableHandle
        ``remove()`` on it takes the hook off again; passes then count, from where the steps stood.

    Raises
    ------
    InvalidValue
        Where the model has no sparse layers.

    Examples
    --------
    >>> model = sparsify_(nn.Linear(4, 2), sparsity=lambda step: 0.5 if step >= 1 else 0.0)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> handle = count_steps_(model, optimizer)
    >>> for _ in range(3):  # three passes, one step
    ...     model(torch.randn(3, 4)).sum().backward()
    >>> optimizer.step()
    >>> model.sparse.iteration
    1
    """
    layers = [layer for _, layer in sparse_layers(model)]
    if not layers:
        raise InvalidValue(
            "the model has no sparse layers whose iterations could be counted; call sparsify_ first."
        )

    def count(*_: Any) -> None:
        for layer in layers:
            if isinstance(layer, SparseLayer):
                layer.sparse_state[ITERATION] += 1

    while "_optimizer_step_post_hooks" not in vars(optimizer) and hasattr(optimizer, "optimizer"):
        optimizer = cast(Any, optimizer).optimizer  # a wrapper, whose own hooks torch never set up
    handle = _CountedSteps(layers, optimizer.register_step_post_hook(count))
    return cast(RemovableHandle, handle)


class _CountedSteps:
    """A handle on the hook that counts, which lets passes count again when it is removed."""

    def __init__(self, layers: list[SparseLayer], handle: RemovableHandle) -> None:
        self._layers, self._handle = layers, handle
        self._count_by_optimizer(True)

    def _count_by_optimizer(self, yes: bool) -> None:
        for layer in self._layers:
            if isinstance(layer, SparseLayer):
                layer.sparse.by_optimizer = yes

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()
        self._count_by_optimizer(False)
