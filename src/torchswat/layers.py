"""Sparse Conv2d and Linear: what `torchswat.sparsify_` makes of the layers of a model.

A sparse layer is its dense class with two attributes more: `sparse`, its settings, and the buffer `sparse_state`, what
it remembers from pass to pass. A pass is one operation (`torchswat.engine.ops`); its gradients are the straight-through
estimate of the paper. The optimizer updates the dense weight with a dense gradient; the bias stays dense.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchswat.algorithms import Algorithm
from torchswat.blocks import SINGLE, BlockSelector
from torchswat.engine import layout, plan
from torchswat.engine import state as state_words
from torchswat.engine.arguments import (
    COUNTED,
    COUNTS,
    EVALUATION,
    EXACT,
    FORWARD_WEIGHT,
    GRAD_INPUT_WEIGHT,
    GRAD_WEIGHT_ACTIVATION,
    SAMPLED,
    TUNED,
    Arguments,
    kept_count,
    moment_of,
    share_of,
)
from torchswat.engine.batch_norm import RecomputeInfo
from torchswat.engine.dense import Padding
from torchswat.engine.function import Call, SparseFunction, run
from torchswat.engine.loader import has_memory, native_for, native_for_bfloat16
from torchswat.engine.ops import not_traceable
from torchswat.engine.products import Conv2dProducts, LinearProducts, Products
from torchswat.engine.shape import shape_of
from torchswat.errors import InvalidValue, NotFinite
from torchswat.masked import MaskedProducts, Masks
from torchswat.projection import predicted_mask
from torchswat.selection import Selector, check_sparsity

Schedule = Callable[[int], float]
"""Sparsity as a function of the iteration (the number of training passes, or of optimizer steps, so far)."""

Pair = tuple[int, int]
Geometry = tuple[Pair, Padding, Pair, int]
"""Stride, padding, dilation and groups."""
_REMEMBERED_SHAPES = 256
_FARTHEST_TAP = 16  # positions that a tile reaches over, of kernels with gaps between their taps
_FILLED_LANES = 8  # samples below which vectors of samples are mostly empty


@dataclass
class LayerSparsity:
    """What a sparse layer knows beyond its parameters: its settings, and how its operands are selected.

    Attributes
    ----------
    algorithm : Algorithm
        The row of the table.
    sparsity : float or callable
        Of this layer; a callable is a schedule over iterations.
    selectors : dict of str to Selector
        By operand: ``weight``, ``activation``, ``gradient``. Each tells its ``density`` and ``threshold``.
    state : Tensor of shape (16,), int64
        The layer's buffer ``sparse_state``.
    name : str
        The layer's name in its model, for messages.
    by_optimizer : bool
        Iterations are counted by `torchswat.count_steps_`, not by passes.
    """

    algorithm: Algorithm
    sparsity: float | Schedule
    selectors: dict[str, Selector]
    state: Tensor
    name: str = "layer"
    by_optimizer: bool = False
    before_norm: bool = False
    """Whether a BatchNorm2d stands right behind the layer in the order of the model's definition."""
    masks: tuple[str, ...] = ()
    """Operands that the layer's operation does not select by itself."""
    packable: bool = True
    """`Algorithm.is_packable`."""
    slots: int = 0
    search: int = 0
    share: tuple[int, int] = (0, 1)
    _arguments: dict[tuple, Arguments] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        row = self.algorithm
        self.slots = (
            FORWARD_WEIGHT * bool(row.forward_weight)
            | GRAD_INPUT_WEIGHT * bool(row.grad_input_weight)
            | GRAD_WEIGHT_ACTIVATION * bool(row.grad_weight_activation)
        )
        self.packable = row.is_packable
        self.masks = tuple(operand for operand, one in self.selectors.items() if not one.in_operation)
        first = next(iter(self.selectors.values()), Selector())
        self.search = EXACT * first.exact | SAMPLED * (first.method == "sample")
        self.share = (0, 1) if callable(self.sparsity) else share_of(self.sparsity)
        self.use_state(self.state)

    def use_state(self, state: Tensor) -> None:
        """Read and write this state from now on."""
        self.state = state
        for operand, selector in self.selectors.items():
            selector.operand, selector.state = operand, state

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_arguments": {}}

    @property
    def iteration(self) -> int:
        """Iterations of training so far; a pass inside a backward pass (gradient checkpointing) is no new one."""
        return 0 if self.state.is_meta else int(self.state[state_words.ITERATION])

    @iteration.setter
    def iteration(self, number: int) -> None:
        self.state[state_words.ITERATION] = number

    @property
    def block(self) -> tuple[int, int]:
        """Filters and input channels that are selected together."""
        selector = self.selectors.get("weight")
        return selector.block if isinstance(selector, BlockSelector) else SINGLE

    @property
    def output_density(self) -> float:
        """The share of outputs that the last pass of training kept (DSG)."""
        return state_words.density(self.state, "output")

    def sparsity_now(self, iteration: int) -> float:
        """Return the sparsity in force at `iteration`."""
        if callable(self.sparsity):
            return check_sparsity(self.sparsity(iteration), f"the scheduled sparsity of layer {self.name!r}")
        return self.sparsity

    def last_iteration(self) -> int:
        """Return the iteration that an evaluation, or `torchswat.prune_`, belongs to."""
        return max(0, self.iteration - 1)

    def training_mode(self, training: bool) -> int:
        """Return how a pass counts, in the words of `torchswat.engine.arguments`."""
        if not training:
            return EVALUATION
        return COUNTED if self.by_optimizer else COUNTS

    def forget(self) -> None:
        """Drop the thresholds of weights that are being replaced."""
        state_words.forget_thresholds(self.state)
        for selector in self.selectors.values():
            selector.forget()


class SparseLayer(nn.Module):
    """What the sparse layers share: from an input to the arguments of one pass."""

    sparse: LayerSparsity
    sparse_state: Tensor
    sparse_schedule: Tensor | None = None
    """The sparsities of all iterations, where they follow a schedule that ends; for graphs that are traced."""

    def _pass(
        self,
        x: Tensor,
        geometry: Geometry,
        entries: int,
        activation_mask: Tensor | None = None,
        recompute: RecomputeInfo | None = None,
    ) -> Tensor:
        """Run one pass on `x`, (N, C, H, W) or (N, C); `entries` of it are selected from (padding is not)."""
        sparse, own = self.sparse, self._parameters  # torch's own look-up of attributes takes microseconds
        weight = cast(Tensor, own["weight"] if "weight" in own else self.weight)  # noqa: SIM401
        bias = cast("Tensor | None", own["bias"] if "bias" in own else self.bias)  # noqa: SIM401
        grad = torch.is_grad_enabled() and (
            x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        )
        wants_weight = grad and weight.requires_grad
        if torch.compiler.is_compiling():
            return self._traced_pass(x, weight, bias, geometry, entries, activation_mask, wants_weight)
        sparsity = sparse.sparsity
        if callable(sparsity):
            sparsity = sparse.sparsity_now(self._this_iteration())
        narrow = x.dtype is torch.bfloat16 and weight.dtype is torch.float32
        native = None
        if x.numel() and weight.numel():
            native = native_for_bfloat16(x, weight, bias) if narrow else native_for(x, weight, bias)
        training = sparse.training_mode(self.training)
        in_chwn = x.dim() == 4 and layout.is_chwn(x)
        circumstances = plan.PLAN.circumstances()
        key = (
            *(x.shape, entries, sparsity, native is None, in_chwn, training, wants_weight, recompute is None),
            narrow,
            circumstances,
        )
        a = sparse._arguments.get(key)
        if a is None or circumstances is None:  # then the plan is to be asked in every pass
            products = None if native is None else self._products(x, weight, geometry, sparsity)
            chwn = x.dim() == 4 and products is not None
            chwn = chwn and (products != 0 or in_chwn or self._prefers_chwn(x, weight, geometry))
            a = self._arguments(
                x, geometry, entries, sparsity, products, chwn, wants_weight, recompute, training
            )
            if len(sparse._arguments) >= _REMEMBERED_SHAPES:
                sparse._arguments.clear()
            sparse._arguments[key] = a
        weight_mask = None
        if sparse.masks:
            # in training always: without a mask the operation remembers a threshold of single entries
            if "weight" in sparse.masks and (a.slots & FORWARD_WEIGHT or grad or training):
                weight_mask = self._mask("weight", weight, sparsity)
            if "activation" in sparse.masks and wants_weight and activation_mask is None:
                activation_mask = self._mask("activation", x, sparsity)
        state = self._buffers["sparse_state"]
        assert state is not None
        plain = native if state.is_cpu and type(state) is Tensor else None
        call = Call(state, weight_mask, activation_mask, recompute, a, plain)
        if not grad:
            return run(x, weight, bias, call)[0]
        return cast(Tensor, SparseFunction.apply(x, weight, bias, call))

    def _this_iteration(self) -> int:
        moment = moment_of(self.sparse.training_mode(self.training))
        return self.sparse.last_iteration() if moment.last else self.sparse.iteration

    def _mask(self, operand: str, tensor: Tensor, sparsity: float, iteration: int | None = None) -> Tensor:
        """Return the mask of an operand that the operation does not select by itself."""
        sparse = self.sparse
        what = "weight" if operand == "weight" else "input"
        name = f"the {what} of layer {sparse.name!r}"
        remember = moment_of(sparse.training_mode(self.training)).remembers
        iteration = self._this_iteration() if iteration is None else iteration
        with torch.no_grad():
            return sparse.selectors[operand](tensor.detach(), sparsity, iteration, name, remember)

    def _arguments(
        self,
        x: Tensor,
        geometry: Geometry,
        entries: int,
        sparsity: float,
        products: int | None,
        chwn: bool,
        wants_weight: bool,
        recompute: RecomputeInfo | None,
        training: int,
    ) -> Arguments:
        """Return the arguments of a pass in eager mode."""
        sparse = self.sparse
        stride, padding, dilation, groups = geometry
        weight = cast(Tensor, self.weight)
        kept = kept_count(entries, sparsity)
        whole = "activation" in sparse.selectors and sparse.selectors["activation"].in_operation
        exact = bool(sparse.search & EXACT) and not sparse.search & SAMPLED and self._period == 1 and whole
        exact = exact and entries == x.numel()  # what was padded may be kept too
        exact = exact and x.dtype is not torch.bfloat16  # of which many are equal
        return Arguments(
            sparsity,
            kept_count(weight.numel(), sparsity),
            min(kept, x.numel()),
            kept if exact else -1,
            *(stride, padding, dilation, groups),
            *(sparse.slots, sparse.search, self._period, self._warmup, products or 0),
            chwn=chwn,
            training=training,
            save=wants_weight,
            recompute=recompute is not None and bool((products or 0) & 4),
            name=sparse.name,
        )

    def _products(self, x: Tensor, weight: Tensor, geometry: Geometry, sparsity: float) -> int | None:
        """Return which products run sparse, or None where the compiled kernels have none for this layer."""
        if not has_kernels(x.shape[1], weight, *geometry[2:]):
            return None
        if _is_depthwise(x, weight, geometry[3]):
            return 0
        shape = shape_of(x.shape, weight.shape, *geometry, x.dtype is torch.bfloat16)
        return plan.products_of(plan.choose(shape, sparsity))

    def _prefers_chwn(self, x: Tensor, weight: Tensor, geometry: Geometry) -> bool:
        """Return whether dense products work in the CHWN layout for a batch norm to come.

        That one follows is a guess by the order of the model's definition, on which no number depends.
        """
        groups = geometry[3]
        works = weight.shape[2:] == (1, 1) and geometry[1] == (0, 0) and groups == 1
        works = works or _is_depthwise(x, weight, groups)
        return self.sparse.before_norm and works and len(x) >= _FILLED_LANES

    @property
    def _period(self) -> int:
        return next(iter(self.sparse.selectors.values())).period

    @property
    def _warmup(self) -> int:
        return next(iter(self.sparse.selectors.values())).warmup

    def _traced_pass(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        entries: int,
        activation_mask: Tensor | None,
        wants_weight: bool,
    ) -> Tensor:
        """Run one pass as one operation of a graph; which products run sparse is decided when the graph runs."""
        sparse = self.sparse
        stride, padding, dilation, groups = geometry
        constant = not callable(sparse.sparsity)
        sparsity = sparse.sparsity if constant else 0.0
        zeros, of = sparse.share
        kept = entries - entries * zeros // of  # in integers: sizes may be symbolic
        exact = sparse.search == EXACT and self._period == 1 and constant
        if sparse.masks:
            raise InvalidValue(
                f"layer {sparse.name!r} selects by block, scope, method or random masks that torch.compile cannot "
                "follow; allowed is block (1, 1) and scope 'nchw' with method 'histogram' or 'sample'. Call "
                "torch.compiler.disable on the model, or train it in eager mode."
            )
        on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
        fits = (
            on_cpu and has_kernels(x.shape[1], weight, *geometry[2:]) and not _is_depthwise(x, weight, groups)
        )
        y, _, record = torch.ops.torchswat.sparse_forward(
            x, weight, bias, self.sparse_state, None, activation_mask, self._schedule(),
            sparsity, weight.numel() - weight.numel() * zeros // of, kept, kept if exact else x.numel(),
            stride, padding, dilation, groups, sparse.slots, sparse.search, self._period, self._warmup,
            TUNED if fits else 0, fits and x.dim() == 4, sparse.training_mode(self.training), wants_weight, False,
            sparse.name,
        )  # fmt: skip
        if self.training:
            self.sparse_state.copy_(record)
        return y

    def _schedule(self) -> Tensor | None:
        """Return the sparsities of all iterations as a tensor; None without a schedule."""
        if callable(self.sparse.sparsity) and self.sparse_schedule is None:
            raise InvalidValue(
                f"the schedule of layer {self.sparse.name!r} is a function that torch.compile cannot follow; "
                "use one of torchswat.schedules, or give it an attribute `last`, the iteration from which on it is "
                "constant, before sparsify_ is called."
            )
        return self.sparse_schedule

    @torch.no_grad()
    def selected_weights(self, sparsity: float, weight: Tensor | None = None) -> Tensor:
        """Return the mask (bool, like the weight) of the weights that an evaluation selects at `sparsity`.

        `weight` stands for the layer's own, of which this process may hold a part only.
        """
        sparse = self.sparse
        weight = cast(Tensor, self.weight if weight is None else weight).detach()
        selector, last = sparse.selectors["weight"], sparse.last_iteration()
        name = f"the weight of layer {sparse.name!r}"
        if selector.in_operation and sparse.packable:
            due = selector.period == 1 or last < selector.warmup or last % selector.period == 0
            threshold = state_words.threshold(sparse.state, "weight")
            if not due and threshold is not None and sparsity == state_words.get(sparse.state, 3):
                return weight.abs() >= threshold
            selector = replace(selector, state=state_words.new_state(), rows=None)
        elif not selector.random and sparsity != sparse.sparsity_now(
            last
        ):  # its thresholds are of another one
            selector = replace(selector, state=state_words.new_state(), rows=None)
        return selector(weight, sparsity, last, name, remember=False)

    # ---- nn.Module -----------------------------------------------------------------------------------------

    def __prepare_scriptable__(self) -> Any:
        raise not_traceable(self.sparse.name, "torch.jit.script")

    @property
    def qconfig(self) -> Any:
        """What a quantizer of torch sets on every layer that it looks at."""
        if "qconfig" not in vars(self):
            raise AttributeError("qconfig")
        return vars(self)["qconfig"]

    @qconfig.setter
    def qconfig(self, value: Any) -> None:
        vars(self)["qconfig"] = value
        warnings.warn(
            "a quantizer looked at sparse layers. Quantizers find layers by their exact class, so they "
            "leave these as they "
            "are; call torchswat.desparsify_(torchswat.prune_(model)) first.",
            stacklevel=3,
        )

    @qconfig.deleter
    def qconfig(self) -> None:
        vars(self).pop("qconfig", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Apply as torch does, but keep what the layer remembers where memory is made anew (`to_empty`)."""
        before = self.sparse_state.detach().clone()
        result = super()._apply(fn, recurse)
        after = self.sparse_state
        if not after.is_meta:
            after.copy_(state_words.new_state() if before.is_meta else before)
        self.sparse.use_state(after)
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        carried = f"{prefix}sparse_state" in state_dict
        if not carried and "sparse_state" not in self._non_persistent_buffers_set:
            state_dict = {
                **state_dict,
                f"{prefix}sparse_state": self.sparse_state,
            }  # a checkpoint of a plain model
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.sparse.use_state(self.sparse_state)
        if not carried:
            self.sparse.forget()


def _refuse_transforms(name: str, input: Any) -> None:
    """Raise `InvalidValue` under the transforms of torch that would give wrong numbers or no sense."""
    if torch._C._are_functorch_transforms_active():
        raise InvalidValue(
            f"layer {name!r} is sparse and was reached by a transform of torch.func (grad, vmap, jvp, functionalize); "
            "its gradient is a straight-through estimate that these cannot use. Call torchswat.desparsify_ "
            "first, or "
            "torch.func.functional_call with torch.autograd.grad."
        )
    if torch._C._get_tracing_state() is not None:
        raise not_traceable(name, "torch.jit.trace or by the old ONNX exporter")
    if type(input) is torch.fx.Proxy:
        raise not_traceable(name, "torch.fx.symbolic_trace (torch's graph mode quantization calls it)")


class SparseConv2d(SparseLayer, nn.Conv2d):
    """A Conv2d whose products run on selected operands; made by `torchswat.sparsify_`.

    Input and output are those of `torch.nn.Conv2d`. What was saved for backward is freed by it, and a second
    derivative is refused with an error.

    Raises
    ------
    InvalidValue
        For an input of the wrong shape, naming the layer.
    NotFinite
        Where a tensor to select from has a NaN, naming the layer.
    """

    def forward(self, input: Tensor) -> Tensor:  # input  # (N, C, H, W) or (C, H, W)
        return self.forward_recomputing(input, None)

    def forward_recomputing(self, input: Tensor, recompute: RecomputeInfo | None) -> Tensor:
        """Return ``self(input)``; given what `input` was computed from, it is not saved but computed again."""
        if not torch.compiler.is_compiling():
            _refuse_transforms(self.sparse.name, input)
        channels = input.shape[-3] if input.dim() in (3, 4) else None
        if channels != self.in_channels:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}; "
                f"allowed is (N, {self.in_channels}, H, W) or ({self.in_channels}, H, W)."
            )
        if input.dim() == 3:
            return self.forward_recomputing(input.unsqueeze(0), None).squeeze(0)
        padded, kernel = self._extents(input)
        if padded[0] < kernel[0] or padded[1] < kernel[1]:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}, with padding "
                f"{padded[0]} x {padded[1]}; its kernel needs {kernel[0]} x {kernel[1]} at least."
            )
        padding = self._product_padding()
        geometry: Any = self.stride, padding or (0, 0), self.dilation, self.groups
        if not self.sparse.packable:
            return _masked_pass(self, input, Conv2dProducts(*geometry), None if padding else self._pad)
        return _in_autocast(self, input, geometry, None if padding else self._pad, recompute)

    def _pad(self, tensor: Tensor) -> Tensor:
        return F.pad(tensor, self._reversed_padding_repeated_twice, mode=self.padding_mode)

    def takes_chwn(self, input: Tensor) -> bool:
        """Return whether an `input` (N, C, H, W) of these sizes is converted to the CHWN layout here."""
        (height, width), kernel = self._extents(input)
        fits = input.shape[1] == self.in_channels and height >= kernel[0] and width >= kernel[1]
        padding = self._product_padding()
        weight, narrow = self.weight, input.dtype is torch.bfloat16
        if not fits or padding is None or not input.numel():
            return False
        geometry: Geometry = self.stride, padding, self.dilation, self.groups  # type: ignore[assignment]
        if _is_depthwise(input, weight, self.groups) or not has_kernels(
            self.in_channels, weight, *geometry[2:]
        ):
            return False
        native = native_for_bfloat16(input, weight) if narrow else native_for(input, weight)
        if not self.sparse.packable or native is None:
            return False
        sparsity = self.sparse.sparsity_now(self._this_iteration())
        shape = shape_of(input.shape, weight.shape, *geometry, narrow)
        return sparsity > 0 and plan.products_of(plan.choose(shape, sparsity)) != 0

    def _extents(self, input: Tensor) -> tuple[tuple[int, int], list[int]]:
        """Return height and width of the padded `input` and of the dilated kernel."""
        left, right, top, bottom = self._reversed_padding_repeated_twice
        kernel = [d * (k - 1) + 1 for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        return (input.shape[2] + top + bottom, input.shape[3] + left + right), kernel

    def _product_padding(self) -> Padding | None:
        """Return the zeros that the products add, or None where the input is to be padded before."""
        if self.padding_mode != "zeros":
            return None
        left, right, top, bottom = self._reversed_padding_repeated_twice
        symmetric = left == right and top == bottom
        return (top, left) if symmetric else (top, left, bottom, right)


class SparseLinear(SparseLayer, nn.Linear):
    """A Linear whose products run on selected operands; made by `torchswat.sparsify_`.

    Input and output are those of `torch.nn.Linear`; leading dimensions are one batch to the selection.

    Raises
    ------
    InvalidValue
        For an input of the wrong shape, naming the layer.
    NotFinite
        Where a tensor to select from has a NaN, naming the layer.
    """

    def forward(self, input: Tensor) -> Tensor:  # input  # (*, in_features)
        if not torch.compiler.is_compiling():
            _refuse_transforms(self.sparse.name, input)
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise InvalidValue(
                f"layer {self.sparse.name!r} got an input of shape {tuple(input.shape)}; "
                f"allowed is (*, {self.in_features})."
            )
        matrix = input if input.dim() == 2 else input.reshape(-1, self.in_features)
        if self.sparse.packable:
            output = _in_autocast(self, matrix, _MATRIX, None, None)
        else:
            output = _masked_pass(self, matrix, LinearProducts(), None)
        return output if input.dim() == 2 else output.reshape(*input.shape[:-1], self.out_features)


def _is_depthwise(x: Tensor, weight: Tensor, groups: int) -> bool:
    """Return whether every channel has a kernel of its own."""
    return groups > 1 and groups == len(weight) == x.shape[1]


def has_kernels(channels: int, weight: Tensor, dilation: Pair, groups: int) -> bool:
    """Return whether the compiled kernels know the geometry: taps apart from each other only so far."""
    if dilation == (1, 1):
        return True
    near = all(d * (k - 1) <= _FARTHEST_TAP for d, k in zip(dilation, weight.shape[2:], strict=True))
    return near and not (groups > 1 and groups == channels == len(weight))


_MATRIX: Geometry = (1, 1), (0, 0), (1, 1), 1


def _in_autocast(
    layer: SparseLayer,
    x: Tensor,
    geometry: Geometry,
    pad: Callable[[Tensor], Tensor] | None,
    recompute: RecomputeInfo | None,
) -> Tensor:
    """Run a pass with what surrounds it: a sparsity of zero, padding that the products do not do, autocast."""
    sparse = layer.sparse
    if callable(sparse.sparsity) and not torch.compiler.is_compiling():
        moment = moment_of(sparse.training_mode(layer.training))
        sparsity = sparse.sparsity_now(sparse.last_iteration() if moment.last else sparse.iteration)
        if sparsity == 0:
            if moment.advances:
                sparse.iteration += 1
            if moment.remembers:
                state_words.put(layer.sparse_state, state_words.SPARSITY, 0.0)
            return cast(Any, super(SparseLayer, layer)).forward(x)
    elif sparse.sparsity == 0:
        return cast(Any, super(SparseLayer, layer)).forward(x)
    entries, mask = x.numel(), None
    if pad is not None:
        # what is selected before padding is padded as a mask, whose entries then repeat
        mask, x, recompute = _padded_mask(layer, x, pad), pad(x), None
    device, weight = x.device.type, cast(Tensor, layer.weight)
    if _in_autocast_of(x) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
    elif x.is_cpu and x.dtype is torch.bfloat16 and weight.dtype is torch.float32:
        dtype = x.dtype  # of a layer under autocast, read by one outside of it
    else:
        return layer._pass(x, geometry, entries, mask, recompute)
    if dtype is torch.bfloat16 and _multiplies_bfloat16(layer, x, geometry):
        if x.dtype is not dtype:
            recompute = None  # of values before they are rounded
        with torch.autocast(device, enabled=False):
            return layer._pass(x.to(dtype), geometry, entries, mask, recompute)
    # autocast does not reach into the operation: it selects by the values before they are rounded
    with torch.autocast(device, enabled=False):
        return layer._pass(x.to(weight.dtype), geometry, entries, mask).to(dtype)


def _multiplies_bfloat16(layer: SparseLayer, x: Tensor, geometry: Geometry) -> bool:
    """Return whether the compiled kernels run a pass in bfloat16: plain tensors, in pairs of samples."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    weight = cast(Tensor, layer.weight)
    if not has_kernels(x.shape[1], weight, *geometry[2:]) or len(x) % 2 or not x.numel() or not has_memory(x):
        return False
    return native_for(weight, cast("Tensor | None", layer.bias)) is not None


def _in_autocast_of(x: Tensor) -> bool:
    """Return whether autocast is on for the device of `x`; some, such as meta, have none."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    device = x.device.type
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _padded_mask(layer: SparseLayer, x: Tensor, pad: Callable[[Tensor], Tensor]) -> Tensor | None:
    sparse = layer.sparse
    if "activation" not in sparse.selectors or not torch.is_grad_enabled():
        return None
    if torch.compiler.is_compiling():
        raise InvalidValue(
            f"layer {sparse.name!r} pads by {cast(Any, layer).padding_mode!r}, which torch.compile cannot follow here; "
            "leave it out by skip=, or train in eager mode."
        )
    sparsity = sparse.sparsity_now(layer._this_iteration())
    mask = layer._mask("activation", x, sparsity)
    return pad(mask.to(torch.float32)) != 0


# ---- algorithms that select other operands -----------------------------------------------------------------


def _masked_pass(
    layer: SparseLayer, x: Tensor, products: Products, pad: Callable[[Tensor], Tensor] | None
) -> Tensor:
    """Run a pass of an algorithm that selects forward activations, gradients or outputs."""
    if torch.compiler.is_compiling():
        raise InvalidValue(
            f"layer {layer.sparse.name!r} is of the algorithm {layer.sparse.algorithm.name!r}, which torch.compile "
            "cannot follow; allowed are swat, saw and forward-weight. Train in eager mode."
        )
    sparse, row = layer.sparse, layer.sparse.algorithm
    moment = moment_of(sparse.training_mode(layer.training))
    iteration = sparse.last_iteration() if moment.last else sparse.iteration
    sparsity = sparse.sparsity_now(iteration)
    if moment.advances:
        sparse.iteration = iteration + 1
    if moment.remembers:
        state_words.put(layer.sparse_state, state_words.SPARSITY, sparsity)
    if sparsity == 0:
        return cast(Any, super(SparseLayer, layer)).forward(x)
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    mask = weight_mask = output_mask = None
    if row.selects("activation"):
        mask = layer._mask("activation", x, sparsity, iteration)
    if row.selects("weight"):
        weight_mask = layer._mask("weight", weight, sparsity, iteration)
    if pad is not None:
        mask = None if mask is None else pad(mask.to(torch.float32)) != 0
        x = pad(x)
    device, autocast = x.device.type, _in_autocast_of(x)
    if autocast and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)

    def gradient_mask(gradient: Tensor) -> Tensor | None:
        name = f"the output gradient of layer {sparse.name!r}"
        try:
            return sparse.selectors["gradient"](gradient, sparsity, iteration, name, moment.remembers)
        except NotFinite:  # all of it goes on: a GradScaler sees the NaN and skips the step
            return None

    with torch.autocast(device, enabled=False) if autocast else nullcontext():
        if row.projected_output:
            output_mask = predicted_mask(products, x, weight, sparsity, sparse.name)
            if moment.remembers and not output_mask.is_meta:
                share = int(output_mask.count_nonzero()) / max(1, output_mask.numel())
                state_words.put_density(layer.sparse_state, "output", share)
        gradients = gradient_mask if row.selects("gradient") else None
        masks = Masks(mask, weight_mask, output_mask, gradients)
        output = MaskedProducts.apply(x, weight, bias, products, row, masks)
    assert isinstance(output, Tensor)
    if output_mask is not None:  # for DSG's second mask, behind batch norm
        output.torchswat_mask = output_mask  # type: ignore[attr-defined]
    return output


SPARSE_CLASSES: dict[type[nn.Module], type[SparseLayer]] = {nn.Conv2d: SparseConv2d, nn.Linear: SparseLinear}
"""Which dense class becomes which sparse one."""
